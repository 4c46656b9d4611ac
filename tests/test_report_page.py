"""The page of a run: what it shows, that it loads nothing, and how it behaves in a browser."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import html.parser
import io
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import plotly.graph_objects as go
import pytest

from hypergrad._foundation.records import write_json, write_jsonl, write_npz
from hypergrad.plotting.styles import styles_of
from hypergrad.workbench import studies
from hypergrad.workbench.command_line import main as cli
from hypergrad.workbench.studies import ImageStudy
from hypergrad.workbench.studies.report_page import report_page
from hypergrad.workbench.studies.report_page.pictures import encode
from hypergrad.workbench.studies.report_page.runs import command_again

HOSTILE = "mine:x=<img src=https://example.org/a.png onerror=alert(1)></script>"
LABELS = ["full", "truncation:k=1", "limit:cgls", HOSTILE]


def make_run(folder: Path, seed: int = 0, **settings: Any) -> Path:
    """A folder as a finished run leaves it; in it the later a strategy, the lower its loss."""
    rng = np.random.default_rng(seed)
    config = dataclasses.asdict(ImageStudy(strategies=tuple(LABELS), seed=seed)) | settings
    comparison = [
        {"strategy": label, "relative_error": error, "milliseconds": 7.25 * cost,
         "over_forward": cost, "loss": rng.random()}
        for label, error, cost in zip(
            LABELS, (1e-14, 0.4, 9e-15, None), (3.5, 1.0625, 1.25, 2.5), strict=True
        )
    ]  # fmt: skip
    training = [
        {"kind": "training", "strategy": label, "epoch": epoch,
         "seconds": epoch * (i + rng.random()), "train_loss": (1 + rng.random()) / (2 + i * epoch),
         "validation_loss": 2 / (2 + i * epoch)}
        for i, label in enumerate(LABELS)
        for epoch in range(4)
    ]  # fmt: skip
    evaluation = [{"operator": "untrained", "psnr_at_L": 26.0, "psnr_converged": 26.125}] + [
        {"operator": label, "psnr_at_L": 26.5 + i, "psnr_converged": rng.random(),
         "best_epoch": 3, "seconds": 1.5}
        for i, label in enumerate(LABELS)
    ]  # fmt: skip
    write_json(folder / "config.json", config)
    write_json(folder / "environment.json", {"python": "3.11.7", "packages": {"jax": "0.10.77"}})
    write_jsonl(folder / "comparison.jsonl", comparison)
    rows = [{"kind": "evaluation", **row} for row in evaluation]
    write_jsonl(folder / "records.jsonl", [*training, *rows])
    truth = np.full((40, 60), 255 * (seed + 1) // 4, np.uint8)
    noisy = rng.integers(0, 255, truth.shape).astype(np.uint8)
    restored = {label: truth + np.uint8(i + 1) for i, label in enumerate(LABELS)}
    pictures = {"observed": noisy, **restored, "truth": truth}
    write_npz(folder / "photograph_camera.npz", pictures, compress=True)
    metrics = {name: {"psnr": 20 + rng.random(), "ssim": rng.random()} for name in [*LABELS]}
    write_json(folder / "photograph.json", metrics)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="module")
def page(run) -> str:
    return report_page([run])


class Read(html.parser.HTMLParser):
    """The elements of a page with their attributes, and the text of its cells and scripts."""

    def __init__(self, text: str) -> None:
        html.parser.HTMLParser.__init__(self)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data) -> None:
        self.texts.append((self.elements[-1][0] if self.elements else "", data))


def script(page: str, name: str) -> Any:
    """The JSON of a script element."""
    found = re.search(
        f'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL
    )
    assert found is not None
    assert "<" not in found[1]  # no text in it can end the element
    return json.loads(found[1])


def numbers_of(folder: Path) -> Iterator[float]:
    for name in ("records.jsonl", "comparison.jsonl"):
        for line in (folder / name).read_text().splitlines():
            yield from (v for v in json.loads(line).values() if isinstance(v, float))
    for metrics in json.loads((folder / "photograph.json").read_text()).values():
        yield from metrics.values()


def test_all_numbers_of_the_records_are_in_its_tables(run, page):
    cells = {a["data-value"] for tag, a in Read(page).elements if tag == "td" and "data-value" in a}
    missing = [number for number in numbers_of(run) if repr(number) not in cells]
    assert not missing
    assert {"26.5", "27.5"} <= cells


def test_it_loads_nothing_and_stays_small(page):
    assert len(page.encode()) < 5_000_000
    loads = [
        a.get(key) for _, a in Read(page).elements for key in ("src", "href", "data") if key in a
    ]
    assert all(str(link).startswith("data:") for link in loads)
    assert not re.search(r"url\(|@import|\bfetch\(|XMLHttpRequest", page)


def test_names_from_files_are_escaped(page):
    read = Read(page)
    # As text it appears, as an element it does not; no attribute runs code.
    assert any(HOSTILE in data for tag, data in read.texts if tag == "td")
    assert not [a for _, a in read.elements if any(name.startswith("on") for name in a)]
    assert "example.org/a.png onerror=alert(1)></script>" not in page
    names = [trace["name"] for figure in script(page, "figures") for trace in figure["data"]]
    assert not [name for name in names if "<" in name]  # plotly.js reads tags


def test_its_curves_are_those_of_the_records(run, page):
    figures = script(page, "figures")
    assert len(figures) == 5
    styles = styles_of(LABELS)
    for figure in figures:
        go.Figure(figure)  # names every property that plotly.js does not know
        for trace, label in zip(figure["data"], LABELS, strict=False):
            assert trace["line"]["color"] == trace["marker"]["color"] == styles[label].color
            assert "fullData.name" in trace["hovertemplate"]
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    expected = {
        label: [(r["epoch"], r["validation_loss"]) for r in records if r.get("strategy") == label]
        for label in LABELS[:3]
    }
    held_out = {trace["name"]: trace for trace in figures[1]["data"]}
    for label, points in expected.items():
        drawn = held_out[label]
        assert list(zip(drawn["x"], drawn["y"], strict=True)) == points
    errors = {trace["name"]: (trace["x"], trace["y"]) for trace in figures[4]["data"]}
    # The one without an error is left out.
    assert errors == {"full": ([3.5], [1e-14]), "truncation:k=1": ([1.0625], [0.4]),
                      "limit:cgls": ([1.25], [9e-15])}  # fmt: skip


def test_conclusions_name_the_best(page):
    said = [data for tag, data in Read(page).texts if tag == "p"]
    assert "limit:cgls: the exact gradient for 1.2 forward solves" in said
    assert f"{HOSTILE}: the largest gain, +3.50 dB PSNR on held-out data" in said
    assert any(
        text.startswith(f"{HOSTILE}: the lowest held-out loss, 0.1818 in epoch 3") for text in said
    )


def test_warnings_take_the_place_of_conclusions(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "degenerate")
    write_json(folder / "reference.json", {"certified": 0.9, "differentiable": 0.1})
    metrics = {"untrained": (20.0, 0.5), "full": (21.0, 0.4), "limit:cgls": (21.0, 0.6)}
    write_json(folder / "photograph.json", {
        name: {"psnr": psnr, "ssim": ssim} for name, (psnr, ssim) in metrics.items()
    })  # fmt: skip
    said = "\n".join(data for tag, data in Read(report_page([folder])).texts if tag == "p")
    assert "Warning: gradients are not unique." in said
    assert "differentiable on 10 % of the samples" in said
    assert "the exact gradient for" not in said
    assert "SSIM fell by learning while PSNR rose: full (0.500 to 0.400). " in said


def decoded(uri: str) -> np.ndarray:
    with PIL.Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return np.asarray(image.convert("L"))


def test_pictures_are_those_of_the_file(run, page):
    uris = script(page, "pictures")
    with np.load(run / "photograph_camera.npz") as stored:
        for uri, name in zip(uris, stored.files, strict=True):
            assert np.array_equal(decoded(uri), stored[name])  # without loss


def test_still_pictures_are_there_and_an_old_photograph(run, tmp_path):
    """A run before the page was written has its photograph as one figure only."""
    folder = shutil.copytree(run, tmp_path / "old")
    (folder / "photograph_camera.npz").unlink()
    greys = {"patches.png": 10, "operator_full.png": 100, "photograph_camera.png": 200}
    for name, grey in greys.items():
        PIL.Image.new("RGB", (9, 5), (grey,) * 3).save(folder / name)
    page = report_page([folder])
    assert 'class="viewer"' not in page
    uris = script(page, "pictures")
    shown = re.findall(r'<summary>(\w+)</summary><img data-picture="(\d)"', page)
    assert {f"{name}.png": decoded(uris[int(i)])[0, 0] for name, i in shown} == greys


def test_pictures_shrink_to_the_room_there_is(run):
    noise = np.random.default_rng(0).integers(0, 255, (300, 300)).astype(np.uint8)
    images = [PIL.Image.fromarray(noise)] * 3
    whole, lost = encode(images, 10_000_000)
    assert lost == ""
    fewer, lost = encode(images, sum(map(len, whole)) // 8)
    assert sum(map(len, fewer)) <= sum(map(len, whole)) // 8
    assert "quality" in lost
    assert sum(map(len, encode(images, 0)[0])) < sum(map(len, fewer))  # there is no room: smallest


def test_two_runs_side_by_side(run, tmp_path):
    second = make_run(tmp_path / "second", seed=1, noise=0.375)
    page = report_page([run, second])
    read = Read(page)
    cells = {a["data-value"] for tag, a in read.elements if tag == "td" and "data-value" in a}
    for folder in (run, second):
        assert {repr(number) for number in numbers_of(folder)} <= cells
    traces = [trace for figure in script(page, "figures") for trace in figure["data"]]
    assert {"full (first)", "full (second)"} <= {trace["name"] for trace in traces}
    looks = {(t["name"], t["line"]["color"], t["marker"]["symbol"]) for t in traces}
    assert len({look[1:] for look in looks}) == len(looks) == 8  # no two curves look the same
    assert re.search(r'<tr class="differs"><th>noise</th><td>0.1</td><td>0.375</td>', page)
    assert "<tr><th>patch</th><td>8</td><td>8</td>" in page
    assert page.count('class="viewer"') == 2  # two scenes
    assert len(page.encode()) < 5_000_000


def test_sections_without_files_are_left_out(run, tmp_path):
    folder = tmp_path / "begun"
    folder.mkdir()
    shutil.copy(run / "config.json", folder)
    page = report_page([folder])
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Run it again", "Settings"]
    # An interrupted run has epochs, but no evaluation yet; a number that is not finite is null.
    lines = (run / "records.jsonl").read_text().splitlines()
    null = json.loads(lines[5]) | {"train_loss": None, "validation_loss": None}
    (folder / "records.jsonl").write_text("\n".join([*lines[:5], json.dumps(null)]))
    assert "Loss while learning" in report_page([folder])


@pytest.mark.parametrize(
    "words",
    [
        "--quick --strategies full limit:steps=2",
        "--epochs 3 --batch-size 5 --learning-rate 0.5 --noise 0.2 --iterations 9 --dtype float32",
        "--preset overcomplete --patch 6 --data 'my photographs' --skip-unreadable",
        "--quick --preset degenerate --F Huber:smoothing=0.01 --patch 5 --seed 4",
        "--no-row-weights --K random:rows=96,seed=1 --loss mine:loss",
    ],
)
def test_the_command_runs_the_same_settings(words, monkeypatch, tmp_path):
    """The parser of the command line is the oracle."""
    seen = []
    monkeypatch.setattr(studies, "run_image_study", lambda *given: seen.append(given[0]))
    monkeypatch.setattr("hypergrad.workbench.command_line.specs.parse_loss", lambda text: None)
    monkeypatch.chdir(tmp_path)
    dtype = ["--dtype", "float64"] if "float32" not in words else []
    with contextlib.suppress(SystemExit):
        cli.main(["compare", *shlex.split(words), *dtype])
        again = command_again(json.loads(json.dumps(dataclasses.asdict(seen[0]))))
        assert again is not None
        program, *arguments = shlex.split(again)
        assert program == "hypergrad"
        cli.main(arguments)
    import jax

    jax.config.update("jax_enable_x64", True)
    assert len(seen) == 2
    assert seen[0] == seen[1]


def test_settings_made_in_python_have_no_command():
    assert command_again({"strategies": ["full"], "stride": 3}) is None


# ------------------------------------------------------------------------------ the command


def call(capsys, *words: object) -> tuple[int, str, str]:
    try:
        status = cli.main(["report", *map(str, words)])
    except SystemExit as end:
        status = end.code
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_the_command_writes_the_page(run, page, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "first")
    assert call(capsys, folder) == (0, f"written to {folder / 'report.html'}\n", "")
    assert (folder / "report.html").read_text("utf-8") == page
    out = tmp_path / "made" / "both.html"
    second = make_run(tmp_path / "second", seed=1)
    assert call(capsys, folder, second, "--out", out)[0] == 0
    assert out.read_text("utf-8") == report_page([folder, second])


def test_bad_input_of_the_command(run, tmp_path, capsys):
    broken = shutil.copytree(run, tmp_path / "broken")
    (broken / "photograph_camera.npz").write_bytes(b"PK")
    spoilt = shutil.copytree(run, tmp_path / "spoilt")
    (spoilt / "photograph.json").write_text("[]")
    for words, status, reason in [
        ((), 2, "at least one folder"),
        ((tmp_path,), 1, "config.json"),
        ((tmp_path / "nothing",), 1, "config.json"),
        ((run, run), 1, "name each folder once"),
        ((run, "--out", "page.txt"), 2, "ends in .html"),
        ((broken,), 1, "photograph_camera.npz"),
        ((spoilt,), 1, "photograph.json"),
    ]:
        got, out, err = call(capsys, *words)
        assert (got, out, err.count("\n")) == (status, "", 1), words
        assert err.startswith("hypergrad: ")
        assert reason in err


# ------------------------------------------------------------------------------ the browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    driver = pytest.importorskip("playwright.sync_api", reason="no playwright to drive a browser")
    found = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if found is None:
        pytest.skip("no Chromium on this machine")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with driver.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=sandbox)
        yield chromium
        chromium.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("count", [1, 2])
def test_in_a_browser(browser, run, tmp_path, width, count):
    runs = [run, make_run(tmp_path / "a second run", seed=1)][:count]
    path = tmp_path / "page.html"
    path.write_text(report_page(runs), "utf-8")
    tab = browser.new_page(viewport={"width": width, "height": 900})
    problems, requests = [], []
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("dialog", lambda dialog: problems.append(dialog.message))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(path.as_uri())
    tab.wait_for_function("document.querySelectorAll('.curves .main-svg .xtitle').length >= 5")
    assert tab.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out

    # A table sorts by the heading that is clicked, up and then down.
    table = tab.locator("table.sortable").first
    column = 1 + table.locator("th").all_inner_texts().index("held-out PSNR at L (dB)")
    cells = f"document.querySelectorAll('section:first-of-type td:nth-child({column})')"
    values = f"[...{cells}].map(cell => +cell.dataset.value)"
    expected = sorted([26.0, 26.5, 27.5, 28.5, 29.5] * count)
    table.locator(f"th:nth-child({column}) button").click()
    assert tab.evaluate(values) == expected
    table.locator(f"th:nth-child({column}) button").click()
    assert tab.evaluate(values) == expected[::-1]

    # Hovering names the point.
    point = tab.locator(".curves").nth(1).locator(".scatterlayer .point").nth(4 + 2)
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    hover = tab.locator(".curves").nth(1).locator(".hoverlayer .hovertext")
    hover.first.wait_for()
    label = " ".join(hover.all_text_contents())
    assert "truncation:k=1" in label
    assert "epoch 2" in label
    assert "loss 0.5" in label

    # The slider uncovers the right picture, dragged or by keys, and the lists change pictures.
    viewer = tab.locator(".viewer").first
    share = "document.querySelector('.viewer img.left').style.clipPath"
    assert "50%" in tab.evaluate(share)
    viewer.locator("input").focus()
    tab.keyboard.press("ArrowRight")
    assert "49%" in tab.evaluate(share)
    stack = viewer.locator(".stack")
    stack.scroll_into_view_if_needed()
    box = stack.bounding_box()
    tab.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 5)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 5)
    tab.mouse.up()
    assert "80%" in tab.evaluate(share)
    shown = viewer.locator("img.right").get_attribute("src")
    viewer.locator("select.right").select_option(label="truth (first)" if count > 1 else "truth")
    assert viewer.locator("img.right").get_attribute("src") != shown
    assert tab.evaluate("[...document.images].every(image => image.src.startsWith('data:'))")

    assert problems == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    tab.close()

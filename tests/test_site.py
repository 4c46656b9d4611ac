"""The documentation builds strictly, and its pages name all that they have to name."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hypergrad as hg

ROOT = Path(__file__).parents[1]
GUIDES = Path("hypergrad", "workbench", "guides")


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", ".docs/mkdocs.yml"]
    return subprocess.run(
        [*command, "-d", str(site)],
        cwd=root,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT, folder)
    assert built.returncode == 0, built.stderr
    return folder


def page(site: Path, name: str) -> str:
    return (site / name / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (
            "[a page](nowhere.md) [a place](concepts.md#nowhere)",
            ("nowhere.md", "#nowhere", "Aborted with 2 warnings in strict mode"),
        ),
        ("::: hypergrad.Nothing", ("hypergrad.Nothing",)),  # which ends the build where it stands
    ],
)
def test_what_is_missing_fails_the_build(tmp_path, text: str, messages: tuple[str, ...]) -> None:
    for folder in (".docs", "hypergrad"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    with (tmp_path / GUIDES / "citing.md").open("a", encoding="utf-8") as guide:
        guide.write(f"\n{text}\n")
    built = build(tmp_path, tmp_path / "site")
    assert built.returncode != 0
    assert all(message in built.stderr + built.stdout for message in messages)


def test_a_page_loads_nothing_from_elsewhere(site) -> None:
    """No fonts, no styles, no pictures, and formulas as MathML without a rest of TeX."""
    texts = [path.read_text(encoding="utf-8") for path in site.rglob("*.html")]
    loaded = r"<(?:script|img|iframe|link [^>]*stylesheet)[^>]*(?:src|href)=\"(https?:[^\"]*)"
    assert not {url for text in texts for url in re.findall(loaded, text)}
    formulas = [math for text in texts for math in re.findall(r"<math.*?</math>", text, re.DOTALL)]
    assert len(formulas) > 100
    assert not [math for math in formulas if "\\" in math]
    assert not any('class="arithmatex"' in text for text in texts)


@pytest.mark.parametrize("name", ["learning", "comparing"])
def test_tutorials_are_notebooks_with_the_outputs_of_the_page(site, name: str) -> None:
    """The code and its outputs are run and compared in the tests of the guides."""
    cells = json.loads((site / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    written = (ROOT / GUIDES / f"{name}.md").read_text(encoding="utf-8")
    blocks = dict.fromkeys(("python", "text"), "")
    for language in blocks:
        blocks[language] = "".join(re.findall(rf"```{language}\n(.*?)```", written, re.DOTALL))
    assert "\n".join(cell["source"] for cell in code).split() == blocks["python"].split()
    assert "".join(out["text"] for cell in code for out in cell["outputs"]) == blocks["text"]
    assert f'href="../{name}.ipynb"' in page(site, name)


def test_every_public_name_is_in_the_reference(site) -> None:
    operators = [
        f"operators.{name}"
        for name, value in vars(hg.operators).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("hypergrad")
    ]
    shown = set(re.findall(r'id="hypergrad\.([\w.]+)"', page(site, "api")))
    assert {"solve", "operators.dct"} <= {*hg.__all__, *operators}
    assert not {*hg.__all__, *operators} - shown


def test_doctests_are_code_in_the_reference(site) -> None:
    """Plain Markdown would read `>>>` as a quotation."""
    reference = page(site, "api")
    assert "<blockquote>" not in reference
    assert reference.count('<span class="gp">') > 100  # the prompts of highlighted code


def test_every_status_has_its_heading(site) -> None:
    headings = re.findall(r"<h2[^>]*><code>(\w+)</code>", page(site, "troubleshooting"))
    assert headings == list(hg.Status.__members__)


def test_the_figures_are_embedded(site) -> None:
    """They are stored outside the folder of the pages; a wrong path would go unnoticed."""
    embedded = 'src="data:image/webp;base64,'
    assert (site / "index.html").read_text(encoding="utf-8").count(embedded) == 1
    stored = list((ROOT / "paper_figs").glob("*.webp"))
    assert page(site, "gallery").count(embedded) == len(stored) > 1

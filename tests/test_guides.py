"""The guides are run as they are written, and what they point at is there."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import soundfile

import hypergrad as hg
from hypergrad.workbench import studies as image_study
from hypergrad.workbench.command_line import main as cli
from hypergrad.workbench.command_line.specs import parse_function, parse_loss, parse_operator
from hypergrad.workbench.studies import baselines, learning, stages

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / "hypergrad" / "workbench" / "guides"
PAGES = [ROOT / "README.md", *sorted(GUIDES.glob("*.md"))]


def blocks(page: str) -> list[tuple[str, str]]:
    """The code of a guide, each piece after its language."""
    text = (GUIDES / page).read_text(encoding="utf-8")
    return re.findall(r"```(bash|python)\n(.*?)```", text, flags=re.DOTALL)


BLOCKS = blocks("own.md")
TRAIN, RESTORE, LOAD, PARTS, CHECKED, NAMED, USED, GIVEN, COMPOSED = range(9)
LOOP, BY_SAMPLE, RIGHT = blocks("library.md")


def shown(page: Path) -> tuple[str, str]:
    """The Python blocks of a page as one script, and the outputs that the page shows below them."""
    pairs = re.findall(
        r"```python\n(.*?)```(?:\n+prints.*?\n+```text\n(.*?)```)?",
        page.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    pairs = pairs[6:] if page.stem == "own" else pairs  # the others have tests of their own below
    return "\n".join(code for code, _ in pairs), "".join(output for _, output in pairs)


SHOWN = {page.stem: shown(page) for page in PAGES if page.stem != "library"}

# Everything but the words of the commands is in miniature.
SMALL = {
    "samples": 16, "held_out_samples": 16, "tuning_samples": 16, "epochs": 1, "batch_size": 8,
    "converged_iterations": 20, "repeats": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """A folder with the files that the guide speaks of, where its commands are run."""
    folder, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    for name in ("photos", "speech"):
        (folder / name).mkdir()
    clean = rng.integers(0, 256, (19, 21, 3), dtype=np.uint8)
    for name in ("photos/a.png", "photos/b.png", "clean.png", "noisy.png"):
        PIL.Image.fromarray(clean).save(folder / name)
    for name in ("speech/a.wav", "speech/b.flac", "quantised.wav"):
        soundfile.write(folder / name, np.sin(0.1 * np.arange(1000)), 16000)
    rows = rng.uniform(size=(20, 8))
    for name in ("rows.npy", "observed.npy"):
        np.save(folder / name, rows)
    (folder / "parts.py").write_text(BLOCKS[PARTS][1], encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        yield folder
    sys.modules.pop("parts", None)


@pytest.fixture
def small(folder, monkeypatch) -> Path:
    """Few samples; what is not the guide's matter (baselines, tables, pictures) is left out."""
    usual, operators = image_study.ImageStudy, baselines._analysis_operators

    def untrained(*given):
        return {"untrained": operators(*given)["untrained"]}

    monkeypatch.setattr(image_study, "ImageStudy", lambda **given: usual(**(given | SMALL)))
    monkeypatch.setattr(baselines, "_WEIGHTS", (0.5,))
    monkeypatch.setattr(baselines, "_analysis_operators", untrained)
    reference = {"certified": 1.0, "differentiable": 1.0}
    compared = hg.Comparison([{"strategy": "truncation:k=1"}], reference, {})
    monkeypatch.setattr(learning, "compare", lambda *given, **settings: compared)
    monkeypatch.setattr(hg.Comparison, "save", lambda comparison, out: None)
    left_out = {"evaluate_all": [], "draw": {}, "remarks": []} | dict.fromkeys(
        ("report", "learning_table", "about_the_table", "report_page"), ""
    )
    for name, nothing in left_out.items():
        monkeypatch.setattr(stages, name, lambda *given, nothing=nothing: nothing)
    return folder


def run_lines(number: int, capsys, only: str) -> str:
    """The commands of a block with this word, in this process; what they print."""
    language, block = BLOCKS[number]
    assert language == "bash"
    printed = ""
    for line in filter(lambda line: only in line, block.splitlines()):
        program, *words = shlex.split(line)
        assert program == "hypergrad"
        status = cli.main(words)
        out, err = capsys.readouterr()
        assert status == 0, err
        printed += out
    return printed


def run_python(number: int) -> dict:
    return run_block(BLOCKS[number])


def run_block(language_and_code: tuple[str, str]) -> dict:
    language, block = language_and_code
    assert language == "python"
    namespace: dict = {}
    with jax.numpy_dtype_promotion("standard"):  # the reader has not set strict promotion
        exec(compile(block, "guide", "exec", dont_inherit=True), namespace)
    return namespace


def test_a_folder_of_pictures_and_a_restored_one(small, capsys) -> None:
    run_lines(TRAIN, capsys, "photos")
    assert run_lines(RESTORE, capsys, "photos").startswith("PSNR inf dB observed, ")
    with PIL.Image.open(small / "noisy-restored.png") as picture:
        assert (picture.size, picture.mode) == ((21, 19), "RGB")
    namespace = run_python(LOAD)
    assert namespace["x"].shape == (50, 70, 3)
    assert hg.load_operator(small / "mine.npz").solver.iterations == 200


@pytest.mark.slow
def test_sound_and_rows_and_restored_ones(small, capsys) -> None:
    """Not slow by itself: what is compiled for pictures is compiled twice more."""
    for kind in ("speech", "rows"):
        run_lines(TRAIN, capsys, kind)
        run_lines(RESTORE, capsys, kind)
    assert soundfile.info(small / "quantised-restored.wav").frames == 1000
    assert np.load(small / "restored.npy").shape == (20, 8)
    operator = hg.load_operator("results/speech/operator_truncation_k-1.npz")
    assert (operator.shape, operator.rate) == ((320,), 16000)


def test_own_parts_on_the_command_line(small, capsys) -> None:
    run_lines(NAMED, capsys, "parts:Fair")
    from parts import Fair  # pyright: ignore[reportMissingImports]

    path = "results/mine/operator_truncation_k-1.npz"
    with pytest.raises(ValueError, match="--own parts:Fair"):
        hg.load_operator(path)
    operator = hg.load_operator(path, own=[Fair])
    assert operator.problem.shape == (96, 64)
    assert operator.problem.F.scale == 0.05  # pyright: ignore[reportAttributeAccessIssue]
    weight = operator.problem.F.weight  # pyright: ignore[reportAttributeAccessIssue]
    assert weight == 0.5 * operator.solver.primal_scale  # in units of the noise
    assert (small / "mine.png").exists()


def test_own_parts_in_python(folder, capsys) -> None:
    learned = run_python(USED)["history"].problem.F
    assert learned.weight != 0.1
    assert learned.scale != 0.1
    assert "History(2 epochs" in capsys.readouterr().out


def test_own_function_obeys_the_laws(folder) -> None:
    run_python(CHECKED)


def test_an_operator_of_ones_own_is_its_matrix() -> None:
    found = run_python(GIVEN)
    problem, x_true, h = found["problem"], found["x_true"], found["h"]
    dense = hg.LowerLevel(problem.K.as_matrix(), problem.F, problem.G)
    expected = hg.hypergradient(dense, x_true + 0.1, x_true, strategy=hg.Truncation(k=1)).grad.K
    # The norm of an operator is estimated, so that its steps are a little shorter.
    along = jnp.vdot(expected, problem.K.as_matrix() / problem.K.scale)
    np.testing.assert_allclose(h.grad.K.scale, along, rtol=0.03)


def test_an_operator_of_low_rank_has_its_gradients() -> None:
    """The derivative of `A B` from that of the dense matrix."""
    found = run_python(COMPOSED)
    A, B, h = found["A"], found["B"], found["h"]
    dense = hg.hypergradient(
        hg.LowerLevel(K=A @ B, F=hg.L1(0.1), G=hg.Quadratic(1.0)),
        jnp.ones((4, 8)),
        jnp.zeros((4, 8)),
        solver=hg.ChambollePock(50),
        strategy=hg.Truncation(k=5),
    ).grad.K
    # The norm of a composed K is estimated, so that its steps are a little shorter.
    np.testing.assert_allclose(h.grad.K.operator1.matrix, dense @ B.T, rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(h.grad.K.operator2.matrix, A.T @ dense, rtol=2e-3, atol=1e-6)


def test_the_loop_of_the_library_guide_learns() -> None:
    values = run_block(LOOP)["values"]
    assert values[-1] < 0.9 * values[0]


def test_the_parameters_of_each_sample_make_its_gradient() -> None:
    found = run_block(BY_SAMPLE)
    i, problem = 3, found["problem"]
    seen = np.asarray(found["masks"][i], int)
    alone = dataclasses.replace(problem, G=hg.DataFidelity(hg.operators.Mask(seen)))
    sample = found["x_tilde"][i], found["x_true"][i]
    h = hg.hypergradient(alone, *sample, strategy=hg.Truncation(k=1))
    np.testing.assert_allclose(found["h"].grad.K[i], h.grad.K, atol=1e-12)
    losses = found["history"].column("train_loss")
    assert losses[-1] < 0.99 * losses[0]


def test_the_gradient_of_the_library_guide_is_right() -> None:
    found = run_block(RIGHT)
    exact, full, difference = map(float, found["slopes"])
    assert full == pytest.approx(exact, rel=1e-10)
    assert difference == pytest.approx(exact, rel=1e-7)
    assert np.all(np.asarray(found["exact"].solution.stats.status) == hg.Status.CONVERGED)


def test_the_prox_of_the_guide_is_one(folder) -> None:
    """It minimises what it says, and its derivative is right at 0 as well."""
    from parts import Fair  # pyright: ignore[reportMissingImports]

    f, step = Fair(0.7, 0.3), 0.9
    grid = jnp.linspace(-3, 3, 60001)
    value = np.asarray(f(grid[:, None]))
    for z in (-2.0, -0.1, 0.0, 0.4):
        best = grid[np.argmin(step * value + (np.asarray(grid) - z) ** 2 / 2)]
        assert f.prox(jnp.array(z), step) == pytest.approx(float(best), abs=1e-4)
    slope = (f.prox(jnp.array(1e-7), step) - f.prox(jnp.array(-1e-7), step)) / 2e-7
    assert jax.grad(lambda z: f.prox(z, step))(0.0) == pytest.approx(float(slope), rel=1e-5)


# ---------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Frobnicate", "a function must be one of DataFidelity, Box, "),
        ("AbstractFunction", "a function must be one of"),
        ("L1:0.1", "Unknown option '0.1' for 'L1'; choose weight"),
        ("L1:weight=", "must be name=value with a Python literal"),
        ("L1:weight=__import__('os')", "must be name=value with a Python literal"),
        ("L1:weight=1)or(2", "must be name=value with a Python literal"),
        ("L1:weight=-1.0", "L1.weight must be non-negative"),
        ("L1:weight=1,weight=2", "must give each option once"),
        ("Huber:weight=1.0", "'Huber' needs the option 'smoothing'; write Huber:smoothing=…"),
        ("Huber:smooth=1.0", "Unknown option 'smooth' for 'Huber'; choose weight, smoothing"),
        ("no_such_module:Name", "no_such_module:Name must be importable"),
        ("json:nothing", "json:nothing must be importable"),
        ("json:loads", "does not fit what it names"),
        ("builtins:dict:a=1", "must give a hypergrad.AbstractFunction; got"),
        ("sys:path", "must name a class or a function; got list"),
    ],
)
def test_words_that_name_no_function(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the words are looked at below
        parse_function(text).built()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_words_reach_the_run(folder, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(image_study, "run_image_study", lambda config, *_: seen.append(config))
    parts = {
        "K": "parts:second_differences", "F": "parts:Fair:scale=0.05",
        "G": "BoxQuadratic:radius=0.1,weight=2.0", "loss": "parts:charbonnier",
    }  # fmt: skip
    settings = {"patch": 6, "frame": 320, "bits": 4, "rate": 16000}
    words = [word for name, text in (parts | settings).items() for word in (f"--{name}", str(text))]
    assert cli.main(["train", *words]) == 0
    usual = image_study.ImageStudy(strategies=("truncation:k=1",))
    # Patches overlap by half where the photograph at the end is put together.
    assert seen == [dataclasses.replace(usual, **parts, **settings, stride=3)]


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("K", "random:row=3", "Unknown option 'row' for 'random'; choose rows, seed"),
        ("K", "random:shape=3", "Unknown option 'shape' for 'random'; choose rows, seed"),
        ("K", "random:rows=3.5", "rows must be a whole number of at least 1; got 3.5"),
        ("K", "random:seed='a'", "seed must be a whole number of at least 0; got 'a'"),
        ("K", "random:rows=3,rows=4", "must give each option once"),
        ("K", "parts:second_differences:k=2", "'parts:second_differences'; it takes none"),
        ("K", "frobnicate", "an operator must be one of dct, dct+random, "),
        ("F", "Huber:smooth=1", "Unknown option 'smooth' for 'Huber'; choose weight, smoothing"),
        ("F", "Huber:smoothing='a'", "Huber.smoothing must be a number"),
        ("F", "parts:Fair:scales=1", "'scales' for 'parts:Fair'; choose weight, scale"),
        ("G", "Box", "'Box' needs the option 'radius'; write Box:radius=…"),
        ("G", "Quadratic", "'Quadratic' needs the option 'weight'; write Quadratic:weight=…"),
        ("loss", "parts:charbonnier:smooth=1", "for 'parts:charbonnier'; choose smoothing"),
        ("loss", "parts:charbonnier:x=1", "for 'parts:charbonnier'; choose smoothing"),
        ("strategy", "truncation:q=1", "Unknown option 'q' for 'truncation'; choose k"),
        ("strategy", "truncation:k=0", "k must be a whole number of at least 1; got 0"),
    ],
)
def test_options_are_checked_before_the_first_stage(
    option: str, text: str, message: str, folder, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(image_study, "run_image_study", lambda *given: pytest.fail("it began"))
    out = folder / "out"
    assert cli.main(["train", "--quick", f"--{option}", text, "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("F", "L1:weight=[1.0,2.0]", "L1.weight must be a number or have shape (5,)"),
        ("G", "Quadratic:weight=[1.0]", "Quadratic.weight must be a number or have shape (6,)"),
        ("K", "parts:charbonnier", "needs the option 'x_true'"),
        ("loss", "parts:charbonnier:smoothing='a'", "must be a loss of x and x_true; got "),
        ("loss", "parts:second_differences", "must be a loss of x and x_true; got "),
    ],
)
def test_values_are_checked_before_anything_is_written(
    option: str, text: str, message: str, folder, capsys
) -> None:
    np.save(folder / "rows.npy", np.ones((20, 6)))
    out = folder / "out"
    words = ["train", "--quick", "--data", str(folder / "rows.npy"), "--out", str(out)]
    assert cli.main([*words, f"--{option}", text]) in (1, 2)
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--F", "Frobnicate"),
        ("--F", "Huber"),
        ("--G", "Quadratic:weight=-1"),
        ("--G", "Quadratic"),
        ("--loss", "no_such_module:loss"),
        ("--bits", "0"),
    ],
    ids=" ".join,
)
def test_words_that_make_no_sense(words, monkeypatch, capsys) -> None:
    monkeypatch.setattr(image_study, "run_image_study", lambda *given: None)
    assert cli.main(["train", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("hypergrad: ")
    assert said.count("\n") == 1


OF_ANOTHER_FUNCTION = """
import jax.numpy as jnp
import hypergrad as hg

class Wrong(hg.AbstractFunction):
    def __call__(self, v):
        return jnp.sum(jnp.abs(v), axis=-1)

    def prox(self, z, step):
        return z / (1 + step)
"""


def test_a_wrong_prox_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "half_a_prox.py").write_text(OF_ANOTHER_FUNCTION)
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "out"
    assert cli.main(["train", "--quick", "--F", "half_a_prox:Wrong", "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("hypergrad: 'half_a_prox:Wrong': Wrong.prox must minimise")
    assert said.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("parse", [parse_function, parse_loss, hg.parse_strategy])
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = 1\n1 / 0", r"ZeroDivisionError: division by zero \(broken.py, line 2\)$"),
        ("x =", r"SyntaxError: invalid syntax \(broken.py, line 1\)$"),
        ("import no_such_module", r"No module named 'no_such_module': install it$"),
        ("", r"module 'broken' has no attribute 'Name'$"),
    ],
    ids=["error", "syntax", "import", "name"],
)
def test_a_module_that_fails_is_named(parse, source, words, tmp_path, monkeypatch) -> None:
    (tmp_path / "broken.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(ValueError, match=f"broken:Name.*{words}"):
        parse("broken:Name")


WRONG = """
from parts import Fair

def wrong(weight):
    f = Fair(weight)
    object.__setattr__(f, "scale", -0.1)
    return f
"""


def test_a_function_of_ones_own_is_checked(folder) -> None:
    parse_function("parts:Fair:scale=0.05").check(5)
    (folder / "wrong.py").write_text(WRONG, encoding="utf-8")
    with pytest.raises(ValueError, match=r"^'wrong:wrong': Fair\.prox must .*; got .* at z = "):
        parse_function("wrong:wrong").check(5)
    parse_function("Box:radius=[0.5, 1.0]").check(5)  # of hypergrad: it is not looked at


def test_an_option_may_be_a_tuple() -> None:
    f = parse_function("GroupL1:weight=0.5,shape=(2, 3),axis=0").built()
    assert f == hg.GroupL1(0.5, shape=(2, 3), axis=0) or f.shape == (2, 3)  # pyright: ignore
    f = parse_function("ConvexPotential:slopes=[[1.0, 2.0]],knots=(0.1, 0.2),jump=0.5").built()
    assert eqx.tree_equal(f, hg.ConvexPotential([[1.0, 2.0]], (0.1, 0.2), jump=0.5))


def test_a_loss_and_an_operator_take_options(folder) -> None:
    loss = parse_loss("parts:charbonnier:smoothing=3.0")
    assert loss(jnp.full((2, 1), 4.0), jnp.zeros((2, 1))) == 5.0
    assert parse_operator("parts:second_differences", (3, 3)).shape == (6, 9)
    with pytest.raises(ValueError, match="must return a matrix"):
        parse_operator("builtins:tuple", (2, 3))
    with pytest.raises(ValueError, match=r"must be one of .*random, or module:name"):
        parse_operator("frobnicate", (2, 3))


def test_a_random_operator_is_a_start_by_name() -> None:
    K = parse_operator("random", (3, 2))
    assert K.shape == (12, 6)
    assert jnp.linalg.norm(K, 2) == pytest.approx(1.0, rel=1e-12)
    assert not jnp.array_equal(K, parse_operator("random:seed=1", (3, 2)))
    with pytest.raises(ValueError, match="rows must be a whole number of at least 1; got 0"):
        parse_operator("random:rows=0", (3, 2))


# ---------------------------------------------------------------------------------- pages


def without_rounding(printed: str) -> str:
    """Without what depends on the precision: residuals, and the steps of CGLS to reach them."""
    return re.sub(r"-?\d\.\de[-+]\d\d|(?<=steps )\d+", "…", printed)


@pytest.mark.parametrize("page", [name for name, (code, _) in SHOWN.items() if code])
def test_a_page_prints_and_draws_what_it_shows(page: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = SHOWN[page]
    run_block(("python", code))
    printed = capsys.readouterr().out
    assert not output or without_rounding(printed) == without_rounding(output)
    for picture in tmp_path.glob("*.png"):
        drawn, stored = (pixels(folder / picture.name) for folder in (tmp_path, GUIDES))
        assert drawn.shape == stored.shape
        assert np.mean(abs(drawn - stored)) < 0.01


def pixels(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as picture:
        return np.asarray(picture.convert("L")) / 255


def test_pages_with_output_are_found() -> None:
    with_output = [page for page, (_, output) in SHOWN.items() if output]
    executed = ["README", "comparing", "concepts", "index", "inverse", "learning", "upper_level"]
    assert with_output == executed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures_and_experiments_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    drawn = "".join(path.read_text("utf-8") for path in (ROOT / "paper_figs").glob("fig*.py"))
    for name in re.findall(r"\bfig\d\d[a-e]?\b", text):
        assert f'"{name}' in drawn or list((ROOT / "paper_figs").glob(f"{name}*.py")), name


def test_every_strategy_has_its_guide() -> None:
    headings = re.findall(r"^## `([^`:]+)", (GUIDES / "strategies.md").read_text("utf-8"), re.M)
    assert headings == list(hg.STRATEGIES)

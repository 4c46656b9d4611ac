"""Models of whole images: learned on crops by a command, restored at any shape by another."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.io
from commands import assert_one_line, run

import hypergrad as hg
from hypergrad._foundation.records import read_jsonl
from hypergrad.workbench import data
from hypergrad.workbench.studies import whole_images
from hypergrad.workbench.studies.whole_images import ImageTraining, bank_model, form_of

SIZE = (20, 24)


def write_images(folder, count=4):
    camera = data.photograph("camera")
    folder.mkdir()
    for i in range(count):
        part = camera[100 + 40 * i :, 150 + 20 * i :][: SIZE[0], : SIZE[1]]
        skimage.io.imsave(folder / f"{i}.png", np.uint8(255 * part), check_contrast=False)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("photographs") / "images")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    small = {"crop": 12, "crops": 4, "side": 16, "L": 8, "epochs": 2, "batch_size": 2}
    monkeypatch.setattr(ImageTraining, "quick", lambda job: dataclasses.replace(job, **small))


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "out"
    with pytest.MonkeyPatch.context() as patch:
        small = {"crop": 12, "crops": 4, "side": 16, "L": 8, "epochs": 2, "batch_size": 2}
        patch.setattr(ImageTraining, "quick", lambda job: dataclasses.replace(job, **small))
        ran = run(
            "train", "--images", images, "--quick", "--out", out, "--filters", "3x2x2",
            "--potentials",
        )  # fmt: skip
    assert ran.status == 0, ran.err
    return out, ran


def test_a_bank_is_learned_from_a_folder(trained):
    out, ran = trained
    model = hg.load_operator(out / "operator.npz")
    K, F = model.problem.K, model.problem.F
    assert isinstance(K, hg.operators.FilterBank)
    assert isinstance(F, hg.ConvexPotential)
    assert K.filters.shape == (3, 2, 2)
    # Every filter is blind to a constant image, whatever was learned.
    np.testing.assert_allclose(np.sum(K.filters, axis=(1, 2)), 0, atol=1e-6)
    records = list(read_jsonl(out / "records.jsonl"))
    assert [record["epoch"] for record in records] == [0, 1, 2]
    best = min(records, key=lambda record: record["validation_loss"])
    assert f"(epoch {best['epoch']} of 2" in " ".join(ran.out.split())


def test_a_photograph_of_another_shape_is_restored_by_one_command(trained, tmp_path):
    """Equal to `solve` at its shape, to the rounding of a file of 16 bits."""
    out, _ = trained
    noisy = tmp_path / "noisy.npy"
    image = data.photograph("camera")[200:231, 210:227]
    observed = np.clip(image + 0.1 * np.random.default_rng(0).standard_normal(image.shape), 0, 1)
    noisy = tmp_path / "noisy.png"
    skimage.io.imsave(noisy, np.uint16(65535 * observed), check_contrast=False)
    ran = run("restore", noisy, "--operator", out / "operator.npz", "--out", tmp_path / "r.png")
    assert ran.status == 0, ran.err

    model = hg.load_operator(out / "operator.npz")
    K = model.problem.K.with_image_shape(image.shape)
    problem = dataclasses.replace(model.problem, K=K)
    x_tilde = jnp.asarray(skimage.io.imread(noisy) / 65535, jnp.float32).reshape(1, -1)
    x = hg.solve(problem, x_tilde, solver=model.solver, strategy=model.strategy).x
    restored = skimage.io.imread(tmp_path / "r.png") / 65535
    np.testing.assert_allclose(restored.ravel(), np.clip(x, 0, 1)[0], atol=2e-5)


def test_more_seconds_continue_a_run(images, tmp_path):
    def train(seconds):
        return run(
            "train", "--images", images, "--quick", "--out", tmp_path / "out",
            "--filters", "3x2x2", "--seconds", seconds,
        )  # fmt: skip

    assert "of 1," in " ".join(train(1e-9).out.split())
    assert "of 2," in " ".join(train(100).out.split())


def test_an_unreadable_image_is_an_error_or_skipped(images, tmp_path):
    folder = write_images(tmp_path / "some")
    (folder / "broken.png").write_text("no image")
    ran = run("train", "--images", folder, "--quick", "--out", tmp_path / "a")
    assert_one_line(ran, 1, "file must be readable; got", "broken.png", "--skip-unreadable")
    given = ("--quick", "--skip-unreadable", "--filters", "3x2x2", "--out", tmp_path / "b")
    ran = run("train", "--images", folder, *given)
    assert ran.status == 0, ran.err
    assert "broken.png" in ran.out
    assert "3 images to learn from, 1 to choose on" in " ".join(ran.out.split())


@pytest.mark.parametrize(
    ("given", "status", "match"),
    [
        (("--filters", "24x5"), 2, "filters must be COUNTxSIZExSIZE; got '24x5'"),
        (("--filters", "25x5x5"), 2, "got 25"),
        (("--filters", "3x30x30", "--quick"), 1, "filters must not be larger than the image"),
        (("--seconds", "0"), 2, "seconds must be one finite number above 0"),
        (("--strategy", "nothing"), 2, "nothing"),
        ((), 1, "at least as large as a crop, (64, 64); got (20, 24)"),
    ],
)
def test_bad_settings(images, tmp_path, given, status, match):
    ran = run("train", "--images", images, "--out", tmp_path / "out", *given)
    assert_one_line(ran, status, match)


def test_a_folder_that_is_missing_or_holds_one_image(tmp_path):
    assert_one_line(run("train", "--images", tmp_path / "no"), 1, "path must exist; got", "no")
    one = write_images(tmp_path / "one", count=1)
    assert_one_line(run("train", "--images", one), 1, "a folder must hold two images or more")


def test_the_start_is_the_dct_and_its_weight_a_threshold():
    """Without its border, a bank of all DCT filters is a tight frame: K^T K = size^2 I."""
    problem = bank_model(form_of("24x5x5"), 0.1, (32, 32), hg.Quadratic(1.0))
    x = jax.random.normal(jax.random.key(0), (32, 32))
    x = jnp.zeros((32, 32)).at[12:20, 12:20].set(x[12:20, 12:20] - jnp.mean(x[12:20, 12:20]))
    K = problem.K
    constant = hg.operators.FilterBank(jnp.full((1, 5, 5), 0.2, jnp.float32), (32, 32))
    x32 = x.astype(jnp.float32).ravel()
    whole = jnp.sum(K.mv(x32) ** 2) + jnp.sum(constant.mv(x32) ** 2)
    assert float(whole) == pytest.approx(25 * float(jnp.sum(x32**2)), rel=1e-5)
    np.testing.assert_allclose(problem.F.weight, 0.1 / 25, rtol=1e-6)


def test_potentials_start_as_nearly_l1():
    form, G, v = form_of("3x2x2"), hg.Quadratic(1.0), jnp.linspace(-0.2, 0.2, 3 * 16 * 1)
    l1 = bank_model(form, 0.1, (4, 4), G).F
    potential = bank_model(form, 0.1, (4, 4), G, potentials=True).F
    v = v.astype(jnp.float32)
    extra, most = float(potential(v) - l1(v)), whole_images.LEAST_SLOPE / 2 * float(jnp.sum(v**2))
    rounding = float(jnp.finfo(jnp.float32).eps) * float(l1(v))  # of the difference of two numbers
    assert 0 <= extra <= most + rounding

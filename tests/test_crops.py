"""Crops of images that are drawn anew, and training on them."""

from __future__ import annotations

import numpy as np
import pytest

import hypergrad as hg
from hypergrad.workbench import data

IMAGES = [np.arange(120.0).reshape(10, 12) / 120, np.eye(11), np.ones((8, 9))]


def symmetries(image):
    turned = [np.rot90(image, k) for k in range(4)]
    return turned + [t[:, ::-1] for t in turned]


def lies_in(crop, images):
    """Whether a crop is a window of an image, up to its eight symmetries."""
    return any(
        np.array_equal(window, turned.astype(float))
        for image in images
        for turned in symmetries(crop)
        for window in np.lib.stride_tricks.sliding_window_view(
            image.astype(float), turned.shape
        ).reshape(-1, *turned.shape)
    )


def test_crops_are_windows_of_the_images():
    x_true = hg.RandomCrops(IMAGES, (5, 5), noise=0.1, count=30)(1)[1]
    assert all(lies_in(crop.reshape(5, 5), IMAGES) for crop in x_true)


def test_crops_that_are_not_square_are_mirrored_only():
    x_true = hg.RandomCrops(IMAGES, (2, 7), noise=0.1, count=30)(1)[1]
    assert all(lies_in(crop.reshape(2, 7), IMAGES) for crop in x_true)


def test_every_image_place_and_symmetry_is_drawn():
    image = np.arange(9.0).reshape(3, 3)
    x_true = hg.RandomCrops([image, image + 100], (2, 2), noise=0.1, count=2000)(1)[1]
    assert len(np.unique(x_true, axis=0)) == 2 * 4 * 8


def test_noise_has_its_standard_deviation():
    x_tilde, x_true = hg.RandomCrops([np.zeros((9, 9))], (8, 8), noise=0.25, count=400)(3)
    noise = x_tilde - x_true
    assert np.std(noise) == pytest.approx(0.25, rel=0.02)
    assert np.mean(noise) == pytest.approx(0, abs=0.01)


def test_a_function_observes_the_crops():
    crops = hg.RandomCrops(IMAGES, (4, 4), noise=lambda x, rng: 2 * x + rng.integers(1, 2), count=3)
    x_tilde, x_true = crops(1)
    np.testing.assert_array_equal(x_tilde, 2 * x_true + 1)


def test_epochs_of_a_round_share_their_crops():
    drawn = [hg.RandomCrops(IMAGES, (4, 4), noise=0.1, rounds=2)(epoch)[0] for epoch in (1, 2, 3)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[1], drawn[2])


def test_a_part_of_a_folder_reads_no_image(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"no image")
    part = data.ImageFolder(tmp_path)[:-1]
    assert (len(part), part.names) == (2, ["a.png", "b.png"])
    with pytest.raises(hg.HypergradError, match=r"got .*b\.png .*skip-unreadable"):
        part[1]


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"images": []}, "images must hold at least one image; got none"),
        ({"shape": (9, 9)}, r"an image must be .* as large as a crop, \(9, 9\); got \(8, 9\) for"),
        ({"shape": (4, 0)}, r"shape\[1\] must be a whole number"),
        ({"images": [np.ones((8, 8, 3))]}, r"an image must be \(h, w\) .* got \(8, 8, 3\)"),
        ({"images": [np.full((8, 8), np.nan)]}, "image 0 must be finite"),
        ({"noise": -1.0}, "noise must be one finite number above 0"),
        ({"count": 0}, "count must be"),
        ({"rounds": 0}, "rounds must be"),
    ],
)
def test_bad_settings_of_crops(changed, match):
    settings = {"images": IMAGES, "shape": (4, 4), "noise": 0.1, **changed}
    with pytest.raises(hg.HypergradError, match=match):
        hg.RandomCrops(**settings)(1)


# ---------------------------------------------------------------------------------- training

BANK = hg.operators.FilterBank(np.array([[[-1.0, 1.0]], [[0.5, -0.5]]]), (4, 4))
PROBLEM = hg.LowerLevel(K=BANK, F=hg.L1(0.1), G=hg.Quadratic(1.0))


def train(data, **settings):
    return hg.train(
        PROBLEM,
        data,
        solver=hg.ChambollePock(5),
        strategy=hg.Truncation(1),
        **{"epochs": 4, "batch_size": 4, "progress": False, **settings},
    )


def filters(history):
    return np.asarray(history.problem.K.filters)


def test_every_epoch_trains_on_its_own_pair():
    """Against training an epoch at a time, on the pair of that epoch."""
    crops = hg.RandomCrops(IMAGES, (4, 4), noise=0.1, count=4)
    import optax

    problem, rate = PROBLEM, optax.sgd(0.1)
    for epoch in (1, 2):
        problem = hg.train(
            problem,
            crops(epoch),
            solver=hg.ChambollePock(5),
            strategy=hg.Truncation(1),
            optimizer=rate,
            epochs=1,
            batch_size=4,
            progress=False,
        ).problem
    together = train(crops, optimizer=rate, epochs=2)
    np.testing.assert_allclose(filters(together), problem.K.filters, rtol=1e-12)


@pytest.mark.parametrize("warm_start", [False, True])
def test_a_run_on_crops_goes_on_where_it_stopped(tmp_path, warm_start):
    crops = hg.RandomCrops(IMAGES, (4, 4), noise=0.1, count=8, rounds=2)
    whole = train(crops, warm_start=warm_start)

    class StoppedError(Exception):
        pass

    def stop(problem):
        if stop.calls == 3:
            raise StoppedError
        stop.calls += 1
        return {}

    stop.calls = 0
    with pytest.raises(StoppedError):
        train(crops, warm_start=warm_start, checkpoint_dir=tmp_path, measure=stop)
    resumed = train(crops, warm_start=warm_start, checkpoint_dir=tmp_path)
    np.testing.assert_array_equal(filters(resumed), filters(whole))


def test_new_crops_start_cold():
    """With a warm start, a round of one epoch each is the cold run with the safeguard's solves."""
    crops = hg.RandomCrops(IMAGES, (4, 4), noise=0.1, count=8)
    start = hg.WarmStart(residual=1e9, most=1, share=0.0)  # every state is near after 1 iteration
    seen = [train(crops, warm_start=start, epochs=e) for e in (1, 2)]

    class Anew:
        """The second epoch's crops as those of the first, so that a memory would show."""

        def __call__(self, epoch):
            return crops(2)

    cold = hg.train(
        seen[0].problem,
        Anew(),
        solver=hg.ChambollePock(5),
        strategy=hg.Truncation(1),
        optimizer=None,
        epochs=1,
        batch_size=4,
        warm_start=start,
        progress=False,
    )
    losses = seen[1].records[-1]["train_loss"], cold.records[-1]["train_loss"]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_seconds_end_a_run_after_an_epoch_and_more_continue_it(tmp_path):
    crops = hg.RandomCrops(IMAGES, (4, 4), noise=0.1, count=8)
    short = train(crops, seconds=1e-9, checkpoint_dir=tmp_path)
    assert [record["epoch"] for record in short.records] == [0, 1]
    whole = train(crops, checkpoint_dir=tmp_path)
    np.testing.assert_array_equal(filters(whole), filters(train(crops)))


def test_validation_by_a_function_chooses_the_best():
    """The held-out loss falls, then rises; images of another shape than the crops are judged."""
    judged = []

    def loss(problem):
        image = problem.K.with_image_shape((6, 5))
        judged.append(image.image_shape)
        return np.float64(abs(len(judged) - 3))

    history = train(hg.RandomCrops(IMAGES, (4, 4), noise=0.1, count=4), validation=loss)
    assert history.column("validation_loss").tolist() == [2, 1, 0, 1, 2]
    assert history.best.epoch == 2
    assert set(judged) == {(6, 5)}


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"seconds": 0}, "seconds must be one finite number above 0"),
        ({"validation": lambda p: "good"}, "validation must return one number, a loss; got 'good'"),
        ({"data": lambda epoch: 3}, r"data must be a pair \(x_tilde, x_true\); got a int"),
    ],
)
def test_bad_arguments(settings, match):
    data = settings.pop("data", hg.RandomCrops(IMAGES, (4, 4), noise=0.1, count=4))
    with pytest.raises(hg.HypergradError, match=match):
        train(data, **settings)

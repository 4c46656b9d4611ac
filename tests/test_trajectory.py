"""Layers and traces against the posters' recursions as NumPy loops, and projections onto kernels by
pseudo-inverses.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    SATURATED,
    Box,
    Poster,
    Quadratic,
    assert_close,
    convolution_poster,
    random_data,
    random_poster,
    relative_error,
    saturated_poster,
    to_hypergrad,
    unsaturated_poster,
)

import hypergrad as hg

L, BATCH = 12, 3
RTOL = 1e-10


def kernel_projection(A) -> np.ndarray:
    """The orthogonal projection onto the kernel of A."""
    return np.eye(A.shape[1]) - np.linalg.pinv(A, 1e-10) @ A


def active_set(poster: Poster, run) -> tuple[np.ndarray, np.ndarray]:
    """The free primal coordinates I and the unsaturated dual ones J, at the last iterate."""
    free = poster.G.prox(run.z_P[-1], poster.tau).slope == 1
    return free, poster.F.prox(run.z_D[-1], poster.sigma).slope == 1


def outer_products(poster: Poster, delta_P, delta_D, x, y) -> np.ndarray:
    return poster.sigma * np.outer(delta_D, x) - poster.tau * np.outer(y, delta_P)


# ----------------------------------------------------------------------------------- the layers

_LINEAR = np.arange(1.0, L + 1) / (L * (L + 1) / 2)
UNROLLINGS = [
    (hg.FullUnrolling(), np.eye(L)[-1], L),
    (hg.Truncation(5), np.eye(L)[-1], 5),
    (hg.ErgodicUnrolling(hg.LinearWeights()), _LINEAR, L),
]


@pytest.mark.parametrize(
    ("strategy", "alpha", "k"), UNROLLINGS, ids=lambda v: getattr(v, "label", "")
)
def test_every_layer_is_the_numpy_loop(strategy, alpha, k):
    m, n = 5, 6
    poster = dataclasses.replace(random_poster(Box, m, n, L=L, theta=0.7), G=Box(0.6))
    x_tilde, x_true = random_data(BATCH, n)
    problem, solver = to_hypergrad(poster)
    trajectory = hg.adjoint_trajectory(problem, x_tilde, x_true, solver=solver, strategy=strategy)
    x, _ = poster.output(x_tilde, alpha)

    for i in range(BATCH):
        run, g = poster.run(x_tilde[i]), (x[i] - x_true[i]) / BATCH
        free, unsaturated = active_set(poster, run)
        assert 0 < free.sum() < n  # both kinds of coordinates, so that restricting is seen
        assert 0 < unsaturated.sum() < m
        A = poster.K[unsaturated][:, free]
        limit = np.zeros(n)
        limit[free] = kernel_projection(A) @ g[free]
        assert_close(np.asarray(trajectory.limit_P[i]), limit, RTOL)

        layers = {layer.l: layer for layer in poster.layers(run, g, alpha, k)}
        for l in range(1, L + 1):
            d = layers.get(l)
            delta_P, delta_D = (np.zeros(n), np.zeros(m)) if d is None else (d.delta_P, d.delta_D)
            at = jax.tree.map(lambda a, l=l, i=i: np.asarray(a[l - 1, i]), {
                name: getattr(trajectory, name)
                for name in ("delta_P", "delta_D", "norm_P", "norm_D", "norm_K_delta_P", "distance",
                             "norm_KT_delta_D", "norm_KJI_delta_P", "norm_KJI_delta_D",
                             "contribution")
            })  # fmt: skip
            outer = outer_products(
                poster, delta_P, delta_D, x_tilde[i] + run.r_bar[l - 1], run.y[l]
            )
            entered = alpha[l - 1 :].sum()
            expected = {
                "delta_P": delta_P,
                "delta_D": delta_D,
                "norm_P": np.linalg.norm(delta_P),
                "norm_D": np.linalg.norm(delta_D),
                "norm_K_delta_P": np.linalg.norm(poster.K @ delta_P),
                "norm_KT_delta_D": np.linalg.norm(poster.K.T @ delta_D),
                "norm_KJI_delta_P": np.linalg.norm(A @ delta_P[free]),
                "norm_KJI_delta_D": np.linalg.norm(A.T @ delta_D[unsaturated]),
                "distance": np.linalg.norm(delta_P[free] - entered * limit[free]),
                "contribution": np.linalg.norm(outer),
            }
            scale = {name: np.linalg.norm(g) for name in expected}  # some are 0 up to rounding
            for name, value in expected.items():
                assert np.max(np.abs(at[name] - value)) <= RTOL * scale[name], (l, name)


def trajectory_of(poster: Poster, strategy, x_tilde=None):
    problem, solver = to_hypergrad(poster)
    x_true, standard = random_data(2, poster.K.shape[1])
    x_tilde = standard if x_tilde is None else x_tilde
    return hg.adjoint_trajectory(problem, x_tilde, x_true, solver=solver, strategy=strategy)


def norms_at(trajectory, l: int) -> dict[str, np.ndarray]:
    names = [f.name for f in dataclasses.fields(trajectory) if f.name.startswith("norm")]
    names += ["norm_P", "norm_D", "distance"]
    return {name: np.asarray(getattr(trajectory, name)[l]) for name in names}


def test_unsaturated_layers_go_to_the_kernels():
    """The posters: `delta_P[l0] -> ker(K)`, `delta_D[l0] -> 0`, as the output moves away."""
    trajectory = trajectory_of(unsaturated_poster(200), hg.FullUnrolling())
    first, last = norms_at(trajectory, 0), norms_at(trajectory, -1)
    for vanishing in set(first) - {"norm_P"}:
        assert np.all(first[vanishing] <= 1e-9), vanishing
        assert np.all(last[vanishing] >= 1e-2), vanishing
    assert np.all(first["norm_P"] >= 1e-2)  # it goes to the kernel, not to 0


def test_saturated_layers_go_to_the_reduced_kernels_only():
    poster = saturated_poster(200)
    for x_tilde in SATURATED:
        free, unsaturated = active_set(poster, poster.run(x_tilde))
        assert free.tolist() == [False, True, True, True]
        assert unsaturated.tolist() == [False, False, True]
    trajectory = trajectory_of(poster, hg.FullUnrolling(), SATURATED)
    middle, last = norms_at(trajectory, 100), norms_at(trajectory, -1)  # its masks have settled
    for vanishing in ("norm_D", "norm_KJI_delta_P", "norm_KJI_delta_D", "distance"):
        assert np.all(middle[vanishing] <= 1e-9), vanishing
        assert np.all(last[vanishing] >= 1e-3), vanishing
    assert np.all(middle["norm_P"] >= 1e-2)
    assert np.all(middle["norm_K_delta_P"] >= 1e-2)  # not in the kernel of K itself


@pytest.mark.parametrize("kernel", [False, True])
def test_uniform_weights_let_every_layer_decay_like_one_over_L(kernel):
    """`delta[l] = Delta / L` far from both ends; a part in the kernel stays, with what entered."""
    L, l = 400, 200
    poster = unsaturated_poster(L) if kernel else random_poster(Quadratic, 4, 5, L=L)
    trajectory = trajectory_of(poster, hg.ErgodicUnrolling())
    x_true, x_tilde = random_data(2, 5)
    x, _ = poster.output(x_tilde, np.full(L, 1 / L))
    for i, g in enumerate((x - x_true) / 2):
        matrix, right = poster.limit_system(poster.run(x_tilde[i]), g, np.zeros(len(poster.K)))
        in_kernel = kernel_projection(poster.K) @ g if kernel else np.zeros(5)
        right[:5] -= in_kernel
        Delta_P, Delta_D = np.split(np.linalg.pinv(matrix, 1e-10) @ right, [5])
        entered = (L - l) / L
        assert relative_error(trajectory.delta_D[l, i], Delta_D / L) <= 1e-6
        assert relative_error(trajectory.delta_P[l, i], Delta_P / L + entered * in_kernel) <= 1e-6


def test_without_coordinates_prox_jacobians_restrict():
    """Groups of two rows: a prox Jacobian that is not diagonal, here by hand."""
    K, weight, radius, L = random_poster(Box, 4, 6, L=1).K, 0.3, 0.6, 15
    tau, sigma = 0.9, 1.1
    problem = hg.LowerLevel(jnp.asarray(K), hg.GroupL1(weight, shape=(2, 2)), hg.Box(radius))
    solver, (x_tilde, x_true) = hg.ChambollePock(L, tau, sigma), random_data(1, 6)
    trajectory = hg.adjoint_trajectory(
        problem, x_tilde, x_true, solver=solver, strategy=hg.FullUnrolling()
    )

    r, r_bar, y = np.zeros(6), np.zeros(6), np.zeros(4)
    for _ in range(L):
        groups = (y + sigma * K @ (x_tilde[0] + r_bar)).reshape(2, 2)
        sizes = np.linalg.norm(groups, axis=0)
        y = (groups * np.minimum(1, weight / sizes)).ravel()
        z_P = r - tau * K.T @ y
        r, r_bar = (new := np.clip(z_P, -radius, radius)), 2 * new - r
    D_P, D_D = np.diag((np.abs(z_P) < radius).astype(float)), np.eye(4)
    for j in np.flatnonzero(sizes >= weight):
        along = groups[:, j] / sizes[j]
        D_D[j::2, j::2] = weight / sizes[j] * (np.eye(2) - np.outer(along, along))
    assert np.any(sizes >= weight)
    assert 0 < np.trace(D_P) < 6

    g = x_tilde[0] + r - x_true[0]
    limit = kernel_projection(np.vstack([np.eye(6) - D_P, D_D @ K])) @ g
    assert np.linalg.norm(limit) >= 0.1
    assert relative_error(trajectory.limit_P[0], limit) <= 1e-9
    delta_P = np.asarray(trajectory.delta_P[L - 2, 0])
    expected = np.linalg.norm(D_D @ K @ D_P @ delta_P)
    assert relative_error(trajectory.norm_KJI_delta_P[L - 2, 0], expected) <= RTOL


def test_a_layer_of_a_kernel_is_what_the_chain_rule_makes_of_the_matrix():
    """Entry `(i, i + 2 - j)` of the matrix of a convolution is `kernel[j]`."""
    poster, problem, solver, shifts = convolution_poster(6)
    x_tilde, x_true = random_data(2, 7)
    trajectory = hg.adjoint_trajectory(
        problem, x_tilde, x_true, solver=solver, strategy=hg.FullUnrolling()
    )
    x, _ = poster.output(x_tilde)
    for i in range(2):
        run = poster.run(x_tilde[i])
        for layer in poster.layers(run, (x[i] - x_true[i]) / 2, np.eye(6)[-1], 6):
            x_bar = x_tilde[i] + run.r_bar[layer.l - 1]
            outer = outer_products(poster, layer.delta_P, layer.delta_D, x_bar, run.y[layer.l])
            expected = np.linalg.norm([np.sum(outer * shift) for shift in shifts])
            assert relative_error(trajectory.contribution[layer.l - 1, i], expected) <= RTOL


def test_a_strategy_without_layers_is_refused():
    problem, solver = to_hypergrad(random_poster(Box, 4, 5, L=L))
    with pytest.raises(ValueError, match="limit:cgls, which has no layers: use FullUnrolling"):
        hg.adjoint_trajectory(
            problem, *random_data(2, 5), solver=solver, strategy=hg.LimitFormula()
        )


def state_of(runs, l: int) -> hg.State:
    """What the loops hold after l iterations."""
    return hg.State(*(jnp.array([getattr(run, v)[l] for run in runs]) for v in ("r", "r_bar", "y")))


def test_a_trajectory_starts_from_an_earlier_state():
    """Two iterations after ten are the last two of twelve."""
    poster = random_poster(Box, 5, 6, L=L)
    problem, solver = to_hypergrad(poster)
    x_tilde, x_true = random_data(2, 6)
    runs = [poster.run(x) for x in x_tilde]
    trajectory = hg.adjoint_trajectory(
        problem, x_tilde, x_true, strategy=hg.FullUnrolling(), init=state_of(runs, 10),
        solver=dataclasses.replace(solver, iterations=2),
    )  # fmt: skip
    for i, run in enumerate(runs):
        g = (x_tilde[i] + run.r[L] - x_true[i]) / 2
        for d in poster.layers(run, g, np.eye(L)[-1], 2):
            assert_close(np.asarray(trajectory.delta_P[d.l - 11, i]), d.delta_P, RTOL)
            outer = outer_products(
                poster, d.delta_P, d.delta_D, x_tilde[i] + run.r_bar[d.l - 1], run.y[d.l]
            )
            contribution = trajectory.contribution[d.l - 11, i]
            assert relative_error(contribution, np.linalg.norm(outer)) <= RTOL


# ------------------------------------------------------------------------------------ the trace


def judged(poster: Poster, x_tilde, run, l) -> tuple[float, float, float]:
    """Residual, gap and objective of iterate l, for L1 and Quadratic."""
    K, r, y = poster.K, run.r[l], run.y[l]
    weight, ridge, x = poster.F.parameter, poster.G.parameter, x_tilde + run.r[l]
    part, gain = np.finfo(float).eps ** 0.25, np.linalg.norm(K.T @ y) / np.linalg.norm(y)
    size_y = max(np.linalg.norm(y), part * weight)
    size_r = max(np.linalg.norm(r), part * gain * weight / ridge)
    t, s = size_r / size_y / gain, size_y / size_r / gain
    moved_r = r - poster.G.prox(r - t * K.T @ y, t).value
    moved_y = y - poster.F.prox(y + s * K @ x, s).value
    halves = np.linalg.norm(moved_r) / size_r, np.linalg.norm(moved_y) / size_y
    residual = np.hypot(*np.minimum(halves, 1)) / np.sqrt(2)

    objective = weight * np.sum(np.abs(K @ x)) + ridge / 2 * r @ r
    KT_y = K.T @ y
    dual = KT_y @ x_tilde - KT_y @ KT_y / (2 * ridge)
    return residual, objective - dual, objective


def assert_is_trace(trace: hg.Trace, expected) -> None:
    """`expected[l - 1][sample]` holds the three numbers."""
    got = np.stack([trace.residual, trace.gap, trace.objective], axis=-1)
    np.testing.assert_allclose(got, np.asarray(expected), rtol=1e-8, atol=1e-12)


def test_trace_is_the_numpy_loop_judged_iterate_by_iterate():
    poster = random_poster(Quadratic, 6, 4, L=L)
    problem, solver = to_hypergrad(poster)
    x_tilde = random_data(4, 4)[0]
    runs = [poster.run(x) for x in x_tilde]
    expected = [
        [judged(poster, x, run, l) for x, run in zip(x_tilde, runs, strict=True)]
        for l in range(1, L + 1)
    ]
    solution = hg.solve(
        problem, x_tilde.reshape(2, 2, 4), solver=solver, strategy=hg.FullUnrolling(), trace=True
    )
    assert solution.trace.residual.shape == (L, 2, 2)
    assert_is_trace(jax.tree.map(lambda a: a.reshape(L, 4), solution.trace), expected)
    assert np.all(solution.trace.residual[0] > 10 * solution.trace.residual[-1])

    # From the state after five iterations: the entries from the sixth on.
    later = hg.solve(
        problem, x_tilde, strategy=hg.Truncation(2), init=state_of(runs, 5), trace=True,
        solver=dataclasses.replace(solver, iterations=L - 5),
    )  # fmt: skip
    assert_is_trace(later.trace, expected[5:])


def test_trace_of_a_sample_that_has_arrived_repeats_itself():
    poster = random_poster(Quadratic, 6, 4, L=400)
    problem, solver = to_hypergrad(poster)
    x_tilde = random_data(3, 4)[0]
    solver = dataclasses.replace(solver, tolerance=jnp.asarray(1e-6))
    solution = hg.solve(problem, x_tilde, solver=solver, strategy=hg.Truncation(3), trace=True)
    taken = np.asarray(solution.stats.iterations)
    assert len(set(taken)) > 1  # they did not all stop at once
    assert max(taken) < 400
    runs = [poster.run(x) for x in x_tilde]
    expected = [
        [judged(poster, x, run, min(l, t)) for x, run, t in zip(x_tilde, runs, taken, strict=True)]
        for l in range(1, 401)
    ]
    assert_is_trace(solution.trace, expected)
    assert_close(solution.trace.residual[-1], solution.stats.residual, RTOL)


def test_without_a_trace_there_is_none_and_with_one_the_gradient_is_the_same():
    problem, solver = to_hypergrad(random_poster(Box, 6, 4, L=L))
    x_tilde = jnp.asarray(random_data(2, 4)[0])

    def loss(problem, trace):
        solution = hg.solve(
            problem, x_tilde, solver=solver, strategy=hg.FullUnrolling(), trace=trace
        )
        assert (solution.trace is not None) == trace
        judged = jnp.sum(solution.trace.objective) if trace else 0.0
        return jnp.sum(solution.x**2) + judged

    without, with_trace = (jax.grad(loss)(problem, trace) for trace in (False, True))
    assert_close(with_trace, without, 0.0)
    assert np.any(without.K != 0)

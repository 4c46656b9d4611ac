"""The peers: against the solved problem and the posters' loops, and what happens when they fail."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix
import pytest
from helpers import (
    Quadratic,
    assert_close,
    gradient_of,
    random_data,
    random_poster,
    relative_error,
    to_hypergrad,
)
from limits import (
    ENOUGH,
    LIMITS,
    assert_is_gradient,
    free_direction,
    no_fidelity,
    solved_and_differentiated,
)

import hypergrad as hg
from hypergrad._foundation.status import Status
from hypergrad.comparison import solve_without_strategy

RTOL = 1e-10


def _dense(matvec, b):
    """A linear solver of the user's, as jaxopt takes it."""
    return jnp.linalg.solve(jax.jacobian(matvec)(b), b)


# --------------------------------------------------------------------------- the solved problem

EVERY_SOLVER = [
    "jaxopt:normal_cg",
    "jaxopt:gmres",
    "jaxopt:bicgstab",
    "jaxopt:lu",
    "optimistix:autolinearsolver",
    "optimistix:gmres",
    "optimistix:bicgstab",
]
# Each solver once; those that are missing here have another problem below.
ON_THE_FIRST = ["jaxopt:gmres", "jaxopt:lu", "optimistix:gmres", "optimistix:bicgstab"]
SOLVED = [
    *(("L1+Quadratic", hg.parse_strategy(text)) for text in ON_THE_FIRST),
    ("L1+Quadratic", hg.JaxoptImplicit(_dense)),
    ("L1+Box", hg.JaxoptImplicit()),
    ("GroupL1+Quadratic", hg.JaxoptImplicit(hg.JaxoptBiCGStab())),
    ("Quadratic+L1", hg.OptimistixImplicit()),
    ("Quadratic+L1", hg.OptimistixCheckpointed()),
]


@pytest.mark.parametrize(("name", "strategy"), SOLVED, ids=lambda a: getattr(a, "label", a))
def test_central_differences_of_the_solved_problem(name, strategy):
    limit = LIMITS[name]
    x, expected = solved_and_differentiated(name)
    h = hg.hypergradient(limit.problem(), *limit.data(), solver=limit.solver(), strategy=strategy)
    assert np.all(np.asarray(h.solution.stats.status) == Status.CONVERGED)
    assert np.all(np.asarray(h.adjoint.status) == Status.CONVERGED)
    assert np.all(np.asarray(h.adjoint.residual) <= 1.5e-8)
    assert relative_error(h.solution.x, x) <= 1e-12
    assert_is_gradient(h, expected, zero=1e-8)


# ---------------------------------------------------------------------------------- the forward

# The two that are implicit have forward and pullback in common.
ONE_OF_EACH = [hg.JaxoptImplicit(), hg.OptimistixCheckpointed()]


@pytest.mark.parametrize("tolerance", [None, 1e-8])
@pytest.mark.parametrize("strategy", ONE_OF_EACH, ids=lambda s: s.name)
def test_the_forward_is_that_of_the_core(strategy, tolerance):
    poster = random_poster(Quadratic, 6, 4, L=200, per_entry=True)
    problem, _ = to_hypergrad(poster)
    # The last samples are not there after so many iterations.
    solver = hg.ChambollePock(60, poster.tau, poster.sigma, tolerance=tolerance)
    x_tilde = jnp.asarray(random_data(10, 4)[0])
    expected = solve_without_strategy(problem, x_tilde, solver)
    solution = hg.solve(problem, x_tilde, solver=solver, strategy=strategy)
    np.testing.assert_array_equal(solution.stats.iterations, expected.stats.iterations)
    np.testing.assert_array_equal(solution.stats.status, expected.stats.status)
    assert_close((solution.x, solution.y), (expected.x, expected.y), 1e-14)
    assert_close(solution.state, expected.state, 1e-14)
    different = len(set(np.asarray(solution.stats.iterations).tolist()))
    assert different == 1 if tolerance is None else different >= 3


# --------------------------------------------------------------------------------- checkpointed


def test_checkpointed_is_unrolled():
    """Unconverged: all iterations count, by the posters' loops; and so do tau, sigma, theta."""
    poster = random_poster(Quadratic, 6, 4, L=5, per_entry=True, theta=0.9)
    problem, solver = to_hypergrad(poster)
    data = random_data(3, 4)
    expected = poster.unrolled(*data)
    by_hand = hg.hypergradient(problem, *data, solver=solver, strategy=hg.FullUnrolling())
    strategy = hg.OptimistixCheckpointed(checkpoints=3)
    h = hg.hypergradient(problem, *data, solver=solver, strategy=strategy)
    assert_close(gradient_of(h), expected, RTOL)
    assert_close(h.grad_solver, by_hand.grad_solver, RTOL)
    assert np.all(np.asarray(h.solution.stats.status) == Status.ITERATIONS_USED_UP)
    assert h.adjoint.products.tolist() == [6 * 5] * 3
    assert np.abs(by_hand.grad_solver.tau) > 1e-3


def test_checkpointed_with_a_tolerance_goes_through_the_iterations_that_a_sample_took():
    poster = random_poster(Quadratic, 6, 4, L=0, per_entry=True)
    problem, _ = to_hypergrad(dataclasses.replace(poster, L=1))
    solver = hg.ChambollePock(100, poster.tau, poster.sigma, tolerance=1e-3)
    x_tilde, x_true = random_data(5, 4)
    strategy = hg.OptimistixCheckpointed()
    h = hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=strategy)
    taken = np.asarray(h.solution.stats.iterations).tolist()
    assert len(set(taken)) >= 2
    assert max(taken) < 100
    assert h.adjoint.steps.tolist() == taken
    singles = [
        dataclasses.replace(poster, L=L).unrolled(x_tilde[i : i + 1], x_true[i : i + 1])
        for i, L in enumerate(taken)
    ]
    assert_close(np.asarray(h.grad.K), sum(single.K for single in singles) / 5, RTOL)
    in_x_tilde = np.concatenate([single.x_tilde for single in singles]) / 5
    assert_close(np.asarray(h.grad_x_tilde), in_x_tilde, RTOL)


# ----------------------------------------------------------------------------- steps are held fixed


def test_neither_the_norm_of_K_nor_the_scale_of_F_is_differentiated():
    """Far from converged, where step sizes matter: those written out give the same gradient."""
    problem, _ = to_hypergrad(random_poster(Quadratic, 6, 4, L=5))
    data, solver = random_data(3, 4), hg.ChambollePock(5)
    # By LU: what an iterative solver ends at depends on the last bit of the step sizes.
    strategy = hg.JaxoptImplicit(hg.JaxoptLU())
    h, fixed = (
        hg.hypergradient(problem, *data, solver=s, strategy=strategy)
        for s in (solver, solver.with_step_sizes(problem))
    )
    assert_close((h.grad, h.grad_x_tilde), (fixed.grad, fixed.grad_x_tilde), RTOL)
    assert np.all(np.asarray(h.solution.stats.residual) > 1e-3)


# -------------------------------------------------------------------------- failures come out

TOO_FEW = [
    hg.JaxoptImplicit(hg.JaxoptNormalCG(most=1)),
    hg.JaxoptImplicit(hg.JaxoptGMRES(restart=2, most=1)),
    hg.JaxoptImplicit(hg.JaxoptBiCGStab(most=1)),
    hg.OptimistixImplicit(lx.GMRES(rtol=1e-10, atol=1e-10, max_steps=2, restart=2)),
]


@pytest.mark.parametrize("strategy", TOO_FEW, ids=lambda s: s.label)
def test_too_few_steps_of_a_linear_solver_show_in_the_status(strategy):
    limit = LIMITS["L1+Quadratic"]
    _, expected = solved_and_differentiated("L1+Quadratic")
    h = hg.hypergradient(limit.problem(), *limit.data(), solver=limit.solver(), strategy=strategy)
    assert np.all(np.asarray(h.solution.stats.status) == Status.CONVERGED)
    assert np.all(np.asarray(h.adjoint.status) == Status.NOT_CERTIFIED)
    assert np.all(np.asarray(h.adjoint.residual) > 1e-3)
    assert h.adjoint.steps is None
    assert "steps unknown" in repr(h.adjoint)
    assert relative_error(h.grad.K, expected["K"]) > 1e-3


INCONSISTENT = [
    hg.JaxoptImplicit(),
    hg.JaxoptImplicit(hg.JaxoptLU()),
    hg.OptimistixImplicit(),
]


@pytest.mark.parametrize("strategy", INCONSISTENT, ids=lambda s: s.label)
def test_a_system_without_a_solution_is_told_and_spoils_no_other_sample(strategy):
    """By itself optimistix would raise, for the whole batch."""
    problem, x_tilde, x_true = free_direction()
    solver = hg.ChambollePock(ENOUGH)
    h = hg.hypergradient(problem, x_tilde, x_true, solver=solver, strategy=strategy)
    assert np.all(np.asarray(h.solution.stats.status) == Status.CONVERGED)
    regular, other = (Status(int(status)) for status in h.adjoint.status)
    assert regular == Status.CONVERGED
    assert other in (Status.NOT_CERTIFIED, Status.NON_FINITE)
    # Every coordinate of the first sample is at its bound: r does not move with x_tilde.
    assert_close(np.asarray(h.grad_x_tilde)[0], (np.asarray(h.solution.x)[0] - x_true[0]) / 2, RTOL)


def test_a_bad_status_of_a_peer_can_raise():
    problem, x_tilde, x_true = no_fidelity()
    options = {"solver": hg.ChambollePock(ENOUGH), "strategy": hg.OptimistixImplicit()}
    with pytest.raises(eqx.EquinoxRuntimeError, match="the adjoint solve did not succeed"):
        hg.hypergradient(problem, x_tilde, x_true, **options, throw=True)


def test_optimistix_raises_by_itself():
    """The control of the two tests above: what the strategy turns into a status."""

    @eqx.filter_jit
    @eqx.filter_grad
    def through(e):
        move = optimistix.FixedPointIteration(rtol=1e-3, atol=1e-3)
        return optimistix.fixed_point(lambda s, e: s + 0 * e, move, e, e).value.sum()

    with pytest.raises(eqx.EquinoxRuntimeError, match="singular"):
        through(jnp.ones(2))


# ------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    "text",
    [
        *EVERY_SOLVER,
        "jaxopt:normal_cg=1e-06",
        "jaxopt:gmres=0.001",
        "jaxopt:bicgstab=1e-06",
        "optimistix:lu",
        "optimistix:svd",
        "limit:lu",
        "limit:gmres",
        "limit:gmres=0.001",
        "limit:bicgstab=1e-06",
        "optimistix:gmres=0.001",
        "limit:tolerance=1.2345678e-07",
        "ergodic:tail=0.3333333333333333",
        "optimistix-checkpointed",
        "optimistix-checkpointed:checkpoints=20",
    ],
)
def test_a_label_is_what_one_types(text):
    assert hg.parse_strategy(text).label == text


def test_arrays_have_a_label_too():
    assert hg.Exact(jnp.asarray(3)).label == "exact:most=3"
    assert hg.LimitFormula(hg.Tolerance(jnp.float32(1e-6))).label == "limit:tolerance=1e-06"
    traced = []
    jax.jit(lambda r: traced.append(hg.LimitFormula(hg.Tolerance(r)).label))(1e-6)
    assert traced == ["limit:tolerance=…"]


def test_a_solver_of_lineax_takes_a_tolerance():
    limit = hg.parse_strategy("limit:gmres=1e-8")
    assert limit.adjoint.solver == hg.parse_strategy("optimistix:gmres=1e-8").linear_solver
    assert limit.adjoint.solver.rtol == 1e-8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hg.parse_strategy("jaxopt:gmres=2.0"), "rtol must lie in (0, 1); got 2.0"),
        (lambda: hg.parse_strategy("jaxopt:cgls"), "choose normal_cg, gmres, bicgstab, lu"),
        (lambda: hg.JaxoptGMRES(restart=0), "restart must be a whole number of at least 1"),
        (lambda: hg.JaxoptNormalCG(most=0), "most must be a whole number of at least 1"),
        (lambda: hg.JaxoptImplicit("gmres"), "linear_solver must be a function solve(matvec, b)"),
        (lambda: hg.OptimistixImplicit(_dense), "linear_solver must be a lineax solver"),
        (lambda: hg.OptimistixCheckpointed(0), "checkpoints must be a whole number of at least 1"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


# -------------------------------------------------------------------------------- their absence

WITH_AND_WITHOUT = """
import json, sys, warnings
import jax
import hypergrad as hg
from hypergrad.comparison import reference

jax.config.update("jax_disable_most_optimizations", True)
reference.Exact = lambda most: hg.LimitFormula()  # which compiles sooner
problem = hg.LowerLevel(hg.operators.differences(4), hg.L1(0.1), hg.Quadratic(1.0))
x_true = jax.numpy.array([[0.0, 0.0, 1.0, 1.0]])
strategies = [hg.Truncation(1), hg.JaxoptImplicit()]

def errors():
    comparison = hg.compare(
        problem, x_true + 0.1, x_true, strategies=strategies, repeats=1
    )
    return {record["strategy"].partition(":")[0]: record.get("error")
            for record in comparison.records}

sys.modules["jaxopt"] = None  # its import fails
without = errors()
del sys.modules["jaxopt"]
present = errors()
for module in [name for name in sys.modules if name.startswith("jaxopt")]:
    del sys.modules[module]
try:
    import jaxopt
    warned = ""
except DeprecationWarning as warning:
    warned = str(warning)
json.dump({"without": without, "present": present, "warned": warned}, sys.stdout)
"""


def test_without_jaxopt_only_its_own_row_fails_and_its_warning_does_not_escape():
    """Every warning is an error here, and would be in the row."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITH_AND_WITHOUT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    reason = result["without"].pop("jaxopt")
    assert reason.startswith("ImportError: this strategy needs jaxopt")
    assert reason.endswith("pip install jaxopt")
    assert result["without"] == {"truncation": None}
    assert result["present"] == {"truncation": None, "jaxopt": None}
    # The warning is there, and only silenced where the strategy imports it.
    assert "no longer maintained" in result["warned"]

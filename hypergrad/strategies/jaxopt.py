"""Implicit differentiation by jaxopt."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypergrad._foundation.checks import check_count, check_fraction, spelt
from hypergrad._foundation.errors import HypergradError
from hypergrad.chambolle_pock import default_tolerance
from hypergrad.strategies._implicit_peer import AbstractImplicitPeer, FixedPoint, import_peer


class AbstractJaxoptSolve(eqx.Module):
    """One of jaxopt's linear solvers, as jaxopt takes it: `solve(matvec, b)`.

    A function of jaxopt or of the user's can stand in its place; these can be named on the command
    line, and ask for the accuracy of the core (`eps^(3/4)`) where jaxopt would stop at 1e-5.
    """

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """The solver as it is written on the command line."""

    @abc.abstractmethod
    def __call__(self, matvec: Callable[[Array], Array], b: Array) -> Array:
        """Return the solution x of `matvec(x) = b`."""


class AbstractJaxoptKrylov(AbstractJaxoptSolve):
    """`jaxopt.linear_solve.solve_<name>`, to a tolerance `rtol` in at most `most` steps."""

    rtol: eqx.AbstractVar[float | Float[Array, ""] | None]
    most: eqx.AbstractVar[int | None]

    def __check_init__(self) -> None:
        if self.rtol is not None:
            check_fraction("rtol", self.rtol, "try 1e-10")
        if self.most is not None:
            check_count("most", self.most)

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The name in jaxopt."""

    def options(self, size: int) -> dict[str, Any]:
        """Return further options for jaxopt, for a system of this size."""
        return {}

    @property
    def label(self) -> str:
        return self.name if self.rtol is None else f"{self.name}={spelt(self.rtol)}"

    def __call__(self, matvec: Callable[[Array], Array], b: Array) -> Array:
        solve = getattr(import_peer("jaxopt.linear_solve"), f"solve_{self.name}")
        tol = default_tolerance(b.dtype) if self.rtol is None else self.rtol
        return solve(matvec, b, tol=tol, maxiter=self.most, **self.options(b.size))


class JaxoptNormalCG(AbstractJaxoptKrylov):
    """`jaxopt.linear_solve.solve_normal_cg`, the default of jaxopt.

    Conjugate gradients on `A^T A w = A^T c`, formed as a product, so that the condition number is
    squared. `rtol`, of the residual of that; `most` steps, by default 10 (m + n). 4 products a
    step.

    >>> import hypergrad as hg
    >>> hg.JaxoptImplicit(hg.JaxoptNormalCG()) == hg.JaxoptImplicit()
    True
    """

    rtol: float | Float[Array, ""] | None = None
    most: int | None = eqx.field(static=True, default=None)

    @property
    def name(self) -> str:
        return "normal_cg"


class JaxoptGMRES(AbstractJaxoptKrylov):
    """`jaxopt.linear_solve.solve_gmres`, restarted: 2 products a step.

    `rtol`, of the residual; `restart`, the steps between two restarts; `most` restarts, by default
    10 (m + n).

    >>> import hypergrad as hg
    >>> hg.JaxoptImplicit(hg.JaxoptGMRES(rtol=1e-8)).label
    'jaxopt:gmres=1e-08'
    """

    rtol: float | Float[Array, ""] | None = None
    restart: int = eqx.field(static=True, default=20)
    most: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        check_count("restart", self.restart)

    @property
    def name(self) -> str:
        return "gmres"

    def options(self, size: int) -> dict[str, Any]:
        return {"restart": min(self.restart, size)}


class JaxoptBiCGStab(AbstractJaxoptKrylov):
    """`jaxopt.linear_solve.solve_bicgstab`: 4 products a step, and it may break down.

    `rtol`, of the residual; `most` steps, by default 10 (m + n).

    >>> import hypergrad as hg
    >>> hg.JaxoptImplicit(hg.JaxoptBiCGStab()).label
    'jaxopt:bicgstab'
    """

    rtol: float | Float[Array, ""] | None = None
    most: int | None = eqx.field(static=True, default=None)

    @property
    def name(self) -> str:
        return "bicgstab"


class JaxoptLU(AbstractJaxoptSolve):
    """`jaxopt.linear_solve.solve_lu`: a dense `(m + n)^2` matrix a sample, by m + n products.

    >>> import hypergrad as hg
    >>> hg.JaxoptImplicit(hg.JaxoptLU()).label
    'jaxopt:lu'
    """

    @property
    def label(self) -> str:
        return "lu"

    def __call__(self, matvec: Callable[[Array], Array], b: Array) -> Array:
        return import_peer("jaxopt.linear_solve").solve_lu(matvec, b)


def _as_jaxopt_solve(solve: Any) -> Any:
    if callable(solve):
        return solve
    raise HypergradError(
        f"linear_solver must be a function solve(matvec, b); got {solve!r}: use for example "
        "hg.JaxoptGMRES() or one of jaxopt.linear_solve"
    )


class JaxoptImplicit(AbstractImplicitPeer):
    """Implicit differentiation by jaxopt, at the state that the core arrived at.

        grad_p = <w, d/dp T(s)>,    (I - T'(s)^T) w = c

    with `jaxopt.implicit_diff.root_vjp`, which is what jaxopt's `FixedPointIteration` and
    `custom_fixed_point` call to differentiate.

    **Arguments**: `linear_solver`: `JaxoptNormalCG()` (jaxopt's default), `JaxoptGMRES()`,
    `JaxoptBiCGStab()`, `JaxoptLU()`, or a function `solve(matvec, b)` as jaxopt takes it.

    **Errors**: an `ImportError` where jaxopt cannot be imported.

    **Cost**: the solve; 2 products a step (4 by normal CG and BiCGStab), as many as the slowest
    sample needs; memory independent of L. jaxopt does not tell its steps: of the adjoint,
    `steps` is None and `products` a lower bound.

    **Caveat**: needs a converged lower level. Of a failed solve jaxopt says nothing: the status is
    by the residual, NOT_CERTIFIED above `sqrt(eps)`. Where the system is singular the solver may
    fail, or end at a solution that is not the one of minimum norm, which the residual cannot tell.

    **Source**: Blondel et al. 2022; jaxopt is no longer maintained.

    >>> import hypergrad as hg
    >>> hg.JaxoptImplicit().label, hg.parse_strategy("jaxopt:gmres=1e-6").label
    ('jaxopt:normal_cg', 'jaxopt:gmres=1e-06')
    """

    linear_solver: Callable[[Callable[[Array], Array], Array], Array] = eqx.field(
        converter=_as_jaxopt_solve, default=JaxoptNormalCG()
    )
    name: ClassVar[str] = "jaxopt"
    formula: ClassVar[str] = "<w, dT/dp> at the fixed point s = T(s), (I - T'^T) w = c by jaxopt"
    cost: ClassVar[str] = "time 1 solve and the linear solve, memory independent of L"
    caveat: ClassVar[str] = "wrong where the lower level is not converged; singular systems fail"
    choices: ClassVar[Mapping[str, tuple[str, Callable[..., Any]]]] = {
        "normal_cg": ("linear_solver", JaxoptNormalCG),
        "gmres": ("linear_solver", JaxoptGMRES),
        "bicgstab": ("linear_solver", JaxoptBiCGStab),
        "lu": ("linear_solver", JaxoptLU),
    }

    def adjoint(
        self, T: FixedPoint, s: Float[Array, " size"], c: Float[Array, " size"]
    ) -> Float[Array, " size"]:
        root_vjp = import_peer("jaxopt.implicit_diff").root_vjp

        def optimality(s: Array, e: Array) -> Array:
            return T(s) + e - s

        return root_vjp(optimality, s, (jnp.zeros_like(s),), c, self.linear_solver)[0]

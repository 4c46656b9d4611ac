"""Check the rules that every function must satisfy, at random points."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad._foundation.checks import cast_leaves, check_count
from hypergrad._foundation.errors import HypergradError
from hypergrad.problem.functions._base import AbstractFunction, check_is_function
from hypergrad.testing._probe import (
    PARTNERS,
    ROUNDINGS,
    TRUSTED,
    Draws,
    Probe,
    draw,
    probe,
)

__all__ = ["check_function"]

_DOUBLE = jnp.dtype("float64")

# Ten times the error of the differences themselves.
_DERIVATIVE_ERROR = 1e-2


def check_function(f: AbstractFunction, size: int, *, seed: int = 0) -> None:
    """Check that a function satisfies the rules that hypergrad relies on, on vectors of `size`.

    A wrong prox silently solves a different problem. At random points `z` and steps this checks
    that

    - `p = prox(z, step)` and `f(p)` are finite, of the right shape and dtype, and that a batch is
      treated as its samples are;
    - `p` is the minimiser: `step f(u) + ||u - z||^2 / 2` is not lower at any `u` tried, near `p`
      (along coordinates, towards other points of the domain) or far away;
    - `f` is convex between two such points, and the prox firmly non-expansive;
    - `prox_conjugate` agrees with Moreau's identity, and `conjugate` with that of Fenchel and
      Young, `f(p) + f*(y) = <p, y>` at `y = (z - p) / step`;
    - the derivatives of both proxes are finite, symmetric, and agree with finite differences;
    - `separable`, `homogeneous` and `indicator` are true where they are claimed.

    **Arguments**: `f`, the function; `size`, that of the vectors it acts on (m for F, n for G);
    `seed` of the points.

    **Returns**: None.

    **Errors**: a `ValueError` that names the class, the rule, the point and the value found.

    **Cost**: one or two seconds, nearly all of it compiling, for up to some thousand entries; it
    takes 25,000 values of `f`.

    **Caveat**: random points prove nothing. Derivatives in the parameters are only checked to be
    finite; `margin`, `piece`, `smooth`, `strong_convexity` and the scales are not checked. The
    check runs in double precision whatever JAX is set to, so cancellation in single precision is
    not found. A relative error of the prox above 1e-7 is found, so an inner iteration must be that
    accurate. Give an indicator some slack (64 roundings); otherwise it may be infinite at its own
    projection.

    >>> import hypergrad as hg, jax.numpy as jnp
    >>> hg.check_function(hg.L1(0.5), 8)
    >>> class Wrong(hg.AbstractFunction):
    ...     weight: float
    ...     def __call__(self, v):
    ...         return self.weight * jnp.sum(v**2, axis=-1)
    ...     def prox(self, z, step):
    ...         return z / (1 + step * self.weight)  # of half the value
    >>> try:
    ...     hg.check_function(Wrong(0.5), 8)
    ... except ValueError as error:
    ...     print(str(error)[:70])
    Wrong.prox must minimise step f(u) + ||u - z||^2 / 2; got a value that
    """
    check_is_function("f", f)
    check_count("size", size)
    f.check_size(size)
    # In single precision an error cannot be distinguished from rounding (a prox may cancel).
    with jax.enable_x64(True):
        f = cast_leaves(f, _DOUBLE)
        _check_shapes(f, size, _DOUBLE)
        draws = draw(size, seed, _DOUBLE)
        found = _in_words_of(f, "value and prox", lambda: jax.jit(lambda d: probe(f, d))(draws))
        found = Probe(*(np.asarray(values, float) for values in found))
        for check in _checks(f, draws, found, float(jnp.finfo(_DOUBLE).eps)):
            check.enforce(type(f).__name__, draws)


# ---------------------------------------------------------------------------------- shapes


def _in_words_of(f: AbstractFunction, method: str, call: Callable[[], Any]) -> Any:
    """Call the user's code, and turn what it raises into one line."""
    try:
        return call()
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise HypergradError(
            f"{type(f).__name__}: {method} must take what JAX traces, a vector or a batch of them, "
            f"and be differentiable in reverse mode; got {type(error).__name__}: {reason}"
        ) from error


def _check_shapes(f: AbstractFunction, size: int, dtype: Any) -> None:
    """Check shapes and dtypes by tracing, without computing anything."""
    step = jax.ShapeDtypeStruct((), dtype)
    for batch in ((), (3,), (2, 3)):
        z = jax.ShapeDtypeStruct((*batch, size), dtype)
        number = "one number per sample: sum over the last axis alone, axis=-1"
        vector = "one vector per sample, of its size and dtype"
        for method, given, shape, rule in (
            ("__call__", (z,), batch, number),
            ("prox", (z, step), z.shape, vector),
            ("prox_conjugate", (z, step), z.shape, vector),
            ("conjugate", (z,), batch, number),
        ):
            out = _in_words_of(
                f,
                method,
                functools.partial(jax.eval_shape, getattr(f, method), *given),
            )
            got = getattr(out, "shape", None), getattr(out, "dtype", None)
            if got != (shape, dtype):
                raise HypergradError(
                    f"{type(f).__name__}.{method} must return shape {shape} and {dtype} for a "
                    f"batch of shape {z.shape}; got shape {got[0]} and {got[1]}: return {rule}"
                )


# --------------------------------------------------------------------------------------- laws


class _Check(NamedTuple):
    """One rule, and the violation at each point in units of the allowed one."""

    rule: str
    broken: np.ndarray  # (steps, points, ...), more than 1 or NaN where it does
    got: Callable[[tuple[Any, ...]], str]
    advice: str

    def enforce(self, name: str, draws: Draws) -> None:
        if np.all(self.broken <= 1):
            return
        worst = np.where(np.isnan(self.broken), np.inf, self.broken)
        at = np.unravel_index(np.argmax(worst), worst.shape)
        z = np.asarray(draws.z[at[1]])
        shown = ", ".join(f"{entry:.4g}" for entry in z[:4]) + ", ..." * (z.size > 4)
        raise HypergradError(
            f"{name}{self.rule}; got {self.got(at)} at z = ({shown}), step = "
            f"{float(draws.steps[at[0]]):g}: {self.advice}"
        )


def _checks(f: AbstractFunction, draws: Draws, found: Probe, eps: float) -> Iterator[_Check]:
    """Yield the checks in order; later ones assume that earlier ones pass."""
    z = np.asarray(draws.z, float)
    yield from _check_existence(found)
    yield from _check_batches(found, eps)
    noise = TRUSTED * found.noise
    yield _check_convexity(found, noise, eps)
    yield _check_minimum(draws, found, noise, eps)
    yield _check_expansion(z, found, eps)
    yield from _check_conjugate(z, found, eps)
    tangents = np.asarray(draws.tangents, float)
    for method, along, mismatch in (
        ("prox", found.derivatives, found.mismatch),
        ("prox_conjugate", found.conjugate_derivatives, found.conjugate_mismatch),
    ):
        yield from _check_derivatives(method, along, tangents, eps)
        yield _Check(
            f".{method} must have a derivative in z that agrees with finite differences",
            mismatch / _DERIVATIVE_ERROR,
            lambda at, mismatch=mismatch: f"a relative difference of {mismatch[at]:.3g}",
            "a stop_gradient is in the way, or its custom derivative is wrong",
        )
    yield from _check_claims(f, found, noise, tangents, eps)


def _not_finite(found: np.ndarray) -> np.ndarray:
    """Return infinity where the sample at a point is not finite, else 0."""
    finite = np.isfinite(found).reshape(*found.shape[:2], -1)
    return np.where(np.all(finite, axis=-1), 0.0, np.inf)


def _check_existence(found: Probe) -> Iterator[_Check]:
    yield _Check(
        ".prox must be finite",
        _not_finite(found.prox),
        lambda at: f"{np.sum(~np.isfinite(found.prox[at]))} entries NaN or infinite",
        "a prox exists everywhere; divide by no norm that may be 0",
    )
    yield _Check(
        ".prox must lie where the value is finite",
        _not_finite(found.value),
        lambda at: f"a value of {found.value[at]:g}",
        "one of the two is of another function; or let the value have a slack of 64 roundings, "
        "since p may lie on a bound",
    )


def _check_batches(found: Probe, eps: float) -> Iterator[_Check]:
    for method, batch, alone in (
        (".prox", found.prox, found.prox_alone),
        ("", found.value[..., None], found.value_alone[..., None]),
    ):
        difference = np.max(np.abs(batch - alone), axis=-1)
        size = np.max(np.abs(alone), axis=-1) + found.noise[..., None].max(-1) / eps
        yield _Check(
            f"{method} must treat each sample of a batch as it is treated alone",
            difference / _allowed(eps * size),
            lambda at, difference=difference: f"a difference of {difference[at]:.3g}",
            "act on the last axis alone, as in jnp.sum(..., axis=-1, keepdims=True)",
        )


def _allowed(rounding: np.ndarray) -> np.ndarray:
    """Return the allowed rounding error, positive also where the values are 0."""
    return ROUNDINGS * rounding + np.finfo(float).tiny


def _check_convexity(found: Probe, noise: np.ndarray, eps: float) -> _Check:
    added = np.abs(found.value)[..., None] + np.abs(found.value[:, PARTNERS])[:, None]
    rounding = noise[..., None] + noise[:, PARTNERS][:, None]
    return _Check(
        " must be convex",
        np.where(np.isnan(found.convex), np.inf, found.convex) / (_allowed(eps * added) + rounding),
        lambda at: (
            f"a value in the middle between two points that is {found.convex[at]:.3g} above the "
            "mean of theirs"
        ),
        "a lower level with it has no unique answer; take a convex one",
    )


def _check_minimum(draws: Draws, found: Probe, noise: np.ndarray, eps: float) -> _Check:
    step = np.asarray(draws.steps, float)[:, None, None, None]
    return _Check(
        ".prox must minimise step f(u) + ||u - z||^2 / 2",
        found.gain / (_allowed(eps * found.gain_scale) + step * noise[..., None, None]),
        lambda at: f"a value that is {found.gain[at]:.3g} lower elsewhere",
        "value and prox are of different functions, or the step is not where it belongs; does the "
        "prox of c f at step 1 equal that of f at step c?",
    )


def _check_expansion(z: np.ndarray, found: Probe, eps: float) -> _Check:
    p = found.prox
    moved = p[:, :, None] - p[:, None, PARTNERS]
    apart = (z[:, None] - z[PARTNERS])[None]
    length = functools.partial(np.linalg.norm, axis=-1)
    excess = np.sum(moved * (moved - apart), axis=-1)
    sizes = length(z)[:, None] + length(z)[PARTNERS]
    sizes = sizes + length(p)[:, :, None] + length(p)[:, None, PARTNERS]
    return _Check(
        ".prox must be firmly non-expansive",
        excess / _allowed(eps * sizes * (length(moved) + length(apart))),
        lambda at: f"||p - p'||^2 - <p - p', z - z'> = {excess[at]:.3g} for another z'",
        "it is not the prox of a convex function",
    )


def _check_conjugate(z: np.ndarray, found: Probe, eps: float) -> Iterator[_Check]:
    difference = np.max(np.abs(found.prox_conjugate - found.by_moreau), axis=-1)
    size = np.max(np.abs(z), axis=-1) + np.max(np.abs(found.by_moreau), axis=-1)
    yield _Check(
        ".prox_conjugate must be z - step prox(z / step, 1 / step)",
        difference / _allowed(eps * size),
        lambda at: f"a difference of {difference[at]:.3g}",
        "correct it, or leave it out: this is what it is by default",
    )
    yield _Check(
        ".conjugate must satisfy f(v) + f*(y) = <v, y> at y = prox_conjugate(z, step), "
        "v = (z - y) / step",
        np.where(np.isnan(found.fenchel_young), 0.0, np.abs(found.fenchel_young))
        / (found.fenchel_young_allowed + np.finfo(float).tiny),
        lambda at: f"a difference of {found.fenchel_young[at]:.3g}",
        "correct it, or leave it out: then there is no primal-dual gap",
    )


def _check_derivatives(
    method: str, along: np.ndarray, tangents: np.ndarray, eps: float
) -> Iterator[_Check]:
    """`along` is `(steps, points, tangents, size)`."""
    first, second = along[..., 0, :], along[..., 1, :]
    yield _Check(
        f".{method} must have finite derivatives, in z and in the parameters of the function",
        _not_finite(along),
        lambda at: "NaN or infinity",
        "a root or a norm has none at 0: take it where it is used alone, in a jnp.where",
    )
    a, b = tangents[0], tangents[1]
    crossed = np.sum(b * first, axis=-1) - np.sum(a * second, axis=-1)
    size = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    # A derivative may be approximate; only wrong ones are to be found.
    allowed = np.sqrt(eps) * size
    yield _Check(
        f".{method} must have a symmetric derivative in z",
        np.abs(crossed) / allowed,
        lambda at: f"<b, J a> - <a, J b> = {crossed[at]:.3g}",
        "it is no prox of a convex function, or its custom derivative is wrong",
    )
    expansion = np.sum(first * (first - a), axis=-1)
    yield _Check(
        f".{method} must have a derivative J in z with ||J a||^2 <= <a, J a>",
        expansion / (np.sqrt(eps) * np.sum(a**2, axis=-1)),
        lambda at: f"{expansion[at]:.3g} more",
        "it is no prox of a convex function, or its custom derivative is wrong",
    )


def _check_claims(
    f: AbstractFunction, found: Probe, noise: np.ndarray, tangents: np.ndarray, eps: float
) -> Iterator[_Check]:
    """Check the claims of the class variables."""
    advice = "set it to False, or leave it out"
    along, signs = found.derivatives, np.sign(tangents[0] * tangents[2])
    mixed = np.max(np.abs(along[..., 2, :] - signs * along[..., 0, :]), axis=-1)
    doubled = np.abs(found.doubled - 2 * found.value)
    claims = {
        "separable": (mixed, np.sqrt(eps) * np.linalg.norm(tangents[0], axis=-1)),
        "homogeneous": (doubled, _allowed(eps * np.abs(found.value)) + noise),
        "indicator": (np.abs(found.value), np.finfo(float).tiny),
    }
    meaning = {
        "separable": "each coordinate of its prox must depend on that of z alone",
        "homogeneous": "f(2 p) must be 2 f(p)",
        "indicator": "its value must be 0 or infinite",
    }
    for claim, (difference, allowed) in claims.items():
        if getattr(f, claim):
            yield _Check(
                f" claims {claim} = True, so {meaning[claim]}",
                difference / allowed,
                lambda at, difference=difference: f"a difference of {difference[at]:.3g}",
                advice,
            )

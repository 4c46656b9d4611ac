"""One hypergradient in several ways: by this package, by hand in JAX and PyTorch, by torchdeq.

All take the operator K, the weight of the l1 norm, the data `x_tilde` and `x_true`, and the step
sizes `tau` and `sigma`. All return the gradients of the half mean squared error in K and in the
weight, at L iterations of

    y <- clip(y + sigma K (x_tilde + r_bar), weight)
    r <- (r - tau K^T y) / (1 + tau),    r_bar <- 2 r - r_before

for `F = weight ||.||_1` and `G = ||.||^2 / 2`. PyTorch and torchdeq are optional, so the functions
that need them import them.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from hypergrad.bilevel import Hypergradient, hypergradient
from hypergrad.chambolle_pock import ChambollePock
from hypergrad.problem.functions import L1, Quadratic
from hypergrad.problem.lower_level import LowerLevel
from hypergrad.strategies import AbstractStrategy

__all__ = [
    "by_package",
    "implicit_by_torchdeq",
    "products_by_torch",
    "unrolled_by_jax",
    "unrolled_by_torch",
]


def by_package(
    K: Array,
    weight: Array,
    x_tilde: Array,
    x_true: Array,
    tau: Array,
    sigma: Array,
    *,
    L: int,
    strategy: AbstractStrategy,
) -> tuple[Array, Array, Hypergradient]:
    """Return this package's gradients, and all that it reports: its cost is part of the time."""
    h = hypergradient(
        LowerLevel(K, L1(weight), Quadratic(1.0)), x_tilde, x_true,
        solver=ChambollePock(L, tau, sigma), strategy=strategy,
        parameters=lambda problem: (problem.K, problem.F.weight),  # pyright: ignore
    )  # fmt: skip
    grad: Any = h.grad
    return grad.K, grad.F.weight, h


def unrolled_by_jax(
    K: Array,
    weight: Array,
    x_tilde: Array,
    x_true: Array,
    tau: Array,
    sigma: Array,
    *,
    L: int,
    last: int,
) -> tuple[Array, Array]:
    """Return `jax.grad` through the `last` iterations of a `lax.scan`; to be jitted."""

    def loss(K: Array, weight: Array) -> Array:
        def step(state: Any, _: None) -> tuple[Any, None]:
            r, r_bar, y = state
            y = jnp.clip(y + sigma * (x_tilde + r_bar) @ K.T, -weight, weight)
            r_next = (r - tau * y @ K) / (1 + tau)
            return (r_next, 2 * r_next - r, y), None

        zero = jnp.zeros_like(x_tilde)
        state = (zero, zero, jnp.zeros_like(x_tilde @ K.T))
        state, _ = jax.lax.scan(step, state, None, length=L - last)
        (r, _, _), _ = jax.lax.scan(step, jax.lax.stop_gradient(state), None, length=last)
        return 0.5 * jnp.mean(jnp.sum((x_tilde + r - x_true) ** 2, axis=-1))

    return jax.grad(loss, argnums=(0, 1))(K, weight)


def _torch_step(K: Any, weight: Any, x_tilde: Any, tau: Any, sigma: Any) -> Any:
    import torch

    def step(r: Any, r_bar: Any, y: Any) -> tuple[Any, Any, Any]:
        y = torch.clamp(y + sigma * (x_tilde + r_bar) @ K.T, -weight, weight)
        r_next = (r - tau * y @ K) / (1 + tau)
        return r_next, 2 * r_next - r, y

    return step


def unrolled_by_torch(
    K: Any, weight: Any, x_tilde: Any, x_true: Any, tau: Any, sigma: Any, *, L: int, last: int
) -> tuple[Any, Any]:
    """Return PyTorch's gradient through the `last` iterations of a loop."""
    import torch

    K, weight = K.detach().requires_grad_(), weight.detach().requires_grad_()
    step = _torch_step(K, weight, x_tilde, tau, sigma)
    state = (torch.zeros_like(x_tilde), torch.zeros_like(x_tilde), torch.zeros_like(x_tilde @ K.T))
    with torch.no_grad():
        for _ in range(L - last):
            state = step(*state)
    for _ in range(last):
        state = step(*state)
    loss = 0.5 * ((x_tilde + state[0] - x_true) ** 2).sum(-1).mean()
    return torch.autograd.grad(loss, (K, weight))


def implicit_by_torchdeq(
    K: Any, weight: Any, x_tilde: Any, x_true: Any, tau: Any, sigma: Any, *, L: int
) -> tuple[Any, Any]:
    """Return torchdeq's implicit gradient: L iterations, and as many of the adjoint fixed point.

    No tolerance stops either of them. The state is one vector, since torchdeq's implicit gradient
    takes several only with a forward solver that also computes statistics, and is slower.
    """
    import torch
    import torchdeq

    K, weight = K.detach().requires_grad_(), weight.detach().requires_grad_()
    step, (m, n) = _torch_step(K, weight, x_tilde, tau, sigma), K.shape
    # The gradient takes one more iteration than the solver.
    deq = torchdeq.get_deq(
        core="indexing", ift=True, f_solver="simple_fixed_point_iter", f_max_iter=L - 1,
        b_solver="fixed_point_iter", b_max_iter=L, b_tol=0.0,
    )  # fmt: skip
    start = torch.zeros(len(x_tilde), n + n + m, dtype=K.dtype)
    (state,), _ = deq(lambda s: torch.cat(step(*s.split((n, n, m), dim=1)), dim=1), start)
    loss = 0.5 * ((x_tilde + state[:, :n] - x_true) ** 2).sum(-1).mean()
    return torch.autograd.grad(loss, (K, weight))


def products_by_torch(K: Any, x: Any, L: int) -> Any:
    """Return what `matrix_products_alone` does: 2 L products, each feeding the next."""
    for _ in range(L):
        x = (x @ K.T) @ K
    return x

"""The one list of strategies: tests, tables, figures and the command line all read it."""

from __future__ import annotations

import dataclasses

from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.specs import call_part, parse_spec
from hypergrad.adjoint import (
    CGLS,
    AbstractAdjointSolve,
    AbstractLinearSolve,
    ConjugateGradients,
    LastIterates,
    LinearSolve,
    Steps,
    Tolerance,
)
from hypergrad.exact import MatrixFree
from hypergrad.strategies._base import AbstractDifferentiableStrategy, AbstractStrategy
from hypergrad.strategies._implicit_peer import AbstractImplicitPeer
from hypergrad.strategies.ergodic import (
    AbstractWeights,
    ErgodicUnrolling,
    Geometric,
    LinearWeights,
    Tail,
    Uniform,
)
from hypergrad.strategies.exact import Exact
from hypergrad.strategies.forward_unrolling import ForwardUnrolling
from hypergrad.strategies.full_unrolling import FullUnrolling
from hypergrad.strategies.jaxopt import (
    AbstractJaxoptSolve,
    JaxoptBiCGStab,
    JaxoptGMRES,
    JaxoptImplicit,
    JaxoptLU,
    JaxoptNormalCG,
)
from hypergrad.strategies.limit import LimitFormula
from hypergrad.strategies.optimistix import OptimistixCheckpointed, OptimistixImplicit
from hypergrad.strategies.piggyback import Piggyback
from hypergrad.strategies.truncation import Truncation

__all__ = [
    "CGLS",
    "STRATEGIES",
    "AbstractAdjointSolve",
    "AbstractDifferentiableStrategy",
    "AbstractImplicitPeer",
    "AbstractJaxoptSolve",
    "AbstractLinearSolve",
    "AbstractStrategy",
    "AbstractWeights",
    "ConjugateGradients",
    "ErgodicUnrolling",
    "Exact",
    "ForwardUnrolling",
    "FullUnrolling",
    "Geometric",
    "JaxoptBiCGStab",
    "JaxoptGMRES",
    "JaxoptImplicit",
    "JaxoptLU",
    "JaxoptNormalCG",
    "LastIterates",
    "LimitFormula",
    "LinearSolve",
    "LinearWeights",
    "MatrixFree",
    "OptimistixCheckpointed",
    "OptimistixImplicit",
    "Piggyback",
    "Steps",
    "Tail",
    "Tolerance",
    "Truncation",
    "Uniform",
    "parse_strategy",
]

STRATEGIES: dict[str, type[AbstractStrategy]] = {
    strategy.name: strategy
    for strategy in (
        FullUnrolling,
        ForwardUnrolling,
        Truncation,
        ErgodicUnrolling,
        LimitFormula,
        Piggyback,
        Exact,
        JaxoptImplicit,
        OptimistixImplicit,
        OptimistixCheckpointed,
    )
}


def parse_strategy(text: str) -> AbstractStrategy:
    """Return the strategy of `text`, its command-line form `name[:option[,option…]]`.

    `name` is a key of `STRATEGIES` or, for a custom class, `module:Class`. An option is
    `field=value`, or a word that the strategy offers for an object (`steps=5`, `tail=0.5`, `cgls`).

    **Errors**: a `HypergradError` that lists the choices.

    >>> parse_strategy("truncation:k=5")
    Truncation(k=5)
    >>> parse_strategy("limit:steps=5").label
    'limit:steps=5'
    """
    spec = parse_spec(text, STRATEGIES, "a strategy")
    strategy = spec.target
    if not (isinstance(strategy, type) and issubclass(strategy, AbstractStrategy)):
        raise HypergradError(f"{text!r} must name a subclass of hypergrad.AbstractStrategy")
    names = (field.name for field in dataclasses.fields(strategy))
    spec.check_options([*strategy.choices, *names], words=strategy.choices)
    fields: dict[str, object] = {}
    for option, values in spec.arguments.items():
        field, make = strategy.choices.get(option, (option, None))
        if field in fields:
            raise HypergradError(f"{text!r} must give each option once; got {field} twice")
        fields[field] = values[0] if make is None else call_part(text, make, *values)
    return call_part(text, strategy, **fields)

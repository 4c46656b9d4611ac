"""The one list of strategies: tests, tables, figures and the command line all read it."""

from __future__ import annotations

import dataclasses

from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.specs import call_part, parse_spec
from hypergrad.adjoint import CGLS as CGLS
from hypergrad.adjoint import AbstractAdjointSolve as AbstractAdjointSolve
from hypergrad.adjoint import AbstractLinearSolve as AbstractLinearSolve
from hypergrad.adjoint import ConjugateGradients as ConjugateGradients
from hypergrad.adjoint import LastIterates as LastIterates
from hypergrad.adjoint import LinearSolve as LinearSolve
from hypergrad.adjoint import Steps as Steps
from hypergrad.adjoint import Tolerance as Tolerance
from hypergrad.exact import MatrixFree as MatrixFree
from hypergrad.strategies._base import (
    AbstractDifferentiableStrategy as AbstractDifferentiableStrategy,
)
from hypergrad.strategies._base import AbstractStrategy as AbstractStrategy
from hypergrad.strategies._implicit_peer import AbstractImplicitPeer as AbstractImplicitPeer
from hypergrad.strategies.ergodic import AbstractWeights as AbstractWeights
from hypergrad.strategies.ergodic import ErgodicUnrolling as ErgodicUnrolling
from hypergrad.strategies.ergodic import Geometric as Geometric
from hypergrad.strategies.ergodic import LinearWeights as LinearWeights
from hypergrad.strategies.ergodic import Tail as Tail
from hypergrad.strategies.ergodic import Uniform as Uniform
from hypergrad.strategies.exact import Exact as Exact
from hypergrad.strategies.forward_unrolling import ForwardUnrolling as ForwardUnrolling
from hypergrad.strategies.full_unrolling import FullUnrolling as FullUnrolling
from hypergrad.strategies.jaxopt import AbstractJaxoptSolve as AbstractJaxoptSolve
from hypergrad.strategies.jaxopt import JaxoptBiCGStab as JaxoptBiCGStab
from hypergrad.strategies.jaxopt import JaxoptGMRES as JaxoptGMRES
from hypergrad.strategies.jaxopt import JaxoptImplicit as JaxoptImplicit
from hypergrad.strategies.jaxopt import JaxoptLU as JaxoptLU
from hypergrad.strategies.jaxopt import JaxoptNormalCG as JaxoptNormalCG
from hypergrad.strategies.limit import LimitFormula as LimitFormula
from hypergrad.strategies.optimistix import OptimistixCheckpointed as OptimistixCheckpointed
from hypergrad.strategies.optimistix import OptimistixImplicit as OptimistixImplicit
from hypergrad.strategies.piggyback import Piggyback as Piggyback
from hypergrad.strategies.truncation import Truncation as Truncation

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

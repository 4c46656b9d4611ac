"""The one list of strategies: tests, tables, figures and the command line all read it."""

from __future__ import annotations

import ast
import dataclasses
import difflib

from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.imports import imported
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
    """A strategy from `text`, its command-line form `name[:option[,option…]]`.

    `name` is a key of `STRATEGIES` or, for a class of the user's, `module:Class`. An option is
    `field=value`, or a word that the strategy offers for an object (`steps=5`, `tail=0.5`, `cgls`).

    **Errors**: a `ValueError` that lists what there is.

    >>> parse_strategy("truncation:k=5")
    Truncation(k=5)
    >>> parse_strategy("limit:steps=5").label
    'limit:steps=5'
    """
    name, _, options = text.partition(":")
    if name in STRATEGIES:
        strategy = STRATEGIES[name]
    elif options:
        class_name, _, options = options.partition(":")
        strategy = _import_strategy(name, class_name, text)
    else:
        raise HypergradError(_unknown(name, text))
    fields: dict[str, object] = {}
    for option in filter(None, options.split(",")):
        field, value = _parse_option(strategy, option, text)
        if field in fields:
            raise HypergradError(
                f"a strategy takes each option once; got {field} twice in {text!r}"
            )
        fields[field] = value
    try:
        return strategy(**fields)
    except TypeError as error:
        raise HypergradError(f"{text!r} does not make a strategy: {error}") from None


def _parse_option(strategy: type[AbstractStrategy], option: str, text: str) -> tuple[str, object]:
    word, equals, literal = option.partition("=")
    names = [field.name for field in dataclasses.fields(strategy)]
    try:
        arguments = [_literal(literal)] if equals else []
        if word in strategy.choices:
            field, constructor = strategy.choices[word]
            return field, constructor(*arguments)
    except (TypeError, ValueError) as error:
        raise HypergradError(f"option {option!r} in {text!r} is not understood: {error}") from None
    if word not in names or not arguments:
        known = [*strategy.choices, *(f"{name}=…" for name in names)]
        raise HypergradError(
            f"an option of {strategy.name!r} must be one of {', '.join(known) or '(none)'}; "
            f"got {option!r}"
        )
    return word, arguments[0]


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        raise HypergradError(
            f"{text!r} is neither a number nor another Python literal (options are separated by "
            "commas)"
        ) from None


def _unknown(name: str, text: str) -> str:
    """What there is, and what is nearest to what was typed."""
    nearest = difflib.get_close_matches(name, STRATEGIES, n=1)
    perhaps = f" (perhaps {nearest[0]})" if nearest else ""
    return (
        f"a strategy must be one of {', '.join(STRATEGIES)}, or module:Class; got {text!r}{perhaps}"
    )


def _import_strategy(module: str, class_name: str, text: str) -> type[AbstractStrategy]:
    try:
        found = imported(module, class_name)
    except ImportError as error:
        raise HypergradError(f"{_unknown(module, text)}: {error}") from None
    if not (isinstance(found, type) and issubclass(found, AbstractStrategy)):
        raise HypergradError(f"{text!r} must name a subclass of hypergrad.AbstractStrategy")
    return found

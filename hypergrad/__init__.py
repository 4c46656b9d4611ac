"""hypergrad: hypergradients of bilevel problems with Chambolle-Pock lower levels, side by side.

min_K  sum_i loss(x_hat_i, x_true_i)    with    x_hat_i = argmin_x F(K x) + G(x - x_tilde_i)
"""

from hypergrad import devices, operators
from hypergrad.adjoint import AdjointStats, Cotangent, Gradients
from hypergrad.bilevel import Chosen, Hypergradient, half_mean_squared_error, hypergradient, solve
from hypergrad.chambolle_pock import (
    ChambollePock,
    RestartedHalpern,
    Solution,
    SolverStats,
    State,
    Trace,
    record,
)
from hypergrad.comparison import Comparison, compare, reference_hypergradient
from hypergrad.diagnostics import (
    AdjointTrajectory,
    Contraction,
    SampleErrors,
    StepsNeeded,
    adjoint_trajectory,
    contraction_factor,
    per_sample_errors,
    steps_needed,
)
from hypergrad.error_bound import ErrorBound, Regime
from hypergrad.functions import (
    L1,
    AbstractFunction,
    Box,
    BoxQuadratic,
    ElasticNet,
    GroupL1,
    Huber,
    L2Ball,
    NonNegative,
    Quadratic,
    SeparableSum,
    Zero,
    check_function,
)
from hypergrad.lower_level import LowerLevel, stop_gradient
from hypergrad.restoration import restore
from hypergrad.saved_operator import SavedOperator, load_operator
from hypergrad.status import Status
from hypergrad.strategies import (
    STRATEGIES,
    AbstractDifferentiableStrategy,
    AbstractStrategy,
    ConjugateGradients,
    ErgodicUnrolling,
    Exact,
    ForwardUnrolling,
    FullUnrolling,
    Geometric,
    JaxoptBiCGStab,
    JaxoptGMRES,
    JaxoptImplicit,
    JaxoptLU,
    JaxoptNormalCG,
    LastIterates,
    LeastSquares,
    LimitFormula,
    Linear,
    LinearSolve,
    MatrixFree,
    OptimistixCheckpointed,
    OptimistixImplicit,
    Piggyback,
    Steps,
    Tail,
    Tolerance,
    Truncation,
    Uniform,
    parse_strategy,
)
from hypergrad.strategy_checks import check_strategy
from hypergrad.training import History, WarmStart, evaluate, train

__all__ = [
    "L1",
    "STRATEGIES",
    "AbstractDifferentiableStrategy",
    "AbstractFunction",
    "AbstractStrategy",
    "AdjointStats",
    "AdjointTrajectory",
    "Box",
    "BoxQuadratic",
    "ChambollePock",
    "Chosen",
    "Comparison",
    "ConjugateGradients",
    "Contraction",
    "Cotangent",
    "ElasticNet",
    "ErgodicUnrolling",
    "ErrorBound",
    "Exact",
    "ForwardUnrolling",
    "FullUnrolling",
    "Geometric",
    "Gradients",
    "GroupL1",
    "History",
    "Huber",
    "Hypergradient",
    "JaxoptBiCGStab",
    "JaxoptGMRES",
    "JaxoptImplicit",
    "JaxoptLU",
    "JaxoptNormalCG",
    "L2Ball",
    "LastIterates",
    "LeastSquares",
    "LimitFormula",
    "Linear",
    "LinearSolve",
    "LowerLevel",
    "MatrixFree",
    "NonNegative",
    "OptimistixCheckpointed",
    "OptimistixImplicit",
    "Piggyback",
    "Quadratic",
    "Regime",
    "RestartedHalpern",
    "SampleErrors",
    "SavedOperator",
    "SeparableSum",
    "Solution",
    "SolverStats",
    "State",
    "Status",
    "Steps",
    "StepsNeeded",
    "Tail",
    "Tolerance",
    "Trace",
    "Truncation",
    "Uniform",
    "WarmStart",
    "Zero",
    "adjoint_trajectory",
    "check_function",
    "check_strategy",
    "compare",
    "contraction_factor",
    "devices",
    "evaluate",
    "half_mean_squared_error",
    "hypergradient",
    "load_operator",
    "operators",
    "parse_strategy",
    "per_sample_errors",
    "record",
    "reference_hypergradient",
    "restore",
    "solve",
    "steps_needed",
    "stop_gradient",
    "train",
]


def __getattr__(name: str) -> str:
    """`__version__`, looked up where it is asked for."""
    if name != "__version__":
        raise AttributeError(f"module 'hypergrad' has no attribute {name!r}")
    from importlib.metadata import version

    return version("hypergrad-jax")

"""hypergrad: hypergradients of bilevel problems with Chambolle-Pock lower levels, side by side.

min_K  sum_i loss(x_hat_i, x_true_i)    with    x_hat_i = argmin_x F(K x) + G(x - x_tilde_i)
"""

import sys
from typing import Any

from hypergrad._foundation.errors import HypergradError
from hypergrad._foundation.renamed import renamed
from hypergrad._foundation.status import Status
from hypergrad.adjoint import AdjointStats, Cotangent, Gradients
from hypergrad.bilevel import (
    Hypergradient,
    LossBound,
    TargetReport,
    half_mean_squared_error,
    hypergradient,
    hypergradient_to_target,
    loss_bound,
    solve,
)
from hypergrad.bilevel.error_bound import ErrorBound, Regime
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
    psnr,
    ssim,
    steps_needed,
)
from hypergrad.learning import (
    HOAG,
    LBFGS,
    AbstractUpperLevelMethod,
    AdaptiveInexactDescent,
    History,
    RandomCrops,
    WarmStart,
    devices,
    evaluate,
    train,
)
from hypergrad.learning.restoration import restore
from hypergrad.learning.saved_operator import SavedOperator, load_operator
from hypergrad.problem import functions, lower_level, operators
from hypergrad.problem.functions import (
    L1,
    AbstractFunction,
    Box,
    BoxQuadratic,
    ConvexPotential,
    DataFidelity,
    ElasticNet,
    GroupL1,
    Huber,
    IndicatorZero,
    L2Ball,
    NonNegative,
    Quadratic,
    SeparableSum,
    Zero,
)
from hypergrad.problem.lower_level import LowerLevel, stop_gradient
from hypergrad.problem.measurements import with_measurements
from hypergrad.strategies import (
    CGLS,
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
    LimitFormula,
    LinearSolve,
    LinearWeights,
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
from hypergrad.testing import check_function, check_operator, check_strategy

__all__ = [
    "CGLS",
    "HOAG",
    "L1",
    "LBFGS",
    "STRATEGIES",
    "AbstractDifferentiableStrategy",
    "AbstractFunction",
    "AbstractStrategy",
    "AbstractUpperLevelMethod",
    "AdaptiveInexactDescent",
    "AdjointStats",
    "AdjointTrajectory",
    "Box",
    "BoxQuadratic",
    "ChambollePock",
    "Comparison",
    "ConjugateGradients",
    "Contraction",
    "ConvexPotential",
    "Cotangent",
    "DataFidelity",
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
    "HypergradError",
    "Hypergradient",
    "IndicatorZero",
    "JaxoptBiCGStab",
    "JaxoptGMRES",
    "JaxoptImplicit",
    "JaxoptLU",
    "JaxoptNormalCG",
    "L2Ball",
    "LastIterates",
    "LimitFormula",
    "LinearSolve",
    "LinearWeights",
    "LossBound",
    "LowerLevel",
    "MatrixFree",
    "NonNegative",
    "OptimistixCheckpointed",
    "OptimistixImplicit",
    "Piggyback",
    "Quadratic",
    "RandomCrops",
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
    "TargetReport",
    "Tolerance",
    "Trace",
    "Truncation",
    "Uniform",
    "WarmStart",
    "Zero",
    "adjoint_trajectory",
    "check_function",
    "check_operator",
    "check_strategy",
    "compare",
    "contraction_factor",
    "devices",
    "evaluate",
    "half_mean_squared_error",
    "hypergradient",
    "hypergradient_to_target",
    "load_operator",
    "loss_bound",
    "operators",
    "parse_strategy",
    "per_sample_errors",
    "psnr",
    "record",
    "reference_hypergradient",
    "restore",
    "solve",
    "ssim",
    "steps_needed",
    "stop_gradient",
    "train",
    "with_measurements",
]


# Scripts import these rooms by the names that they had at the root of the package.
for _room in (functions, lower_level, operators):
    sys.modules[f"hypergrad.{_room.__name__.rpartition('.')[2]}"] = _room

_renamed = renamed(
    "hypergrad",
    {
        "Chosen": "hypergrad:TargetReport",
        "LeastSquares": "hypergrad:CGLS",
        "Linear": "hypergrad:LinearWeights",
    },
)


def __getattr__(name: str) -> Any:
    """Look up `__version__` where it is asked for, and what has been renamed."""
    if name != "__version__":
        return _renamed(name)
    from importlib.metadata import version

    return version("hypergrad-jax")

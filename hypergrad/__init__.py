"""hypergrad: hypergradients of bilevel problems with Chambolle-Pock lower levels, side by side.

min_K  sum_i loss(x_hat_i, x_true_i)    with    x_hat_i = argmin_x F(K x) + G(x - x_tilde_i)
"""

from hypergrad import devices as devices
from hypergrad import operators as operators
from hypergrad.adjoint import AdjointStats as AdjointStats
from hypergrad.adjoint import Cotangent as Cotangent
from hypergrad.adjoint import Gradients as Gradients
from hypergrad.bilevel import Chosen as Chosen
from hypergrad.bilevel import Hypergradient as Hypergradient
from hypergrad.bilevel import half_mean_squared_error as half_mean_squared_error
from hypergrad.bilevel import hypergradient as hypergradient
from hypergrad.bilevel import solve as solve
from hypergrad.chambolle_pock import ChambollePock as ChambollePock
from hypergrad.chambolle_pock import RestartedHalpern as RestartedHalpern
from hypergrad.chambolle_pock import Solution as Solution
from hypergrad.chambolle_pock import SolverStats as SolverStats
from hypergrad.chambolle_pock import State as State
from hypergrad.chambolle_pock import Trace as Trace
from hypergrad.chambolle_pock import record as record
from hypergrad.comparison import Comparison as Comparison
from hypergrad.comparison import compare as compare
from hypergrad.comparison import reference_hypergradient as reference_hypergradient
from hypergrad.diagnostics import AdjointTrajectory as AdjointTrajectory
from hypergrad.diagnostics import Contraction as Contraction
from hypergrad.diagnostics import SampleErrors as SampleErrors
from hypergrad.diagnostics import StepsNeeded as StepsNeeded
from hypergrad.diagnostics import adjoint_trajectory as adjoint_trajectory
from hypergrad.diagnostics import contraction_factor as contraction_factor
from hypergrad.diagnostics import per_sample_errors as per_sample_errors
from hypergrad.diagnostics import steps_needed as steps_needed
from hypergrad.error_bound import ErrorBound as ErrorBound
from hypergrad.error_bound import Regime as Regime
from hypergrad.functions import L1 as L1
from hypergrad.functions import AbstractFunction as AbstractFunction
from hypergrad.functions import Box as Box
from hypergrad.functions import BoxQuadratic as BoxQuadratic
from hypergrad.functions import ElasticNet as ElasticNet
from hypergrad.functions import GroupL1 as GroupL1
from hypergrad.functions import Huber as Huber
from hypergrad.functions import L2Ball as L2Ball
from hypergrad.functions import NonNegative as NonNegative
from hypergrad.functions import Quadratic as Quadratic
from hypergrad.functions import SeparableSum as SeparableSum
from hypergrad.functions import Zero as Zero
from hypergrad.functions import check_function as check_function
from hypergrad.lower_level import LowerLevel as LowerLevel
from hypergrad.lower_level import stop_gradient as stop_gradient
from hypergrad.restoration import restore as restore
from hypergrad.saved_operator import SavedOperator as SavedOperator
from hypergrad.saved_operator import load_operator as load_operator
from hypergrad.status import Status as Status
from hypergrad.strategies import STRATEGIES as STRATEGIES
from hypergrad.strategies import AbstractDifferentiableStrategy as AbstractDifferentiableStrategy
from hypergrad.strategies import AbstractStrategy as AbstractStrategy
from hypergrad.strategies import ConjugateGradients as ConjugateGradients
from hypergrad.strategies import ErgodicUnrolling as ErgodicUnrolling
from hypergrad.strategies import Exact as Exact
from hypergrad.strategies import ForwardUnrolling as ForwardUnrolling
from hypergrad.strategies import FullUnrolling as FullUnrolling
from hypergrad.strategies import Geometric as Geometric
from hypergrad.strategies import JaxoptBiCGStab as JaxoptBiCGStab
from hypergrad.strategies import JaxoptGMRES as JaxoptGMRES
from hypergrad.strategies import JaxoptImplicit as JaxoptImplicit
from hypergrad.strategies import JaxoptLU as JaxoptLU
from hypergrad.strategies import JaxoptNormalCG as JaxoptNormalCG
from hypergrad.strategies import LastIterates as LastIterates
from hypergrad.strategies import LeastSquares as LeastSquares
from hypergrad.strategies import LimitFormula as LimitFormula
from hypergrad.strategies import Linear as Linear
from hypergrad.strategies import LinearSolve as LinearSolve
from hypergrad.strategies import MatrixFree as MatrixFree
from hypergrad.strategies import OptimistixCheckpointed as OptimistixCheckpointed
from hypergrad.strategies import OptimistixImplicit as OptimistixImplicit
from hypergrad.strategies import Piggyback as Piggyback
from hypergrad.strategies import Steps as Steps
from hypergrad.strategies import Tail as Tail
from hypergrad.strategies import Tolerance as Tolerance
from hypergrad.strategies import Truncation as Truncation
from hypergrad.strategies import Uniform as Uniform
from hypergrad.strategies import parse_strategy as parse_strategy
from hypergrad.strategy_checks import check_strategy as check_strategy
from hypergrad.training import History as History
from hypergrad.training import WarmStart as WarmStart
from hypergrad.training import evaluate as evaluate
from hypergrad.training import train as train


def __getattr__(name: str) -> str:
    """`__version__`, looked up where it is asked for."""
    if name != "__version__":
        raise AttributeError(f"module 'hypergrad' has no attribute {name!r}")
    from importlib.metadata import version

    return version("hypergrad-jax")

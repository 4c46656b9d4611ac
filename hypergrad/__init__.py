"""hypergrad: hypergradients of bilevel problems with Chambolle-Pock lower levels, side by side.

    min_K  sum_i loss(x_hat_i, x_true_i)    with    x_hat_i = argmin_x F(K x) + G(x - x_tilde_i)
"""

from hypergrad import operators
from hypergrad.bilevel import Hypergradient, half_mean_squared_error, hypergradient, solve
from hypergrad.chambolle_pock import ChambollePock, Solution, SolverStats, State
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
)
from hypergrad.lower_level import LowerLevel
from hypergrad.status import Status
from hypergrad.strategies import (
    STRATEGIES,
    AbstractDifferentiableStrategy,
    AbstractStrategy,
    ErgodicUnrolling,
    FullUnrolling,
    Geometric,
    LastIterates,
    LimitFormula,
    Linear,
    Steps,
    Tail,
    Tolerance,
    Truncation,
    Uniform,
    parse_strategy,
)
from hypergrad.training import History, evaluate, train
from hypergrad.comparison import Comparison, compare, reference_hypergradient

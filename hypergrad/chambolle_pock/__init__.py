"""The core: the Chambolle-Pock method that every strategy runs."""

from hypergrad.chambolle_pock.acceleration import AbstractAcceleration as AbstractAcceleration
from hypergrad.chambolle_pock.acceleration import RestartedHalpern as RestartedHalpern
from hypergrad.chambolle_pock.certificate import SolverStats as SolverStats
from hypergrad.chambolle_pock.certificate import certify as certify
from hypergrad.chambolle_pock.certificate import margin_of as margin_of
from hypergrad.chambolle_pock.certificate import residual_of as residual_of
from hypergrad.chambolle_pock.iteration import AdjointPair as AdjointPair
from hypergrad.chambolle_pock.iteration import ProxArguments as ProxArguments
from hypergrad.chambolle_pock.iteration import State as State
from hypergrad.chambolle_pock.iteration import StepSizes as StepSizes
from hypergrad.chambolle_pock.iteration import record as record
from hypergrad.chambolle_pock.iteration import run as run
from hypergrad.chambolle_pock.iteration import step as step
from hypergrad.chambolle_pock.residuals import ROUNDINGS as ROUNDINGS
from hypergrad.chambolle_pock.residuals import PairScale as PairScale
from hypergrad.chambolle_pock.residuals import attainable_tolerance as attainable_tolerance
from hypergrad.chambolle_pock.residuals import default_tolerance as default_tolerance
from hypergrad.chambolle_pock.residuals import pair_scale as pair_scale
from hypergrad.chambolle_pock.residuals import primal_dual_norm as primal_dual_norm
from hypergrad.chambolle_pock.residuals import relative_to as relative_to
from hypergrad.chambolle_pock.residuals import rounding_of_pair as rounding_of_pair
from hypergrad.chambolle_pock.residuals import with_steps as with_steps
from hypergrad.chambolle_pock.solver import ChambollePock as ChambollePock
from hypergrad.chambolle_pock.solver import Solution as Solution
from hypergrad.chambolle_pock.solver import Trace as Trace

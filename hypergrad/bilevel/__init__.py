"""The two entry points: `solve`, an ordinary differentiable function, and `hypergradient`."""

from hypergrad.bilevel.arguments import Data as Data
from hypergrad.bilevel.arguments import Loss as Loss
from hypergrad.bilevel.arguments import OnSamples as OnSamples
from hypergrad.bilevel.arguments import half_mean_squared_error as half_mean_squared_error
from hypergrad.bilevel.differentiable import solve as solve
from hypergrad.bilevel.hypergradients import hypergradient as hypergradient
from hypergrad.bilevel.loss_bound import LossBound as LossBound
from hypergrad.bilevel.loss_bound import loss_bound as loss_bound
from hypergrad.bilevel.result import Hypergradient as Hypergradient
from hypergrad.bilevel.result import TargetReport as TargetReport
from hypergrad.bilevel.target_error import hypergradient_to_target as hypergradient_to_target

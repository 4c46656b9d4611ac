"""The upper level: learn leaves of the problem by a first-order method, resumably."""

from hypergrad.learning.chunks import evaluate as evaluate
from hypergrad.learning.chunks import solve_in_pieces as solve_in_pieces
from hypergrad.learning.crops import RandomCrops as RandomCrops
from hypergrad.learning.loop import train as train
from hypergrad.learning.methods import HOAG as HOAG
from hypergrad.learning.methods import LBFGS as LBFGS
from hypergrad.learning.methods import AbstractUpperLevelMethod as AbstractUpperLevelMethod
from hypergrad.learning.methods import AdaptiveInexactDescent as AdaptiveInexactDescent
from hypergrad.learning.result import History as History
from hypergrad.learning.updates import make_update as make_update
from hypergrad.learning.warm_start import WarmStart as WarmStart

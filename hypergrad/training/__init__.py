"""The upper level: learn leaves of the problem by a first-order method, resumably."""

from hypergrad.training.loop import train as train
from hypergrad.training.pieces import evaluate as evaluate
from hypergrad.training.pieces import solve_in_pieces as solve_in_pieces
from hypergrad.training.result import History as History
from hypergrad.training.updates import make_update as make_update
from hypergrad.visits import WarmStart as WarmStart

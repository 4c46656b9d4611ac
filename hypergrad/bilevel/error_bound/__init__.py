"""A bound on the error of a hypergradient, computed after it: how far from the true one it can be.

Two regimes lead from the pair that a solve returned to a nearby point with a *reference gradient*
whose own error is known. For any strategy then, by the triangle inequality,

    || grad - true ||  <=  || grad - reference || + || reference - true ||

per leaf of the problem and over all of them. The error of the reference is mostly rounding. It is
not enclosed by interval arithmetic but bounded by measured residuals and a model of rounding, times
condition numbers whose bound holds but for a small probability (`ActiveSystem.inverse_norm`).
"""

from hypergrad.bilevel.error_bound._base import AbstractPoint as AbstractPoint
from hypergrad.bilevel.error_bound._base import AbstractRegime as AbstractRegime
from hypergrad.bilevel.error_bound._base import ReturnedPair as ReturnedPair
from hypergrad.bilevel.error_bound._base import gap_distance as gap_distance
from hypergrad.bilevel.error_bound.active_set import ActiveSet as ActiveSet
from hypergrad.bilevel.error_bound.as_returned import AsReturned as AsReturned
from hypergrad.bilevel.error_bound.bound import REGIMES as REGIMES
from hypergrad.bilevel.error_bound.bound import bound_error as bound_error
from hypergrad.bilevel.error_bound.bound import regimes_of as regimes_of
from hypergrad.bilevel.error_bound.result import ErrorBound as ErrorBound
from hypergrad.bilevel.error_bound.result import Regime as Regime
from hypergrad.bilevel.error_bound.strong_convexity import StrongConvexity as StrongConvexity

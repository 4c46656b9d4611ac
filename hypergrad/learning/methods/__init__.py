"""Upper-level methods that choose their steps, and some of them the accuracy of the lower level."""

from hypergrad.learning.methods.adaptive import AdaptiveInexactDescent as AdaptiveInexactDescent
from hypergrad.learning.methods.base import AbstractUpperLevelMethod as AbstractUpperLevelMethod
from hypergrad.learning.methods.hoag import HOAG as HOAG
from hypergrad.learning.methods.lbfgs import LBFGS as LBFGS
from hypergrad.learning.methods.run import MethodRun as MethodRun

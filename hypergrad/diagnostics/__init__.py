"""Diagnostics of a hypergradient: layer by layer, step by step, sample by sample.

`adjoint_trajectory` shows the delta recursion of an unrolled gradient, `contraction_factor` how
fast the iteration and its adjoint contract in the end, `steps_needed` how many steps of the
recursion that means, `per_sample_errors` how the error of a strategy spreads over the samples.
(The iterates themselves: `solve(..., trace=True)`.)
"""

from hypergrad._foundation.quality import psnr as psnr
from hypergrad._foundation.quality import snr as snr
from hypergrad._foundation.quality import ssim as ssim
from hypergrad.diagnostics.contraction import Contraction as Contraction
from hypergrad.diagnostics.contraction import contraction_factor as contraction_factor
from hypergrad.diagnostics.samples import SampleErrors as SampleErrors
from hypergrad.diagnostics.samples import are_certified as are_certified
from hypergrad.diagnostics.samples import per_sample_errors as per_sample_errors
from hypergrad.diagnostics.steps import StepsNeeded as StepsNeeded
from hypergrad.diagnostics.steps import steps_needed as steps_needed
from hypergrad.diagnostics.trajectory import AdjointTrajectory as AdjointTrajectory
from hypergrad.diagnostics.trajectory import adjoint_trajectory as adjoint_trajectory

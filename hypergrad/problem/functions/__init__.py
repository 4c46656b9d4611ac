"""The convex functions F and G of the lower level: value, prox, and the prox of the conjugate.

Conventions, for every function `f` here and every function that a user adds:

- `f` acts on the last axis; leading axes are a batch.
- `f.prox(z, t) = argmin_v t f(v) + ||v - z||^2 / 2`.
- Moreau: `prox_{s f*}(z) = z - s prox_{f/s}(z/s)`. So the two derivatives add up to the identity.
- At a kink a projection (a clip is one) has derivative 0, the derivative of its *outside*;
  everything else follows by Moreau, so that soft thresholding has derivative 1 at its kink.
  (`jnp.clip` gives 0.5 there, which belongs to neither side.)
"""

from hypergrad.problem.functions._base import AbstractFunction as AbstractFunction
from hypergrad.problem.functions._base import prox as prox
from hypergrad.problem.functions._base import prox_conjugate as prox_conjugate
from hypergrad.problem.functions.fidelity import DataFidelity as DataFidelity
from hypergrad.problem.functions.indicators import Box as Box
from hypergrad.problem.functions.indicators import BoxQuadratic as BoxQuadratic
from hypergrad.problem.functions.indicators import IndicatorZero as IndicatorZero
from hypergrad.problem.functions.indicators import L2Ball as L2Ball
from hypergrad.problem.functions.indicators import NonNegative as NonNegative
from hypergrad.problem.functions.norms import L1 as L1
from hypergrad.problem.functions.norms import ElasticNet as ElasticNet
from hypergrad.problem.functions.norms import GroupL1 as GroupL1
from hypergrad.problem.functions.norms import Huber as Huber
from hypergrad.problem.functions.potentials import ConvexPotential as ConvexPotential
from hypergrad.problem.functions.smooth import Quadratic as Quadratic
from hypergrad.problem.functions.smooth import Zero as Zero
from hypergrad.problem.functions.sums import SeparableSum as SeparableSum

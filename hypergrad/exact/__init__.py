"""Semismooth Newton for the lower level, to machine precision: what `Exact` stands on.

The optimality conditions as one equation in the arguments of the two proxes (a normal map), with
`r = prox_{tau G}(z_P)` and `y = prox_{sigma F*}(z_D)`:

    z_P - r + tau K^T y = 0
    z_D - y - sigma K (x_tilde + r) = 0

Its Jacobian at `D_P = prox'_{tau G}(z_P)`, `D_D = prox'_{sigma F*}(z_D)`, in the scaled unknowns
`z_P / sqrt(tau)`, `z_D / sqrt(sigma)` and with `s = sqrt(tau sigma)`, gives the Newton step; the
limit system of the adjoint, written in `U` (then `Delta = D U`), is the same with -s. One
factorisation serves both:

    (I - D_P) a + s K^T D_D b = f_P
    (I - D_D) b - s K D_P a   = f_D

How the solution is searched for: `hypergrad.exact.search`, and for the hardest
`hypergrad.exact.path`; without a matrix, `hypergrad.exact.matrix_free`.
"""

from hypergrad.exact.active_sets import AbstractActiveSystem as AbstractActiveSystem
from hypergrad.exact.active_sets import ActiveSystem as ActiveSystem
from hypergrad.exact.active_sets import active_system as active_system
from hypergrad.exact.active_sets import regularization as regularization
from hypergrad.exact.matrix_free import MatrixFree as MatrixFree
from hypergrad.exact.normal_map import NormalMap as NormalMap
from hypergrad.exact.path import least_margin as least_margin
from hypergrad.exact.search import AbstractSearch as AbstractSearch
from hypergrad.exact.search import ExactPair as ExactPair
from hypergrad.exact.search import Factorised as Factorised

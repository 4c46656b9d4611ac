"""The analysis operator K: products with a batch, its norm, and the usual choices."""

from hypergrad.operators.boundaries import AbstractBoundary as AbstractBoundary
from hypergrad.operators.boundaries import Periodic as Periodic
from hypergrad.operators.boundaries import Symmetric as Symmetric
from hypergrad.operators.boundaries import ZeroOutside as ZeroOutside
from hypergrad.operators.convolutions import FFT as FFT
from hypergrad.operators.convolutions import AbstractConvolution as AbstractConvolution
from hypergrad.operators.convolutions import Direct as Direct
from hypergrad.operators.filter_bank import FilterBank as FilterBank
from hypergrad.operators.norm import LANCZOS_MARGIN as LANCZOS_MARGIN
from hypergrad.operators.norm import operator_norm as operator_norm
from hypergrad.operators.products import Operator as Operator
from hypergrad.operators.products import apply as apply
from hypergrad.operators.products import apply_transpose as apply_transpose
from hypergrad.operators.products import bilinear_gradient as bilinear_gradient
from hypergrad.operators.products import dense_matrix as dense_matrix
from hypergrad.operators.products import matrix_of as matrix_of
from hypergrad.operators.products import operator_dtype as operator_dtype
from hypergrad.operators.products import operator_shape as operator_shape
from hypergrad.operators.usual import dct as dct
from hypergrad.operators.usual import dct2 as dct2
from hypergrad.operators.usual import difference_operator as difference_operator
from hypergrad.operators.usual import differences as differences
from hypergrad.operators.usual import differences2 as differences2
from hypergrad.operators.usual import random as random
from hypergrad.operators.usual import stack as stack

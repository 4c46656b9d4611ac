"""The analysis operator K: products with a batch, its norm, and common choices."""

from hypergrad._foundation.renamed import renamed as _renamed
from hypergrad.problem.operators._base import AbstractOperator as AbstractOperator
from hypergrad.problem.operators.boundaries import AbstractBoundary as AbstractBoundary
from hypergrad.problem.operators.boundaries import Periodic as Periodic
from hypergrad.problem.operators.boundaries import Reflect as Reflect
from hypergrad.problem.operators.boundaries import Symmetric as Symmetric
from hypergrad.problem.operators.boundaries import Valid as Valid
from hypergrad.problem.operators.boundaries import ZeroOutside as ZeroOutside
from hypergrad.problem.operators.convolutions import FFT as FFT
from hypergrad.problem.operators.convolutions import AbstractConvolution as AbstractConvolution
from hypergrad.problem.operators.convolutions import Direct as Direct
from hypergrad.problem.operators.filter_bank import FilterBank as FilterBank
from hypergrad.problem.operators.filter_bank import dct_bank as dct_bank
from hypergrad.problem.operators.filter_bank import zero_mean as zero_mean
from hypergrad.problem.operators.forward import AbstractForward as AbstractForward
from hypergrad.problem.operators.forward import Blur as Blur
from hypergrad.problem.operators.forward import DenseForward as DenseForward
from hypergrad.problem.operators.forward import FourierSampling as FourierSampling
from hypergrad.problem.operators.forward import Mask as Mask
from hypergrad.problem.operators.forward import pseudo_inverse as pseudo_inverse
from hypergrad.problem.operators.image_differences import ImageDifferences as ImageDifferences
from hypergrad.problem.operators.image_differences import difference_operator as difference_operator
from hypergrad.problem.operators.matrices import dct as dct
from hypergrad.problem.operators.matrices import dct2 as dct2
from hypergrad.problem.operators.matrices import differences as differences
from hypergrad.problem.operators.matrices import differences2 as differences2
from hypergrad.problem.operators.matrices import random as random
from hypergrad.problem.operators.norm import LANCZOS_MARGIN as LANCZOS_MARGIN
from hypergrad.problem.operators.norm import operator_norm as operator_norm
from hypergrad.problem.operators.products import Operator as Operator
from hypergrad.problem.operators.products import apply as apply
from hypergrad.problem.operators.products import apply_transpose as apply_transpose
from hypergrad.problem.operators.products import bilinear_gradient as bilinear_gradient
from hypergrad.problem.operators.products import dense_matrix as dense_matrix
from hypergrad.problem.operators.products import matrix_of as matrix_of
from hypergrad.problem.operators.products import of_a_function as of_a_function
from hypergrad.problem.operators.products import operator_dtype as operator_dtype
from hypergrad.problem.operators.products import operator_shape as operator_shape
from hypergrad.problem.operators.radon import Radon as Radon
from hypergrad.problem.operators.stacked import Stacked as Stacked
from hypergrad.problem.operators.stacked import stack as stack

__getattr__ = _renamed("hypergrad.operators", {"check_operator": "hypergrad:check_operator"})

"""Check custom functions, operators and strategies against the rules they must satisfy."""

from hypergrad.testing.functions import check_function as check_function
from hypergrad.testing.operators import check_operator as check_operator
from hypergrad.testing.strategies import check_strategy as check_strategy

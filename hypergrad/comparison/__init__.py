"""Strategies side by side on one batch: one record each."""

from hypergrad.comparison.reference import certified_samples as certified_samples
from hypergrad.comparison.reference import differentiable_samples as differentiable_samples
from hypergrad.comparison.reference import reference_hypergradient as reference_hypergradient
from hypergrad.comparison.result import COLUMNS as COLUMNS
from hypergrad.comparison.result import Comparison as Comparison
from hypergrad.comparison.rows import failure_of as failure_of
from hypergrad.comparison.rows import one_hypergradient as one_hypergradient
from hypergrad.comparison.rows import solve_without_strategy as solve_without_strategy
from hypergrad.comparison.side_by_side import compare as compare
from hypergrad.comparison.side_by_side import distinct_labels as distinct_labels

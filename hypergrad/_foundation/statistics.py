"""Means with intervals over seeds, and verdicts that they allow."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import stats

from hypergrad._foundation.errors import HypergradError

Verdict = Literal["holds", "holds in part", "does not hold", "undecided"]
Case = bool | None
"""Whether a case holds; None where its interval contains the bound."""


class Interval(NamedTuple):
    """A mean and half the width of its confidence interval (NaN for a single value)."""

    mean: float
    half: float
    samples: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    def __str__(self) -> str:
        if not math.isfinite(self.half):
            return f"{self.mean:.4g}"
        return f"{self.mean:.4g} ± {self.half:.2g}"


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """The mean of independent values (seeds) with Student's interval of confidence `level`.

    >>> print(mean_interval([1.0, 2.0, 3.0]))
    2 ± 2.5
    """
    values = np.asarray(values, float)
    if values.size == 0:
        raise HypergradError("values must not be empty; got none: are there records of this kind?")
    count = values.size
    if count == 1:
        return Interval(float(values.mean()), math.nan, 1)
    half = stats.t.ppf((1 + level) / 2, count - 1) * values.std(ddof=1) / math.sqrt(count)
    return Interval(float(values.mean()), float(half), count)


def log_interval(values: ArrayLike, least: float = 1e-17) -> Interval:
    """`mean_interval` of the decimal logarithms: for errors, which lie decades apart.

    What is below `least` (an error of 0) counts as that; NaN is left out.

    >>> print(log_interval([0.01, 0.1, 1.0]))
    -1 ± 2.5
    """
    values = np.asarray(values, float)
    return mean_interval(np.log10(np.maximum(values[~np.isnan(values)], least)))


def paired_interval(values: ArrayLike, others: ArrayLike, level: float = 0.95) -> Interval:
    """The mean difference of two columns over the same seeds: the seeds' own spread drops out.

    >>> print(paired_interval([11.0, 22.0, 33.0], [10.0, 20.0, 30.0]))
    2 ± 2.5
    """
    values, others = np.asarray(values, float), np.asarray(others, float)
    if values.shape != others.shape:
        raise HypergradError(f"pairs must be as many; got {values.shape} and {others.shape}")
    return mean_interval(values - others, level)


def recovered_share(start: ArrayLike, loss: ArrayLike, full: ArrayLike) -> Float[np.ndarray, " *n"]:
    """Return the share of a gain that another one recovers, seed by seed.

        (start - loss) / (start - full)

    Losses before learning, after it, and after learning in full: unlike a quotient of final losses
    it does not look good because little was to be gained. More than 1 is better than in full.

    >>> recovered_share([1.0, 1.0], [0.6, 0.5], [0.5, 0.5]).tolist()
    [0.8, 1.0]
    """
    start = np.asarray(start, float)
    return (start - np.asarray(loss, float)) / (start - np.asarray(full, float))


def group(
    records: Iterable[Mapping[str, Any]], by: str | Callable[[Mapping[str, Any]], Hashable]
) -> dict[Any, Sequence[Mapping[str, Any]]]:
    """Records by the value of a column (or a function of the record), in order of appearance.

    >>> {k: len(v) for k, v in group([{"a": 1}, {"a": 2}, {"a": 1}], "a").items()}
    {1: 2, 2: 1}
    """
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(by(record) if callable(by) else record.get(by), []).append(record)
    return groups  # pyright: ignore[reportReturnType] lists are sequences


def verdict_of(cases: Iterable[Case]) -> Verdict:
    """All, some, none of the cases; undecided where none holds and one might.

    >>> verdict_of([True, False]), verdict_of([None, False])
    ('holds in part', 'undecided')
    """
    cases = list(cases)
    if not cases:
        raise HypergradError("there must be a case to judge; got none: are the records quick ones?")
    if all(cases):
        return "holds"
    if any(cases):
        return "holds in part"
    return "undecided" if None in cases else "does not hold"


def below(interval: Interval, bound: float) -> Case:
    """Whether all of an interval is below a bound, or above (False); None: it is within.

    >>> below(Interval(1.0, 0.5, 5), 2.0), below(Interval(1.0, 0.5, 5), 1.2)
    (True, None)
    """
    if math.isnan(interval.half):
        return None
    return True if interval.high < bound else False if interval.low > bound else None


def above(interval: Interval, bound: float) -> Case:
    """The same the other way round."""
    return below(Interval(-interval.mean, interval.half, interval.samples), -bound)

"""The statistics of the accuracy report, for a handful of seeds."""

import itertools
import math
import typing

import numpy as np

__all__ = ["Paired", "holm", "interval", "paired", "sign_flip"]


def interval(values, level=0.95):
    """Mean and half-width of Student's t-interval; the half-width of a single value is NaN."""
    from scipy import stats

    values = np.asarray(values, float)
    count = len(values)
    if count < 2:
        return float(values.mean()), math.nan
    quantile = stats.t.ppf((1 + level) / 2, count - 1)
    return float(values.mean()), float(quantile * values.std(ddof=1) / math.sqrt(count))


def sign_flip(differences):
    """The two-sided p-value of paired differences, if every pair may as well have been the other way round.

    Exact up to 24 pairs: all `2^n` signs are tried, so n pairs cannot give less than `2 / 2^n`. Of more pairs
    100,000 random signs are tried, always the same.
    """
    differences = np.asarray(differences, float)
    count = len(differences)
    if not count:
        raise ValueError("there are no pairs")
    if count > 24:
        signs = np.random.RandomState(0).choice((-1.0, 1.0), (100_000, count))
        extreme = np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9
        return float((extreme.sum() + 1) / (len(extreme) + 1))
    # Sums over all signs, of the two halves of the pairs and then of both.
    halves = [
        np.array([sum(s * d for s, d in zip(signs, half, strict=True)) for signs in _signs(len(half))])
        for half in np.array_split(differences, 2)
    ]
    sums = np.abs(halves[0][:, None] + halves[1][None, :])
    # Equal sums may differ in their last bits.
    return float((sums >= abs(differences.sum()) - 1e-9).mean())


def _signs(count):
    return list(itertools.product((1, -1), repeat=count))


def holm(p_values):
    """p-values adjusted for having tested all of them, by Holm's step-down method."""
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    result = np.empty(len(p))
    result[order] = np.minimum(adjusted, 1)
    return result.tolist()


class Paired(typing.NamedTuple):
    """Differences of two methods on the same seeds: mean, half-width of the 95% interval, p, number."""

    mean: float
    half: float
    p: float
    count: int

    @property
    def verdict(self):
        """1 where the difference is above 0, -1 below, 0 where the data do not say.

        The interval must leave out 0. Of six pairs or more the exact test must agree (p < 0.05): fewer
        cannot reach that. Fewer than three say nothing.
        """
        if self.count < 3 or abs(self.mean) <= self.half or (self.count >= 6 and self.p >= 0.05):
            return 0
        return 1 if self.mean > 0 else -1


def paired(differences):
    """`Paired` of a list of differences, `None` for an empty one."""
    if not len(differences):
        return None
    mean, half = interval(differences)
    return Paired(mean, half, sign_flip(differences), len(differences))

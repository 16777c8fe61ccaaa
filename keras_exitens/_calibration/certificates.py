"""Statements about new images that hold with a stated confidence."""

import math
from collections.abc import Iterable

import numpy as np

__all__ = ["fixed_sequence", "hoeffding_bentkus", "least_rows"]


def hoeffding_bentkus(losses: int, rows: int, level: float) -> float:
    """A p-value of the hypothesis that the expected loss is above `level`, from losses that are 0 or 1.

    `min(exp(-n h(min(r, a), a)), e P(Bin(n, a) <= n r))` with the mean loss r, the level a and
    `h(r, a) = r ln(r / a) + (1 - r) ln((1 - r) / (1 - a))`: if the hypothesis is true and the rows are drawn
    independently, it is at most p with probability at most p, for every p and every n.

    Args:
        losses: int, how many of the rows have the loss 1.
        rows: int, n.
        level: float in (0, 1).

    Returns:
        float in [0, 1].

    Reference: Bates et al., Distribution-Free, Risk-Controlling Prediction Sets, arXiv 2101.02703;
    Angelopoulos et al., Learn then Test, arXiv 2110.01052.
    """
    mean = min(losses / rows, level)
    rest = 1 - mean
    divergence = (mean * math.log(mean / level) if mean else 0.0) + rest * math.log(rest / (1 - level))
    hoeffding = math.exp(-rows * divergence)
    return min(1.0, hoeffding, math.e * _binomial_tail(losses, rows, level))


def _binomial_tail(most: int, rows: int, probability: float) -> float:
    """`P(Bin(rows, probability) <= most)`."""
    if most >= rows:
        return 1.0
    # Logarithms of the terms, each from the one before it: no power of a large number is computed.
    k = np.arange(1, most + 1)
    ratios = np.log((rows - k + 1) / k) + math.log(probability) - math.log1p(-probability)
    logs = rows * math.log1p(-probability) + np.concatenate([[0.0], np.cumsum(ratios)])
    largest = logs.max()
    return min(1.0, math.exp(largest) * float(np.exp(logs - largest).sum()))


def fixed_sequence(p_values: Iterable[float], error: float) -> int:
    """Tests hypotheses in a given order until the first that is not rejected.

    The probability that any true hypothesis is rejected is at most `error`, however many there are, if
    the order does not depend on the rows that the p-values come from.

    Args:
        p_values: iterable of float, in the order of the tests.
        error: float in (0, 1).

    Returns:
        int, how many are rejected.

    Reference: Angelopoulos et al., Learn then Test, arXiv 2110.01052, section 3.
    """
    rejected = 0
    for p_value in p_values:
        if p_value > error:
            break
        rejected += 1
    return rejected


def least_rows(level: float, error: float) -> int:
    """With fewer rows than this even losses that are all 0 reject nothing."""
    return math.ceil(math.log(error) / math.log(1 - level))

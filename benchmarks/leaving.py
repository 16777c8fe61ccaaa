"""Thresholds by which rows leave in given shares: for networks that nobody trained."""

import numpy as np

import keras_exitens as kx

__all__ = ["SHARES", "leaving"]

SHARES = (0.4, 0.3, 0.2, 0.1)


def leaving(logits, shares=SHARES):
    """Thresholds of `MaxProbability`, each in the middle between two scores, so that no row is near one.

    Args:
        logits: array `(exits, rows, classes)`.
        shares: of the rows that are to leave at each exit, the final one last.

    Returns:
        The thresholds, and how many rows leave at each exit: two lists.
    """
    score = kx.policies.MaxProbability(0.0).score
    here, thresholds, counts = np.arange(logits.shape[1]), [], []
    ends = np.round(np.cumsum(shares) / np.sum(shares) * len(here)).astype(int)
    for z, end in zip(logits[:-1], ends[:-1], strict=True):
        surest = here[np.argsort(-score(z[here]), kind="stable")]
        count = int(end) - sum(counts)
        s = [*score(z[surest]), -np.inf]  # the last one: all leave
        thresholds.append(float((s[count - 1] + s[count]) / 2) if count else float("inf"))
        here, counts = surest[count:], [*counts, count]
    return thresholds, [*counts, len(here)]

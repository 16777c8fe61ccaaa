"""Thresholds from a fixed rule for how many images leave where, for comparison with the search."""

from collections.abc import Sequence

import numpy as np

from keras_exitens import _scores as scoring
from keras_exitens._calibration.threshold_search import Found, Goal, Subset, candidates, evaluate

__all__ = ["geometric"]

_RATIOS = np.exp(np.linspace(np.log(0.02), np.log(50), 400))


def geometric(subset: Subset, goal: Goal) -> Found:
    """The best policy that lets shares `r, r², r³, …` (scaled to 1) of the images leave at the exits.

    All exits are used; the ratio r is what is chosen. An exit keeps its surest images, as many as its share.

    Args:
        subset: a `Subset`, of all exits.
        goal: a `Goal`.

    Returns:
        A `Found`.

    Reference: Huang et al., Multi-Scale Dense Networks, arXiv 1703.09844, section 4 and the authors' program
    (budgeted batch classification).
    """
    levels = [candidates(scores) for scores in subset.scores]
    found = [evaluate(subset, _thresholds(subset.scores, levels, ratio)) for ratio in _RATIOS]
    return found[goal.best(np.array([f.gain for f in found]), np.array([f.cost for f in found]))]


def _thresholds(scores: np.ndarray, levels: Sequence[np.ndarray], ratio: float) -> list[float]:
    rows = scores.shape[1]
    shares = ratio ** np.arange(1, len(scores) + 2)
    shares /= shares.sum()
    here, thresholds = np.ones(rows, bool), []
    for score, share, every in zip(scores, shares, levels, strict=False):
        leaving = min(round(share * rows), int((here & ~np.isnan(score)).sum()))
        if leaving:
            least = np.sort(score[here & ~np.isnan(score)])[-leaving]
            threshold = every[np.searchsorted(every, least, side="right") - 1]
        else:
            threshold = np.inf
        thresholds.append(threshold)
        here &= scoring.goes_on(np, score, threshold)
    return thresholds

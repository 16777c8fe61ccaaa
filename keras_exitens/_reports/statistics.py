"""How good each exit is, and how well it knows when it is right."""

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from keras_exitens import _scores as scores
from keras_exitens._calibration.records import ExitRecords

__all__ = ["ExitStatistics", "auroc", "of_exits", "reliability"]

_BINS = 15
Bins: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ExitStatistics:
    """Figures of one exit over all images, whether or not a policy lets them leave there.

    Attributes:
        name: of the exit.
        accuracy: share of the images it classifies right.
        ensemble_accuracy: that of the mean of the logits of all exits up to it.
        overthinking: share of the images that are right here and wrong at the end.
        agreement: share of the images given the same class here and at the end.
        calibration_error: expected calibration error, 15 bins of equal width: the mean over the images of
            `|accuracy - mean probability|` of their bin.
        auroc: probability that a right image has a greater score than a wrong one; NaN where all are right or
            all are wrong.
        bins: the reliability diagram, see `reliability`.
    """

    name: str
    accuracy: float
    ensemble_accuracy: float
    overthinking: float
    agreement: float
    calibration_error: float
    auroc: float
    bins: Bins = dataclasses.field(repr=False)


def of_exits(records: ExitRecords, temperatures: Sequence[float]) -> list[ExitStatistics]:
    """`ExitStatistics` of each exit.

    Args:
        records: `ExitRecords`.
        temperatures: K floats; the logits of each exit are divided by its own for calibration error, AUROC
            and bins. The score is the greatest probability.
    """
    final = records.logits[-1].argmax(axis=1)
    final_right = final == records.labels
    total, result = 0.0, []
    for name, logits, temperature in zip(records.names, records.logits, temperatures, strict=True):
        label = logits.argmax(axis=1)
        right = label == records.labels
        total = total + logits
        confidence = scores.max_probability(np, logits / temperature)
        bins = reliability(confidence, right)
        counts, accuracy, mean = bins
        gaps = np.where(counts > 0, np.abs(accuracy - mean), 0.0)
        result.append(
            ExitStatistics(
                name,
                float(right.mean()),
                float((total.argmax(axis=1) == records.labels).mean()),
                float((right & ~final_right).mean()),
                float((label == final).mean()),
                float((gaps * counts).sum() / counts.sum()),
                auroc(confidence, right),
                bins,
            )
        )
    return result


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = _BINS) -> Bins:
    """Accuracy and mean probability of images in bins of equal width of the probability.

    Args:
        confidence: probabilities `(N,)`.
        right: bool `(N,)`.
        bins: int.

    Returns:
        `(counts, accuracy, confidence)`, each `(bins,)`; NaN in empty bins.

    Reference: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599.
    """
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        return (
            counts,
            np.bincount(place, right, minlength=bins) / counts,
            np.bincount(place, confidence, minlength=bins) / counts,
        )


def auroc(score: np.ndarray, right: np.ndarray) -> float:
    """Area under the ROC curve of the score as a test for being right; ties count half.

    Args:
        score: `(N,)`.
        right: bool `(N,)`.

    Returns:
        float in [0, 1], or NaN where all are right or all are wrong.
    """
    _, place = np.unique(score, return_inverse=True)
    positive = np.bincount(place, right)
    negative = np.bincount(place, ~right)
    below = np.cumsum(negative) - negative
    pairs = positive.sum() * negative.sum()
    return float((positive * (below + negative / 2)).sum() / pairs) if pairs else float("nan")

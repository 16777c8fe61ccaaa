"""Records that nobody collected: logits drawn from a known distribution."""

import numpy as np

import keras_exitens as kx

COST = [25, 45, 80, 100]


def draw(rng, rows, exits=4, classes=6):
    """Records from a known distribution: the later the exit the better, the easier the surer."""
    labels = rng.integers(0, classes, rows)
    easy = rng.normal(2, 2, rows)
    logits = rng.normal(0, 1, (exits, rows, classes))
    for i in range(exits):
        logits[i, np.arange(rows), labels] += easy + i
    return kx.ExitRecords(logits, labels)

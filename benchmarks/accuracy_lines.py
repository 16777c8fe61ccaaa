"""What a line of the accuracy results says."""

import numpy as np
from accuracy import LAST

__all__ = ["BASE", "FINAL", "early_mean", "end_of", "test"]

BASE, FINAL = "cross-entropy", "final"


def test(line, exit_name=FINAL, epoch="last"):
    """Test accuracy of a run in percent; the ensemble of a network without exits is its only exit."""
    return 100 * line["test"][epoch][exit_name]


def early_mean(line):
    """Mean test accuracy of the early exits in percent."""
    return float(np.mean([test(line, name) for name in line["exits"][:-1]]))


def end_of(line):
    return float(np.mean(line["validation"][FINAL][-LAST:]))

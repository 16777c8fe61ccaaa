"""Rows leave in the shares that were asked for."""

import numpy as np
import pytest
from leaving import leaving

import keras_exitens as kx

SHARES = [
    (0.4, 0.3, 0.2, 0.1),
    (25, 25, 25, 25),
    (70, 15, 10, 5),
    (0, 0.5, 0.5, 0),
    (0, 0, 0, 1),
    (1, 0, 0, 0),
]


@pytest.mark.parametrize("shares", SHARES)
def test_rows_leave_in_these_shares_and_none_is_near_a_threshold(shares):
    logits = np.random.default_rng(0).normal(size=(4, 200, 10)).astype("float32") * 3
    thresholds, counts = leaving(logits, shares)
    exits = kx.policies.MaxProbability(thresholds).decide(logits)
    assert np.bincount(exits, minlength=4).tolist() == counts
    assert counts == [round(200 * share / sum(shares)) for share in shares]

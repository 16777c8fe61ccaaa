"""Scores: against arithmetic of their own, the same in NumPy and in a compiled graph, and NaN where it must
be."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from harness import log_softmax

from keras_exitens import _scores as scores


def by_hand(name, logits):
    p = np.exp(log_softmax(logits))
    ordered = np.sort(p, axis=-1)
    return {
        "max_probability": ordered[:, -1],
        "entropy": 1 + (p * np.log(np.where(p > 0, p, 1))).sum(-1) / math.log(p.shape[-1]),
        "margin": ordered[:, -1] - ordered[:, -2],
    }[name]


def logits(rows=50, classes=7, scale=4.0, seed=0):
    return np.random.default_rng(seed).normal(0, scale, (rows, classes)).astype("float32")


def in_graph(function):
    return lambda *args: np.asarray(tf.function(function, autograph=False)(*args))


@pytest.mark.parametrize("name", scores.SCORES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0, 1e4])
def test_score_is_what_its_formula_says(name, scale):
    z = logits(scale=scale)
    score = scores.SCORES[name]
    np.testing.assert_allclose(score(np, z), by_hand(name, z), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        in_graph(lambda z: score(keras.ops, z))(z), by_hand(name, z), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", scores.SCORES)
def test_limits(name):
    score = scores.SCORES[name]
    certain = np.array([[1e5, 0, 0, 0]], "float32")
    even = np.zeros((1, 4), "float32")
    assert score(np, certain) == 1
    lowest = {"max_probability": 0.25, "entropy": 0, "margin": 0}[name]
    assert score(np, even) == pytest.approx(lowest, abs=1e-7)


@pytest.mark.parametrize("name", scores.SCORES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_row_that_is_not_finite_has_no_score_and_its_neighbours_have_theirs(name, bad):
    z = logits(rows=3)
    clean = scores.SCORES[name](np, z)
    z[1, 2] = bad
    with np.errstate(invalid="ignore"):
        by_numpy = scores.SCORES[name](np, z)
    for found in (by_numpy, in_graph(lambda z: scores.SCORES[name](keras.ops, z))(z)):
        assert np.isnan(found[1])
        np.testing.assert_allclose(found[[0, 2]], clean[[0, 2]], rtol=1e-6)


@pytest.mark.parametrize("xp", [np, keras.ops], ids=["numpy", "keras"])
def test_agreement_counts_exits_in_a_row(xp):
    labels = np.array([[1, 1, 0], [1, 2, 0], [1, 1, 0], [1, 1, 2]])  # exits × rows
    state, counts = None, []
    for row in labels:
        count, state = scores.agreement(xp, np.eye(3, dtype="float32")[row], state)
        counts.append(np.asarray(count))
    np.testing.assert_array_equal(counts, [[1, 1, 1], [2, 1, 2], [3, 1, 3], [4, 2, 1]])


@pytest.mark.parametrize("xp", [np, keras.ops], ids=["numpy", "keras"])
def test_agreement_starts_anew_after_a_row_that_is_not_finite(xp):
    good = np.array([[3.0, 0.0]], "float32")
    bad = np.array([[np.nan, 0.0]], "float32")
    state, counts = None, []
    for z in (good, bad, bad, good, good):
        count, state = scores.agreement(xp, z, state)
        counts.append(float(np.asarray(count)[0]))
    np.testing.assert_array_equal(counts, [1, np.nan, np.nan, 1, 2])


def test_running_mean_is_the_mean_so_far():
    exits = [logits(seed=i) for i in range(4)]
    state = None
    for i, z in enumerate(exits, 1):
        mean, state = scores.running_mean(z, i, state)
        np.testing.assert_allclose(mean, np.mean(exits[:i], axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("threshold, wanted", [(0.5, [0, 3]), (-math.inf, [3]), (math.inf, [0, 1, 2, 3])])
def test_a_row_without_a_score_goes_on(threshold, wanted):
    """In a graph too, where an optimizer rewrites comparisons and their negation."""
    score, threshold = np.array([0.2, 0.5, 0.9, np.nan], "float32"), np.float32(threshold)
    np.testing.assert_array_equal(np.flatnonzero(scores.goes_on(np, score, threshold)), wanted)

    @tf.function(autograph=False)
    def graph(score, threshold):
        going_on = scores.goes_on(keras.ops, score, threshold)
        return tf.where(going_on)[:, 0], tf.where(~going_on)[:, 0]

    going_on, leaving = graph(tf.constant(score), tf.constant(threshold))
    np.testing.assert_array_equal(going_on, wanted)
    np.testing.assert_array_equal(leaving, sorted({0, 1, 2, 3} - {*wanted}))

"""P-values against scipy's binomial, against simulation, and the order of the tests."""

import math

import numpy as np
import pytest
from harness import log_softmax

from keras_exitens._calibration.certificates import fixed_sequence, hoeffding_bentkus, least_rows
from keras_exitens._calibration.temperatures import fit_temperature


@pytest.mark.parametrize("rows, level", [(50, 0.1), (1000, 0.01), (20_000, 0.02)])
def test_p_value_is_the_smaller_of_both_bounds(rows, level):
    stats = pytest.importorskip("scipy.stats")
    special = pytest.importorskip("scipy.special")
    for losses in {0, 1, round(0.5 * level * rows), round(level * rows), rows}:
        r = min(losses / rows, level)
        divergence = special.rel_entr(r, level) + special.rel_entr(1 - r, 1 - level)
        wanted = min(1, math.exp(-rows * divergence), math.e * stats.binom.cdf(losses, rows, level))
        assert hoeffding_bentkus(losses, rows, level) == pytest.approx(wanted, rel=1e-9)


def test_p_value_is_at_most_p_with_probability_at_most_p_and_not_idle():
    rng = np.random.default_rng(0)
    at_the_level = np.array([hoeffding_bentkus(k, 500, 0.05) for k in rng.binomial(500, 0.05, 4000)])
    for p in (0.01, 0.05, 0.2):
        assert (at_the_level <= p).mean() <= p + 3 * math.sqrt(p * (1 - p) / 4000)
    below = np.array([hoeffding_bentkus(k, 500, 0.05) for k in rng.binomial(500, 0.01, 200)])
    assert (below <= 0.05).mean() > 0.95


def test_fixed_sequence_stops_at_the_first_failure():
    assert fixed_sequence([0.01, 0.05, 0.2, 0.001], 0.05) == 2
    assert fixed_sequence([0.2, 0.001], 0.05) == 0
    assert fixed_sequence([], 0.05) == 0


@pytest.mark.parametrize("level, error", [(0.01, 0.05), (0.05, 0.1), (0.2, 0.01)])
def test_least_rows(level, error):
    rows = least_rows(level, error)
    assert hoeffding_bentkus(0, rows, level) <= error < hoeffding_bentkus(0, rows - 1, level)


def loss(logits, labels, temperature):
    return -log_softmax(logits / temperature)[np.arange(len(labels)), labels].mean()


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_temperature_is_found_again_and_nothing_near_it_is_better(true):
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 2, (20_000, 6))
    labels = (honest + rng.gumbel(size=honest.shape)).argmax(axis=1)  # drawn from softmax(honest)
    logits = honest * true
    found = fit_temperature(logits.astype("float32"), labels)
    assert found == pytest.approx(true, rel=0.05)
    least = loss(logits, labels, found)
    assert least < loss(logits, labels, found * 1.01) and least < loss(logits, labels, found / 1.01)


def test_temperature_of_hopeless_cases():
    labels = np.arange(10) % 3
    assert fit_temperature(np.zeros((10, 3)), labels) == 1.0
    assert fit_temperature(10 * np.eye(3)[labels], labels) == pytest.approx(0.01)
    assert fit_temperature(10 * np.eye(3)[(labels + 1) % 3], labels) == pytest.approx(100)

"""Policies: decisions against a loop over single rows, settings, and saving."""

import math
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from harness import log_softmax

from keras_exitens import policies

KINDS = {
    "max_probability": policies.MaxProbability,
    "entropy": policies.Entropy,
    "margin": policies.Margin,
    "patience": policies.Patience,
}
THRESHOLDS = {
    "max_probability": [0.5, 0.6, 0.7],
    "entropy": [0.3, 0.35, 0.4],
    "margin": [0.3, 0.35, 0.45],
    "patience": [1.5, 2, 2],
}


def records(exits=4, rows=200, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    common = rng.normal(0, 2, (1, rows, classes))
    return (common + rng.normal(0, 1, (exits, rows, classes))).astype("float32")


def score_by_hand(kind, z, labels):
    """Score of one row in float64; `labels` are the predictions of the enabled exits so far."""
    logp = log_softmax(z[None])[0]
    p = np.sort(np.exp(logp))
    if kind == "patience":
        return next((i for i, label in enumerate(reversed(labels)) if label != labels[-1]), len(labels))
    return {
        "max_probability": p[-1],
        "entropy": 1 + (np.exp(logp) * logp).sum() / math.log(len(z)),
        "margin": p[-1] - p[-2],
    }[kind]


def route_by_hand(kind, logits, thresholds, temperatures, enabled, ensemble):
    """One row after the other, exit after exit, with nothing shared with the library."""
    result = []
    for row in range(logits.shape[1]):
        so_far, labels = [], []
        for exit in range(len(logits)):
            last = exit == len(logits) - 1
            if not last and not enabled[exit]:
                continue
            so_far.append(logits[exit, row].astype("float64"))
            z = np.mean(so_far, axis=0) if ensemble else so_far[-1]
            labels.append(z.argmax())
            score = score_by_hand(kind, z / temperatures[exit], labels)
            if last or score >= thresholds[exit]:
                result.append((exit, score, z))
                break
    return result


@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("enabled", [(True, True, True), (False, True, True), (True, False, False)])
@pytest.mark.parametrize("kind", KINDS)
def test_simulation_equals_a_loop_over_rows(kind, enabled, ensemble):
    logits = records()
    temperatures = [1.5, 0.8, 1.0, 2.0]
    policy = KINDS[kind](THRESHOLDS[kind], temperatures, enabled=enabled, ensemble=ensemble)
    wanted = route_by_hand(kind, logits, THRESHOLDS[kind], temperatures, enabled, ensemble)
    for given in (logits, tf.constant(logits)):
        found = {key: np.asarray(value) for key, value in policy.simulate(given).items()}
        assert found["exit"].dtype == "int32"
        np.testing.assert_array_equal(found["exit"], [exit for exit, _, _ in wanted])
        np.testing.assert_allclose(found["score"], [score for _, score, _ in wanted], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["logits"], [z for _, _, z in wanted], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(policy.decide(given), found["exit"])
    used = [i for i, flag in enumerate((*enabled, True)) if flag]
    reached = used[1:] if kind == "patience" else used  # one prediction agrees with nothing yet
    assert set(found["exit"]) == set(reached), "the case tests too little"


def test_simulation_in_a_graph_equals_numpy():
    logits = records()
    policy = policies.Entropy(0.4, ensemble=True)
    graph = tf.function(policy.decide, autograph=False)
    np.testing.assert_array_equal(graph(tf.constant(logits)), policy.decide(logits))


@pytest.mark.parametrize("kind", ["max_probability", "entropy", "margin"])
def test_thresholds_that_always_and_never_fire(kind):
    logits = records()
    np.testing.assert_array_equal(KINDS[kind](-math.inf).decide(logits), 0)
    np.testing.assert_array_equal(KINDS[kind](math.inf).decide(logits), 3)
    np.testing.assert_array_equal(KINDS[kind](-math.inf, enabled=False).decide(logits), 3)
    np.testing.assert_array_equal(KINDS[kind](0.0).decide(logits[:1]), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_row_that_is_not_finite_goes_to_the_end_and_its_score_says_so(kind):
    logits = records()
    clean = KINDS[kind](THRESHOLDS[kind]).simulate(logits)
    logits[:, 7] = np.nan
    with np.errstate(invalid="ignore"):
        found = KINDS[kind](THRESHOLDS[kind]).simulate(logits)
    assert found["exit"][7] == 3 and np.isnan(found["score"][7])
    others = np.arange(200) != 7
    np.testing.assert_array_equal(found["exit"][others], clean["exit"][others])


def test_logits_of_a_disabled_exit_are_not_looked_at():
    logits = records()
    policy = policies.Patience([2, 2, 2], enabled=[True, False, True], ensemble=True)
    before = policy.simulate(logits)
    logits[1] = np.nan
    after = policy.simulate(logits)
    assert all(np.array_equal(before[key], after[key]) for key in before)


@keras.saving.register_keras_serializable("test_policies")
class LogSum(policies.Policy):
    def __init__(self, *args, power=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.power = power

    def score(self, logits):
        return keras.ops.logsumexp(logits, axis=-1) ** self.power

    def get_config(self):
        return {**super().get_config(), "power": self.power}


def test_policy_of_ones_own():
    logits = records()
    policy = LogSum([3.0, 3.0, 3.0], power=2.0)
    score = np.log(np.exp(logits.astype("float64")).sum(-1)) ** 2
    wanted = [next((i for i in range(3) if score[i, row] >= 3.0), 3) for row in range(200)]
    np.testing.assert_array_equal(policy.decide(logits), wanted)
    assert len(set(wanted)) > 2
    assert policy.for_exits(4).power == 2.0
    with pytest.raises(NotImplementedError, match="Policy must override"):
        policies.Policy(0.5).decide(logits)


@pytest.mark.parametrize("kind", [*KINDS.values(), LogSum])
def test_saved_policy_decides_the_same(kind):
    policy = kind([1.5, math.inf, 2.5], [1.1, 1.2, 1.3, 1.4], enabled=[True, False, True], ensemble=True)
    loaded = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(policy))
    assert loaded == policy and hash(loaded) == hash(policy) and loaded != kind(1.5)
    assert repr(loaded) == repr(policy) and "inf" in repr(policy)
    found, wanted = loaded.simulate(records()), policy.simulate(records())
    assert all(np.array_equal(found[key], wanted[key]) for key in wanted)


def test_one_value_serves_any_number_of_exits():
    policy = policies.MaxProbability(0.8, temperatures=2.0, enabled=[True, False])
    full = policy.for_exits(3)
    assert full.thresholds == (0.8, 0.8) and full.temperatures == (2.0, 2.0, 2.0)
    assert policy.enabled_exits(3) == (0, 2)
    assert policies.Patience().enabled_exits(4) == (0, 1, 2, 3)
    assert policies.MaxProbability(0.8).for_exits(1).thresholds == ()


def test_names():
    assert {name: policies.get(name) for name in KINDS} == KINDS
    assert policies.get(LogSum) is LogSum
    with pytest.raises(ValueError, match="did you mean 'entropy'"):
        policies.get("entrophy")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"thresholds": math.nan}, "thresholds=nan"),
        ({"thresholds": [0.5, "0.9"]}, "thresholds='0.9'"),
        ({"thresholds": None}, "thresholds=None"),
        ({"thresholds": 0.5, "temperatures": 0.0}, "temperatures=0.0"),
        ({"thresholds": 0.5, "temperatures": [1.0, math.inf]}, "temperatures=inf"),
        ({"thresholds": 0.5, "enabled": [1, 0]}, "enabled=1"),
        ({"thresholds": 0.5, "enabled": "False"}, "enabled='False'"),
        ({"thresholds": 0.5, "ensemble": None}, "ensemble=None"),
        (
            {"thresholds": [0.5, 0.5], "temperatures": [1.0, 1.0]},
            "thresholds for 3 exits, temperatures for 2",
        ),
        ({"thresholds": [0.5, 0.5], "enabled": [True]}, "thresholds for 3 exits, enabled for 2"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        policies.MaxProbability(**settings)


@pytest.mark.parametrize("kind", [policies.MaxProbability, policies.Entropy, policies.Margin])
def test_a_threshold_in_percent_is_warned_of(kind):
    with pytest.warns(UserWarning, match=rf"threshold of 90: scores of {kind.__name__} are at most 1"):
        kind([0.9, 90])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind([1.0, math.inf, -math.inf, 1 + 1e-7])
        policies.Patience(3)
        LogSum(90)


def test_settings_for_another_number_of_exits_are_refused():
    with pytest.raises(ValueError, match=r"here K = 4(.|\n)*thresholds for 3 exits"):
        policies.MaxProbability([0.5, 0.5]).decide(records(exits=4))

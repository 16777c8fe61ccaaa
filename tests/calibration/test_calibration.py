"""Calibration: the promise of each budget, kept by the policy that comes out, and of each confidence."""

import itertools
import json
import math
import warnings

import harness
import keras
import numpy as np
import pytest
from draws import COST, draw

import keras_exitens as kx
from keras_exitens import policies
from keras_exitens._calibration.replay import Replay, Spending

POLICIES = ("max_probability", "entropy", "margin", "patience")


@pytest.fixture(scope="module")
def records():
    return draw(np.random.default_rng(0), 1500)


def measured(policy, records, cost=COST):
    """Accuracy, mean cost and full accuracy by `simulate`, without anything of the search."""
    found = policy.simulate(records.logits)
    accuracy = (found["logits"].argmax(-1) == records.labels).mean()
    return (
        accuracy,
        np.mean(np.array(cost)[found["exit"]]),
        (records.logits[-1].argmax(-1) == records.labels).mean(),
    )


@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("kind", POLICIES)
def test_policy_keeps_its_budget_and_its_report_is_what_it_does(records, kind, ensemble):
    for budget in ({"max_accuracy_drop": 0.02}, {"max_accuracy_drop": 0}, {"cost_budget": 0.8}):
        policy = kx.calibrate(records, COST, policy=kind, ensemble=ensemble, **budget)
        assert type(policy) is policies.get(kind) and policy.ensemble == ensemble
        accuracy, cost, full = measured(policy, records)
        report = policy.calibration
        assert report.budget_met is True
        assert report.accuracy == pytest.approx(accuracy, abs=1e-12)
        assert report.cost == pytest.approx(cost / 100, abs=1e-12)
        assert report.full_accuracy == pytest.approx(full)
        assert report.accuracy_drop == pytest.approx(full - accuracy, abs=1e-12)
        shares = np.bincount(policy.decide(records.logits), minlength=4) / len(records)
        np.testing.assert_allclose(report.shares, shares)
        if "cost_budget" in budget:
            assert cost <= 80
        else:
            assert full - accuracy <= budget["max_accuracy_drop"] + 1e-12
        # The mean of the exits is less often right than the last one, and patience cannot tell where.
        hopeless = kind == "patience" and ensemble
        assert cost < 100 or hopeless or budget == {"max_accuracy_drop": 0}


def every_policy(kind, records, ensemble):
    """All policies that differ on these records, for every set of exits."""
    early = records.exits - 1
    replay = Replay(policies.get(kind), records, Spending(COST[: early + 1], records), 1.0, ensemble)
    for count in range(early + 1):
        for used in itertools.combinations(range(early), count):
            levels = [np.unique(scores) for scores in replay.subset(used).scores]
            cuts = [[-np.inf, *(s[:-1] + s[1:]) / 2, np.inf] for s in levels]
            for thresholds in itertools.product(*cuts):
                yield replay.policy((*used, early), thresholds)


@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("kind", ["margin", "patience"])
def test_no_policy_at_all_is_better(kind, ensemble):
    records = draw(np.random.default_rng(3), 12, exits=3)
    tried = [measured(policy, records, COST[:3]) for policy in every_policy(kind, records, ensemble)]
    for drop in (0.0, 0.1, 0.3):
        policy = kx.calibrate(records, COST[:3], max_accuracy_drop=drop, policy=kind, ensemble=ensemble)
        accuracy, cost, _ = measured(policy, records, COST[:3])
        wanted = min((c, -a) for a, c, f in tried if a >= f - drop - 1e-9)
        assert (cost, -accuracy) == pytest.approx(wanted)
    for budget in (0.4, 0.7, 1.0):
        policy = kx.calibrate(records, COST[:3], cost_budget=budget, policy=kind, ensemble=ensemble)
        accuracy, cost, _ = measured(policy, records, COST[:3])
        wanted = min((-a, c) for a, c, f in tried if c <= budget * 80 + 1e-9)
        assert (-accuracy, cost) == pytest.approx(wanted)


def test_heads_of_disabled_exits_are_not_paid_for():
    model = kx.add_exits(harness.sequential(), exits=2)
    cost = kx.cost(model)
    labels = np.arange(100) % 5
    right, wrong = 9 * np.eye(5)[labels], 9 * np.eye(5)[(labels + 1) % 5]
    records = kx.ExitRecords(np.stack([wrong, right, right]), labels)
    policy = kx.calibrate(records, cost, max_accuracy_drop=0.0)
    assert policy.enabled == (False, True) and policy.calibration.shares == (0, 1, 0)
    wanted = (cost.cumulative[1] - cost.heads[0]) / cost.backbone
    assert policy.calibration.cost == pytest.approx(wanted)
    # A sequence is taken as it is.
    policy = kx.calibrate(records, cost.cumulative, max_accuracy_drop=0.0)
    assert policy.calibration.cost == pytest.approx(cost.cumulative[1] / cost.cumulative[-1])


def test_exit_worse_than_chance_is_switched_off_and_one_better_than_the_end_takes_all():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 400)
    logits = rng.normal(0, 1, (4, 400, 5)).astype("float32")
    logits[0, np.arange(400), labels] -= 20  # never right, and sure
    logits[1, np.arange(400), labels] += 20  # always right
    logits[3, np.arange(400), labels] += 2
    records = kx.ExitRecords(logits, labels)
    policy = kx.calibrate(records, COST, cost_budget=1.0)
    assert policy.enabled == (False, True, False) and policy.calibration.accuracy == 1
    assert policy.calibration.accuracy_drop < -0.1 and policy.calibration.shares == (0, 1, 0, 0)
    # An accuracy that need not be better than the full model's leaves images to exit 1, wrong as it is.
    cheap = kx.calibrate(records, COST, max_accuracy_drop=0.0).calibration
    assert cheap.accuracy_drop == pytest.approx(0) and cheap.cost < policy.calibration.cost


def test_single_exit():
    records = draw(np.random.default_rng(0), 200, exits=1)
    for arguments in (
        {"max_accuracy_drop": 0.1},
        {"cost_budget": 1.0},
        {"max_accuracy_drop": 0.1, "temperature": True},
        {"max_accuracy_drop": 0.1, "schedule": "geometric"},
    ):
        policy = kx.calibrate(records, [7], **arguments)
        assert policy.thresholds == () and policy.calibration.cost == 1
        np.testing.assert_array_equal(policy.decide(records.logits), 0)
    with pytest.warns(UserWarning, match="costs 100"):
        assert not kx.calibrate(records, [7], cost_budget=0.5).calibration.budget_met


def test_equal_scores_stay_together():
    labels = np.zeros(100, int)
    logits = np.tile(np.array([2.0, 0, 0], "float32"), (2, 100, 1))
    logits[0, :10] = [0, 2, 0]  # wrong, and as sure as the right ones
    records = kx.ExitRecords(logits, labels)
    policy = kx.calibrate(records, [50, 100], max_accuracy_drop=0.05)
    assert policy.enabled == (False,) and policy.calibration.cost == 1.0
    policy = kx.calibrate(records, [50, 100], max_accuracy_drop=0.1)
    assert policy.calibration.shares == (1, 0)


def test_budget_that_cannot_be_met_gives_the_nearest_policy_and_says_so(records):
    with pytest.warns(UserWarning, match=r"budget of 10\.0%(.|\n)*costs 25\.0%"):
        policy = kx.calibrate(records, COST, cost_budget=0.1)
    assert policy.calibration.budget_met is False
    np.testing.assert_array_equal(policy.decide(records.logits), 0)


def test_search_is_at_least_as_good_as_the_geometric_schedule(records):
    truly = 0
    for budget in (0.4, 0.5, 0.6, 0.8):
        joint = kx.calibrate(records, COST, cost_budget=budget)
        simple = kx.calibrate(records, COST, cost_budget=budget, schedule="geometric")
        assert simple.calibration.cost <= budget and all(simple.enabled)
        assert joint.calibration.accuracy >= simple.calibration.accuracy
        truly += joint.calibration.accuracy > simple.calibration.accuracy
    assert truly


def test_temperatures_are_found_on_images_of_their_own(records):
    scaled = kx.ExitRecords(records.logits * np.array([1, 5, 1, 1], "float32")[:, None, None], records.labels)
    plain = kx.calibrate(records, COST, max_accuracy_drop=0.02, temperature=True)
    policy = kx.calibrate(scaled, COST, max_accuracy_drop=0.02, temperature=True)
    ratio = np.array(policy.temperatures) / plain.temperatures
    np.testing.assert_allclose(ratio, [1, 5, 1, 1], rtol=1e-3)
    assert policy.calibration.images == 1200  # a fifth is set apart
    np.testing.assert_allclose(policy.thresholds, plain.thresholds, rtol=1e-3)
    np.testing.assert_array_equal(policy.decide(scaled.logits), plain.decide(records.logits))


def test_policy_is_saved_with_what_was_found(records):
    policy = kx.calibrate(records, COST, max_accuracy_drop=0.02, temperature=True, policy="patience")
    text = json.dumps(keras.saving.serialize_keras_object(policy))
    loaded = keras.saving.deserialize_keras_object(json.loads(text))
    assert loaded == policy and loaded.calibration == policy.calibration
    assert policy.for_exits(4).calibration == policy.calibration
    assert "calibration" not in repr(policy)
    other = policies.get("patience").from_config({**policy.get_config(), "calibration": None})
    assert other == policy and other.calibration is None and hash(other) == hash(policy)


def test_same_records_same_policy(records):
    arguments = {"max_accuracy_drop": 0.05, "confidence": 0.9, "temperature": True}
    first, second = (kx.calibrate(records, COST, **arguments) for _ in range(2))
    assert first == second and first.calibration == second.calibration
    assert first != kx.calibrate(records, COST, seed=1, **arguments)


@keras.saving.register_keras_serializable("test_calibration")
class Shy(policies.Policy):
    """Knows nothing of every other row, and is certain of some."""

    def score(self, logits):
        top = keras.ops.max(logits, axis=-1)
        return keras.ops.where(keras.ops.cast(top * 1000, "int32") % 2 == 0, math.nan, top)


class Flat(policies.Policy):
    def score(self, logits):
        return logits


def test_policy_of_ones_own(records):
    policy = kx.calibrate(records, COST, max_accuracy_drop=0.02, policy=Shy)
    accuracy, cost, full = measured(policy, records)
    assert type(policy) is Shy and full - accuracy <= 0.02 + 1e-9 and cost < 95
    assert policy.calibration.accuracy == pytest.approx(accuracy)
    with pytest.raises(ValueError, match=r"Flat\.score does not give one number a row"):
        kx.calibrate(records, COST, max_accuracy_drop=0.02, policy=Flat)


def test_mapped_records_give_the_same_policy(records, tmp_path):
    records.save(tmp_path / "records.npz")
    mapped = kx.ExitRecords.load(tmp_path / "records.npz", memory_map=True)
    for arguments in ({}, {"ensemble": True}, {"policy": "patience"}):
        wanted = kx.calibrate(records, COST, max_accuracy_drop=0.02, **arguments)
        assert kx.calibrate(mapped, COST, max_accuracy_drop=0.02, **arguments) == wanted


# Confidence.


@pytest.mark.parametrize("arguments", [{}, {"temperature": True}, {"ensemble": True}, {"policy": "patience"}])
def test_certified_policy_and_what_is_said_of_it(records, arguments):
    policy = kx.calibrate(records, COST, max_accuracy_drop=0.06, confidence=0.95, **arguments)
    report = policy.calibration
    assert report.certified and report.budget_met and report.p_value <= 0.05
    assert report.accuracy_drop <= report.risk < 0.06 and report.cost < 0.95
    assert report.images == (600 if "temperature" in arguments else 750)


def test_nothing_certified(records):
    with pytest.warns(UserWarning, match="could be certified(.|\n)*2995 are needed"):
        policy = kx.calibrate(records, COST, max_accuracy_drop=0.001, confidence=0.95)
    assert policy.enabled == (False,) * 3 and not policy.calibration.certified
    assert not policy.calibration.budget_met and policy.calibration.cost == 1
    np.testing.assert_array_equal(policy.decide(records.logits), 3)


def test_guarantee_holds_over_a_thousand_draws_and_is_not_vacuous():
    """The risk of each certified policy is known: a large sample of the distribution stands for it."""
    rows, level, error = 1000, 0.05, 0.1
    rng = np.random.default_rng(1)
    truth = draw(rng, 100_000, exits=3)
    full = truth.logits[-1].argmax(-1) == truth.labels
    # For speed, what `simulate` would look up: scores and hits of the large sample, computed once.
    scores = [np.asarray(policies.MaxProbability(0.5).score(z)) for z in truth.logits[:-1]]
    wrong = [full & (z.argmax(-1) != truth.labels) for z in truth.logits]
    violated, used, cheap = 0, 0, []
    for _ in range(1000):
        some = draw(rng, rows, exits=3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the draws where nothing is certified
            policy = kx.calibrate(some, COST[:3], max_accuracy_drop=level, confidence=1 - error)
        left, lost = np.zeros(len(full), bool), 0
        for i, enabled in enumerate((*policy.enabled, True)):
            leaves = ~left & (scores[i] >= policy.thresholds[i]) if i < 2 else ~left
            if enabled:
                lost += (leaves & wrong[i]).sum()
                left |= leaves
        violated += lost / len(full) > level
        used += any(policy.enabled)
        cheap.append(policy.calibration.cost)
    assert violated / 1000 <= error + 3 * math.sqrt(error * (1 - error) / 1000)
    assert used > 950
    # At least half of what can be saved when the distribution is known.
    best = kx.calibrate(truth, COST[:3], max_accuracy_drop=level).calibration.cost
    assert 1 - np.mean(cheap) > (1 - best) / 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "Exactly one budget"),
        ({"max_accuracy_drop": 0.1, "cost_budget": 0.5}, "Exactly one budget"),
        ({"max_accuracy_drop": 1.0}, "max_accuracy_drop=1.0"),
        ({"max_accuracy_drop": -0.1}, "max_accuracy_drop=-0.1"),
        ({"max_accuracy_drop": math.nan}, "max_accuracy_drop=nan"),
        ({"max_accuracy_drop": "1%"}, "max_accuracy_drop='1%'"),
        ({"cost_budget": 0}, "cost_budget=0"),
        ({"cost_budget": 1.1}, "cost_budget=1.1"),
        ({"max_accuracy_drop": 0.1, "policy": "margins"}, "did you mean 'margin'"),
        ({"max_accuracy_drop": 0.1, "schedule": "linear"}, "schedule='linear'"),
        ({"max_accuracy_drop": 0.1, "temperature": 2.0}, "temperature=2.0"),
        ({"max_accuracy_drop": 0.1, "ensemble": "yes"}, "ensemble='yes'"),
        ({"max_accuracy_drop": 0.1, "confidence": 95}, "confidence=95"),
        ({"max_accuracy_drop": 0.0, "confidence": 0.9}, "does not go with"),
        ({"cost_budget": 0.5, "confidence": 0.9}, "does not go with"),
        ({"max_accuracy_drop": 0.1, "confidence": 0.9, "schedule": "geometric"}, "does not go with"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(records, arguments, message):
    with pytest.raises(ValueError, match=message):
        kx.calibrate(records, COST, **arguments)


@pytest.mark.parametrize(
    "cost",
    [[1, 2, 3], [1, 2, 3, 4, 5], [4, 3, 2, 1], [1, 2, math.nan, 4], [-1, 0, 1, 2], [0] * 4, "cost", 3, None],
)
def test_costs_that_do_not_fit_are_refused(records, cost):
    with pytest.raises(ValueError, match="costs do not belong"):
        kx.calibrate(records, cost, max_accuracy_drop=0.1)


def test_cost_of_another_network_is_refused(records):
    with pytest.raises(ValueError, match=r"costs do not belong(.|\n)*exit_1, final"):
        kx.calibrate(records, kx.cost(kx.add_exits(harness.sequential(), exits=1)), max_accuracy_drop=0.1)


def test_what_is_no_records_or_too_few(records):
    with pytest.raises(ValueError, match="not records"):
        kx.calibrate(records.logits, COST, max_accuracy_drop=0.1)
    few = records.take(slice(3))
    with pytest.raises(ValueError, match="too few records"):
        kx.calibrate(few, COST, max_accuracy_drop=0.1, temperature=True)
    with pytest.raises(ValueError, match="too few records"):
        kx.calibrate(records.take([0]), COST, max_accuracy_drop=0.1, confidence=0.9)
    assert kx.calibrate(few, COST, max_accuracy_drop=0.1).calibration.images == 3
    many = kx.ExitRecords(np.zeros((14, 5, 3)), np.zeros(5, int))
    with pytest.raises(ValueError, match="at most 12"):
        kx.calibrate(many, range(1, 15), max_accuracy_drop=0.1)


def test_early_exit_does_what_was_calibrated():
    keras.utils.set_random_seed(0)
    model = harness.randomise(kx.add_exits(harness.sequential(), exits=2))
    images = harness.images(model, 300)
    labels = np.asarray(model(images)["final"]).argmax(-1)
    records = kx.collect(model, (images, labels), verbose=0)
    policy = kx.calibrate(records, kx.cost(model), cost_budget=0.9)
    assert len(set(policy.decide(records.logits))) > 1 and policy.calibration.cost < 1
    found = kx.EarlyExit(model, policy).predict(images, verbose=0)
    near = [np.abs(policy.score(records.logits[i]) - policy.thresholds[i]) < 1e-5 for i in range(2)]
    clear = ~np.any(near, axis=0)
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found["exit"][clear], policy.decide(records.logits)[clear])
    right = found["logits"].argmax(-1) == labels
    assert right.mean() == pytest.approx(policy.calibration.accuracy, abs=0.01)

"""The drift monitor: how often it cries wolf, how soon it sees a change, and what it refuses."""

import json

import numpy as np
import pytest

import keras_exitens as kx
from keras_exitens import policies, runtime

NAMES = ("exit_1", "exit_2", "exit_3", "final")
ROWS = 1500


def outputs(rows, rng, harder=0.0):
    """Exits and scores of images whose difficulty is normal, `harder` standard deviations above the usual."""
    difficulty = rng.normal(harder, 1, rows)
    result = {"exit": np.full(rows, 3), "score": np.zeros(rows)}
    going_on = np.ones(rows, bool)
    for index in range(4):
        score = 1 / (1 + np.exp(1.5 * difficulty - 2 - 0.8 * index + rng.normal(0, 0.7, rows)))
        leaves = going_on & ((score >= 0.85) | (index == 3))
        result["exit"][leaves], result["score"][leaves] = index, score[leaves]
        going_on &= ~leaves
    return result


def monitor(rng, **options):
    return runtime.Monitor(outputs(ROWS, rng), NAMES, **options)


def test_false_alarms_are_at_most_as_frequent_as_stated():
    """120 runs of 1,500 images without a change: at alpha 0.1, 12 are expected at most, 22 in bad luck."""
    rng = np.random.default_rng(1)
    alarms = sum(monitor(rng, alpha=0.1).update(outputs(1500, rng)).alarm for _ in range(120))
    # Of 120 at a rate of 0.1, more than 22 have a probability of 0.003.
    assert alarms <= 22


@pytest.mark.parametrize("harder, within", [(1.0, 200), (0.5, 800), (-1.0, 400)])
@pytest.mark.parametrize("quiet", [0, 4000])
def test_a_change_is_seen_soon_however_late_it_begins(harder, within, quiet):
    rng = np.random.default_rng(2)
    watch = monitor(rng)
    before = watch.update(outputs(quiet, rng))
    assert not before.alarm and before.rows == quiet
    found = watch.update(outputs(within, rng, harder))
    assert found.alarm and quiet < found.alarm_row <= quiet + within
    assert abs(found.changed_row - quiet) <= 2 * watch.step
    assert "changed, about since image" in str(found)
    # An alarm stays, whatever comes then.
    assert watch.update(outputs(500, rng)).alarm_row == found.alarm_row
    watch.reset()
    assert (watch.report().rows, watch.report().alarm) == (0, False)


def test_another_share_of_exits_with_the_same_scores_is_seen():
    rng = np.random.default_rng(3)
    watch = monitor(rng)
    swapped = outputs(1000, rng)
    swapped["exit"] = np.where(swapped["exit"] == 0, 1, swapped["exit"])
    assert watch.update(swapped).alarm


def test_shares_are_those_of_the_reference_and_of_what_came():
    reference = {"exit": np.array([0, 0, 0, 1]), "score": np.array([0.9, 0.95, 0.99, 0.5])}
    watch = runtime.Monitor(reference, ("exit_1", "final"))
    found = watch.update({"exit": np.array([1, 0]), "score": np.array([0.4, 0.9])})
    assert found.expected == (0.75, 0.25) and found.seen == (0.5, 0.5)
    assert "75.0% of the reference" in str(found)


def test_evidence_is_one_before_anything_came_and_a_fair_bet_after():
    """Over all ties and orders of one image the mean evidence is 1: what makes it a martingale."""
    reference = {"exit": np.zeros(9, int), "score": np.full(9, 0.9)}
    assert runtime.Monitor(reference, ("exit_1", "final")).report().evidence == 1
    first = {"exit": np.zeros(40, int), "score": np.full(40, 0.9)}
    found = [
        runtime.Monitor(reference, ("exit_1", "final"), seed=s).update(first).evidence for s in range(300)
    ]
    assert np.mean(found) < 1.25  # few runs carry the mean, which is 1; a biased bet would grow without end


def test_images_without_a_score_are_the_hardest():
    rng = np.random.default_rng(4)
    watch = monitor(rng)
    broken = {"exit": np.full(60, 3), "score": np.full(60, np.nan)}
    assert watch.update(broken).alarm


def test_counts_of_patience_are_scores_too():
    rng = np.random.default_rng(5)
    reference = {"exit": rng.integers(0, 4, 800), "score": rng.integers(1, 5, 800).astype("float32")}
    watch = runtime.Monitor(reference, NAMES)
    assert not watch.update({key: value[:400] for key, value in reference.items()}).alarm
    assert watch.update({"exit": reference["exit"], "score": np.ones(800)}).alarm


@pytest.mark.parametrize(
    "wrong",
    [
        {"exit": np.array([0, 4]), "score": np.ones(2)},
        {"exit": np.array([0, -1]), "score": np.ones(2)},
        {"exit": np.array([0.0, 1.0]), "score": np.ones(2)},
        {"exit": np.zeros(3, int), "score": np.ones(2)},
        {"exit": np.zeros((2, 1), int), "score": np.ones((2, 1))},
        {"score": np.ones(2)},
        {"exit": np.zeros(2, int), "score": np.array(["a", "b"])},
        None,
    ],
)
def test_wrong_outputs_are_refused_and_change_nothing(wrong):
    watch = monitor(np.random.default_rng(6))
    with pytest.raises(ValueError, match="not the outputs of this network"):
        watch.update(wrong)
    assert watch.report().rows == 0


@pytest.mark.parametrize("alpha", [0, 1, -0.1, "0.1", np.nan])
def test_a_rate_is_above_zero_and_below_one(alpha):
    with pytest.raises(ValueError, match="`alpha`"):
        monitor(np.random.default_rng(7), alpha=alpha)


def records_and_policy():
    rng = np.random.default_rng(8)
    labels = rng.integers(0, 5, 600)
    sure = rng.normal(1, 1, 600)
    logits = np.stack([rng.normal(0, 1, (600, 5)) for _ in range(3)])
    logits[:, np.arange(600), labels] += sure * np.array([1.0, 2, 3])[:, None]
    return kx.ExitRecords(logits, labels), policies.MaxProbability((0.6, 0.6))


def test_it_is_made_of_records_and_a_policy_and_saved_without_them(tmp_path):
    records, policy = records_and_policy()
    watch = kx.DriftMonitor(records, policy, alpha=0.05, seed=3)
    assert isinstance(watch, runtime.Monitor) and kx.serving.DriftMonitor is kx.DriftMonitor
    simulated = policy.simulate(records.logits)
    shares = np.bincount(simulated["exit"], minlength=3) / 600
    np.testing.assert_allclose(watch.report().expected, shares)
    watch.save(tmp_path / "drift.json")
    loaded = runtime.Monitor.load(tmp_path / "drift.json")
    assert (loaded.alpha, loaded.seed, loaded.exit_names) == (0.05, 3, records.names)
    again = {key: np.asarray(simulated[key])[:300] for key in ("exit", "score")}
    assert loaded.update(again) == watch.update(again)
    with pytest.raises(ValueError, match="`policy` is of another kind"):
        kx.DriftMonitor(records, 0.5)
    with pytest.raises(ValueError, match="`records` is of another kind"):
        kx.DriftMonitor(records.logits, policy)


@pytest.mark.parametrize(
    "text", ["", "{}", '{"drift": 2}', '{"drift": 1, "exit_names": ["a"], "reference": [1]}']
)
def test_a_file_that_is_none_is_refused(text, tmp_path):
    path = tmp_path / "drift.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="no reference of a drift monitor"):
        runtime.Monitor.load(path)
    with pytest.raises(ValueError, match="no reference of a drift monitor"):
        runtime.Monitor.load(tmp_path / "nothing.json")


def test_a_damaged_reference_is_refused(tmp_path):
    watch = monitor(np.random.default_rng(9))
    watch.save(tmp_path / "drift.json")
    kept = json.loads((tmp_path / "drift.json").read_text())
    kept["reference"][0] = -5
    (tmp_path / "drift.json").write_text(json.dumps(kept))
    with pytest.raises(ValueError, match="does not fit"):
        runtime.Monitor.load(tmp_path / "drift.json")

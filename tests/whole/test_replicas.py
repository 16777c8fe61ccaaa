"""Two replicas give what one device gives, whatever the last batch holds."""

import json
import subprocess
import sys

import numpy as np
import pytest
import replicated
from harness import needs_keras

SCRIPT = replicated.__file__


def ran(tmp_path_factory, part):
    folder = tmp_path_factory.mktemp("replicas")
    command = [sys.executable, SCRIPT, str(folder), part]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what one device and two replicas came to; every run is made in one process."""
    return ran(tmp_path_factory, "quick")


@pytest.fixture(scope="module")
def slow_folder(tmp_path_factory):
    return ran(tmp_path_factory, "slow")


def both(folder, run):
    one, two = (dict(np.load(folder / f"{run} {which}.npz")) for which in ("one", "two"))
    assert set(one) == set(two)
    return one, two


def assert_same(one, two, rtol, atol=1e-6):
    for key in one:
        np.testing.assert_allclose(two[key], one[key], rtol=rtol, atol=atol, err_msg=key)


@pytest.mark.parametrize("run", [run for run, (_, _, epochs) in replicated.RUNS.items() if epochs == 1])
def test_an_epoch_on_two_replicas_is_one_on_one_device(folder, run):
    """Whole batches, uneven ones, and ones that leave a replica without rows."""
    one, two = both(folder, run)
    assert {"log loss", "log classification_loss", "log distillation_loss", "log feature_loss"} <= set(one)
    assert sum(key.startswith("weight") for key in one) == 13 + (run.startswith("dbt annealed"))
    assert_same(one, two, rtol=1e-5)
    assert [two[key] for key in two if key.endswith(" step")] == [3 if "17 rows" in run else 2]
    if run.startswith("dbt annealed"):
        # The first replica alone would not let it rise in the first batch, nor would the mean of the means
        # of both let it stay in the second, with rows 8 and 9 on the one and row 10 on the other.
        (temperature,) = [two[key] for key in two if key.endswith(" temperature")]
        np.testing.assert_allclose(temperature, 1.05, rtol=1e-6)


def test_early_exit_gives_each_row_once(folder):
    one, two = both(folder, "early exit")
    assert two["rows False"] == two["rows True"] == 11
    assert {*one["predict False exit"]} == {0, 1}
    for key in one:
        assert one[key].shape == two[key].shape == ((11, 3) if key.endswith("logits") else one[key].shape)
    assert_same(one, two, rtol=1e-4)


@pytest.mark.parametrize("run", [run for run, (_, _, epochs) in replicated.RUNS.items() if epochs == 3])
def test_three_epochs_with_validation_and_what_follows(folder, run):
    one, two = both(folder, run)
    names = {f"final_{kind}" for kind in ("accuracy", "crossentropy")} | {"loss", "ensemble_accuracy"}
    assert {f"log {name}" for name in names} | {f"log val_{name}" for name in names} <= set(one)
    assert {f"evaluate {name}" for name in names} <= set(one)
    assert list(one.pop("order")) == list(two.pop("order")) == ["exit_1", "exit_2", "final", "ensemble"]
    rows = replicated.RUNS[run][1]
    assert two["predict final"].shape == (rows, 4)
    assert_same(one, two, rtol=1e-4)


@needs_keras("3.14.1")  # before, Keras added them up on each replica
def test_regularisers_of_activities_are_means_over_all_rows(folder):
    one, two = both(folder, "regularised")
    assert one["loss"] > 100
    assert_same(one, two, rtol=1e-5)


def test_collect_finds_the_same_in_the_scope_and_outside(folder):
    one, two = both(folder, "collected")
    np.testing.assert_array_equal(two["streamed ids"], np.arange(17))
    for where in ("inside", "streamed", "outside"):
        assert two[f"{where} logits"].shape == (3, 17, 4)
        np.testing.assert_array_equal(two[f"{where} labels"], replicated.distillers.data(17)[1])
    assert_same(one, two, rtol=1e-5)


@pytest.mark.slow
def test_loss_scaling_skips_the_same_steps(slow_folder):
    one, two = both(slow_folder, "mixed_float16")
    assert one["scale"] == two["scale"] < 2.0**18
    assert one["skipped"] == two["skipped"] > 0
    assert_same(one, two, rtol=0.02, atol=1e-3)


@pytest.mark.slow
def test_bfloat16_on_two_replicas_is_that_on_one(slow_folder):
    one, two = both(slow_folder, "mixed_bfloat16")
    for found in (one, two):
        assert (found.pop("computed in"), found.pop("kept in")) == ("bfloat16", "float32")
    # Half precisions round sums of other rows otherwise: bfloat16 has 8 bits.
    assert_same(one, two, rtol=0.02, atol=1e-2)


@pytest.mark.slow
def test_keras_own_backups_work_on_replicas(slow_folder):
    """BackupAndRestore and ModelCheckpoint: the third epoch follows the two before the interruption."""
    one, two = both(slow_folder, "callbacks")
    for found in (one, two):
        assert list(found["epochs of the resumed run"]) == [2]
        np.testing.assert_allclose(found["best val_loss"], found["val_loss of the best weights"], rtol=1e-6)
        kept = [key.removeprefix("straight ") for key in found if key.startswith("straight ")]
        assert len(kept) == 13
        for i in kept:
            for way in ("resumed", "loaded"):
                expected = found[f"straight {i}"]
                np.testing.assert_allclose(found[f"{way} {i}"], expected, rtol=1e-6, atol=1e-7, err_msg=i)
    assert_same(one, two, rtol=1e-4)


@pytest.mark.slow
def test_trials_of_a_search_train_on_replicas(slow_folder):
    found = np.load(slow_folder / "searched.npz")
    assert found["replicas"] == 2
    np.testing.assert_allclose(found["area"], found["score"], rtol=1e-6)


@pytest.mark.slow
def test_the_exact_step_is_resumed_on_replicas(slow_folder):
    one, two = both(slow_folder, "step backup")
    for found in (one, two):
        assert found["resumed at"] == 7
        kept = [key.removeprefix("straight ") for key in found if key.startswith("straight ")]
        for i in kept:
            expected = found[f"straight {i}"]
            np.testing.assert_allclose(found[f"resumed {i}"], expected, rtol=1e-6, atol=1e-7, err_msg=i)
    assert_same(one, two, rtol=1e-3)  # Adam divides by small numbers


@pytest.mark.slow
def test_single_batches_batches_of_one_row_and_saving(slow_folder):
    one, two = both(slow_folder, "other ways")
    assert two["predict final"].shape == (11, 4)
    assert_same(one, two, rtol=1e-5)


@pytest.mark.parametrize(
    "what, expected",
    [
        ("inside", ["The network was not made in the scope", "with strategy.scope()"]),
        ("outside", ["The network was not made in the scope", "MirroredStrategy"]),
        ("optimizer", ["The optimizer was not made in the scope", "with strategy.scope()"]),
        ("steps per execution", ["steps_per_execution=2 on 2 replicas"]),
        ("batch norm, training", ["BatchNormalization", "drop_remainder=True"]),
        ("batch norm, evaluation", ["no error"]),
        ("batch norm, enough rows", ["no error"]),
    ],
)
def test_what_cannot_be_done_is_said(folder, what, expected):
    error = json.loads((folder / "refusals.json").read_text())[what]
    assert all(words in error for words in expected), error

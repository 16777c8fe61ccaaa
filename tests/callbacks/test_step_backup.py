"""A training that is killed and resumed ends as one that was not; a backup is whole or is told apart."""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import zipfile

import interrupted
import keras
import numpy as np
import pytest
from distillers import CASES, data, distiller_of
from resuming import Stop, fit, interrupt, state

import keras_exitens as kx
from keras_exitens.callbacks import backup_file

SCRIPT = interrupted.__file__


def run(folder, die_after=0, check=True):
    folder.mkdir(exist_ok=True)
    command = [sys.executable, SCRIPT, str(folder), str(die_after)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    expected = -signal.SIGKILL if die_after else 0
    assert not check or done.returncode == expected, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The result of a run that nobody killed."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return dict(np.load(folder / "result.npz"))


def assert_equals_whole(folder, whole):
    found = dict(np.load(folder / "result.npz"))
    assert set(found) == set(whole)
    for name, value in whole.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_killed_three_times_it_ends_bit_for_bit_as_if_it_had_not_been(whole, tmp_path):
    """At step 1, before any backup; within the first epoch; and right at the end of the second."""
    steps = 8
    for die_after in (1, 5, 2 * steps - 3):
        run(tmp_path, die_after)
    assert len(whole) > 50
    run(tmp_path)
    assert_equals_whole(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_steps(whole, tmp_path, seed):
    """Four kills a run; `benchmarks/kill_points.py` kills from outside, at any moment, twenty times."""
    for die_after in random.Random(seed).choices(range(1, 7), k=4):
        run(tmp_path, die_after)
    run(tmp_path)
    assert_equals_whole(tmp_path, whole)


# In one process --------------------------------------------------------------------------------------


def make(**options):
    return distiller_of(CASES["dbt annealed"], keras.optimizers.Adam(0.01), metrics=["accuracy"], **options)


def test_there_is_nothing_to_restore_at_first(tmp_path):
    distiller = make()
    before = state(distiller)
    assert kx.callbacks.StepBackup(tmp_path / "backup").restore(distiller) == 0
    assert all(np.array_equal(a, b) for a, b in zip(before, state(distiller), strict=False))


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_half_precision_is_restored_to_the_bit(precision, tmp_path):
    keras.config.set_dtype_policy(precision)
    path = tmp_path / "backup"
    distiller = make()
    fit(distiller, kx.callbacks.StepBackup(path), epochs=1)
    other = make(params=None)
    assert kx.callbacks.StepBackup(path).restore(other) == 5
    for a, b in zip(state(distiller), state(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_the_logs_of_an_epoch_that_was_resumed_are_those_of_the_whole_epoch(tmp_path):
    expected = fit(make(), kx.callbacks.StepBackup(tmp_path / "whole"))
    path = tmp_path / "backup"
    interrupt(make(), kx.callbacks.StepBackup(path, every=2), at=9)
    distiller, backup = make(), kx.callbacks.StepBackup(path, every=2)
    assert backup.restore(distiller) == 7
    history = fit(distiller, backup, start=7)
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values[1:], rtol=1e-6, err_msg=name)
    assert backup.step == 10


def test_other_callbacks_go_on_where_they_were_and_may_stop_training(tmp_path):
    class Own(keras.callbacks.Callback):
        seen = ()

        def on_train_batch_end(self, batch, logs=None):
            self.seen = [*self.seen, np.float32(len(self.seen))]

        def get_state(self):
            return {"seen": self.seen, "name": "own", "nested": {"a": None}}

        def set_state(self, state):
            assert state["nested"] == {"a": None}
            self.seen = state["seen"]

    def callbacks():
        stopper = keras.callbacks.EarlyStopping("loss", mode="max", min_delta=9, patience=2)
        saver = keras.callbacks.ModelCheckpoint(
            tmp_path / "best.keras", "final_accuracy", save_best_only=True, mode="min"
        )
        return [Own(), stopper, saver]

    path = tmp_path / "backup"
    first = callbacks()
    with pytest.raises(KeyboardInterrupt):
        fit(make(), kx.callbacks.StepBackup(path, every=2), callbacks=[*first, Stop(13)], epochs=6)
    second, distiller, backup = callbacks(), make(), kx.callbacks.StepBackup(path, every=2)
    assert backup.restore(distiller) == 12
    history = fit(distiller, backup, start=12, callbacks=second, epochs=6)
    own, stopper, saver = second
    assert len(history["loss"]) == 1  # epoch 2 is the second without a gain, and training stops there
    assert stopper.stopped_epoch == 2
    assert stopper.best == first[1].best
    assert saver.best <= first[2].best
    assert [float(v) for v in own.seen] == list(range(15))


def test_a_data_set_without_augmentation_goes_on_by_fit_arguments(tmp_path):
    splits = kx.data.load("digits", 128)
    arguments = splits.fit_arguments(3, start=11)
    assert arguments["initial_epoch"] == 1 and arguments["steps_per_epoch"] == 8
    (x, _), (expected, _) = next(iter(arguments["x"])), next(iter(splits.train.skip(11)))
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("fault", ["cut", "one byte", "empty", "text", "other archive", "other model"])
def test_a_file_that_is_not_whole_or_not_ours_is_named_and_the_one_before_is_used(fault, tmp_path):
    path = tmp_path / "backup"
    fit(make(), kx.callbacks.StepBackup(path, every=2), epochs=1)
    size = path.stat().st_size
    content = bytearray(path.read_bytes())
    if fault == "cut":
        content = content[: size * 2 // 3]
    elif fault == "one byte":
        with zipfile.ZipFile(path) as archive:
            entry = max(archive.infolist(), key=lambda entry: entry.file_size)
        content[entry.header_offset + entry.file_size // 2] ^= 1  # a value of the largest array
    elif fault == "empty":
        content = b""
    elif fault == "text":
        content = b"epoch,loss\n0,1.5\n"
    elif fault == "other archive":
        np.savez(tmp_path / "other.npz", a=np.ones(3))
        content = (tmp_path / "other.npz").read_bytes()
    else:
        small = distiller_of()
        kx.callbacks.StepBackup(path).restore(make())
        fit(small, kx.callbacks.StepBackup(tmp_path / "small"), epochs=1)
        content = (tmp_path / "small").read_bytes()
    path.write_bytes(content)
    distiller = make()
    with pytest.warns(UserWarning, match=f"(?s){path} is .*step 4"):
        assert kx.callbacks.StepBackup(path).restore(distiller) == 4
    assert distiller.optimizer.iterations == 4
    backup_file.previous_of(path).write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is "):
        kx.callbacks.StepBackup(path).restore(make())


def test_any_bit_that_differs_is_noticed_or_changes_nothing(tmp_path):
    path, facts = tmp_path / "backup", {"step": 3, "names": ["a"]}
    arrays = {"w": np.arange(6.0).reshape(2, 3), "v": np.ones(4, "int8")}
    backup_file.write(path, facts, arrays)
    content, noticed = path.read_bytes(), 0
    for place in range(8 * len(content)):
        other = bytearray(content)
        other[place // 8] ^= 1 << place % 8
        path.write_bytes(other)
        try:
            found, values = backup_file.read(path)
        except backup_file.BackupError:
            noticed += 1
            continue
        assert found == facts
        assert values.keys() == arrays.keys()
        for name, expected in arrays.items():
            assert values[name].dtype == expected.dtype
            np.testing.assert_array_equal(values[name], expected)
    assert noticed > 4 * len(content), "check sums cover the arrays and the facts"


def test_a_disk_that_is_full_costs_the_backup_alone(tmp_path):
    """The system refuses files of more than 4 kB in the middle of writing one."""
    path = tmp_path / "backup"
    distiller = make()
    fit(distiller, kx.callbacks.StepBackup(path), epochs=1)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.warns(UserWarning, match=rf"(?s){path}.*{os.strerror(errno.EFBIG)}.*kept"):
            history = fit(distiller, kx.callbacks.StepBackup(path), epochs=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(history["loss"]) == 1
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["backup"]
    assert kx.callbacks.StepBackup(path).restore(make()) == 5


def test_killed_between_two_renames_the_backup_before_is_found(tmp_path):
    path = tmp_path / "backup"
    fit(make(), kx.callbacks.StepBackup(path), epochs=1)
    path.rename(backup_file.previous_of(path))
    assert kx.callbacks.StepBackup(path).restore(make()) == 5


@pytest.mark.parametrize(
    "action, words",
    [
        (lambda d, path: kx.callbacks.StepBackup(path, every=0), "every"),
        (lambda d, path: kx.callbacks.StepBackup(path, every=2.5), "every"),
        (lambda d, path: kx.callbacks.StepBackup(path).restore(kx.ExitEnsembleDistiller(d.model)), "compile"),
        (lambda d, path: fit(d, restored(d, path), start=0), "initial_epoch"),
    ],
    ids=["zero", "fraction", "not compiled", "wrong epoch"],
)
def test_what_cannot_be_done_is_refused(action, words, tmp_path):
    path = tmp_path / "backup"
    distiller = make()
    fit(distiller, kx.callbacks.StepBackup(path), epochs=1)
    with pytest.raises(ValueError, match=words):
        action(distiller, path)


def restored(distiller, path):
    backup = kx.callbacks.StepBackup(path)
    backup.restore(distiller)
    return backup


def test_other_models_are_sent_to_keras(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="BackupAndRestore"):
        model.fit(
            np.zeros((4, 3)), np.zeros(4), verbose=0, callbacks=[kx.callbacks.StepBackup(tmp_path / "backup")]
        )


def test_keras_own_backups_work_at_the_ends_of_epochs(tmp_path):
    """BackupAndRestore, and ModelCheckpoint with a whole distiller."""
    x, y = data(12)
    options = {"batch_size": 4, "shuffle": False, "verbose": 0}
    straight = make()
    straight.fit(x, y, epochs=3, **options)

    class Fail(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    saver = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    with pytest.raises(KeyboardInterrupt):
        make().fit(
            x,
            y,
            epochs=3,
            callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "stock"), saver, Fail()],
            **options,
        )
    resumed = make()
    resumed.fit(x, y, epochs=3, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "stock")], **options)
    loaded = keras.saving.load_model(tmp_path / "2.keras")
    loaded.fit(x, y, epochs=3, initial_epoch=2, **options)
    for found in (resumed, loaded):
        for a, b in zip(straight.variables, found.variables, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)

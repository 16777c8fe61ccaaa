"""Callbacks beside `StepBackup`: a resumed training does what a whole one does, or says what it cannot."""

import pathlib
import warnings

import keras
import numpy as np
import pytest
from distillers import CASES, distiller_of
from resuming import Stop, fit, interrupt, state

import keras_exitens as kx

EPOCHS, STEPS = 4, 5
C = keras.callbacks


def make(optimizer=None, **options):
    optimizer = optimizer or keras.optimizers.SGD(0.05, momentum=0.9, use_ema=True, ema_momentum=0.8)
    return distiller_of(CASES["dbt annealed"], optimizer, metrics=["accuracy"], **options)


def resumed(folder, callbacks, at, every, **options):
    """A training interrupted after a number of steps and resumed; the distiller and the later callbacks."""
    backup = kx.callbacks.StepBackup(folder / "backup", every=every)
    with pytest.raises(KeyboardInterrupt):
        fit(make(), backup, callbacks=[*callbacks(), Stop(at)], epochs=EPOCHS, **options)
    distiller, backup = make(), kx.callbacks.StepBackup(folder / "backup", every=every)
    done, later = backup.restore(distiller), callbacks()
    assert done
    fit(distiller, backup, start=done, callbacks=later, epochs=EPOCHS, **options)
    return distiller, later


def whole(folder, callbacks, **options):
    distiller, given = make(), callbacks()
    fit(distiller, kx.callbacks.StepBackup(folder / "whole"), callbacks=given, epochs=EPOCHS, **options)
    return distiller, given


# Callbacks, and what they must have come to. Weights and optimizer are compared in any case.
CALLBACKS = {
    "EarlyStopping": (
        lambda: C.EarlyStopping("loss", mode="max", patience=9, restore_best_weights=True),
        lambda c: (c.best, c.wait, c.best_epoch),
    ),
    "ReduceLROnPlateau": (
        lambda: C.ReduceLROnPlateau("loss", mode="max", patience=2, cooldown=1, factor=0.5),
        lambda c: (c.best, c.wait, c.cooldown_counter),
    ),
    "SwapEMAWeights": (lambda: C.SwapEMAWeights(), lambda c: ()),
    "SwapEMAWeights at epochs": (lambda: C.SwapEMAWeights(swap_on_epoch=True), lambda c: ()),
    "LearningRateScheduler": (lambda: C.LearningRateScheduler(lambda epoch: 0.1 / (1 + epoch)), lambda c: ()),
    "TerminateOnNaN": (lambda: C.TerminateOnNaN(), lambda c: ()),
    "LambdaCallback": (lambda: C.LambdaCallback(on_epoch_end=lambda epoch, logs: None), lambda c: ()),
}


WHEN = {"epochs": (8, 100), "steps": (8, 3), "later": (14, 4)}


@pytest.mark.parametrize(
    "at, every",
    [
        pytest.param(*when, id=name, marks=[pytest.mark.slow] * (name != "steps"))
        for name, when in WHEN.items()
    ],
)
@pytest.mark.parametrize("callback, came_to", CALLBACKS.values(), ids=CALLBACKS.keys())
def test_callbacks_of_keras(callback, came_to, at, every, tmp_path):
    distiller, (right,) = whole(tmp_path, lambda: [callback()])
    found, (later,) = resumed(tmp_path, lambda: [callback()], at, every)
    for a, b in zip(state(distiller), state(found), strict=True):
        np.testing.assert_array_equal(a, b)
    assert came_to(later) == came_to(right)


def test_every_callback_of_keras_is_known():
    kinds = {v for v in vars(C).values() if isinstance(v, type) and issubclass(v, C.Callback)}
    tested = {type(callback()) for callback, _ in CALLBACKS.values()}
    # Tested below; without anything to keep; refused; and base classes.
    below = {C.ModelCheckpoint, C.TensorBoard, C.CSVLogger, getattr(C, "OrbaxCheckpoint", C.Callback)}
    nothing = {C.History, C.ProgbarLogger, C.RemoteMonitor}
    base = {C.Callback, C.CallbackList, getattr(C, "MonitorCallback", C.Callback)}
    assert kinds <= tested | below | nothing | base | {C.BackupAndRestore}


@pytest.mark.parametrize("at", [8, *(pytest.param(at, marks=pytest.mark.slow) for at in (12, 16))])
def test_checkpoints_fall_on_the_same_steps(at, tmp_path):
    saved = []

    class Logged(C.ModelCheckpoint):
        def _save_model(self, epoch, batch, logs):
            saved.append(int(self.model._state["step"].numpy()))

    def callbacks():
        return [Logged(tmp_path / "c.weights.h5", save_weights_only=True, save_freq=7)]

    whole(tmp_path, callbacks)
    right = saved.copy()
    assert right == [7, 14]
    saved.clear()
    resumed(tmp_path, callbacks, at, every=3)
    assert sorted(set(saved)) == right


def test_a_file_of_csv_is_gone_on_with(tmp_path):
    files = {name: tmp_path / f"{name}.csv" for name in ("whole", "resumed")}
    whole(tmp_path, lambda: [C.CSVLogger(files["whole"])])
    resumed(tmp_path, lambda: [C.CSVLogger(files["resumed"])], at=13, every=100)
    assert len(files["whole"].read_text().splitlines()) == EPOCHS + 1
    assert files["resumed"].read_text() == files["whole"].read_text()


def test_batches_of_tensorboard_are_counted_on(tmp_path):
    def callbacks():
        return [C.TensorBoard(tmp_path / "logs", update_freq=1, write_graph=False)]

    _, (right,) = whole(tmp_path, callbacks)
    _, (later,) = resumed(tmp_path, callbacks, at=13, every=4)
    assert later._global_train_batch == right._global_train_batch == EPOCHS * STEPS


def test_callbacks_may_be_in_another_order_and_have_others_beside_them(tmp_path):
    """Told apart by class and by what they monitor."""

    def stopper(monitor):
        return C.EarlyStopping(monitor, mode="max", patience=9)

    backup = kx.callbacks.StepBackup(tmp_path / "backup", every=3)
    first = [stopper("loss"), stopper("final_accuracy")]
    interrupt_with(backup, first)
    later = [C.CSVLogger(tmp_path / "log.csv"), stopper("final_accuracy"), stopper("loss")]
    distiller, backup = make(), kx.callbacks.StepBackup(tmp_path / "backup", every=3)
    done = backup.restore(distiller)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(distiller, backup, start=done, callbacks=later, epochs=2)
    assert (later[2].best, later[1].best) != (None, None)
    assert later[2].best >= first[0].best and later[1].best >= first[1].best
    assert later[2].best > 1 >= later[1].best, "losses and accuracies were mixed up"


def interrupt_with(backup, callbacks):
    with pytest.raises(KeyboardInterrupt):
        fit(make(), backup, callbacks=[*callbacks, Stop(8)])


def test_what_has_no_state_or_no_callback_is_named(tmp_path):
    interrupt_with(kx.callbacks.StepBackup(tmp_path / "backup"), [C.EarlyStopping("loss", patience=9)])
    distiller, backup = make(), kx.callbacks.StepBackup(tmp_path / "backup")
    done = backup.restore(distiller)
    with pytest.warns(UserWarning, match=r"anew: ReduceLROnPlateau.*No longer there.*: EarlyStopping"):
        fit(distiller, backup, start=done, callbacks=[C.ReduceLROnPlateau("loss")], epochs=3)


def test_two_ways_to_resume_are_refused(tmp_path):
    distiller = make()
    before = state(distiller)
    with pytest.raises(ValueError, match="would both resume"):
        fit(
            distiller,
            kx.callbacks.StepBackup(tmp_path / "backup"),
            callbacks=[C.BackupAndRestore(tmp_path / "k")],
        )
    assert all(map(np.array_equal, state(distiller), before))


class StopAt(C.Callback):
    """The user's own way to stop, at the end of an epoch or within one."""

    def __init__(self, step):
        super().__init__()
        self.left = step

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.model.stop_training = True


STOPPED = {
    "EarlyStopping": lambda: C.EarlyStopping("loss", mode="max", patience=1, restore_best_weights=True),
    "EarlyStopping, last weights": lambda: C.EarlyStopping("loss", mode="max", patience=1),
    "own, at an end": lambda: StopAt(10),
    "own, within": lambda: StopAt(8),
}


@pytest.mark.parametrize("callback", STOPPED.values(), ids=STOPPED.keys())
def test_a_training_that_was_stopped_stays_stopped(callback, tmp_path):
    def script(go_on=False):
        distiller, backup = make(keras.optimizers.SGD(0.05)), kx.callbacks.StepBackup(tmp_path / "backup")
        done = backup.restore(distiller)
        was = backup.stopped
        backup.stopped = was and not go_on
        fit(
            distiller,
            backup,
            start=done,
            callbacks=[callback()] if not go_on else [],
            epochs=EPOCHS,
        )
        return distiller, backup, was

    first, backup, was = script()
    assert backup.step in (8, 10) and backup.stopped and not was
    with pytest.warns(UserWarning, match=r"was stopped by a callback after step (8|10)"):
        second, again, was = script()
    assert again.step == backup.step and was
    for a, b in zip(first.model.weights, second.model.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    # The model itself may train on.
    assert second.fit(np.zeros((4, 4, 4, 3)), np.zeros(4), verbose=0).epoch == [0]
    _, again, _ = script(go_on=True)
    assert again.step > backup.step and not again.stopped


def test_a_training_that_ended_trains_no_further_and_keeps_the_best_weights(tmp_path):
    def script():
        distiller, backup = make(keras.optimizers.SGD(0.05)), kx.callbacks.StepBackup(tmp_path / "backup")
        stopper = C.EarlyStopping("loss", mode="max", patience=9, restore_best_weights=True)
        fit(distiller, backup, start=backup.restore(distiller), callbacks=[stopper], epochs=2)
        return [np.asarray(w) for w in distiller.model.weights]

    assert all(map(np.array_equal, script(), script()))


def test_a_cell_that_is_run_again(tmp_path):
    """Automatic names of layers count on in one process."""

    def cell(**options):
        x = inputs = keras.Input((4, 4, 3))
        for filters in (4, 4, 6):
            x = keras.layers.BatchNormalization()(keras.layers.Conv2D(filters, 1, activation="relu")(x))
        x = keras.layers.Dropout(0.1)(keras.layers.GlobalAveragePooling2D()(x))
        plain = keras.Model(inputs, keras.layers.Dense(4)(x))
        distiller = kx.ExitEnsembleDistiller(kx.add_exits(plain, 1, head="linear", placement="stage"))
        distiller.compile(keras.optimizers.Adam(0.01), metrics=["accuracy"])
        return distiller

    path = pathlib.Path(tmp_path, "backup")
    interrupt(cell(), kx.callbacks.StepBackup(path, every=3), at=7)
    distiller, backup = cell(), kx.callbacks.StepBackup(path, every=3)
    assert backup.restore(distiller) == 5
    fit(distiller, backup, start=5)
    assert backup.step == 10
    # Another network is still another one.
    x = inputs = keras.Input((4, 4, 3))
    for filters in (4, 6, 4):
        x = keras.layers.BatchNormalization()(keras.layers.Conv2D(filters, 1, activation="relu")(x))
    plain = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x)))
    other = kx.ExitEnsembleDistiller(kx.add_exits(plain, 1, head="linear", placement="stage"))
    other.compile(keras.optimizers.Adam(0.01))
    with pytest.raises(ValueError, match="another model"):
        kx.callbacks.StepBackup(path).restore(other)

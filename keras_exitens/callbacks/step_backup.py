"""`StepBackup`: a training that was killed goes on at the step where it was."""

import collections
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import keras

from keras_exitens import _checks as checks
from keras_exitens._backend import random_state, set_random_state
from keras_exitens._inputs import replicas
from keras_exitens._keras import callback_state, set_callback_state, skip_epochs
from keras_exitens._types import Logs, Path
from keras_exitens.callbacks import backup_file

__all__ = ["StepBackup"]


class StepBackup(keras.callbacks.Callback):
    """Backs training up every so many steps and at the end of each epoch, to resume at the exact step.

    One file holds all weights, the optimizer, the states of random generators, of the objective and of
    callbacks, the metrics of the unfinished epoch and the number of steps. It takes the place of the one
    before at once or not at all, and that one is kept beside it. With data that are a pure function of the
    step, as those of `data.load`, a run that is killed and resumed ends with the weights of one that was not,
    bit for bit where the operations themselves are deterministic.

    `fit` runs it after all other callbacks, whose state it keeps too: that of all of Keras's
    (`EarlyStopping`, `ReduceLROnPlateau`, `ModelCheckpoint`, `SwapEMAWeights`, `TensorBoard`), and of any
    with methods `get_state()` and `set_state(state)`, a dict of numbers, strings and arrays. They are told
    apart by their classes and by what they monitor; where one is missing, or has no state in the backup, a
    warning names it. `CSVLogger` goes on in its file. `BackupAndRestore` is refused: both would resume. The
    `History` that `fit` returns begins with the resumed epoch.

    A training that a callback stopped, as `EarlyStopping` does, stays stopped: run again, `fit` trains
    nothing, says so, and leaves the weights that the first run left. To train on, set `stopped` to False
    after `restore`.

    With several workers all call `restore`, and the chief alone writes: the folder must be one that all see.
    When the disk is full it warns, keeps the last backup, and tries again the next time.

    Args:
        path: path of the file.
        every: int ≥ 1, steps between backups within an epoch. Defaults to 500.

    Attributes:
        step: int, steps done in all epochs.
        stopped: bool, whether a callback ended the training of the backup.

    Raises:
        ValueError: `every` is not a whole number of at least 1.

    Example:

    ```python
    backup = kx.callbacks.StepBackup("run/backup", every=200)
    done = backup.restore(distiller)  # 0 where there is none yet
    distiller.fit(**splits.fit_arguments(epochs=200, start=done), callbacks=[backup])
    ```
    """

    def __init__(self, path: Path, every: int = 500) -> None:
        super().__init__()
        self.path = pathlib.Path(path)
        self.every = checks.whole("every", every, low=1)
        self.step = 0
        self.stopped = False
        self._saved = 0
        self._others: Any = None
        self._pending: Any = None  # facts and arrays that on_epoch_begin has still to put back
        self._random: dict[str, Any] = {}  # numbers that on_train_batch_begin has still to put back
        self._skipped = 0  # steps of the present epoch that were done before it was resumed
        self._seen = 0  # steps of the present epoch done since

    def restore(self, model: keras.Model) -> int:
        """Puts a compiled model into the state of the last whole backup.

        Args:
            model: a compiled `ExitEnsembleDistiller` of the same architecture and optimizer.

        Returns:
            int, the number of training steps done; 0, and nothing changed, where there is no backup.

        Raises:
            ValueError: there are files, but none is a whole backup of this model; the model is not compiled.
        """
        if not model.compiled:
            raise checks.error(
                "The model is not compiled.",
                expected="a compiled model: the state of its optimizer is restored too",
                received=f"{model.name!r} before compile()",
                fix="call compile() before restore()",
            )
        if not model.optimizer.built:
            with replicas.of_model(model).scope():
                model.optimizer.build(model.trainable_variables)
        variables = _variables(model)
        files = [path for path in (self.path, backup_file.previous_of(self.path)) if path.exists()]
        faults = []
        for file in files:
            try:
                facts, arrays = backup_file.read(file)
                _check(file, facts["variables"], _described(variables))
            except backup_file.BackupError as fault:
                faults.append(fault)
                continue
            if faults:
                checks.warn(f"{faults[0]}\nThe backup before it, {file}, is used: step {facts['step']}.")
            for name, variable in variables.items():
                variable.assign(arrays[name])
            self.step = self._saved = facts["step"]
            self.stopped = facts.get("stopped", False)
            self._skipped, self._pending = facts["epoch_step"], (facts, arrays)
            break
        else:
            if faults:
                raise faults[0]
        replicas.check_agreed("step of the backup", self.step, replicas.of_model(model))
        return self.step

    def among(self, callbacks: list[keras.callbacks.Callback]) -> list[keras.callbacks.Callback]:
        """The callbacks of a `fit` in the order in which they must act: this one last."""
        if any(isinstance(callback, keras.callbacks.BackupAndRestore) for callback in callbacks):
            raise checks.error(
                "StepBackup and BackupAndRestore would both resume the training.",
                expected="one of them",
                received="both among the callbacks",
                fix="leave BackupAndRestore out: StepBackup keeps all that it keeps, and the step",
            )
        self._others = [c for c in callbacks if c is not self and not isinstance(c, _ShortEpoch)]
        return [_ShortEpoch(self), *self._others, self]

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._others is None:
            raise checks.error(
                "StepBackup does not know the other callbacks, whose state it keeps.",
                expected="the fit of an ExitEnsembleDistiller, which tells it",
                received=f"the fit of a {type(self.model).__name__}",
                fix="use keras.callbacks.BackupAndRestore for other models",
            )
        if self._pending is None:
            return
        # All other callbacks have begun, and no epoch has: what they reset is put back.
        self._restore_others(*self._pending)
        if self.stopped:
            checks.warn(
                f"The training in {self.path} was stopped by a callback after step {self.step}: nothing more "
                "is trained. To train on, set `stopped = False` after restore()."
            )
            skip_epochs(self.model, self.params["epochs"])
            self._pending, self._skipped = None, 0

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        skip_epochs(self.model, 0)

    def _restore_others(self, facts: dict[str, Any], arrays: backup_file.Arrays) -> None:
        """Gives the other callbacks their states: by class and by what they monitor, in their order."""
        saved: dict[str, list[Any]] = collections.defaultdict(list)
        for kind, state, *monitored in facts["callbacks"]:
            if state := backup_file.unpacked(state, arrays):
                saved[kind].append((monitored, state))
        without = []
        for callback in self._others:
            states = saved[type(callback).__name__]
            if not states:
                without += [type(callback).__name__] if _state(callback) else []
                continue
            same = [i for i, (monitored, _) in enumerate(states) if monitored == _monitored(callback)]
            _set_state(callback, states.pop(same[0] if same else 0)[1])
        missing = [kind for kind, states in saved.items() for _ in states]
        if without or missing:
            checks.warn(
                "The callbacks are not those of the backup. "
                + (f"Begins anew: {', '.join(without)}. " if without else "")
                + (f"No longer there, although it has a state: {', '.join(missing)}." if missing else "")
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        if self._pending is None:
            return
        (facts, arrays), self._pending = self._pending, None
        if epoch != facts["epoch"] or (self._skipped and not self.params.get("steps")):
            raise checks.error(
                "The resumed training does not begin where the backup ended.",
                expected=f"epoch {facts['epoch']} (from 0), and a known number of steps an epoch",
                received=f"epoch {epoch} of {self.params.get('steps')} steps",
                fix="fit(**splits.fit_arguments(epochs, start=backup.restore(distiller))), or the like: "
                "x from that step on, initial_epoch and steps_per_epoch",
            )
        self._random = {name: arrays[f"random {name}"] for name in facts.get("random", ())}
        if self._skipped and facts.get("metrics", True):
            for name, variable in _named("metric", self.model.metrics_variables).items():
                variable.assign(arrays[name])

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        if self._random:  # only now: the loader of the data draws from PyTorch's numbers too
            set_random_state(self._random)
            self._random = {}

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.step += batch + 1 - self._seen
        self._seen = batch + 1
        done = self._skipped + self._seen
        # The backup at the end of an epoch comes after all that is done there.
        if self.step - self._saved >= self.every and done != self.params.get("steps"):
            self._save(self._epoch, done)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        done, steps = self._skipped + self._seen, self.params.get("steps")
        self._skipped = self._seen = 0
        self.stopped = bool(self.model.stop_training)
        if self.stopped and steps and done < steps:
            self._save(epoch, done, metrics=False)  # those of the validation are there by now
        else:
            self._save(epoch + 1, 0)

    def begin(self) -> None:
        """Before any callback begins: files of the resumed training are gone on with."""
        if self._pending is not None:
            for callback in self._others:
                if isinstance(callback, keras.callbacks.CSVLogger):
                    callback.append = True

    @property
    def shortens(self) -> bool:
        """Whether the epoch that is resumed will end before all its steps are done."""
        return self._skipped > 0

    def left_of_epoch(self, steps: int) -> int | None:
        """How many of the steps of an epoch a resumed one still has; `None` where it is whole."""
        return steps - self._skipped if self._skipped else None

    def _save(self, epoch: int, epoch_step: int, *, metrics: bool = True) -> None:
        variables = _variables(self.model)
        named = {**variables, **_named("metric", self.model.metrics_variables)}
        # Every worker reads: a metric is the sum of all workers' parts.
        arrays = {name: keras.ops.convert_to_numpy(variable) for name, variable in named.items()}
        states = random_state()
        arrays |= {f"random {name}": state for name, state in states.items()}
        self._saved = self.step
        if not replicas.is_chief(replicas.of_model(self.model)):
            return
        facts = {
            "step": self.step,
            "epoch": epoch,
            "epoch_step": epoch_step,
            "stopped": self.stopped,
            "metrics": metrics,
            "random": list(states),
            "variables": _described(variables),
            "callbacks": [
                (type(callback).__name__, backup_file.packed(_state(callback), arrays), *_monitored(callback))
                for callback in self._others
            ],
        }
        try:
            backup_file.write(self.path, facts, arrays)
        except OSError as cause:
            checks.warn(
                f"Step {self.step} could not be backed up to {self.path}: {cause}. The last one is kept."
            )


class _ShortEpoch(keras.callbacks.Callback):
    """Ends a resumed epoch after the steps that were left of it; acts before all other callbacks."""

    def __init__(self, backup: StepBackup) -> None:
        super().__init__()
        self.backup = backup
        self.cut = False

    def on_train_begin(self, logs: Logs = None) -> None:
        self.backup.begin()

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        left = self.backup.left_of_epoch(self.params.get("steps"))
        if left is not None and batch + 1 >= left and not self.model.stop_training:
            self.cut = self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if self.cut:
            self.cut = self.model.stop_training = False


def _named(kind: str, variables: Sequence[keras.Variable]) -> dict[str, keras.Variable]:
    return {f"{kind} {i}": variable for i, variable in enumerate(variables)}


def _variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Everything that a training step changes, but metrics."""
    return {**_named("model", model.variables), **_named("optimizer", model.optimizer.variables)}


def _described(variables: dict[str, keras.Variable]) -> list[list[Any]]:
    """Names within their layers, shapes and types: names of models differ from process to process."""
    return [[v.name, list(v.shape), str(v.dtype)] for v in variables.values()]


def _unnumbered(described: list[Any]) -> list[Any]:
    """Without the numbers in automatic names, which count on in a process that makes a model again."""
    name, *rest = described
    return [re.sub(r"_\d+(?=_|$)", "", name), *rest]


def _check(file: pathlib.Path, found: list[list[Any]], expected: list[list[Any]]) -> None:
    """Raises where a backup is one of another model."""
    pairs = zip(found, expected, strict=False)
    other = next((pair for pair in pairs if _unnumbered(pair[0]) != _unnumbered(pair[1])), None)
    if other is None and len(found) == len(expected):
        return
    raise checks.error(
        f"{file} is the backup of another model, or of another optimizer.",
        expected=f"{len(expected)} variables" + (f", among them {other[1]}" if other else ""),
        received=f"{len(found)} variables" + (f", in that place {other[0]}" if other else ""),
        fix="build and compile the model as it was, or name another file",
        kind=backup_file.BackupError,
    )


def _monitored(callback: keras.callbacks.Callback) -> list[str]:
    """What tells a callback from others of its class."""
    return [getattr(callback, "monitor", None) or ""]


def _state(callback: keras.callbacks.Callback) -> Any:
    return callback.get_state() if hasattr(callback, "get_state") else callback_state(callback)


def _set_state(callback: keras.callbacks.Callback, state: Any) -> None:
    if hasattr(callback, "set_state"):
        callback.set_state(state)
    else:
        set_callback_state(callback, state)

"""Faults of a running training, told in words that help: a loss that is not finite, labels out of range."""

import contextlib
import itertools
import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_exitens import _checks as checks
from keras_exitens._backend import tf
from keras_exitens._inputs.batches import number_of_batches
from keras_exitens._inputs.labels import FRACTIONS, SUMS, check_labels
from keras_exitens._inputs.replicas import EMPTY_REPLICA
from keras_exitens._types import Logs

# What TensorFlow's kernels say of a label that is no class: the loss from ids, and the one-hot look-up.
_RANGE = ("outside the valid range", "is not in [0,")

# Errors of graphs; those of other backends do not raise.
_GONE: Any = () if tf is None else (tf.errors.UnavailableError, tf.errors.AbortedError)
_INVALID: Any = () if tf is None else tf.errors.InvalidArgumentError

__all__ = ["NonFiniteLoss", "explained", "resumable"]


class NonFiniteLoss(keras.callbacks.Callback):
    """Stops `fit` with an error when the loss is NaN or infinite, before a checkpoint of it can be written.

    The running mean of the epoch is read every `every` batches and at the end of the epoch.
    """

    async_safe = True  # Keras may run the batch hook in its own thread; an error reaches `fit` all the same.

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self._epoch = 0
        self._next = every
        self._skipped = self._scaled = False

    @classmethod
    def first_of(cls, callbacks: Any) -> Any:
        """`callbacks` (None, one, a list or a `CallbackList`) with such a guard, which acts first.

        A callback with a method `among` decides about the order of the others; see `StepBackup`.
        """
        listed = isinstance(callbacks, keras.callbacks.CallbackList)
        given = callbacks.callbacks if listed else callbacks or []
        given = list(given) if isinstance(given, list | tuple) else [given]
        if not any(isinstance(callback, cls) for callback in given):
            # Checkpoints within an epoch are seldom asked for: a look at the loss before each of them.
            saved_within_epochs = any(isinstance(getattr(c, "save_freq", None), int) for c in given)
            given.insert(0, cls(every=1 if saved_within_epochs else 50))
        for callback in list(given):
            if hasattr(callback, "among"):
                given = callback.among(given)
        if not listed:
            return given
        for callback in given:
            if callback not in callbacks.callbacks:
                callback.set_model(callbacks.model)
                callback.set_params(callbacks.params)
        callbacks.callbacks = given
        return callbacks

    def on_train_begin(self, logs: Logs = None) -> None:
        # Asked once: within an epoch on JAX, a look at the model fetches all of its weights.
        self._scaled = isinstance(self.model.optimizer, keras.optimizers.LossScaleOptimizer)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self._epoch = epoch
        self._next = self.every

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        if batch + 1 >= self._next:  # `steps_per_execution` may jump over it
            self._next += self.every
            # Dynamic loss scaling skips the step of a loss that is not finite: the mean of the epoch is lost,
            # the weights are not. It is too much where two epochs running are lost.
            if not self._scaled:
                self._check(logs, f"batch {batch + 1} of epoch {self._epoch + 1}")

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if self._scaled and not self._skipped:
            self._skipped = not math.isfinite(float((logs or {}).get("loss", 0.0)))
            return
        self._skipped = False
        self._check(logs, f"epoch {epoch + 1}")

    def _check(self, logs: Logs, when: str) -> None:
        losses = {
            k: float(v) for k, v in (logs or {}).items() if k.endswith("loss") and not k.startswith("val_")
        }
        if math.isfinite(losses.get("loss", 0.0)):
            return
        values = ", ".join(f"{name}={value}" for name, value in losses.items())
        raise checks.error(
            f"Training was stopped: the loss is not finite, seen at {when}.",
            expected="a finite loss",
            received=values,
            fix="lower the learning rate or clip gradients (clipnorm=1.0); look for NaN in the images, and "
            "for labels out of range, which give NaN on GPUs, JAX and PyTorch; of the half precisions prefer "
            "mixed_bfloat16; then resume from the last checkpoint",
            kind=FloatingPointError,
        )


def resumable(x: Any, callbacks: Any, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The data and arguments of a `fit` whose first epoch a callback may end early; see `StepBackup`.

    Keras refuses to begin another epoch of a `PyDataset` when the one before did not end by itself. So its
    batches come from a generator, and with them the class weights, which Keras does not take for generators.
    """
    listed = getattr(callbacks, "callbacks", callbacks)
    if not isinstance(x, keras.utils.PyDataset) or not any(getattr(c, "shortens", False) for c in listed):
        return x, arguments
    weights = arguments.pop("class_weight", None)

    def batches() -> Iterator[Any]:
        length = number_of_batches(x)
        numbers = itertools.count() if length is None else itertools.cycle(range(length))
        for number in numbers:
            images, labels, third = keras.utils.unpack_x_y_sample_weight(x[number])
            if weights is not None and third is None:
                ids = np.asarray(labels)
                ids = ids.argmax(axis=-1) if ids.ndim == 2 and ids.shape[1] > 1 else ids.reshape(-1)
                third = np.asarray([weights.get(int(i), 1.0) for i in ids], "float32")
            yield (images, labels) if third is None else (images, labels, third)

    return batches(), {**arguments, "shuffle": False}


@contextlib.contextmanager
def explained(labels: Any, classes: int, ignored: int | None = None) -> Iterator[None]:
    """Around a run of steps: checks labels that are arrays, and explains TensorFlow's errors.

    Raises:
        ValueError: labels out of range or of the wrong shape; a replica without rows of a network with batch
            normalisation.
        ConnectionError: another worker of the job died.
    """
    check_labels(labels, classes, ignored=ignored)
    try:
        yield
    except _GONE as cause:
        raise checks.error(
            "Another worker of this job is gone.",
            expected="all workers to take part in every step",
            received=f"TensorFlow's {type(cause).__name__}",
            fix="start all workers again; with callbacks.StepBackup they go on at the last backup",
            kind=ConnectionError,
        ) from cause
    except _INVALID as cause:
        lines = str(cause).splitlines()
        if any(EMPTY_REPLICA in line for line in lines):
            raise checks.error(
                EMPTY_REPLICA,
                expected="at least one row a replica: batch normalisation has no mean and variance of none",
                received="a batch with fewer rows than replicas, as the last one of an epoch may be",
                fix="drop it: dataset.batch(size, drop_remainder=True); or let batch_size divide the rows",
            ) from cause
        for what in (FRACTIONS, SUMS):
            if any(what in line for line in lines):
                raise checks.error(
                    what,
                    expected=f"class ids 0 … {classes - 1}, or {classes} probabilities that sum to 1",
                    received="other values in a batch",
                    fix="look at the labels that the data set gives",
                ) from cause
        found = next((line for line in lines if any(w in line for w in _RANGE)), None)
        if found is None:
            raise
        raise checks.error(
            "Labels are out of range.",
            expected=f"class ids 0 … {classes - 1}",
            received=found.strip(),
            fix="number the classes from 0, or give the network more classes",
        ) from cause

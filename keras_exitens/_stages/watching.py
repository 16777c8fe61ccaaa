"""Tells whether weights have changed since a graph was made with them as constants, without reading them."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

__all__ = ["Values", "fingerprint"]


class Values:
    """The values of variables as they were.

    TensorFlow updates a variable in place only while nobody else holds its memory. Held here, it is left as
    it is, and an update goes elsewhere: where the address is the same, so is the value. Where it is not
    (memory of a GPU, or variables that copy themselves when read, have no address that lasts), hashes of both
    values decide.

    Args:
        variables: TensorFlow variables.
    """

    def __init__(self, variables: Sequence[tf.Variable]) -> None:
        self._readers = [_reader(variable) for variable in variables]
        # One call costs less than one a variable. A partial: methods of one class are one function to
        # TensorFlow, which warns that it is traced again and again.
        self._together = tf.function(functools.partial(_read, self._readers), autograph=False)
        self._held = self._together()
        self._addresses = [_address(value) if "CPU" in value.device else None for value in self._held]

    def read(self) -> list[tf.Tensor]:
        """The values as they are now, in the memory of the variables; also for use in a graph."""
        return _read(self._readers)

    def changed(self, values: Sequence[tf.Tensor] | None = None) -> bool:
        """Whether a bit of any of them has changed.

        Args:
            values: what `read` gave in a graph that ran just now, or `None` to read them here.
        """
        values = self._together() if values is None else values
        moved = [i for i, here in enumerate(self._addresses) if here is None or here != _address(values[i])]
        if not moved:
            return False
        now = [values[i] for i in moved]
        if not np.array_equal(fingerprint(now), fingerprint([self._held[i] for i in moved])):
            return True
        for i in moved:
            self._held[i] = values[i]
            self._addresses[i] = None if self._addresses[i] is None else _address(values[i])
        return False


def _read(readers: Sequence[Callable[[], tf.Tensor]]) -> list[tf.Tensor]:
    return [read() for read in readers]


def _reader(variable: tf.Variable) -> Callable[[], tf.Tensor]:
    """A function that gives the value in the memory of the variable: `read_value` copies it."""
    try:
        handle, dtype = variable.handle, variable.dtype
    except (AttributeError, ValueError):  # of several replicas
        return functools.partial(tf.convert_to_tensor, variable)
    return functools.partial(tf.raw_ops.ReadVariableOp, resource=handle, dtype=dtype)


def _address(value: tf.Tensor) -> int | None:
    """Where a value in the memory of the host lies; `None` where that cannot be said."""
    try:
        return np.frombuffer(value, np.uint8).__array_interface__["data"][0]
    except (TypeError, ValueError, BufferError):
        return None


@tf.function(autograph=False)
def fingerprint(values: Sequence[tf.Tensor]) -> tf.Tensor:
    """A hash of the values of tensors or variables, `(values, 8)` uint8: another one when a bit changes."""
    hashes = [tf.fingerprint(tf.reshape(tf.convert_to_tensor(v), [1, -1]))[0] for v in values]
    return tf.stack(hashes)

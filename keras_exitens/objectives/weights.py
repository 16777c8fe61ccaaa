"""Weights of terms: numbers, or schedules of the training step."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import keras
from keras import ops

from keras_exitens import _checks as checks
from keras_exitens._types import Tensor

__all__ = ["Weight", "at", "checked", "is_off", "plain", "positive"]

Weight: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule


def checked(argument: str, value: Any, high: float | None = None) -> Weight:
    """The weight, once it is known to be a number from 0 to `high`, or a schedule of the training step."""
    if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        return value
    return plain(checks.number(argument, value, low=0, high=high))


def positive(argument: str, value: Any) -> float:
    """The number, once it is known to be above 0."""
    return plain(checks.number(argument, value, above=0))


def plain(number: Any) -> float:
    """A number that a config can hold: one of NumPy's becomes one of Python's."""
    return number if isinstance(number, int | float) else float(number)


def at(weight: Weight, state: Mapping[str, Tensor], like: Tensor) -> Any:
    """The value of a weight at the current training step, in the dtype of the tensor `like`."""
    if isinstance(weight, keras.optimizers.schedules.LearningRateSchedule):
        return ops.cast(weight(state["step"]), like.dtype)
    return weight


def is_off(weight: Weight) -> bool:
    """Whether a weight is 0 in every step."""
    return isinstance(weight, int | float) and weight == 0

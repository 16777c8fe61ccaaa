"""Labels: class ids or class probabilities, checked and brought to one form, in arrays and in graphs."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_exitens import _checks as checks
from keras_exitens._backend import tf
from keras_exitens._inputs.images import as_array
from keras_exitens._types import Tensor

__all__ = [
    "FRACTIONS",
    "SUMS",
    "check_labels",
    "check_single",
    "check_weights",
    "class_ids",
    "counted_rows",
    "in_range",
    "one_hot",
    "standard_labels",
    "valid",
]

# What the assertions in the graph say; `guards` knows the errors by it.
FRACTIONS = "Labels are not whole numbers."
SUMS = "The label probabilities of an image do not sum to 1."
_SUM_TOLERANCE = 0.02  # of bfloat16, and of rows rounded by hand


def one_hot(y: Tensor, classes: int, dtype: str = "float32") -> Tensor:
    """One-hot rows of class ids.

    Under TensorFlow, ids out of range are an error on the CPU, as in sparse cross-entropy.
    """
    if tf is None:
        return ops.one_hot(y, classes, dtype=dtype)
    # Looked up for the error alone, and added so that no optimizer leaves it out: `tf.one_hot` has none.
    nothing = tf.gather(tf.zeros(classes, y.dtype), y)
    return tf.one_hot(y + nothing, classes, dtype=dtype)


def standard_labels(y: Tensor, classes: int) -> Tensor:
    """Labels as class ids `(batch,)`, int32, or as class probabilities `(batch, classes)`, float.

    Args:
        y: tensor of shape `(batch,)`, `(batch, 1)` or `(batch, classes)`.
        classes: number of logits.

    Raises:
        ValueError: the rank or the width of the labels is wrong, seen from the static shape.
        tf.errors.InvalidArgumentError: ids are not whole, or probabilities do not sum to 1, seen while the
            graph runs, where it is not compiled by XLA. `guards.explained` puts it in other words. Graphs of
            other backends cannot raise: see `valid`.
    """
    _check_shape(y, classes)
    if keras.backend.standardize_dtype(y.dtype) == "string":
        raise _not_numbers(y.dtype, classes)
    if len(y.shape) == 2 and y.shape[1] == 1:
        y = ops.squeeze(y, axis=1)
    whole = not keras.backend.is_float_dtype(y.dtype)
    if len(y.shape) == 1:
        if not whole and tf is None:
            y = ops.where(y == ops.round(y), y, -1)  # which `valid` sees
        elif not whole:
            y = _asserted(tf.debugging.assert_equal(y, tf.round(y), FRACTIONS), y)
        return ops.cast(y, "int32")
    y = ops.cast(y, "float32") if whole else y
    if tf is None:
        return y
    gap = tf.abs(tf.reduce_sum(y, axis=-1) - 1)
    return _asserted(tf.debugging.assert_less(gap, tf.cast(_SUM_TOLERANCE, y.dtype), SUMS), y)


def valid(y: Tensor, classes: int, ignored: int | None) -> Tensor | None:
    """Whether all labels of a batch are right: a scalar, for graphs that cannot raise; else `None`.

    Args: as `counted_rows`.
    """
    if tf is not None:
        return None
    if len(y.shape) == 2:
        gaps = ops.abs(ops.sum(ops.cast(y, "float32"), axis=-1) - 1)
        return ops.all(gaps < _SUM_TOLERANCE)
    y, _ = counted_rows(y, ignored)
    return ops.all(ops.logical_and(y >= 0, y < classes))


def in_range(y: Tensor, classes: int) -> Tensor:
    """Class ids that no kernel trips over, where graphs cannot raise: the nearest class for a wrong one."""
    return y if tf is not None or len(y.shape) == 2 else ops.clip(y, 0, classes - 1)


def counted_rows(y: Tensor, ignored: int | None) -> tuple[Tensor, Tensor | None]:
    """Labels in range, and which rows count where one id says that a row has no label.

    Args:
        y: result of `standard_labels`.
        ignored: the id, the `ignore_class` of the loss, or `None`.

    Returns:
        The labels, 0 in place of the ignored id, and which rows count: bool `(batch,)`, `None` for all.
    """
    if ignored is None or len(y.shape) > 1:
        return y, None
    counted = ops.not_equal(y, ignored)
    return ops.where(counted, y, 0), counted


def _asserted(assertion: Any, tensor: Tensor) -> Tensor:
    """The tensor, after the assertion: nothing is trained on it where that fails."""
    with tf.control_dependencies([assertion] if assertion is not None else []):
        return tf.identity(tensor)


def check_single(y: Any) -> None:
    """Raises `ValueError` where labels come as a dict or list, as Keras takes them for several outputs."""
    if isinstance(y, Mapping | list | tuple):
        raise checks.error(
            "The labels come as several: all exits learn from the same ones.",
            expected="one array of labels: class ids (batch,), or probabilities (batch, classes)",
            received=f"a dict with keys {list(y)}" if isinstance(y, Mapping) else f"{len(y)} labels",
            fix="pass one of them, fit(images, labels), or numpy.asarray(labels) for a list of ids",
        )


def _check_shape(y: Any, classes: int) -> None:
    check_single(y)
    if getattr(getattr(y, "shape", None), "rank", 0) is None:
        raise checks.error(
            "The labels have an unknown rank.",
            expected=f"labels of shape (batch,), (batch, 1) or (batch, {classes})",
            received="labels of unknown shape, as tf.py_function and tf.io.parse_tensor give them",
            fix="tell their shape in the data set: data.map(lambda x, y: (x, tf.ensure_shape(y, [None])))",
        )
    shape = None if y is None else tuple(y.shape)
    if shape is not None and (len(shape) == 1 or (len(shape) == 2 and shape[1] in (1, classes))):
        return
    raise checks.error(
        "The labels have the wrong shape.",
        expected=f"class ids of shape (batch,) or (batch, 1), or probabilities of shape (batch, {classes})",
        received="no labels" if shape is None else f"labels of shape {shape}",
        fix="pass one label an image: y, or a data set of (images, labels)",
    )


def _not_numbers(dtype: Any, classes: int) -> Exception:
    return checks.error(
        "The labels are not numbers.",
        expected=f"class ids 0 … {classes - 1}",
        received=f"labels of dtype {dtype}",
        fix="number the classes, for instance with keras.layers.StringLookup",
    )


def check_weights(sample_weight: Tensor) -> None:
    """Raises `ValueError` where weights are not one a sample, seen from the static shape."""
    shape = tuple(sample_weight.shape)
    if len(shape) > 2 or shape[1:] not in ((), (1,)):
        raise checks.error(
            "`sample_weight` is not one weight an image.",
            expected="shape (batch,) or (batch, 1)",
            received=f"shape {shape}",
            fix="pass one weight an image; weights of classes are `class_weight`",
        )


def check_labels(y: Any, classes: int, *, ignored: int | None = None, required: bool = False) -> None:
    """Raises `ValueError` where an array of labels holds ids out of range or values that are not numbers.

    Only arrays in memory are read; a `tf.data.Dataset` is not. Nothing is changed.

    Args:
        y: labels as `fit` takes them, or `None`.
        classes: number of logits.
        ignored: an id that may be there although it is out of range, see `counted_rows`.
        required: whether `None` is an error too.
    """
    if (y is None and required) or isinstance(y, Mapping):
        _check_shape(y, classes)
    if not (hasattr(y, "__array__") and hasattr(y, "shape")) or isinstance(y, keras.KerasTensor):
        return
    values = as_array(y)
    if values.dtype.kind not in "iufb":
        raise _not_numbers(values.dtype, classes)
    _check_shape(values, classes)
    if values.ndim == 2 and values.shape[1] == classes:
        _check_probabilities(values)
    else:
        _check_ids(values[values != ignored] if ignored is not None else values, classes)


def _check_probabilities(values: np.ndarray) -> None:
    if not (values >= 0).all():  # false for NaN too
        raise checks.error(
            "The label probabilities hold negative values or NaN.",
            expected="values of at least 0",
            received=f"a minimum of {values.min()}",
            fix="look at the pipeline that makes them",
        )
    sums = values.sum(axis=1, dtype="float64")
    if (np.abs(sums - 1) >= _SUM_TOLERANCE).any():
        raise checks.error(
            SUMS,
            expected="one probability a class, or one-hot rows",
            received=f"sums from {sums.min():g} to {sums.max():g}",
            fix="divide each row by its sum: labels / labels.sum(axis=1, keepdims=True); several labels an "
            "image are not supported",
        )


def _check_ids(values: np.ndarray, classes: int) -> None:
    if not values.size:
        return
    if not (values.min() >= 0 and values.max() < classes):  # true for NaN too
        raise checks.error(
            "Labels are out of range.",
            expected=f"class ids 0 … {classes - 1}",
            received=f"ids from {values.min()} to {values.max()}",
            fix="number the classes from 0, or give the network more classes",
        )
    if values.dtype.kind == "f" and (values != values.round()).any():
        raise checks.error(
            FRACTIONS,
            expected=f"class ids 0 … {classes - 1}, or probabilities of shape (batch, {classes})",
            received=f"an array of dtype {values.dtype} with values such as "
            f"{values[values != values.round()].flat[0]}",
            fix="pass soft labels as one probability a class",
        )


def class_ids(y: Any, classes: int) -> np.ndarray:
    """Class ids `(rows,)`, int64, of an array of ids or of class probabilities, once it is checked.

    Args:
        y: array `(rows,)`, `(rows, 1)` or `(rows, classes)`.
        classes: number of logits.

    Raises:
        ValueError: as `check_labels`.
    """
    values = as_array(y)
    check_labels(values, classes, required=True)
    if values.ndim == 2:
        values = values[:, 0] if values.shape[1] == 1 else values.argmax(axis=1)
    return values.astype("int64")

"""The loss given to `compile`, as a function of labels and logits that gives one value per sample."""

import functools
import inspect

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_exitens import checks
from keras_exitens.objectives import cross_entropy

__all__ = [
    "FRACTIONS",
    "SUMS",
    "check_labels",
    "check_weights",
    "is_of_keras",
    "one_hot",
    "per_sample",
    "standard_labels",
]

_FIX = "keras.losses.SparseCategoricalCrossentropy(from_logits=True), or loss=None for cross-entropy"
# Losses of probabilities that cannot be told to take logits.
_PROBABILITIES_ONLY = ("kldivergence", "poisson", "categoricalgeneralizedcrossentropy")
# Losses of one score a label, compared with labels 0 and 1.
_BINARY = ("binarycrossentropy", "binaryfocalcrossentropy")
# What the assertions in the graph say; `guards` knows the errors by it.
FRACTIONS = "Labels are not whole numbers."
SUMS = "The label probabilities of an image do not sum to 1."
_SUM_TOLERANCE = 0.02  # of bfloat16, and of rows rounded by hand


def per_sample(loss, classes):
    """Turns what a user gives to `compile(loss=)` into a function `(y, logits) -> (batch,)`.

    Args:
        loss: `None` (cross-entropy from logits, sparse or categorical by the rank of the labels), the name
            of a Keras loss (taken from logits, also where Keras by that name means probabilities), a
            `keras.losses.Loss` on logits, or a function `(y, logits)` that gives one value per sample.
        classes: number of logits.

    Raises:
        ValueError: the loss wants probabilities, reduces in a way of its own, or is not for class scores.
    """
    if loss is None:
        return cross_entropy
    if isinstance(loss, str):
        loss = _by_name(loss, classes)
    if loss is cross_entropy:
        return loss
    inner = loss.func if isinstance(loss, functools.partial) else loss
    kind = type(loss).__name__ if isinstance(loss, keras.losses.Loss) else getattr(inner, "__name__", "")
    _check_kind(kind)
    if isinstance(loss, keras.losses.Loss):
        _check_loss(loss)
        function = loss.call
    elif callable(loss) and not isinstance(loss, type):
        function = _from_logits(loss)
    else:
        raise checks.error(
            "`loss` is not a loss.",
            expected="None, the name of a Keras loss, a keras.losses.Loss, or a function (y, logits)",
            received=f"loss={loss!r}",
            fix=_FIX,
        )
    name = getattr(loss, "name", None) or kind or repr(loss)
    takes = "sparse" if "sparse" in kind.lower() else "one-hot" if is_of_keras(inner) else "any"

    def values(y, logits):
        result = function(_as_taken(y, takes, name, logits), logits)
        if len(result.shape) != 1:
            raise checks.error(
                f"The loss {name!r} does not give one value per sample.",
                expected="shape (batch,)",
                received=f"shape {tuple(result.shape)}",
                fix="return the unreduced loss: it is weighted and averaged by the distiller",
            )
        return result

    return values


def _by_name(name, classes):
    if _plain(name) in ("crossentropy", "ce") or (classes == 2 and _plain(name) == "binarycrossentropy"):
        return cross_entropy
    _check_kind(name)
    loss = keras.losses.get(name)
    if isinstance(loss, keras.losses.Loss) and "from_logits" in loss.get_config():
        return type(loss).from_config({**loss.get_config(), "from_logits": True})
    return loss


def _from_logits(function):
    """A Keras loss function told that it gets logits; any other function as it is."""
    if "from_logits" not in inspect.signature(function).parameters:
        return function
    return lambda y, logits: function(y, logits, from_logits=True)


def _plain(name):
    return name.lower().replace("_", "")


def _check_kind(name):
    """Refuses a Keras loss, by the name of its class or function, that does not fit logits over classes."""
    if _plain(name) in _PROBABILITIES_ONLY:
        raise checks.error(
            f"The loss {name!r} compares probabilities, but exits give logits.",
            expected="a loss that can be computed from logits",
            received=f"loss={name!r}",
            fix=_FIX,
        )
    if _plain(name) in _BINARY:
        raise checks.error(
            "A binary loss does not fit: each exit gives one logit a class, two for a binary network.",
            expected="a loss over classes, from logits",
            received=f"loss={name!r}",
            fix=_FIX,
        )


def _check_loss(loss):
    kind = type(loss).__name__
    if loss.get_config().get("from_logits") is False:
        raise checks.error(
            "The loss wants probabilities, but exits give logits.",
            expected=f"{kind}(from_logits=True)",
            received=f"{kind}(from_logits=False)",
            fix=f"pass from_logits=True; or {_FIX}",
        )
    if loss.reduction != "sum_over_batch_size":
        raise checks.error(
            "The loss reduces the batch in a way of its own.",
            expected="the default reduction, 'sum_over_batch_size'",
            received=f"{kind}(reduction={loss.reduction!r})",
            fix="leave `reduction` out; change the learning rate where the sum was meant",
        )


def is_of_keras(thing):
    """Whether a loss or metric is one of Keras's own: of those it is known which labels they take."""
    owner = thing if inspect.isfunction(thing) else type(thing)
    return owner.__module__.partition(".")[0] == "keras"


def one_hot(y, classes, dtype="float32"):
    """One-hot rows of class ids. Ids out of range are an error on the CPU, as in sparse cross-entropy."""
    return tf.gather(tf.eye(classes, dtype=dtype), y)


def _as_taken(y, takes, name, logits):
    probabilities = len(y.shape) == len(logits.shape)
    if takes == "one-hot" and not probabilities:
        return one_hot(y, logits.shape[-1], logits.dtype)
    if takes == "sparse" and probabilities:
        raise checks.error(
            f"The loss {name!r} takes class ids, but the labels are probabilities.",
            expected="labels of shape (batch,)",
            received=f"labels of shape {tuple(y.shape)}",
            fix="pass loss=None, which takes both, or keras.losses.CategoricalCrossentropy(from_logits=True)",
        )
    return y


def standard_labels(y, classes):
    """Labels as class ids `(batch,)`, int32, or as class probabilities `(batch, classes)`, float.

    Args:
        y: tensor of shape `(batch,)`, `(batch, 1)` or `(batch, classes)`.
        classes: number of logits.

    Raises:
        ValueError: the rank or the width of the labels is wrong, seen from the static shape.
        tf.errors.InvalidArgumentError: ids are not whole, or probabilities do not sum to 1, seen while the
            graph runs, where it is not compiled by XLA. `guards.explained` puts it in other words.
    """
    _check_shape(y, classes)
    if keras.backend.standardize_dtype(y.dtype) == "string":
        raise _not_numbers(y.dtype, classes)
    if len(y.shape) == 2 and y.shape[1] == 1:
        y = ops.squeeze(y, axis=1)
    whole = not keras.backend.is_float_dtype(y.dtype)
    if len(y.shape) == 1:
        if not whole:
            y = _asserted(tf.debugging.assert_equal(y, tf.round(y), FRACTIONS), y)
        return ops.cast(y, "int32")
    y = ops.cast(y, "float32") if whole else y
    gap = tf.abs(tf.reduce_sum(y, axis=-1) - 1)
    return _asserted(tf.debugging.assert_less(gap, tf.cast(_SUM_TOLERANCE, y.dtype), SUMS), y)


def _asserted(assertion, tensor):
    """The tensor, after the assertion: nothing is trained on it where that fails."""
    with tf.control_dependencies([assertion] if assertion is not None else []):
        return tf.identity(tensor)


def _check_shape(y, classes):
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


def _not_numbers(dtype, classes):
    return checks.error(
        "The labels are not numbers.",
        expected=f"class ids 0 … {classes - 1}",
        received=f"labels of dtype {dtype}",
        fix="number the classes, for instance with keras.layers.StringLookup",
    )


def check_weights(sample_weight):
    """Raises `ValueError` where weights are not one a sample, seen from the static shape."""
    shape = tuple(sample_weight.shape)
    if len(shape) > 2 or shape[1:] not in ((), (1,)):
        raise checks.error(
            "`sample_weight` is not one weight an image.",
            expected="shape (batch,) or (batch, 1)",
            received=f"shape {shape}",
            fix="pass one weight an image; weights of classes are `class_weight`",
        )


def check_labels(y, classes, required=False):
    """Raises `ValueError` where an array of labels holds ids out of range or values that are not numbers.

    Only arrays in memory are read; a `tf.data.Dataset` is not. Nothing is changed.
    """
    if y is None and required:
        _check_shape(None, classes)
    if not (hasattr(y, "__array__") and hasattr(y, "shape")) or isinstance(y, keras.KerasTensor):
        return
    values = np.asarray(y)
    if values.dtype.kind not in "iufb":
        raise _not_numbers(values.dtype, classes)
    _check_shape(values, classes)
    if values.ndim == 2 and values.shape[1] == classes:
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
                fix="divide each row by its sum; several labels an image are not supported",
            )
        return
    if values.size:
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

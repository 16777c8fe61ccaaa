"""Labelled images, however they are given: as arrays, or as a data set, generator or list of batches."""

import itertools
import numbers
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_exitens import _checks as checks
from keras_exitens._backend import tf
from keras_exitens._inputs.images import as_array, as_taken, as_tensor, single
from keras_exitens._inputs.labels import check_single
from keras_exitens._types import Data, Tensor

__all__ = [
    "are_arrays",
    "are_batches",
    "as_arrays",
    "check_batch_size",
    "check_ends",
    "counted",
    "image_batches",
    "labelled_batches",
    "no_data",
    "no_labels",
    "number_of_batches",
    "raw_batches",
    "representative_images",
]


def are_arrays(data: Data) -> bool:
    """Whether data are `(images, labels[, third])`, not batches of these."""
    return isinstance(data, tuple | list) and not (data and isinstance(data[0], tuple))


def as_arrays(data: Data) -> tuple[Tensor, np.ndarray, np.ndarray | None]:
    """`(images, labels, third)` of arrays of one length; `third` is `None` where there is none.

    Raises:
        ValueError: other than two or three arrays, of different lengths, or without rows.
    """
    data = [single(data[0]), *data[1:]] if data else []
    data = [part if hasattr(part, "shape") else np.asarray(part) for part in data if part is not None]
    rows = {part.shape[0] if len(part.shape) else 0 for part in data}
    if len(data) not in (2, 3) or len(rows) > 1 or rows == {0}:
        raise checks.error(
            "The data are not images with their labels.",
            expected="(images, labels) or (images, labels, ids), arrays of one length, at least 1",
            received=f"shapes {', '.join(str(tuple(part.shape)) for part in data)}",
            fix="pass one label an image, or a data set of such pairs",
        )
    x, labels, *third = data
    return x, as_array(labels), as_array(third[0]) if third else None


def labelled_batches(data: Data, batch_size: int) -> Iterator[tuple[Tensor, np.ndarray, np.ndarray | slice]]:
    """Batches `(images, labels, counted)` of what Keras takes for `evaluate`.

    Args:
        data: `(images, labels[, third])` as arrays, or batches of these in a `tf.data.Dataset`, `PyDataset`,
            generator or list.
        batch_size: int, for arrays.

    Yields:
        Images as a tensor, labels as an array as they came, and which rows count: see `counted`.

    Raises:
        ValueError: a batch without labels, an endless data set.
    """
    for images, labels, third in raw_batches(data, batch_size):
        yield images, labels, counted(third)


def raw_batches(data: Data, batch_size: int) -> Iterator[tuple[Tensor, np.ndarray, np.ndarray | None]]:
    """As `labelled_batches`, with the third entry of each batch as it came, or `None`."""
    check_ends(data)
    if are_arrays(data):
        arrays = [part for part in as_arrays(data) if part is not None]
        data = (
            tuple(part[i : i + batch_size] for part in arrays) for i in range(0, len(arrays[0]), batch_size)
        )
    for batch in _batches(data):
        images, labels, third = keras.utils.unpack_x_y_sample_weight(batch)
        if labels is None:
            raise no_labels()
        if isinstance(labels, Mapping):  # a list of ids is taken
            check_single(labels)
        images, labels = as_tensor(single(images)), as_array(labels)
        if len(labels) != len(images):
            raise checks.error(
                "A batch has another number of labels than of images.",
                expected=f"{len(images)} labels",
                received=f"labels of shape {labels.shape}",
                fix="pass one label an image",
            )
        yield images, labels, None if third is None else as_array(third)


def image_batches(data: Data, batch_size: int) -> tuple[Iterator[Any], int | None]:
    """Batches of images of what Keras takes for `predict`, and how many there are where that is known.

    Args:
        data: an array, or a dict or list of one; or batches of images, with or without labels.
        batch_size: int, for arrays.
    """
    if hasattr(data, "shape") or (isinstance(data, Mapping | list | tuple) and not are_batches(data)):
        images = single(data)
        starts = range(0, len(images), batch_size)
        return (images[i : i + batch_size] for i in starts), len(starts)
    number = number_of_batches(data) if isinstance(data, keras.utils.PyDataset) else None
    return (single(keras.utils.unpack_x_y_sample_weight(batch)[0]) for batch in _batches(data)), number


def are_batches(data: Any) -> bool:
    """Whether a list holds batches `(images, ...)`, not one array."""
    return isinstance(data, list) and bool(data) and isinstance(data[0], tuple)


def counted(third: np.ndarray | None) -> np.ndarray | slice:
    """Which rows count, by the third entry of a batch: those whose sample weight is 1, all where it has none.

    Args:
        third: weights `(rows,)` of floats that are 0 or 1; or ids of the images, or `None`.

    Raises:
        ValueError: other weights.
    """
    if third is None or third.dtype.kind != "f":
        return slice(None)
    weights = third.reshape(len(third))
    if not np.isin(weights, (0, 1)).all():
        raise checks.error(
            "Sample weights mean nothing here: every image counts once.",
            expected="weights of 1, or 0 for rows to be left out",
            received=f"weights from {weights.min()} to {weights.max()}",
            fix="leave the weights out; ids of images must be whole numbers or text",
        )
    return weights == 1


def representative_images(data: Data, wanted: keras.KerasTensor) -> np.ndarray:
    """Images as one array of the dtype that the network takes.

    Args:
        data: an array; an iterable of batches, with or without labels: a list, generator, `PyDataset` or
            `tf.data.Dataset`; or a function without arguments that gives one of these, as LiteRT takes it.
        wanted: the input of the network.

    Raises:
        ValueError: the images do not fit the input, there are none, or the data never end.
    """
    data = data() if callable(data) and not hasattr(data, "__iter__") else data
    if hasattr(data, "__array__"):
        return as_array(as_taken(data, wanted))
    check_ends(data)
    batches = [as_array(as_taken(_without_labels(batch), wanted)) for batch in _batches(data)]
    if not batches:
        raise checks.error(
            "There are no representative images.",
            expected="about a hundred images as the network will see them",
            received=repr(data),
            fix="pass an array; a generator gives its batches once only",
        )
    return np.concatenate(batches)


def check_ends(data: Any) -> None:
    """Raises `ValueError` for a data set that goes on for ever."""
    if _endless(data):
        raise checks.error(
            "The data set never ends.",
            expected="one pass over the images",
            received=repr(data),
            fix="pass data.take(steps), or a part of kx.data.load such as splits.calibration",
        )


def _endless(data: Any) -> bool:
    if tf is not None and isinstance(data, tf.data.Dataset):
        return data.cardinality() == tf.data.INFINITE_CARDINALITY
    return isinstance(data, keras.utils.PyDataset) and number_of_batches(data) is None


def number_of_batches(data: keras.utils.PyDataset) -> int | None:
    """How many batches a `PyDataset` has; `None` where it does not say, or never ends."""
    try:
        return data.num_batches
    except NotImplementedError:
        return None


def no_data(data: Any) -> Exception:
    """The error of data without a batch."""
    return checks.error(
        "There are no data.",
        expected="at least one batch of (images, labels)",
        received=repr(data),
        fix="pass Splits.calibration, or (images, labels); a generator gives its batches once only",
    )


def check_batch_size(batch_size: Any) -> None:
    """Raises where labels were given in the place of a batch size, as Keras's `evaluate` takes them."""
    if batch_size is not None and not isinstance(batch_size, numbers.Integral):
        received = f"{type(batch_size).__name__} as `batch_size`"
        raise checks.error(
            "`batch_size` is not a whole number.",
            expected="images and labels as one argument, and an int for `batch_size`",
            received=f"{received} of shape {batch_size.shape}" if hasattr(batch_size, "shape") else received,
            fix="pass images and labels as a pair: (images, labels)",
            kind=TypeError,
        )


def no_labels() -> Exception:
    """The error of data that hold images alone."""
    return checks.error(
        "The data hold no labels.",
        expected="batches of (images, labels)",
        received="batches of images alone",
        fix="pass (images, labels), or a data set of such pairs",
    )


def _batches(data: Any) -> Iterator[Any]:
    if not isinstance(data, keras.utils.PyDataset):
        yield from data
        return
    number = number_of_batches(data)
    yield from (data[i] for i in (itertools.count() if number is None else range(number)))


def _without_labels(batch: Any) -> Any:
    return batch[0] if isinstance(batch, tuple | list) else batch

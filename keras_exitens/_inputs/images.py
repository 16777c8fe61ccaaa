"""Images, however they are given, in the form in which a network takes them."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_exitens import _checks as checks
from keras_exitens._backend import NAME, tf
from keras_exitens._types import Tensor

__all__ = ["as_array", "as_taken", "as_tensor", "check_images", "explained_sizes", "single", "sized"]

_INVALID: Any = () if tf is None else tf.errors.InvalidArgumentError


def single(images: Any) -> Any:
    """The images themselves, where they come as `{"image": x}` or `[x]`, as Keras takes them too.

    Raises:
        ValueError: there are several inputs, or none.
    """
    if not isinstance(images, Mapping | list | tuple):
        return images
    inputs = list(images.values() if isinstance(images, Mapping) else images)
    if len(inputs) != 1 or not hasattr(inputs[0], "shape"):
        raise checks.error(
            "These are not images that the network can take.",
            expected="one array or tensor, or a dict or list that holds one",
            received=f"{type(images).__name__} of {len(inputs)}"
            + (f" with keys {list(images)}" if isinstance(images, Mapping) else ""),
            fix="pass the images alone: predict(images)",
        )
    return inputs[0]


def as_tensor(images: Any) -> Tensor:
    """Images as a tensor of TensorFlow, or, on another backend, as a NumPy array; their dtype stays."""
    return as_array(images) if tf is None else tf.convert_to_tensor(images)


def as_array(images: Any) -> np.ndarray:
    """Images or labels as a NumPy array, also from tensors in the memory of a GPU."""
    if NAME == "torch" and ops.is_tensor(images):
        return ops.convert_to_numpy(images)
    return np.asarray(images)


def check_images(images: Tensor, wanted: keras.KerasTensor) -> None:
    """Raises `ValueError` where a tensor or array is no batch of images that fits the input of a network."""
    shape = tuple(images.shape)
    fits = len(shape) == 4 and all(
        have is None or want is None or have == want
        for have, want in zip(shape[1:], wanted.shape[1:], strict=True)
    )
    kind = getattr(images.dtype, "name", str(images.dtype))
    if not fits or not kind.startswith(("float", "bfloat", "int", "uint")):
        raise _misfit(f"shape {shape} of {kind}", wanted)


def _misfit(received: str, wanted: keras.KerasTensor) -> Exception:
    sizes = ", ".join("any" if size is None else str(size) for size in wanted.shape[1:])
    return checks.error(
        "These are not images that the network can take.",
        expected=f"numbers of shape (batch, {sizes})",
        received=received,
        fix="bring them to that shape; a single image is images[None], a batch of one",
    )


def sized(images: Any, wanted: keras.KerasTensor) -> Any:
    """The images, whose size is looked at when a graph runs where it is not known when the graph is made.

    Once a graph of Keras has seen batches of two sizes, TensorFlow makes it anew for all sizes, and images
    that do not fit would go through it, up to the first layer that fails, or to the end.

    Args:
        images: whatever the network is called with, also a dict or list of one tensor.
        wanted: the input of the network.
    """
    return keras.tree.map_structure(lambda tensor: _sized(tensor, wanted), images)


def _sized(images: Any, wanted: keras.KerasTensor) -> Any:
    if tf is None or not tf.is_tensor(images):
        return images
    have, want = images.shape, tf.TensorShape([None, *wanted.shape[1:]])
    if have.rank is not None and (have.rank != want.rank or not have.is_compatible_with(want)):
        return images  # seen to be wrong already
    known = have.rank is not None and all(a is not None or b is None for a, b in zip(have, want, strict=True))
    return images if known else tf.ensure_shape(images, want)


@contextlib.contextmanager
def explained_sizes(wanted: keras.KerasTensor) -> Iterator[None]:
    """Around a run of graphs: what `sized` finds there, in our own words.

    Raises:
        ValueError: images do not fit the input of the network.
    """
    try:
        yield
    except _INVALID as cause:
        found = re.search(r"\[([\d,]*)\] is not compatible with expected shape", str(cause))
        if found is None:
            raise
        sizes = found[1].replace(",", ", ")
        raise _misfit(f"shape ({sizes})", wanted) from cause


def as_taken(images: Any, wanted: keras.KerasTensor) -> Tensor:
    """Images of any dtype as a tensor of the dtype that the network takes, cast as Keras casts them.

    Args:
        images: tensor or array `(batch, height, width, channels)` of numbers, or a dict or list of one.
        wanted: the input of the network.

    Raises:
        ValueError: they do not fit the input.
    """
    images = as_tensor(single(images))
    check_images(images, wanted)
    return ops.cast(images, wanted.dtype)

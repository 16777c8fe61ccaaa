"""Images, however they are given, in the form in which a network takes them."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_exitens import _checks as checks
from keras_exitens._backend import NAME, tf
from keras_exitens._types import Tensor

__all__ = ["as_array", "as_taken", "as_tensor", "check_images", "single"]


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
        sizes = ", ".join("any" if size is None else str(size) for size in wanted.shape[1:])
        raise checks.error(
            "These are not images that the network can take.",
            expected=f"numbers of shape (batch, {sizes})",
            received=f"shape {shape} of {kind}",
            fix="bring them to that shape; a single image is images[None], a batch of one",
        )


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

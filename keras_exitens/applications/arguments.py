"""The arguments that all networks of this package take: their documentation and their checks."""

import inspect
import textwrap
from collections.abc import Callable
from typing import Any, TypeVar

import keras

from keras_exitens import _checks as checks

__all__ = ["documented", "image_input", "whole_number"]

_Network = TypeVar("_Network", bound=Callable[..., Any])

_SHARED = {
    "{arguments}": """\
input_shape: the shape of one image without the batch, `(height, width, channels)`, or
    `(channels, height, width)` where `keras.config.image_data_format()` says so. Height and
    width may be `None` (any size). Default `(32, 32, 3)`.
classes: number of classes, at least 1. Default 100.
classifier_activation: activation of the last `Dense` layer, anything Keras takes; `None`
    makes the network return logits. Default `"softmax"`.
width: factor on the number of channels of every convolution, above 0; the products are
    rounded, to at least 1 and to a multiple of the groups of a grouped convolution. At 1.0,
    the default, the network is the published one.
name: name of the model.""",
    "{returns}": """\
A functional `keras.Model` from images, float `(batch, height, width, channels)`, to class
scores `(batch, classes)`. Its weights are initialised at random: there are none to download.""",
    "{raises}": """\
ValueError: if an argument is outside the bounds above, or if the input is too small for the
    downsampling of the network.""",
}


def documented(network: _Network) -> _Network:
    """Fills `{arguments}`, `{returns}` and `{raises}` in a docstring with what all networks share.

    Args:
        network: a function whose docstring has each of these words on a line of its own.

    Returns:
        The same function. Without docstrings (`python -OO`) nothing is done.
    """
    if network.__doc__:
        document = inspect.cleandoc(network.__doc__)
        for word, text in _SHARED.items():
            document = document.replace(f"    {word}", textwrap.indent(text, "    "))
        network.__doc__ = document
    return network


def whole_number(argument: str, value: Any, low: int) -> int:
    """Returns `value` as an `int` when it is a whole number, at least `low`, else raises `ValueError`."""
    checks.number(argument, value, low=low)
    if value != int(value):
        raise checks.error(
            f"`{argument}` is not a whole number.",
            expected=f"an integer, at least {low}",
            received=f"{argument}={value!r}",
            fix=f"round it, for instance to {max(low, round(value))}",
        )
    return int(value)


def image_input(input_shape: Any, classes: int, width: float, halvings: int) -> keras.KerasTensor:
    """Checks the arguments that all networks share and makes their input.

    Each halving rounds up, so any image would pass through; one is refused as too small when its
    height or width would be down to a single pixel before the last halving.

    Args:
        input_shape: shape of one image, three entries.
        classes: number of classes, at least 1.
        width: factor on the number of channels, above 0.
        halvings: how often the network halves the resolution.

    Returns:
        A `keras.Input` named `"image"`.

    Raises:
        ValueError: if an argument is illegal.
    """
    whole_number("classes", classes, low=1)
    checks.number("width", width, above=0)
    last = keras.config.image_data_format() == "channels_last"
    layout = "(height, width, channels)" if last else "(channels, height, width)"
    shape = tuple(input_shape) if isinstance(input_shape, (tuple, list)) else ()
    if len(shape) != 3:
        raise checks.error(
            "`input_shape` is not the shape of one image.",
            expected=f"three entries, {layout}, without the batch",
            received=f"input_shape={input_shape!r}",
            fix="pass for instance input_shape=(32, 32, 3)",
        )
    sides = (0, 1) if last else (1, 2)
    shape = tuple(
        size if size is None and axis in sides else whole_number(f"input_shape[{axis}]", size, low=1)
        for axis, size in enumerate(shape)
    )
    smallest = 2 ** (halvings - 1) + 1
    if any(shape[axis] is not None and shape[axis] < smallest for axis in sides):
        raise checks.error(
            f"`input_shape` is too small: the network halves the resolution {halvings} times.",
            expected=f"height and width of at least {smallest} pixels, as {layout}",
            received=f"input_shape={input_shape!r}",
            fix="enlarge the images, for instance with keras.layers.Resizing, or take a network "
            "with fewer halvings (WideResNet: 2, ResNet: 3, VGG: 5)",
        )
    return keras.Input(shape, name="image")

"""WideResNet for small images: any legal depth and widening, WideResNet16_4 and WideResNet28_10.

As in the authors' code: BatchNorm and ReLU come before each convolution, and where a block changes
the shape its 1×1 shortcut starts from the same activated map as its first convolution. No dropout.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from keras_exitens import _checks as checks
from keras_exitens._types import Tensor
from keras_exitens.applications import arguments, blocks

__all__ = ["WideResNet", "WideResNet16_4", "WideResNet28_10"]


def _preactivation_block(x: Tensor, channels: int, stride: int, *, name: str) -> Tensor:
    """`x + F(x)`, `F` being BatchNorm, ReLU, 3×3 convolution, twice; see `blocks.residual_block`."""
    y = blocks.bn_relu(x, name=f"{name}_preact")
    if stride != 1 or x.shape[blocks.channel_axis()] != channels:
        x = blocks.conv(y, channels, 1, stride=stride, name=f"{name}_shortcut")
    y = blocks.conv_bn_relu(y, channels, 3, stride=stride, name=f"{name}_conv1")
    y = blocks.conv(y, channels, 3, name=f"{name}_conv2")
    return layers.Add(name=f"{name}_add")([y, x])


def _blocks_per_stage(depth: int) -> int:
    """The n of `depth = 6n + 4`."""
    checks.number("depth", depth)
    n = max(1, int((depth - 4) // 6))
    if depth != 6 * n + 4:
        legal = [10] if depth < 10 else [6 * n + 4, 6 * n + 10]
        raise checks.error(
            "`depth` is not one that a WideResNet can have.",
            expected="6n + 4 for an n of at least 1: 10, 16, 22, 28, …",
            received=f"depth={depth!r}",
            fix=f"take the nearest: {' or '.join(map(str, legal))}",
        )
    return n


@arguments.documented
def WideResNet(
    depth: int = 28,
    widen_factor: int = 10,
    input_shape: tuple[int | None, ...] = (32, 32, 3),
    classes: int = 100,
    classifier_activation: str | Callable[..., Any] | None = "softmax",
    width: float = 1.0,
    name: str = "wide_resnet",
) -> keras.Model:
    """WideResNet for small images: three stages of pre-activation blocks, `widen_factor` times as wide.

    A network of depth 6n + 4 has a 16-channel stem, three stages of n blocks of two 3×3 convolutions
    with 16k, 32k, 64k channels (k being `widen_factor`), and BatchNorm and ReLU before the pooling;
    32×32 pixels become 8×8. Images need 3 pixels or more a side.

    Args:
        depth: 10, 16, 22, 28, … Default 28.
        widen_factor: the k above, a number above 0. Unlike `width` it leaves the stem as it is.
            Default 10.
        {arguments}

    Returns:
        {returns}

    Raises:
        {raises}

    Example:

    ```python
    model = keras_exitens.applications.WideResNet(depth=10, widen_factor=2, classes=10)
    ```

    Reference:
        [Wide Residual Networks](https://arxiv.org/abs/1605.07146), arXiv 1605.07146.
    """
    n = _blocks_per_stage(depth)
    checks.number("widen_factor", widen_factor, above=0)
    image = arguments.image_input(input_shape, classes, width, halvings=2)
    x = blocks.conv(image, blocks.scaled(16, width), 3, name="stem_conv")
    channels = [blocks.scaled(base * widen_factor, width) for base in (16, 32, 64)]
    x = blocks.residual_stages(x, (n, n, n), channels, _preactivation_block)
    x = blocks.bn_relu(x, name="final")
    return keras.Model(image, blocks.classify(x, classes, classifier_activation), name=name)


@arguments.documented
def WideResNet16_4(
    input_shape: tuple[int | None, ...] = (32, 32, 3),
    classes: int = 100,
    classifier_activation: str | Callable[..., Any] | None = "softmax",
    width: float = 1.0,
    name: str = "wide_resnet16_4",
) -> keras.Model:
    """WideResNet-16-4: `WideResNet` of depth 16, four times as wide, 2.8 million parameters.

    Args:
        {arguments}

    Returns:
        {returns}

    Raises:
        {raises}

    Example:

    ```python
    model = keras_exitens.applications.WideResNet16_4(input_shape=(28, 28, 1), classes=10)
    ```

    Reference:
        [Wide Residual Networks](https://arxiv.org/abs/1605.07146), arXiv 1605.07146.
    """
    return WideResNet(16, 4, input_shape, classes, classifier_activation, width, name)


@arguments.documented
def WideResNet28_10(
    input_shape: tuple[int | None, ...] = (32, 32, 3),
    classes: int = 100,
    classifier_activation: str | Callable[..., Any] | None = "softmax",
    width: float = 1.0,
    name: str = "wide_resnet28_10",
) -> keras.Model:
    """WideResNet-28-10: `WideResNet` of depth 28, ten times as wide, 36.5 million parameters.

    Args:
        {arguments}

    Returns:
        {returns}

    Raises:
        {raises}

    Example:

    ```python
    model = keras_exitens.applications.WideResNet28_10(width=0.125)
    ```

    Reference:
        [Wide Residual Networks](https://arxiv.org/abs/1605.07146), arXiv 1605.07146.
    """
    return WideResNet(28, 10, input_shape, classes, classifier_activation, width, name)

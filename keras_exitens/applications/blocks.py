"""Building blocks: convolutions as in PyTorch, residual blocks and stages, the classifier.

The originals of these networks are PyTorch programs; two of their habits are kept. BatchNorm has
epsilon 1e-5 and momentum 0.9 (0.1 in PyTorch's way of counting). A 3×3 convolution of stride 2 pads
one pixel on every side, where Keras's `"same"` would pad an even-sized map at the bottom and right
only: the sampling points would be shifted by a pixel against the 1×1 shortcut beside it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import layers

from keras_exitens._types import Tensor
from keras_exitens.applications.grouped import GroupedConv2D

__all__ = [
    "bn_relu",
    "channel_axis",
    "classify",
    "conv",
    "conv_bn_relu",
    "residual_block",
    "residual_stages",
    "scaled",
]


def scaled(channels: int, width: float, multiple: int = 1) -> int:
    """`channels * width` rounded to the nearest positive multiple of `multiple`."""
    return multiple * max(1, int(channels * width / multiple + 0.5))


def channel_axis() -> int:
    """The axis of the channels in an image batch, by `keras.config.image_data_format()`."""
    return -1 if keras.config.image_data_format() == "channels_last" else 1


def conv(x: Tensor, filters: int, kernel_size: int, *, stride: int = 1, groups: int = 1, name: str) -> Tensor:
    """A convolution without bias, He-normal, symmetrically padded: output side `ceil(side / stride)`.

    Args:
        x: feature map `(batch, height, width, channels)`.
        filters: channels of the result, a multiple of `groups`.
        kernel_size: side of the kernel, odd.
        stride: 1 or 2.
        groups: number of groups; `channels` must be a multiple of it.
        name: name of the layer.

    Returns:
        The feature map `(batch, ceil(height / stride), ceil(width / stride), filters)`.
    """
    padding = "same"
    if stride > 1 and kernel_size > 1:
        x = layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
        padding = "valid"
    kind = layers.Conv2D if groups == 1 else GroupedConv2D
    return kind(
        filters,
        kernel_size,
        strides=stride,
        padding=padding,
        groups=groups,
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )(x)


def bn_relu(x: Tensor, *, relu: bool = True, name: str) -> Tensor:
    """BatchNorm, then ReLU unless `relu` is false; the layers are `{name}_bn` and `{name}_relu`."""
    x = layers.BatchNormalization(channel_axis(), momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def conv_bn_relu(
    x: Tensor,
    filters: int,
    kernel_size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    relu: bool = True,
    name: str,
) -> Tensor:
    """`conv`, BatchNorm and, unless `relu` is false, ReLU. Arguments and result as for `conv`."""
    x = conv(x, filters, kernel_size, stride=stride, groups=groups, name=name)
    return bn_relu(x, relu=relu, name=name)


def residual_block(
    x: Tensor, channels: int, stride: int, *, expansion: float | None = None, groups: int = 1, name: str
) -> Tensor:
    """The block of ResNet and ResNeXt: `relu(F(x) + shortcut(x))`.

    `F` is two 3×3 convolutions (basic block), or with `expansion` 1×1, 3×3, 1×1 (bottleneck), each
    with BatchNorm; the first 3×3 one has the stride (in a bottleneck: the 3×3 one, as in
    torchvision). The shortcut is the identity where the shapes agree, else a 1×1 convolution.

    Args:
        x: feature map `(batch, height, width, any)`.
        channels: channels of the 3×3 convolutions.
        stride: 1 or 2.
        expansion: `None`, or output channels of a bottleneck over `channels`.
        groups: groups of the bottleneck's 3×3 convolution.
        name: prefix of the layer names; the last layer is `{name}_out`.

    Returns:
        The feature map, with `channels` or `channels * expansion` channels.
    """
    if expansion is None:
        filters = channels
        y = conv_bn_relu(x, channels, 3, stride=stride, name=f"{name}_conv1")
        y = conv_bn_relu(y, filters, 3, relu=False, name=f"{name}_conv2")
    else:
        filters = int(channels * expansion)
        y = conv_bn_relu(x, channels, 1, name=f"{name}_conv1")
        y = conv_bn_relu(y, channels, 3, stride=stride, groups=groups, name=f"{name}_conv2")
        y = conv_bn_relu(y, filters, 1, relu=False, name=f"{name}_conv3")
    if stride != 1 or x.shape[channel_axis()] != filters:
        x = conv_bn_relu(x, filters, 1, stride=stride, relu=False, name=f"{name}_shortcut")
    x = layers.Add(name=f"{name}_add")([y, x])
    return layers.ReLU(name=f"{name}_out")(x)


def residual_stages(
    x: Tensor, depths: Sequence[int], channels: Sequence[int], block: Callable[..., Tensor]
) -> Tensor:
    """Stages of residual blocks; each stage but the first begins by halving the resolution.

    Args:
        x: feature map.
        depths: number of blocks of each stage.
        channels: channels of each stage, as `block` counts them.
        block: function `(x, channels, stride, name=...)` that returns a feature map.

    Returns:
        The feature map after the last stage. Block j of stage i is named `stage{i}_block{j}`.
    """
    for stage, (depth, stage_channels) in enumerate(zip(depths, channels, strict=True), start=1):
        for index in range(1, depth + 1):
            stride = 2 if stage > 1 and index == 1 else 1
            x = block(x, stage_channels, stride, name=f"stage{stage}_block{index}")
    return x


def classify(x: Tensor, classes: int, activation: Any) -> Tensor:
    """Global average pooling (`avg_pool`) and the `Dense` classifier (`predictions`).

    Args:
        x: feature map `(batch, height, width, channels)`.
        classes: number of classes.
        activation: activation of the classifier, anything Keras takes.

    Returns:
        Class scores `(batch, classes)`.
    """
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return layers.Dense(classes, activation=activation, name="predictions")(x)

"""ResNet for small images: ResNet18, ResNet34, ResNet50, ResNet101.

The networks of the ResNet paper with the stem that small images call for, and that the exit-ensemble
distillation paper and the usual CIFAR programs have: one 3×3 convolution of stride 1 in place of the
7×7 one of stride 2, and no max-pooling. In a bottleneck it is the 3×3 convolution that has the
stride, as in torchvision.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_exitens.applications import arguments, blocks

__all__ = ["ResNet18", "ResNet34", "ResNet50", "ResNet101", "build_resnet"]


def build_resnet(
    depths: Sequence[int],
    channels: Sequence[int],
    *,
    expansion: float | None = None,
    groups: int = 1,
    input_shape: Any,
    classes: int,
    classifier_activation: Any,
    width: float,
    name: str,
) -> keras.Model:
    """Builds a ResNet or ResNeXt: a 64-channel 3×3 stem, stages of residual blocks, the classifier.

    Args:
        depths: number of blocks of each stage.
        channels: channels of the 3×3 convolutions of each stage, before `width`.
        expansion: `None` for basic blocks, else output channels of a bottleneck over `channels`.
        groups: groups of the 3×3 convolutions of bottlenecks.
        input_shape, classes, classifier_activation, width, name: as for `ResNet18`.

    Returns:
        A functional `keras.Model`.

    Raises:
        ValueError: as `ResNet18`.
    """
    image = arguments.image_input(input_shape, classes, width, halvings=len(depths) - 1)
    x = blocks.conv_bn_relu(image, blocks.scaled(64, width), 3, name="stem_conv")
    block = functools.partial(blocks.residual_block, expansion=expansion, groups=groups)
    x = blocks.residual_stages(x, depths, [blocks.scaled(c, width, groups) for c in channels], block)
    return keras.Model(image, blocks.classify(x, classes, classifier_activation), name=name)


_CHANNELS = (64, 128, 256, 512)


@arguments.documented
def ResNet18(
    input_shape: tuple[int | None, ...] = (32, 32, 3),
    classes: int = 100,
    classifier_activation: str | Callable[..., Any] | None = "softmax",
    width: float = 1.0,
    name: str = "resnet18",
) -> keras.Model:
    """ResNet-18 for small images: 2, 2, 2, 2 basic blocks of 64, 128, 256, 512 channels.

    The stem is a 3×3 convolution of stride 1 without max-pooling, so that 32×32 pixels become 4×4.
    Images need 5 pixels or more a side.

    Args:
        {arguments}

    Returns:
        {returns}

    Raises:
        {raises}

    Example:

    ```python
    model = keras_exitens.applications.ResNet18(classes=10, width=0.25)
    ```

    Reference:
        [Deep Residual Learning for Image Recognition](https://arxiv.org/abs/1512.03385), arXiv
        1512.03385.
    """
    return build_resnet(
        (2, 2, 2, 2),
        _CHANNELS,
        input_shape=input_shape,
        classes=classes,
        classifier_activation=classifier_activation,
        width=width,
        name=name,
    )


@arguments.documented
def ResNet34(
    input_shape: tuple[int | None, ...] = (32, 32, 3),
    classes: int = 100,
    classifier_activation: str | Callable[..., Any] | None = "softmax",
    width: float = 1.0,
    name: str = "resnet34",
) -> keras.Model:
    """ResNet-34 for small images: 3, 4, 6, 3 basic blocks of 64, 128, 256, 512 channels.

    Stem and sizes as for `ResNet18`.

    Args:
        {arguments}

    Returns:
        {returns}

    Raises:
        {raises}

    Example:

    ```python
    model = keras_exitens.applications.ResNet34(input_shape=(28, 28, 1), classes=10, width=0.25)
    ```

    Reference:
        [Deep Residual Learning for Image Recognition](https://arxiv.org/abs/1512.03385), arXiv
        1512.03385.
    """
    return build_resnet(
        (3, 4, 6, 3),
        _CHANNELS,
        input_shape=input_shape,
        classes=classes,
        classifier_activation=classifier_activation,
        width=width,
        name=name,
    )


@arguments.documented
def ResNet50(
    input_shape: tuple[int | None, ...] = (32, 32, 3),
    classes: int = 100,
    classifier_activation: str | Callable[..., Any] | None = "softmax",
    width: float = 1.0,
    name: str = "resnet50",
) -> keras.Model:
    """ResNet-50 for small images: 3, 4, 6, 3 bottlenecks of 64, 128, 256, 512 channels, times 4 outside.

    Stem and sizes as for `ResNet18`; the last feature map has 2048 channels.

    Args:
        {arguments}

    Returns:
        {returns}

    Raises:
        {raises}

    Example:

    ```python
    model = keras_exitens.applications.ResNet50(classifier_activation=None, width=0.25)
    ```

    Reference:
        [Deep Residual Learning for Image Recognition](https://arxiv.org/abs/1512.03385), arXiv
        1512.03385.
    """
    return build_resnet(
        (3, 4, 6, 3),
        _CHANNELS,
        expansion=4,
        input_shape=input_shape,
        classes=classes,
        classifier_activation=classifier_activation,
        width=width,
        name=name,
    )


@arguments.documented
def ResNet101(
    input_shape: tuple[int | None, ...] = (32, 32, 3),
    classes: int = 100,
    classifier_activation: str | Callable[..., Any] | None = "softmax",
    width: float = 1.0,
    name: str = "resnet101",
) -> keras.Model:
    """ResNet-101 for small images: 3, 4, 23, 3 bottlenecks of 64, 128, 256, 512 channels, times 4 outside.

    Stem and sizes as for `ResNet18`; the last feature map has 2048 channels.

    Args:
        {arguments}

    Returns:
        {returns}

    Raises:
        {raises}

    Example:

    ```python
    model = keras_exitens.applications.ResNet101(width=0.125)
    ```

    Reference:
        [Deep Residual Learning for Image Recognition](https://arxiv.org/abs/1512.03385), arXiv
        1512.03385.
    """
    return build_resnet(
        (3, 4, 23, 3),
        _CHANNELS,
        expansion=4,
        input_shape=input_shape,
        classes=classes,
        classifier_activation=classifier_activation,
        width=width,
        name=name,
    )

"""VGG with BatchNorm for small images: VGG11, VGG13, VGG16, VGG19.

There are two customary small-image VGGs. The one built here is that of `kuangliu/pytorch-cifar`: the
five convolutional stages, then one `Dense` layer on the 512 features (VGG16: 14.7 million
parameters). The other, of `weiaicunzai/pytorch-cifar100`, keeps two 4096-wide `Dense` layers with
dropout before the classifier (VGG16: 34.0 million), so that more than half of its parameters lie
behind the last feature map, where exits have nothing to branch from.

Two differences from that code, neither of which changes what the network can compute at 32×32: its
convolutions have biases, which the BatchNorm after each cancels and which are left out here; and
pooling rounds odd sizes up instead of down, so that images from 17 pixels on can be used.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import layers

from keras_exitens.applications import arguments, blocks

__all__ = ["VGG11", "VGG13", "VGG16", "VGG19"]

_CHANNELS = (64, 128, 256, 512, 512)


def _vgg(
    depths: Sequence[int],
    input_shape: Any,
    classes: int,
    classifier_activation: Any,
    width: float,
    name: str,
) -> keras.Model:
    """A VGG whose stage i has `depths[i]` 3×3 convolutions and ends in a 2×2 max-pooling."""
    image = arguments.image_input(input_shape, classes, width, halvings=len(depths))
    x = image
    for stage, (depth, channels) in enumerate(zip(depths, _CHANNELS, strict=True), start=1):
        for index in range(1, depth + 1):
            x = blocks.conv_bn_relu(x, blocks.scaled(channels, width), 3, name=f"stage{stage}_conv{index}")
        x = layers.MaxPooling2D(2, padding="same", name=f"stage{stage}_pool")(x)
    return keras.Model(image, blocks.classify(x, classes, classifier_activation), name=name)


@arguments.documented
def VGG11(
    input_shape: tuple[int | None, ...] = (32, 32, 3),
    classes: int = 100,
    classifier_activation: str | Callable[..., Any] | None = "softmax",
    width: float = 1.0,
    name: str = "vgg11",
) -> keras.Model:
    """VGG-11 with BatchNorm for small images: 8 convolutions and one `Dense` layer.

    The stages have 1, 1, 2, 2, 2 convolutions of 64, 128, 256, 512, 512 channels, each stage ends in
    a max-pooling (32×32 pixels become 1×1), and there are no 4096-wide `Dense` layers; see the
    module's text for the choice. Images need 17 pixels or more a side.

    Args:
        {arguments}

    Returns:
        {returns}

    Raises:
        {raises}

    Example:

    ```python
    model = keras_exitens.applications.VGG11(classes=10, width=0.25)
    ```

    Reference:
        [Very Deep Convolutional Networks for Large-Scale Image Recognition](
        https://arxiv.org/abs/1409.1556), arXiv 1409.1556, configuration A.
    """
    return _vgg((1, 1, 2, 2, 2), input_shape, classes, classifier_activation, width, name)


@arguments.documented
def VGG13(
    input_shape: tuple[int | None, ...] = (32, 32, 3),
    classes: int = 100,
    classifier_activation: str | Callable[..., Any] | None = "softmax",
    width: float = 1.0,
    name: str = "vgg13",
) -> keras.Model:
    """VGG-13 with BatchNorm for small images: 10 convolutions and one `Dense` layer.

    As `VGG11`, with 2, 2, 2, 2, 2 convolutions. Images need 17 pixels or more a side.

    Args:
        {arguments}

    Returns:
        {returns}

    Raises:
        {raises}

    Example:

    ```python
    model = keras_exitens.applications.VGG13(input_shape=(28, 28, 1), classes=10, width=0.25)
    ```

    Reference:
        [Very Deep Convolutional Networks for Large-Scale Image Recognition](
        https://arxiv.org/abs/1409.1556), arXiv 1409.1556, configuration B.
    """
    return _vgg((2, 2, 2, 2, 2), input_shape, classes, classifier_activation, width, name)


@arguments.documented
def VGG16(
    input_shape: tuple[int | None, ...] = (32, 32, 3),
    classes: int = 100,
    classifier_activation: str | Callable[..., Any] | None = "softmax",
    width: float = 1.0,
    name: str = "vgg16",
) -> keras.Model:
    """VGG-16 with BatchNorm for small images: 13 convolutions and one `Dense` layer.

    As `VGG11`, with 2, 2, 3, 3, 3 convolutions. Images need 17 pixels or more a side.

    Args:
        {arguments}

    Returns:
        {returns}

    Raises:
        {raises}

    Example:

    ```python
    model = keras_exitens.applications.VGG16(classifier_activation=None, width=0.25)
    ```

    Reference:
        [Very Deep Convolutional Networks for Large-Scale Image Recognition](
        https://arxiv.org/abs/1409.1556), arXiv 1409.1556, configuration D.
    """
    return _vgg((2, 2, 3, 3, 3), input_shape, classes, classifier_activation, width, name)


@arguments.documented
def VGG19(
    input_shape: tuple[int | None, ...] = (32, 32, 3),
    classes: int = 100,
    classifier_activation: str | Callable[..., Any] | None = "softmax",
    width: float = 1.0,
    name: str = "vgg19",
) -> keras.Model:
    """VGG-19 with BatchNorm for small images: 16 convolutions and one `Dense` layer.

    As `VGG11`, with 2, 2, 4, 4, 4 convolutions. Images need 17 pixels or more a side.

    Args:
        {arguments}

    Returns:
        {returns}

    Raises:
        {raises}

    Example:

    ```python
    model = keras_exitens.applications.VGG19(width=0.25)
    ```

    Reference:
        [Very Deep Convolutional Networks for Large-Scale Image Recognition](
        https://arxiv.org/abs/1409.1556), arXiv 1409.1556, configuration E.
    """
    return _vgg((2, 2, 4, 4, 4), input_shape, classes, classifier_activation, width, name)

"""ResNeXt for small images: ResNeXt29 (8×64d) and ResNeXt50 (32×4d).

A ResNet of bottlenecks whose 3×3 convolution is split into groups.
"""

from collections.abc import Callable
from typing import Any

import keras

from keras_exitens.applications import arguments
from keras_exitens.applications.resnet import build_resnet

__all__ = ["ResNeXt29", "ResNeXt50"]


@arguments.documented
def ResNeXt29(
    input_shape: tuple[int | None, ...] = (32, 32, 3),
    classes: int = 100,
    classifier_activation: str | Callable[..., Any] | None = "softmax",
    width: float = 1.0,
    name: str = "resnext29",
) -> keras.Model:
    """ResNeXt-29, 8×64d, the paper's own CIFAR network: three stages of three grouped bottlenecks.

    The 3×3 convolutions have 8 groups of 64, 128, 256 channels (512, 1024, 2048 in all) and the
    blocks give half of that, so that the last feature map has 1024 channels; 32×32 pixels become
    8×8. `width` changes the channels of a group and keeps the 8 groups. Images need 3 pixels or more
    a side.

    Args:
        {arguments}

    Returns:
        {returns}

    Raises:
        {raises}

    Example:

    ```python
    model = keras_exitens.applications.ResNeXt29(classes=10, width=0.125)
    ```

    Reference:
        [Aggregated Residual Transformations for Deep Neural Networks](
        https://arxiv.org/abs/1611.05431), arXiv 1611.05431, section 5.3.
    """
    return build_resnet(
        (3, 3, 3),
        (512, 1024, 2048),
        expansion=0.5,
        groups=8,
        input_shape=input_shape,
        classes=classes,
        classifier_activation=classifier_activation,
        width=width,
        name=name,
    )


@arguments.documented
def ResNeXt50(
    input_shape: tuple[int | None, ...] = (32, 32, 3),
    classes: int = 100,
    classifier_activation: str | Callable[..., Any] | None = "softmax",
    width: float = 1.0,
    name: str = "resnext50",
) -> keras.Model:
    """ResNeXt-50, 32×4d, with the small-image stem: 3, 4, 6, 3 grouped bottlenecks.

    The 3×3 convolutions have 32 groups of 4, 8, 16, 32 channels (128 to 1024 in all) and the blocks
    give twice that, so that the last feature map has 2048 channels; 32×32 pixels become 4×4. `width`
    changes the channels of a group and keeps the 32 groups. Images need 5 pixels or more a side.


    Only the 3×3 convolutions are grouped, as in the paper and in torchvision.
    `weiaicunzai/pytorch-cifar100` groups the first 1×1 convolution of each block too, and therefore
    reports 14.8 million parameters where this network has 23.2 million.

    Args:
        {arguments}

    Returns:
        {returns}

    Raises:
        {raises}

    Example:

    ```python
    model = keras_exitens.applications.ResNeXt50(classes=10, width=0.25)
    ```

    Reference:
        [Aggregated Residual Transformations for Deep Neural Networks](
        https://arxiv.org/abs/1611.05431), arXiv 1611.05431, table 1.
    """
    return build_resnet(
        (3, 4, 6, 3),
        (128, 256, 512, 1024),
        expansion=2,
        groups=32,
        input_shape=input_shape,
        classes=classes,
        classifier_activation=classifier_activation,
        width=width,
        name=name,
    )

"""Convolutional networks for small images (32×32 and thereabouts), in the manner of `keras.applications`.

The families of the exit-ensemble distillation paper (arXiv 2104.00299) that `keras.applications` has
not, or has only for large images. They end in global pooling, so that the image size is free.
"""

from keras_exitens.applications.resnet import ResNet18, ResNet34, ResNet50, ResNet101
from keras_exitens.applications.resnext import ResNeXt29, ResNeXt50
from keras_exitens.applications.vgg import VGG11, VGG13, VGG16, VGG19
from keras_exitens.applications.wide_resnet import WideResNet, WideResNet16_4, WideResNet28_10

__all__ = [
    "VGG11",
    "VGG13",
    "VGG16",
    "VGG19",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "ResNet101",
    "ResNeXt29",
    "ResNeXt50",
    "WideResNet",
    "WideResNet16_4",
    "WideResNet28_10",
]

"""With the defaults, leaving early pays: heads are cheap on common networks, and no exit saves nothing."""

import warnings

import keras
import numpy as np
import pytest

import keras_exitens as kx

LARGE = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("ResNet50", "VGG16", "DenseNet121", "Xception")
]
LARGE += [pytest.param(name, marks=pytest.mark.slow) for name in ("ConvNeXtTiny", "EfficientNetV2B0")]
NETWORKS = ["MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "NASNetMobile", "ResNet18", *LARGE]


def build(name):
    if name == "ResNet18":
        return kx.applications.ResNet18(input_shape=(32, 32, 3), classes=100)
    return getattr(keras.applications, name)(weights=None, classes=100, input_shape=(224, 224, 3))


@pytest.mark.parametrize("name", NETWORKS)
def test_all_exits_cost_at_most_5_percent_and_each_saves_something(name):
    backbone = build(name)
    plain = kx.cost(backbone).backbone
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = kx.add_exits(backbone)
    costs = kx.cost(model)
    assert costs.backbone == plain
    assert len(costs.cumulative) == 4
    assert costs.cumulative[-1] <= 1.05 * plain
    assert costs.cumulative[2] < 0.9 * plain
    # Each exit beside the next one, and the last beside the network: with the heads before them, and alone.
    alone = np.cumsum(costs.stage_multiply_adds) + costs.head_multiply_adds
    for reached in (costs.cumulative, alone):
        assert list(reached) == sorted(reached)
    # An even split: with heads no segment is more than half as long again as the shortest one is.
    segments = np.diff([0, *costs.cumulative])
    assert segments.max() < 2 * segments.min()

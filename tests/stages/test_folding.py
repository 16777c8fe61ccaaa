"""Folding: the same numbers with fewer operations, and only where that holds."""

import harness
import keras
import numpy as np
import pytest
from keras import layers

import keras_exitens as kx
from keras_exitens._graph.dag import Graph
from keras_exitens._stages.folding import fold
from keras_exitens.applications.grouped import GroupedConv2D


def norms(model):
    return sum(isinstance(layer, layers.BatchNormalization) for layer in model.layers)


def check(model, left, **kwargs):
    """`fold(model)` gives the same, holds `left` normalisations, and leaves `model` alone."""
    harness.randomise(model)
    x = harness.images(model, **kwargs)
    before, wanted = model.get_weights(), np.asarray(model(x, training=False), "float64")
    folded = fold(model)
    found = np.asarray(folded(x, training=False))
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max(), rtol=0)
    assert norms(folded) == left
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    return folded


def chain(*made, shape=(12, 12, 6)):
    x = inputs = keras.Input(shape)
    for layer in made:
        x = layer(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "layer",
    [
        lambda **kw: layers.Conv2D(8, 3, 2, **kw),
        lambda **kw: layers.Conv2D(8, 3, dilation_rate=2, padding="same", **kw),
        lambda **kw: layers.DepthwiseConv2D(3, **kw),
        lambda **kw: layers.DepthwiseConv2D(3, depth_multiplier=3, padding="same", **kw),
        lambda **kw: GroupedConv2D(8, 3, groups=2, **kw),
        lambda **kw: layers.Dense(5, **kw),
    ],
    ids=["conv", "dilated", "depthwise", "multiplier", "grouped", "dense"],
)
def test_layer_before_a_normalisation(layer, bias):
    norm = layers.BatchNormalization(epsilon=0.01)
    folded = check(chain(layer(use_bias=bias), norm, layers.ReLU()), left=0)
    assert not {id(v) for v in folded.weights} & {id(v) for v in norm.weights}


@pytest.mark.parametrize("options", [{"center": False}, {"scale": False}, {"center": False, "scale": False}])
def test_normalisation_without_some_weights(options):
    check(chain(layers.Conv2D(8, 3), layers.BatchNormalization(**options)), left=0)


def test_one_and_three_dimensions():
    for made, shape in (
        ((layers.Conv1D(4, 3), layers.BatchNormalization()), (9, 5)),
        ((layers.DepthwiseConv1D(3, depth_multiplier=2), layers.BatchNormalization()), (9, 5)),
        ((layers.Conv3D(4, 3), layers.BatchNormalization()), (7, 7, 7, 2)),
    ):
        check(chain(*made, shape=shape), left=0)


@pytest.mark.parametrize(
    "made",
    [
        (layers.Conv2D(6, 3, activation="relu"), layers.BatchNormalization()),
        (layers.Conv2D(10, 3), layers.BatchNormalization(axis=1)),
        (layers.Conv2D(6, 3, dtype="mixed_bfloat16"), layers.BatchNormalization()),
        (layers.ReLU(), layers.BatchNormalization()),
        (layers.SeparableConv2D(6, 3), layers.BatchNormalization()),
    ],
    ids=["activation", "other axis", "half precision", "no kernel", "two kernels"],
)
def test_what_cannot_be_folded_stays(made):
    check(chain(*made), left=1)


def test_output_that_is_used_elsewhere_stays():
    inputs = keras.Input((12, 12, 6))
    x = layers.Conv2D(6, 3, padding="same")(inputs)
    model = keras.Model(inputs, layers.BatchNormalization()(x) + x)
    check(model, left=1)
    check(keras.Model(inputs, layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3)(x)))), left=0)


def test_normalisation_in_training_mode_stays():
    inputs = keras.Input((12, 12, 6))
    x = layers.BatchNormalization()(layers.Conv2D(6, 3)(inputs), training=True)
    check(keras.Model(inputs, layers.ReLU()(x)), left=1)


def test_layer_called_twice_is_folded_apart():
    inputs = keras.Input((12, 12, 6))
    conv = layers.Conv2D(6, 3, padding="same")
    x = layers.BatchNormalization()(conv(inputs))
    x = layers.BatchNormalization()(conv(x))
    model = keras.Model(inputs, conv(x))
    check(model, left=0)


@pytest.mark.parametrize("training", [None, True])
def test_layers_whose_names_clash(training):
    """In the flat form of such a network a model stands for each of them."""

    def body(name, channels):
        inputs = keras.Input((12, 12, channels))
        x = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
        x = layers.BatchNormalization(name="bn")(x, training=training)
        return keras.Model(inputs, layers.ReLU(name="relu")(x), name=name)

    inputs = keras.Input((12, 12, 3))
    x = body("second", 4)(body("first", 3)(inputs))
    network = keras.Model(inputs, harness.classify(harness.conv(x, 6, 2)))
    model = harness.randomise(kx.add_exits(network, exits=1, head="linear"))
    folded = fold(model)
    x = harness.images(model)
    wanted, found = model(x, training=False), folded(x, training=False)
    for name, logits in wanted.items():
        np.testing.assert_allclose(found[name], logits, rtol=0, atol=1e-5 * np.abs(logits).max())
    left = sum(isinstance(step.unwrapped, layers.BatchNormalization) for step in Graph.of(folded).steps)
    assert left == (0 if training is None else 2)


@pytest.mark.parametrize("network", harness.NETWORKS, ids=lambda f: f.__name__)
def test_whole_networks(network):
    model = harness.randomise(kx.add_exits(network(), exits=1))
    x = harness.images(model)
    wanted, found = model(x, training=False), fold(model)(x, training=False)
    for name, logits in wanted.items():
        np.testing.assert_allclose(found[name], logits, rtol=0, atol=1e-5 * np.abs(logits).max())

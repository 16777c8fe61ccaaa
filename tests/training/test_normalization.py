"""Batch normalisation by the kernel: the numbers of Keras's layer, and only where they can be had."""

import harness
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_exitens as kx
from keras_exitens._graph.dag import Graph
from keras_exitens._keras import inner_layers
from keras_exitens._training import distiller as distiller_module
from keras_exitens._training.normalization import Normalization, with_fused_normalization

CHANNELS, CLASSES = 3, 5


def one_layer(layer, shape=(6, 6, CHANNELS), dtype="float32"):
    inputs = keras.Input(shape, dtype=dtype)
    return keras.Model(inputs, layer(inputs))


def replaced(model):
    return [layer for layer in inner_layers(model) if isinstance(layer, Normalization)]


def set_at_random(layer, seed=0):
    rng = np.random.default_rng(seed)
    for v in layer.variables:
        v.assign(rng.uniform(0.5, 1.5, v.shape))


def trained(model, layer, x):
    """Output, gradients and moving averages of one call in training."""
    before = [v.numpy() for v in layer.variables]
    weights = np.random.default_rng(1).normal(size=x.shape).astype("float32")
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = model(x, training=True)
        loss = tf.reduce_sum(tf.cast(y, "float32") * weights)
    gradients = tape.gradient(loss, [x, *(v.value for v in layer.trainable_variables)])
    found = [y, *gradients, *(v.numpy() for v in layer.variables)]
    for v, value in zip(layer.variables, before, strict=True):
        v.assign(value)
    return [np.asarray(tf.cast(value, "float32")) for value in found]


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("rows", [1, 7])
def test_output_gradients_and_moving_averages_are_those_of_keras(scale, center, rows):
    layer = layers.BatchNormalization(scale=scale, center=center, momentum=0.7, epsilon=1e-2)
    stock = one_layer(layer)
    set_at_random(layer)
    fused = with_fused_normalization(stock)
    assert len(replaced(fused)) == 1
    x = tf.constant(np.random.default_rng(2).normal(3, 2, size=(rows, 6, 6, CHANNELS)).astype("float32"))
    for ours, theirs in zip(trained(fused, layer, x), trained(stock, layer, x), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_is_as_near_to_float32_as_keras_is(policy):
    layer = layers.BatchNormalization(dtype=policy)
    stock = one_layer(layer)
    set_at_random(layer)
    fused = with_fused_normalization(stock)
    assert len(replaced(fused)) == 1
    x = tf.constant(np.random.default_rng(2).normal(1, 2, size=(9, 6, 6, CHANNELS)).astype("float32"))
    ours, theirs = trained(fused, layer, x), trained(stock, layer, x)
    assert fused(x, training=True).dtype == stock(x, training=True).dtype == policy.removeprefix("mixed_")
    exact_layer = layers.BatchNormalization()
    exact_model = one_layer(exact_layer)
    exact_layer.set_weights(layer.get_weights())
    exact = trained(exact_model, exact_layer, x)
    unit = 2.0**-8 if policy == "mixed_bfloat16" else 2.0**-11
    for a, b, true in zip(ours, theirs, exact, strict=True):
        size = np.abs(true).max()
        assert np.abs(a - true).max() <= 2 * np.abs(b - true).max() + unit * size


def test_at_inference_and_frozen_it_is_the_layer_itself():
    layer = layers.BatchNormalization()
    stock = one_layer(layer)
    set_at_random(layer)
    fused = with_fused_normalization(stock)
    x = np.random.default_rng(2).normal(size=(4, 6, 6, CHANNELS)).astype("float32")
    assert harness.same(fused(x, training=False), stock(x, training=False))
    layer.trainable = False
    before = layer.get_weights()
    assert harness.same(fused(x, training=True), stock(x, training=False))
    assert harness.same(layer.get_weights(), before)


class Subclass(layers.BatchNormalization):
    pass


@pytest.mark.parametrize(
    "layer, shape, dtype",
    [
        (lambda: Subclass(), (6, 6, 3), "float32"),
        (lambda: layers.BatchNormalization(axis=1), (3, 6, 6), "float32"),
        (lambda: layers.BatchNormalization(synchronized=True), (6, 6, 3), "float32"),
        pytest.param(
            lambda: layers.BatchNormalization(renorm=True),
            *((6, 6, 3), "float32"),
            marks=harness.needs_keras("3.14"),
        ),
        (lambda: layers.BatchNormalization(dtype="float64"), (6, 6, 3), "float64"),
        (lambda: layers.BatchNormalization(), (3,), "float32"),
        (lambda: layers.BatchNormalization(activity_regularizer="l2"), (6, 6, 3), "float32"),
    ],
    ids=[
        "subclass",
        "channels first",
        "synchronized",
        "renorm",
        "float64",
        "vectors",
        "activity regulariser",
    ],
)
def test_what_the_kernel_cannot_do_stays_with_keras(layer, shape, dtype):
    model = one_layer(layer(), shape, dtype)
    assert with_fused_normalization(model) is model


@pytest.mark.parametrize("make", [harness.nested, harness.nested_twice, harness.shared_layer])
def test_every_normalisation_of_nested_and_shared_layers_is_found(make):
    model = make()
    fused = with_fused_normalization(model)
    normalisations = [x for x in inner_layers(model) if type(x) is layers.BatchNormalization]
    assert {id(x.source) for x in replaced(fused)} == {id(x) for x in normalisations}
    assert not [x for x in Graph.of(fused).steps if type(x.unwrapped) is layers.BatchNormalization]
    x = harness.images(model)
    assert harness.same(fused(x, training=False), model(x, training=False))


def network(precision="float32", **kwargs):
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(0)
    backbone = kx.applications.ResNet18(input_shape=(8, 8, 3), classes=CLASSES, width=0.0625)
    return kx.add_exits(backbone, exits=2, **kwargs)


def batch():
    rng = np.random.default_rng(0)
    return rng.normal(size=(12, 8, 8, 3)).astype("float32"), rng.integers(0, CLASSES, 12)


def test_the_distiller_trains_as_with_the_layers_of_keras(monkeypatch):
    ends = []
    for fuse in (with_fused_normalization, lambda model: model):
        monkeypatch.setattr(distiller_module, "prepared", fuse)
        model = network()
        before = {v.path: v.numpy() for v in model.variables}
        distiller = kx.ExitEnsembleDistiller(model, kx.objectives.EED())
        distiller.compile(keras.optimizers.SGD(0.01, momentum=0.9))
        distiller.fit(*batch(), batch_size=12, epochs=2, shuffle=False, verbose=0)
        ends.append([v.numpy() for v in model.variables])
    for ours, theirs, start in zip(*ends, before.values(), strict=True):
        change = np.linalg.norm(theirs - start)
        assert change > 0
        assert np.linalg.norm(ours - theirs) <= 1e-3 * change


def test_a_float64_network_is_trained():
    """Its logits are float32, its features are not; its normalisation stays with Keras."""
    networks = {precision: network(precision) for precision in ("float64", "float32")}
    networks["float64"].set_weights(networks["float32"].get_weights())
    losses = {}
    for precision, model in networks.items():
        distiller = kx.ExitEnsembleDistiller(model, kx.objectives.EED())
        distiller.compile(keras.optimizers.SGD(0.01))
        losses[precision] = distiller.train_on_batch(*batch(), return_dict=True)
    assert losses["float64"]["feature_loss"] > 0
    assert losses["float64"].keys() == losses["float32"].keys()
    for name, value in losses["float64"].items():
        np.testing.assert_allclose(value, losses["float32"][name], rtol=1e-4)


def with_hidden_layer(tensor, width, name):
    tensor = layers.GlobalAveragePooling2D(name=f"{name}_pool")(tensor)
    tensor = layers.Dense(width, use_bias=False, name=f"{name}_dense")(tensor)
    return layers.BatchNormalization(name=f"{name}_bn")(tensor)


def test_the_step_runs_the_kernel_and_the_saved_distiller_knows_nothing_of_it(tmp_path):
    model = network(head=with_hidden_layer)
    distiller = kx.ExitEnsembleDistiller(model)
    distiller.compile(keras.optimizers.SGD(0.01))
    step = tf.function(lambda data: distiller.train_step(data)).get_concrete_function(batch())
    kinds = [op.type for op in step.graph.get_operations()]
    norms = [x for x in inner_layers(model) if type(x) is layers.BatchNormalization]
    maps = sum(len(norm.input.shape) == 4 for norm in norms)
    assert kinds.count("FusedBatchNormV3") == kinds.count("FusedBatchNormGradV3") == maps
    # Those of the hidden layers, on vectors, are Keras's own.
    assert kinds.count("SquaredDifference") == len(norms) - maps == 2
    assert not replaced(distiller)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    images, _ = batch()
    assert harness.same(loaded.model(images), model(images))

"""Exits, their costs and plain networks again: the same numbers on every backend."""

import keras
import numpy as np
import pytest
from contracts import data, network

import keras_exitens as kx


def test_final_logits_are_those_of_the_network():
    images, _ = data(8)
    plain = network()
    before = plain.predict(images, verbose=0)
    model = kx.add_exits(plain, 2)
    logits = model.predict(images, verbose=0)["final"]
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(exponentials / exponentials.sum(axis=1, keepdims=True), before, atol=1e-6)
    np.testing.assert_allclose(kx.strip_exits(model).predict(images, verbose=0), before, atol=1e-6)
    first = kx.strip_exits(model, "exit_1", activation=None).predict(images, verbose=0)
    np.testing.assert_allclose(first, model.predict(images, verbose=0)["exit_1"], atol=1e-5)


def test_ten_exits_are_named_and_called_in_order():
    x = inputs = keras.Input((8, 8, 1))
    for _ in range(12):
        x = keras.layers.Conv2D(2, 3, padding="same", activation="relu")(x)
    outputs = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x))
    model = kx.add_exits(keras.Model(inputs, outputs), 10, head="linear")
    assert kx.exit_names(model) == [*(f"exit_{i}" for i in range(1, 11)), "final"]
    distiller = kx.ExitEnsembleDistiller(model, kx.objectives.CrossEntropy())
    found = distiller.predict(np.zeros((2, 8, 8, 1), "float32"), verbose=0)
    assert list(found) == [*kx.exit_names(model), "ensemble"]
    assert kx.collect(model, (np.zeros((2, 8, 8, 1)), [0, 1]), verbose=0).names == tuple(kx.exit_names(model))


# Counted by hand: maps of 12 × 12, 6 × 6 and 3 × 3 pixels, kernels of 3 × 3.
CONVOLUTIONS = 144 * 9 * 3 * 4 + 36 * 9 * 4 * 8 + 9 * 9 * 8 * 12


def test_costs_are_those_of_the_formulas():
    found = kx.cost(kx.add_exits(network(), 2, head="linear"))
    assert found.backbone == CONVOLUTIONS + 12 * 4


@pytest.mark.parametrize("head", ["light", "conv", "bottleneck", "separable", "linear"])
def test_every_head_can_be_built_and_run(head):
    model = kx.add_exits(network(), 2, head=head)
    found = model.predict(np.zeros((2, 12, 12, 3), "float32"), verbose=0)
    assert {name: z.shape for name, z in found.items()} == dict.fromkeys(
        ("exit_1", "exit_2", "final"), (2, 4)
    )
    assert {t.shape[-1] for t in kx.exit_features(model).values()} == {12}


@pytest.mark.parametrize("name", ["VGG11", "ResNet18", "ResNeXt29", "WideResNet16_4"])
def test_applications_are_built_and_run(name):
    backbone = getattr(kx.applications, name)((32, 32, 3), classes=10, width=0.0625)
    model = kx.add_exits(backbone, 2)
    logits = model(np.ones((2, 32, 32, 3), "float32"))
    assert {tuple(z.shape) for z in logits.values()} == {(2, 10)}
    assert np.isfinite(keras.ops.convert_to_numpy(logits["final"])).all()


def test_sizes_that_layers_leave_open_are_found():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", name="first")(inputs)
    x = keras.layers.EinsumDense("abcd,de->abce", output_shape=(None, None, 6))(x)
    outputs = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x))
    model = kx.add_exits(keras.Model(inputs, outputs), ["first"], head="linear")
    assert kx.cost(model).backbone == 64 * (9 * 3 * 4 + 4 * 6) + 6 * 3

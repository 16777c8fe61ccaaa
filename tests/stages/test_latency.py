"""Measured cost: every stage and head is timed, whatever the cut carries."""

import harness
import keras
import pytest
import tensorflow as tf
from keras import layers

import keras_exitens as kx
from keras_exitens._stages.split import split_heads


@pytest.mark.parametrize("network", [harness.dense_concat, harness.nested_pyramid, harness.any_size])
def test_times_of_all_parts(network):
    model = kx.add_exits(network(), exits=2)
    found = kx.measured_cost(model, batch_size=2, repeats=2)
    assert found.names == ("exit_1", "exit_2", "final") and found.unit == "seconds"
    assert all(seconds > 0 for seconds in found.stages) and found.heads[-1] == 0
    assert all(seconds > 0 for seconds in found.heads[:-1])
    assert found.only([True, False, True]).cumulative[-1] == pytest.approx(sum(found.stages) + found.heads[0])
    assert "ms" in str(found)
    counted = kx.cost(model)
    assert found.stage_parameters == counted.stage_parameters and found.parameters == counted.parameters > 0


def test_work_shows():
    """A stage with a hundred times the work of the other takes longer."""
    inputs = keras.Input((64, 64, 8))
    x = layers.Conv2D(8, 1, strides=2, name="light")(inputs)
    for _ in range(3):
        x = layers.Conv2D(128, 5, padding="same")(x)
    model = kx.add_exits(keras.Model(inputs, harness.classify(x)), exits=["light"], head="linear")
    found = kx.measured_cost(model, batch_size=8, repeats=3)
    assert found.stages[1] > found.stages[0]


def test_heads_are_cut_from_the_network():
    model = harness.randomise(kx.add_exits(harness.inception(), exits=2))
    pieces = split_heads(model)
    assert [(exit, part) for exit, part, _, _ in pieces] == [
        ("exit_1", "stage"),
        ("exit_1", "head"),
        ("exit_2", "stage"),
        ("exit_2", "head"),
        ("final", "stage"),
    ]
    for exit, part, piece, _ in pieces:
        own = [op.name for op in piece.operations if op.name.startswith("exit_")]
        assert bool(own) == (part == "head") and all(name.startswith(exit) for name in own)
    x = tf.constant(harness.images(model))
    values, logits = dict.fromkeys(pieces[0][2].input, x), {}
    for exit, _, piece, carried in pieces:
        made = piece({name: values[name] for name in piece.input}, training=False)
        logits.update({exit: made["logits"]} if "logits" in made else {})
        values = {name: made[name] if name in made else values[name] for name in carried}
    assert harness.same(logits, dict(model(x, training=False)))


def test_settings_that_mean_nothing():
    model = kx.add_exits(harness.sequential(), exits=1)
    for settings in ({"batch_size": 0}, {"repeats": 0}, {"repeats": "many"}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            kx.measured_cost(model, **settings)

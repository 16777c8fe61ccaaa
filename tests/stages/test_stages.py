"""Stages: the chain is the model, runs every operation once and as late as can be, and shares its weights."""

import harness
import keras
import numpy as np
import pytest
from keras import layers

import keras_exitens as kx
from keras_exitens import stages


def run(chain, x):
    """Logits of every stage of a chain, by name of the exit."""
    values = dict.fromkeys(chain[0].model.input, keras.ops.convert_to_tensor(x))
    found = {}
    for stage in chain:
        made = stage.model({name: values[name] for name in stage.model.input}, training=False)
        found[stage.exit] = np.asarray(made[stages.LOGITS])
        values = {name: made[name] if name in made else values[name] for name in stage.carried}
    assert not values
    return found


def operations(chain):
    """How often each operation of the user's and of the exits is called in each stage."""
    return [
        sorted(op.name for op in stage.model.operations if not isinstance(op, layers.InputLayer))
        for stage in chain
    ]


@pytest.mark.parametrize("placement", ["compute", "stage"])
@pytest.mark.parametrize("network", harness.NETWORKS, ids=lambda f: f.__name__)
def test_chain_gives_the_logits_of_the_model(network, placement):
    model = harness.randomise(kx.add_exits(network(), exits=2, placement=placement))
    x = harness.images(model)
    chain = stages.split(model)
    assert [stage.exit for stage in chain] == ["exit_1", "exit_2", "final"]
    assert harness.same(run(chain, x), {k: np.asarray(v) for k, v in model(x, training=False).items()})


@pytest.mark.parametrize("keep", [(), ("exit_1",), ("exit_2",), ("exit_2", "final")])
def test_exits_left_out_are_not_computed(keep):
    model = harness.randomise(kx.add_exits(harness.dense_concat(), exits=2))
    chain = stages.split(model, keep)
    left_out = {"exit_1", "exit_2"} - {*keep}
    names = [name for part in operations(chain) for name in part]
    assert not [name for name in names if name.startswith(tuple(left_out))] or not left_out
    assert [stage.exit for stage in chain] == [*sorted({*keep} - {"final"}), "final"]
    full = model(harness.images(model), training=False)
    for name, logits in run(chain, harness.images(model)).items():
        np.testing.assert_array_equal(logits, full[name])


def test_every_operation_runs_once():
    model = kx.add_exits(keras.applications.DenseNet121(weights=None, input_shape=(32, 32, 3), classes=5))
    wanted = sorted(op.name for op in model.operations if not isinstance(op, layers.InputLayer))
    assert sorted(name for part in operations(stages.split(model)) for name in part) == wanted


def two_branches():
    """A long skip that crosses every cut, a branch that only the end needs, and a layer used twice."""
    inputs = keras.Input((16, 16, 3), name="images")
    twice = layers.Conv2D(4, 3, padding="same", name="twice")
    x = harness.conv(inputs, 4)
    side = layers.Conv2D(2, 1, name="side")(x)
    x = layers.BatchNormalization(name="cut_1")(twice(x))
    x = harness.conv(x, 4)
    x = layers.Activation("relu", name="cut_2")(twice(x))
    x = layers.concatenate([x, side, layers.Conv2D(2, 1, name="from_input")(inputs)])
    return keras.Model(inputs, harness.classify(harness.conv(x, 6, 2)), name="two_branches")


def test_tensors_cross_the_cuts_they_have_to():
    model = harness.randomise(kx.add_exits(two_branches(), exits=["cut_1", "cut_2"]))
    chain = stages.split(model)
    skip = next(name for name in chain[2].model.input if name.startswith("re_lu"))
    assert [set(stage.model.input) for stage in chain] == [
        {"images"},
        {"cut_1_out"},
        {"images", skip, "cut_2_out"},
    ]
    assert [set(stage.carried) for stage in chain] == [
        {"images", skip, "cut_1_out"},
        {"images", skip, "cut_2_out"},
        set(),
    ]
    placed = {name: k for k, part in enumerate(operations(chain)) for name in part}
    # What only the end needs is computed there, not before the first exit.
    assert placed["side"] == placed["from_input"] == 2
    x = harness.images(model)
    assert harness.same(run(chain, x), {k: np.asarray(v) for k, v in model(x, training=False).items()})


def test_weights_are_shared_and_building_changes_nothing():
    model = harness.randomise(kx.add_exits(harness.operators(), exits=2))
    x = harness.images(model)
    before = model.to_json(), [v.numpy().tobytes() for v in model.weights]
    chain = stages.split(model)
    assert (model.to_json(), [v.numpy().tobytes() for v in model.weights]) == before
    ids = {id(v) for v in model.weights}
    assert {id(v) for stage in chain for v in stage.model.weights} == ids
    for v in model.trainable_weights:
        v.assign(v * 0.9)
    assert harness.same(run(chain, x), {k: np.asarray(v) for k, v in model(x, training=False).items()})


def test_hand_built_model():
    inputs = keras.Input((16, 16, 3), name="pixels")
    x = harness.conv(inputs, 4)
    first = harness.classify(x, None, "early")
    last = harness.classify(harness.conv(x, 6, 2), None, "late")
    model = keras.Model(inputs, {"early": first, "both": (first + last) / 2.0, "final": last})
    x = harness.images(model)
    chain = stages.split(model)
    assert [stage.exit for stage in chain] == kx.exit_names(model)
    assert harness.same(run(chain, x), {k: np.asarray(v) for k, v in model(x, training=False).items()})


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_crosses_the_cut_as_it_is(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = kx.add_exits(harness.dense_concat(), exits=2)
    finally:
        keras.config.set_dtype_policy("float32")
    chain = stages.split(model)
    half = policy.removeprefix("mixed_")
    assert {t.dtype for t in chain[1].model.inputs} == {half}
    x = harness.images(model)
    assert harness.same(run(chain, x), {k: np.asarray(v) for k, v in model(x, training=False).items()})


def test_stages_after_a_save_and_a_load(tmp_path):
    model = harness.randomise(kx.add_exits(harness.inception(), exits=2))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = harness.images(model)
    assert harness.same(run(stages.split(loaded), x), run(stages.split(model), x))


def test_names_that_cannot_be():
    model = kx.add_exits(harness.sequential(), exits=1)
    with pytest.raises(ValueError, match="did you mean 'exit_1'"):
        stages.split(model, ["exit_3"])
    with pytest.raises(ValueError, match="not a multi-exit model"):
        stages.split(harness.sequential())

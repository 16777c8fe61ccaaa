"""add_exits, strip_exits, exit_names, exit_features: numbers, sharing, saving, what is refused."""

import pathlib
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from harness import (
    CLASSES,
    NETWORKS,
    SOME,
    all_layers,
    classify,
    conv,
    frozen,
    images,
    log_softmax,
    logits_by_hand,
    nested,
    operators,
    plain,
    randomise,
    same,
    sequential,
    source,
    state,
)
from keras import layers, ops

import keras_exitens as kx
from keras_exitens._attach.heads import HEADS
from keras_exitens._graph.dag import Graph
from keras_exitens._network.exit_logits import ExitLogits

SIXTEEN = ([4, 6, 8], [1, 2, 2])  # of `plain`, at 16 pixels

pytestmark = pytest.mark.filterwarnings(
    "ignore:To leave early saves nothing"
)  # in networks as small as these


@pytest.fixture(params=NETWORKS, ids=lambda build: build.__name__)
def model(request):
    return randomise(request.param())


@pytest.fixture(params=SOME, ids=lambda build: build.__name__)
def some_model(request):
    return randomise(request.param())


def reload(model, tmp_path):
    path = tmp_path / "model.keras"
    model.save(path)
    return keras.saving.load_model(path, safe_mode=True)


def clone(model):
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


# The numbers -------------------------------------------------------------------------------------


def test_final_logits_are_the_users_before_the_activation(model):
    x = images(model)
    expected = logits_by_hand(model, model.get_layer("classifier"), x)
    assert expected.std(axis=0).min() > 1e-3, "every class tells images apart"
    # Of the few features of these small networks, a random ReLU may leave none.
    out = kx.add_exits(model, 2, head="linear")(x)
    assert set(out) == {"exit_1", "exit_2", "final"}
    np.testing.assert_allclose(out["final"], expected, atol=1e-5)
    np.testing.assert_allclose(ops.softmax(out["final"]), model(x), atol=1e-6)
    for logits in out.values():
        assert logits.shape == (4, CLASSES)
        assert logits.dtype == "float32"
        assert np.asarray(logits).std(axis=0).min() > 0


def test_saving_loading_and_cloning_keep_every_bit(model, tmp_path):
    x = images(model)
    exits = kx.add_exits(model, 2, head="linear")
    before = exits(x)
    loaded, cloned = reload(exits, tmp_path), clone(exits)
    assert same(exits(x), before)
    assert same(loaded(x), before)
    assert same(cloned(x), before)
    for copy in (loaded, cloned):
        assert kx.exit_names(copy) == ["exit_1", "exit_2", "final"]
        assert copy.count_params() == exits.count_params()
        assert [w.path.split("/")[-1] for w in copy.weights] == [w.path.split("/")[-1] for w in exits.weights]
        assert not {id(v) for v in copy.variables} & {id(v) for v in model.variables}
        shapes = {name: feature.shape for name, feature in kx.exit_features(copy).items()}
        assert shapes == {name: feature.shape for name, feature in kx.exit_features(exits).items()}
    assert same(kx.strip_exits(loaded)(x), kx.strip_exits(exits)(x))


def test_stripping_gives_the_users_network_back(model):
    x = images(model)
    exits = kx.add_exits(model, 1, head="linear")
    out = exits(x)
    plain_again = kx.strip_exits(exits)
    np.testing.assert_allclose(plain_again(x), model(x), atol=1e-6)
    assert {id(v) for v in plain_again.variables} == {id(v) for v in model.variables}
    for name in kx.exit_names(exits):
        logits = kx.strip_exits(exits, name, activation=None)
        np.testing.assert_allclose(logits(x), out[name], atol=1e-6)
        restored = kx.strip_exits(exits, name)
        np.testing.assert_allclose(restored(x), ops.softmax(out[name]), atol=1e-6)
        assert restored.output.shape == (None, CLASSES)
        for operation in restored.operations:
            assert type(operation).__module__.startswith("keras."), operation
        others = [f"{other}_" for other in kx.exit_names(exits) if other != name]
        assert not [la.name for la in restored.layers if la.name.startswith(tuple(others))]


def test_training_behaves_as_in_the_users_network(model):
    """One pass in training mode: the same final logits, the same BatchNorm statistics afterwards."""
    for layer in all_layers(model):
        if isinstance(layer, layers.Dropout):
            layer.rate = 0.0
    x, start = images(model), model.get_weights()
    exits = kx.add_exits(model, 1, head="linear")
    expected = model(x, training=True)
    moved = model.get_weights()
    model.set_weights(start)
    final = exits(x, training=True)["final"]
    np.testing.assert_allclose(ops.softmax(final), expected, atol=1e-5)
    for a, b in zip(model.get_weights(), moved, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_features_enter_the_classifiers_and_have_one_width(some_model):
    model = some_model
    x = images(model)
    exits = kx.add_exits(model, 2)
    features = kx.exit_features(exits)
    width = model.get_layer("classifier").kernel.shape[0]
    assert list(features) == ["exit_1", "exit_2", "final"]
    assert {f.shape for f in features.values()} == {(None, width)}
    values = keras.Model(exits.input, features)(x)
    out = exits(x)
    for name, feature in values.items():
        kernel, bias = exits.get_layer(name).get_weights()
        np.testing.assert_allclose(feature @ kernel + bias, out[name], atol=1e-5)
    by_hand = keras.Model(model.inputs[0], model.get_layer("classifier").input)(x)
    np.testing.assert_allclose(values["final"], by_hand, atol=1e-6)


def test_a_saved_model_loads_in_a_new_process(tmp_path):
    model = randomise(operators())
    x = images(model)
    exits = kx.add_exits(model, 3)
    exits.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    script = """
import sys, keras, keras_exitens as kx, numpy as np
folder = sys.argv[1]
model = keras.saving.load_model(f"{folder}/model.keras", safe_mode=True)
assert kx.exit_names(model) == ["exit_1", "exit_2", "exit_3", "final"]
x = np.load(f"{folder}/x.npy")
plain = kx.strip_exits(model)
plain.save(f"{folder}/plain.keras")
np.savez(f"{folder}/out.npz", plain=plain(x), **model(x))
"""
    run = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    with np.load(tmp_path / "out.npz") as out:
        got = dict(out)
    assert same(got.pop("plain"), kx.strip_exits(exits)(x))
    assert same(got, exits(x))
    # The stripped network needs nothing of this library: every class in its file is one of Keras.
    with keras.saving.custom_object_scope({}):
        restored = keras.saving.load_model(tmp_path / "plain.keras")
    assert "keras_exitens" not in restored.to_json()
    np.testing.assert_allclose(restored(x), model(x), atol=1e-6)


def test_predict_and_a_traced_call_agree_with_an_eager_one():
    model = randomise(nested())
    x = images(model, count=6)
    exits = kx.add_exits(model, 2)
    eager, predicted = exits(x), exits.predict(x, batch_size=6, verbose=0)
    traced = tf.function(exits)(x)
    for name in eager:
        np.testing.assert_allclose(predicted[name], eager[name], atol=1e-5)
        np.testing.assert_allclose(traced[name], eager[name], atol=1e-5)
    assert model.get_layer("classifier").activation is keras.activations.softmax


# Sharing -----------------------------------------------------------------------------------------


def test_building_changes_nothing(some_model, tmp_path):
    model = some_model
    before = state(model)
    for head in ("linear", "bottleneck"):
        exits = kx.add_exits(model, 2, head=head)
    kx.strip_exits(exits)
    kx.strip_exits(exits, "exit_1")
    kx.strip_exits(exits, activation=None)
    kx.exit_features(exits)
    kx.cost(exits)
    exits(images(model))
    assert state(model) == before
    assert same(reload(model, tmp_path)(images(model)), model(images(model)))
    assert same(clone(model)(images(model)), model(images(model)))


def test_layers_are_shared_not_copied(some_model):
    model = some_model
    exits = kx.add_exits(model, 2)
    mine = {id(layer) for layer in exits.layers}
    classifier = model.get_layer("classifier")
    for layer in all_layers(model):
        if layer is not classifier and not isinstance(layer, layers.InputLayer):
            assert id(layer) in mine, layer.name
    assert exits.get_layer("final").classifier is classifier
    assert {id(v) for v in model.variables} <= {id(v) for v in exits.variables}
    # and the exits share nothing with each other
    names = ("exit_1", "exit_2", "final")
    kernels = [exits.get_layer(name).classifier.kernel for name in names]
    assert len({id(kernel) for kernel in kernels}) == 3


def one_step(model, x, y, eager=True):
    """One step of Keras's own `fit`; eagerly, where tracing would take most of the time."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(0.1)
    model.compile(optimizer, loss=dict.fromkeys(model.output, loss), run_eagerly=eager)
    model.fit(x, dict.fromkeys(model.output, y), batch_size=len(x), epochs=1, verbose=0)


def test_training_the_exits_trains_the_users_network(some_model):
    model = some_model
    x = images(model, count=8)
    y = np.arange(8) % CLASSES
    exits = kx.add_exits(model, 2, head="linear")
    before, out = model.get_weights(), np.asarray(model(x))
    trainable = {id(v) for v in model.trainable_variables}
    one_step(exits, x, y, eager=model.name != "nested")
    kernels = 0
    for variable, old in zip(model.weights, before, strict=True):
        if id(variable) in trainable and len(variable.shape) > 1:
            assert np.abs(variable.numpy() - old).max() > 0, variable.path
            kernels += 1
    assert kernels
    after = np.asarray(model(x))
    assert np.abs(after - out).max() > 1e-4
    np.testing.assert_allclose(ops.softmax(exits(x)["final"]), after, atol=1e-6)
    np.testing.assert_allclose(kx.strip_exits(exits)(x), after, atol=1e-6)


def test_training_the_users_network_trains_the_final_exit_only():
    model = randomise(sequential())
    x = images(model, count=8)
    exits = kx.add_exits(model, 2)
    heads = [v for la in exits.layers if la.name.startswith("exit_") for v in la.variables]
    before = [v.numpy() for v in heads]
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(x, np.arange(8) % CLASSES, verbose=0)
    np.testing.assert_allclose(ops.softmax(exits(x)["final"]), model(x), atol=1e-6)
    for variable, old in zip(heads, before, strict=True):
        np.testing.assert_array_equal(variable, old)


def test_a_frozen_part_stays_frozen():
    model = randomise(frozen())
    body = model.get_layer("body")
    x = images(model, count=8)
    exits = kx.add_exits(model, ["body/body_a", "top"])
    assert not any(exits.get_layer(layer.name).trainable for layer in body.layers if layer.weights)
    before, top = body.get_weights(), model.get_layer("top").get_weights()
    assert len(before) == 2 * (2 + 4), "two convolutions and two BatchNorms"
    one_step(exits, x, np.arange(8) % CLASSES, eager=False)
    for old, new in zip(before, body.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    assert np.abs(model.get_layer("top").get_weights()[0] - top[0]).max() > 0


def test_exits_on_a_frozen_network(tmp_path):
    """Exits alone are trained on a network that is done: it keeps every weight, also after loading."""
    model = randomise(nested())
    model.trainable = False
    x = images(model, count=8)
    exits = kx.add_exits(model, ["body/body_a", "body/body_b"], head="conv")
    for found in (exits, reload(exits, tmp_path)):
        out = found(x)
        assert all(v.path.startswith("exit_") for v in found.trainable_variables)
        assert len(found.trainable_variables) == (2 * 3 + 2) + (3 + 2)  # blocks, one a halving; classifiers
        one_step(found, x, np.arange(8) % CLASSES)
        assert same(found(x)["final"], out["final"])
        assert np.abs(found(x)["exit_1"] - out["exit_1"]).max() > 0


def test_regularisers_of_the_users_network_count_once():
    inputs = keras.Input((16, 16, 3))
    x = conv(conv(inputs, 4, kernel_regularizer="l2"), 6, 2, kernel_regularizer="l1")
    x = layers.GlobalAveragePooling2D()(conv(x, 6))
    outputs = layers.Dense(CLASSES, "softmax", kernel_regularizer=keras.regularizers.L2(0.3))(x)
    model = keras.Model(inputs, outputs)
    exits = kx.add_exits(model, 2)
    assert len(model.losses) == 3
    np.testing.assert_allclose(sorted(map(float, exits.losses)), sorted(map(float, model.losses)), rtol=1e-6)


def test_the_activity_regulariser_of_the_classifier_sees_what_it_gives_to_others():
    inputs = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(conv(conv(inputs, 4), 6, 2))
    model = keras.Model(inputs, layers.Dense(CLASSES, "softmax", activity_regularizer="l2")(x))
    exits = kx.add_exits(randomise(model), 1, head="linear")
    x = images(model)
    model(x)
    expected = float(model.losses[0])
    exits(x)
    (found,) = exits.losses
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    plain_again = kx.strip_exits(exits)
    plain_again(x)
    np.testing.assert_allclose(plain_again.losses[0], expected, rtol=1e-6)


def test_a_classifier_that_is_called_twice_stays_one_after_loading(tmp_path):
    inputs = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(conv(conv(inputs, 4), 6, 2))
    classifier = layers.Dense(CLASSES, "softmax", name="classifier")
    guess = classifier(layers.Dense(6 + CLASSES)(x))
    model = randomise(keras.Model(inputs, classifier(layers.concatenate([x, guess]))))
    exits = kx.add_exits(model, 1, head="linear")
    loaded = reload(exits, tmp_path)
    for found in (exits, loaded):
        assert found.get_layer("final").classifier is found.get_layer("classifier")
    assert loaded.count_params() == exits.count_params()
    assert same(loaded(images(model)), exits(images(model)))


def test_int8_of_a_reloaded_copy_leaves_the_network_alone(tmp_path):
    """Layers are shared, and `quantize` changes layers: of the model itself it changes the network's."""
    model = randomise(operators())
    x = images(model)
    before = np.asarray(model(x))
    exits = kx.add_exits(model, 2)
    copy = reload(exits, tmp_path)
    copy.quantize("int8")
    assert copy.get_layer("final").classifier.quantization_mode == "int8"
    assert same(model(x), before)
    assert model.get_layer("classifier").kernel.dtype == "float32"
    again = reload(copy, tmp_path)
    for name, logits in exits(x).items():
        scale = np.abs(logits).max()
        np.testing.assert_allclose(copy(x)[name], logits, atol=0.05 * scale)
        assert np.abs(copy(x)[name] - logits).max() > 0
    assert same(again(x), copy(x))
    exits.quantize("int8")
    assert model.get_layer("classifier").quantization_mode == "int8"


def test_keras_draws_and_lists_it(tmp_path):
    pytest.importorskip("pydot", reason="pydot is not installed")
    if shutil.which("dot") is None:
        pytest.skip("graphviz is not installed")
    keras.utils.plot_model(kx.add_exits(nested(), 2), tmp_path / "model.png", show_shapes=True)
    assert (tmp_path / "model.png").stat().st_size > 1000


def test_the_summary_lists_every_exit():
    lines = []
    exits = kx.add_exits(nested(), 2)
    exits.summary(print_fn=lines.append)
    for name in kx.exit_names(exits):
        assert any(name in line for line in "\n".join(lines).splitlines())


def test_two_sets_of_exits_on_one_network(tmp_path):
    """A second set is independent of the first, in its heads and in its file."""
    model = randomise(nested())
    x = images(model)
    first, second = kx.add_exits(model, 2), kx.add_exits(model, 1, head="linear", name="second")
    assert (first.name, second.name) == ("nested_exits", "second")
    assert same(first(x)["final"], second(x)["final"])
    assert first.get_layer("exit_1") is not second.get_layer("exit_1")
    for exits in (first, second):
        assert same(reload(exits, tmp_path)(x), exits(x))
        assert same(clone(exits)(x), exits(x))


def test_exits_for_a_network_that_was_stripped():
    model = randomise(operators())
    x = images(model)
    again = kx.add_exits(kx.strip_exits(kx.add_exits(model, 2)), 3, head="separable")
    assert kx.exit_names(again) == ["exit_1", "exit_2", "exit_3", "final"]
    assert same(again(x)["final"], kx.add_exits(model, 1)(x)["final"])


def test_a_network_that_was_called_elsewhere():
    """Layers with several calls: only the calls of this network count."""
    body = randomise(sequential())
    inputs = keras.Input((16, 16, 3))
    other = keras.Model(inputs, body(inputs * 2.0))
    x = images(body)
    for model in (body, other):
        expected = np.asarray(model(x))
        np.testing.assert_allclose(ops.softmax(kx.add_exits(model, 2)(x)["final"]), expected, atol=1e-6)


# Names and order ---------------------------------------------------------------------------------


def test_exit_10_comes_after_exit_2(tmp_path):
    model = randomise(plain([4] * 13, [1] * 13, size=8))
    x = images(model)
    exits = kx.add_exits(model, 11, head="linear")
    expected = [*(f"exit_{i}" for i in range(1, 12)), "final"]
    loaded = reload(exits, tmp_path)
    for found in (exits, clone(exits), loaded, clone(loaded)):
        assert kx.exit_names(found) == expected
        assert list(kx.exit_features(found)) == expected
        assert kx.cost(found).names == tuple(expected)
        depths = [Graph.of(found).producer(source(found, name)).index for name in expected[:-1]]
        assert depths == sorted(depths)
        assert same(found(x), exits(x))
    assert np.all(np.diff(kx.cost(loaded).cumulative) > 0)


def test_no_exits_at_all():
    """The network alone, as a baseline: still a dict, still logits."""
    model = randomise(sequential())
    x = images(model)
    exits = kx.add_exits(model, 0)
    assert kx.exit_names(exits) == ["final"]
    assert set(exits(x)) == {"final"}
    np.testing.assert_allclose(
        exits(x)["final"], logits_by_hand(model, model.get_layer("classifier"), x), atol=1e-5
    )
    assert exits.count_params() == model.count_params()
    assert len(kx.cost(exits)) == 1
    np.testing.assert_allclose(kx.strip_exits(exits)(x), model(x), atol=1e-6)
    named = keras.Model(inputs := keras.Input((16, 16, 3)), classify(conv(inputs, 4), name="final"))
    with pytest.raises(ValueError, match="names of exits"):
        kx.add_exits(named, 0)


def test_some_of_the_exits():
    """A dict with fewer of the exits is a multi-exit model too."""
    exits = kx.add_exits(randomise(sequential()), 2)
    fewer = keras.Model(exits.input, {name: exits.output[name] for name in ("final", "exit_2")})
    assert kx.exit_names(fewer) == ["exit_2", "final"]
    x = images(fewer)
    assert same(kx.strip_exits(fewer, "exit_2")(x), kx.strip_exits(exits, "exit_2")(x))


def by_hand():
    """A dict of logits made without `add_exits`: 11 exits, named backwards, one of them a convolution."""
    x = inputs = keras.Input((8, 8, 3))
    outputs = {}
    for i in range(12, 1, -1):
        x = layers.Conv2D(4, 3, padding="same")(x)
        if i == 5:
            logits = layers.GlobalAveragePooling2D()(layers.Conv2D(CLASSES, 1)(x))
        else:
            logits = layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x))
        outputs["final" if i == 12 else f"e{i}"] = logits
    return keras.Model(inputs, outputs)


def test_a_model_made_by_hand(tmp_path):
    model = by_hand()
    expected = [*(f"e{i}" for i in range(11, 1, -1)), "final"]  # by depth, and `final` last
    for found in (model, reload(model, tmp_path), clone(model)):
        assert kx.exit_names(found) == expected
        features = kx.exit_features(found)
        assert list(features) == expected
        assert {f.shape for f in features.values()} == {(None, 4)}
        assert kx.cost(found).parameters == found.count_params()
    x = images(model)
    maps = keras.Model(model.input, kx.exit_features(model))(x)
    out = model(x)
    for name, feature in maps.items():
        dense = next(s for s in Graph.of(model).steps if s.outputs[0] is model.output[name]).operation
        if isinstance(dense, layers.Dense):
            np.testing.assert_allclose(dense(feature), out[name], atol=1e-6)
        stripped = kx.strip_exits(model, name)
        np.testing.assert_allclose(stripped(x), out[name], atol=1e-6)


def test_a_multi_exit_model_inside_another(tmp_path):
    """The same exits, in the same order, with the same costs, behind some preprocessing."""
    exits = kx.add_exits(randomise(plain([4] * 12, [1] * 12, size=8)), 10, head="linear")
    inputs = keras.Input((8, 8, 3))
    outer = keras.Model(inputs, exits(layers.Rescaling(0.5)(inputs)))
    x = images(outer)
    for model in (outer, reload(outer, tmp_path)):
        assert same(model(x), exits(x * 0.5))
        assert kx.exit_names(model) == kx.exit_names(exits)
        assert kx.cost(model) == kx.cost(exits)
        with pytest.raises(
            ValueError, match=r"(?s)inside of a nested model.*attach the exits to the whole network"
        ):
            kx.exit_features(model)  # the features are inside, and are no tensors of this model
        assert same(kx.strip_exits(model, "exit_2")(x), kx.strip_exits(exits, "exit_2")(x * 0.5))


@pytest.mark.parametrize("build", [nested, operators], ids=lambda build: build.__name__)
def test_weights_of_a_network_built_again(build, tmp_path):
    """Weights alone go from one network with exits to another that is built in the same way."""
    first = kx.add_exits(randomise(build()), 2)
    second = kx.add_exits(build(), 2)
    x = images(first)
    assert not same(first(x), second(x))
    first.save_weights(tmp_path / "model.weights.h5")
    second.load_weights(tmp_path / "model.weights.h5")
    assert same(first(x), second(x))


# Heads -------------------------------------------------------------------------------------------


def own_map(tensor, width, name):
    return layers.Conv2D(width + 1, 3, 2, name=f"{name}_own")(tensor)


def own_vector(tensor, width, name):
    return layers.Flatten(name=f"{name}_own")(layers.MaxPooling2D(4, name=f"{name}_max")(tensor))


@pytest.mark.parametrize("head", [*HEADS, own_map, own_vector], ids=lambda h: getattr(h, "__name__", h))
def test_heads(head, tmp_path):
    """From 32 and 16 pixels to a last map of 4: three halvings, two; and none at the last map itself."""
    model = randomise(plain([4, 6, 8, 10], [1, 2, 2, 2]))
    x = images(model)
    exits = kx.add_exits(model, ["conv1", "conv2", "conv4"], head=head)
    graph = Graph.of(exits)
    trunk = graph.ancestors(exits.output["final"])
    for name, halvings in (("exit_1", 3), ("exit_2", 2), ("exit_3", 0)):
        steps = [graph.steps[i] for i in graph.ancestors(exits.output[name]) - trunk]
        kinds = layers.Conv2D | layers.DepthwiseConv2D
        strides = [s.operation.strides for s in steps if isinstance(s.operation, kinds)]
        if head in HEADS:
            assert strides.count((2, 2)) == (0 if head == "linear" else halvings)
            assert bool(strides) == (head != "linear")
        assert all(s.operation.name.startswith(name) for s in steps)
    assert {f.shape for f in kx.exit_features(exits).values()} == {(None, 10)}
    assert same(reload(exits, tmp_path)(x), exits(x))


@pytest.mark.parametrize("size", [(33, 33), (40, 24), (17, 64)], ids=str)
def test_convolutional_heads_end_at_the_resolution_of_the_last_map(size):
    """Sizes that are no powers of two: halvings are counted to the nearest whole number."""
    x = inputs = keras.Input((*size, 3))
    for i in range(4):
        x = conv(x, 4 + i, 2, name=f"map{i}")
    model = keras.Model(inputs, classify(x))
    exits = kx.add_exits(model, ["map0", "map1", "map2"], head="conv")
    for name in ("exit_1", "exit_2", "exit_3"):
        assert exits.get_layer(f"{name}_pool").input.shape[1:3] == x.shape[1:3]


def test_features_are_as_wide_as_the_hidden_layer_of_a_vgg():
    x = inputs = keras.Input((16, 16, 3))
    for filters in (4, 6, 8):
        x = layers.MaxPooling2D(2)(conv(x, filters))
    x = layers.Dense(40, "relu")(layers.Dense(30, "relu")(layers.Flatten()(x)))
    model = randomise(keras.Model(inputs, layers.Dense(CLASSES, "softmax")(x)))
    exits = kx.add_exits(model, 2, head="conv")
    assert {f.shape for f in kx.exit_features(exits).values()} == {(None, 40)}
    # convolutions lead to the width of the last map, a Dense from there to that of the hidden layer
    assert exits.get_layer("exit_1_pool").output.shape == (None, 8)
    assert exits.get_layer("exit_1_project").kernel.shape == (8, 40)


def test_errors_in_a_callable_head_come_through():
    def broken(tensor, width, name):
        raise KeyError("mine")

    def listing(tensor, width, name):
        return [tensor]

    model = plain(*SIXTEEN, size=16)
    before = state(model)
    with pytest.raises(KeyError, match="mine"):
        kx.add_exits(model, 1, head=broken)
    with pytest.raises(ValueError, match="head of `exit_1`"):
        kx.add_exits(model, 1, head=listing)
    assert state(model) == before


@pytest.mark.parametrize("head", [lambda tensor: tensor, lambda: None], ids=["one", "none"])
def test_callables_that_are_no_heads_are_refused(head):
    model = plain(*SIXTEEN, size=16)
    before = state(model)
    with pytest.raises(TypeError, match=r"`head`(?s:.*)Expected: a callable \(tensor, width, name\)"):
        kx.add_exits(model, 1, head=head)
    assert state(model) == before


@pytest.mark.parametrize("head", [None, 3, "foo", True])
def test_what_is_like_no_head_is_answered_with_the_default(head):
    with pytest.raises(ValueError, match="Fix: for instance head='light'"):
        kx.add_exits(plain(*SIXTEEN, size=16), 1, head=head)


@pytest.mark.parametrize("path", ["my.keras", pathlib.Path("my.keras")], ids=["str", "path"])
def test_the_file_of_a_model_is_answered_with_how_it_is_loaded(path):
    with pytest.raises(TypeError, match=r"add_exits\(keras\.models\.load_model\('my\.keras'\)\)"):
        kx.add_exits(path)


# Endings -----------------------------------------------------------------------------------------

pooled = layers.GlobalAveragePooling2D


def dense(x, *, units=CLASSES, **options):
    return layers.Dense(units, name="classifier", **options)(x)


def pixel(x, *, filters=CLASSES, **options):
    return layers.Conv2D(filters, 1, name="classifier", **options)(x)


# From the last map, 4×4 pixels of 8 channels, to the output; and the activation of the output.
ENDINGS = {
    "Dense softmax": (lambda x: dense(pooled()(x), activation="softmax"), "softmax"),
    "Dense logits": (lambda x: dense(pooled()(x)), "linear"),
    "Dense log_softmax": (lambda x: dense(pooled()(x), activation="log_softmax"), "log_softmax"),
    "Dense, Activation": (lambda x: layers.Activation("softmax")(dense(pooled()(x))), "softmax"),
    "Dense, Softmax": (lambda x: layers.Softmax()(dense(pooled()(x))), "softmax"),
    "Dense, linear Activation": (
        lambda x: layers.Activation("linear")(dense(pooled()(x), activation="softmax")),
        "softmax",
    ),
    "Dense, ops.softmax": (lambda x: ops.softmax(dense(pooled()(x))), "softmax"),
    "Dense, activations.softmax": (lambda x: keras.activations.softmax(dense(pooled()(x))), "softmax"),
    "Dense, ops.log_softmax": (lambda x: ops.log_softmax(dense(pooled()(x))), "log_softmax"),
    "Dense, ops.softmax as activation": (lambda x: dense(pooled()(x), activation=ops.softmax), "softmax"),
    "Dense, tf.nn.softmax": (lambda x: dense(pooled()(x), activation=tf.nn.softmax), "softmax"),
    "Dense, Softmax as activation": (lambda x: dense(pooled()(x), activation=layers.Softmax()), "softmax"),
    "Dense, cast": (lambda x: ops.cast(dense(pooled()(x), activation="softmax"), "float32"), "softmax"),
    "Dense without bias": (lambda x: dense(pooled()(x), use_bias=False, activation="softmax"), "softmax"),
    "global maximum": (lambda x: dense(layers.GlobalMaxPooling2D()(x), activation="softmax"), "softmax"),
    "mean and maximum": (
        lambda x: dense(layers.concatenate([pooled()(x), layers.GlobalMaxPooling2D()(x)])),
        "linear",
    ),
    "ops.mean": (lambda x: dense(ops.mean(x, axis=(1, 2)), activation="softmax"), "softmax"),
    "ops.mean, flat": (
        lambda x: dense(layers.Flatten()(ops.mean(x, axis=(1, 2), keepdims=True))),
        "linear",
    ),
    "pooling over the whole map": (
        lambda x: dense(layers.Flatten()(layers.AveragePooling2D(4)(x)), activation="softmax"),
        "softmax",
    ),
    "Flatten": (lambda x: dense(layers.Flatten()(x), activation="softmax"), "softmax"),
    "Flatten, two hidden layers": (
        lambda x: dense(
            layers.Dense(11, "relu")(layers.Dense(12, "relu")(layers.Flatten()(x))), activation="softmax"
        ),
        "softmax",
    ),
    "LayerNormalization": (
        lambda x: dense(layers.LayerNormalization()(pooled()(x)), activation="softmax"),
        "softmax",
    ),
    "Dropout before": (lambda x: dense(layers.Dropout(0.5)(pooled()(x)), activation="softmax"), "softmax"),
    "Conv, Reshape, Activation": (
        lambda x: layers.Activation("softmax")(
            layers.Reshape((CLASSES,))(pixel(layers.Dropout(0.1)(pooled(keepdims=True)(x))))
        ),
        "softmax",
    ),
    "Conv, Flatten, Activation": (
        lambda x: layers.Activation("softmax")(
            layers.Flatten()(pixel(layers.Conv2D(9, 1, activation="hard_silu")(pooled(keepdims=True)(x))))
        ),
        "softmax",
    ),
    "Conv softmax on one pixel, Flatten": (
        lambda x: layers.Flatten()(pixel(pooled(keepdims=True)(x), activation="softmax")),
        "softmax",
    ),
    "Conv, pooling": (lambda x: pooled()(pixel(x)), "linear"),
    "Conv, pooling, softmax": (lambda x: layers.Softmax()(pooled()(pixel(x))), "softmax"),
    "Dense on a map, pooling": (lambda x: pooled()(dense(x)), "linear"),
    "Dense on a map, pooling, softmax": (lambda x: layers.Softmax()(pooled()(dense(x))), "softmax"),
    "Dense on one pixel, Flatten": (
        lambda x: layers.Flatten()(dense(pooled(keepdims=True)(x), activation="softmax")),
        "softmax",
    ),
    "sigmoid": (lambda x: dense(pooled()(x), units=1, activation="sigmoid"), "sigmoid"),
    "sigmoid Activation": (lambda x: layers.Activation("sigmoid")(dense(pooled()(x), units=1)), "sigmoid"),
    "ops.sigmoid": (lambda x: ops.sigmoid(dense(pooled()(x), units=1)), "sigmoid"),
    "Conv to one filter": (
        lambda x: layers.Activation("sigmoid")(pooled()(pixel(x, filters=1))),
        "sigmoid",
    ),
    "two classes": (lambda x: dense(pooled()(x), units=2, activation="softmax"), "softmax"),
}


def ending(finish):
    inputs = keras.Input((8, 8, 3))
    x = conv(conv(inputs, 6, norm=False), 8, 2, norm=False)
    return randomise(keras.Model(inputs, finish(x)))


# These are saved and loaded too: each way to find the classifier, each activation.
SAVED_ENDINGS = {
    "Dense, ops.softmax",
    "Dense log_softmax",
    "Dense, Softmax as activation",
    "Conv, Reshape, Activation",
    "Conv, pooling, softmax",
    "Dense on a map, pooling",
    "sigmoid",
}


@pytest.mark.parametrize("name", ENDINGS)
def test_endings(name, tmp_path):
    finish, activation = ENDINGS[name]
    model = ending(finish)
    x = images(model)
    classifier = model.get_layer("classifier")
    expected = logits_by_hand(model, classifier, x)
    if activation == "sigmoid":
        expected = np.concatenate([0 * expected, expected], axis=1)
    exits = kx.add_exits(model, 1, head="linear")
    out = exits(x)
    np.testing.assert_allclose(out["final"], expected, atol=1e-5)
    assert {logits.shape for logits in out.values()} == {expected.shape}
    assert {logits.dtype for logits in out.values()} == {tf.float32}
    features = kx.exit_features(exits)
    assert {f.shape for f in features.values()} == {(None, classifier.kernel.shape[-2])}
    np.testing.assert_allclose(kx.strip_exits(exits)(x), model(x), atol=1e-6)
    for exit_name in ("exit_1", "final"):
        restored, logits = kx.strip_exits(exits, exit_name), np.asarray(out[exit_name])
        activated = {
            "softmax": ops.softmax(logits),
            "linear": logits,
            "log_softmax": log_softmax(logits),
            "sigmoid": ops.softmax(logits)[:, 1:],
        }[activation]
        np.testing.assert_allclose(restored(x), activated, atol=1e-6)
    if name in SAVED_ENDINGS:
        loaded = reload(exits, tmp_path)
        for copy in (loaded, clone(exits)):
            assert same(copy(x), out)
            assert same(kx.strip_exits(copy)(x), kx.strip_exits(exits)(x))


@pytest.mark.parametrize(
    ("policy", "last"),
    [
        ("mixed_bfloat16", "as the rest"),
        ("mixed_bfloat16", "float32"),
        ("mixed_bfloat16", "operators"),
        ("mixed_float16", "as the rest"),
        ("mixed_float16", "float32 Activation"),
    ],
)
def test_half_precision(policy, last, tmp_path):
    """Within a few roundings of the logits' size; logits are float32, heads compute as the network does."""
    atol = {"mixed_bfloat16": 2**-6, "mixed_float16": 2**-9}[policy]
    keras.config.set_dtype_policy(policy)
    if last == "operators":
        model = operators()
    else:
        inputs = keras.Input((16, 16, 3))
        x = layers.GlobalAveragePooling2D()(conv(conv(conv(inputs, 4), 6, 2), 8, 2))
        if last == "float32 Activation":
            x = layers.Activation("softmax", dtype="float32")(layers.Dense(CLASSES, name="classifier")(x))
        else:
            dtype = "float32" if last == "float32" else None
            x = layers.Dense(CLASSES, activation="softmax", dtype=dtype, name="classifier")(x)
        model = keras.Model(inputs, x)
    keras.config.set_dtype_policy("float32")
    randomise(model)
    x = images(model)
    exits = kx.add_exits(model, 2, head="conv")
    out = exits(x)
    assert {logits.dtype for logits in out.values()} == {tf.float32}
    expected = logits_by_hand(model, model.get_layer("classifier"), x)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(out["final"], expected, atol=atol * max(scale, 1))
    probabilities = np.asarray(ops.cast(model(x), "float32"))
    np.testing.assert_allclose(ops.softmax(out["final"]), probabilities, atol=atol)
    stripped = kx.strip_exits(exits)(x)
    np.testing.assert_allclose(ops.cast(stripped, "float32"), probabilities, atol=atol)
    heads = [la for la in exits.layers if re.match(r"exit_\d_(block|pool|project)", la.name)]
    assert heads
    assert {la.compute_dtype for la in heads} == {policy.removeprefix("mixed_")}
    assert {v.dtype for v in exits.trainable_variables} == {"float32"}
    assert same(reload(exits, tmp_path)(x), out)
    assert same(clone(exits)(x), out)


def test_channels_first(tmp_path):
    inputs = keras.Input((3, 16, 16))
    x = inputs
    for filters, strides in ((4, 1), (6, 2), (8, 2)):
        x = layers.Conv2D(filters, 3, strides, padding="same", data_format="channels_first")(x)
    x = layers.Conv2D(CLASSES, 1, data_format="channels_first")(x)
    x = layers.Softmax()(layers.GlobalAveragePooling2D(data_format="channels_first")(x))
    model = randomise(keras.Model(inputs, x))
    exits = kx.add_exits(model, 2, head="conv")
    assert {t.shape for t in exits.output.values()} == {(None, CLASSES)}
    assert {f.shape for f in kx.exit_features(exits).values()} == {(None, 8)}
    assert [source(exits, n).shape for n in ("exit_1", "exit_2")] == [(None, 4, 16, 16), (None, 6, 8, 8)]
    assert exits.get_layer("exit_1_pool").input.shape == (None, 8, 4, 4)
    assert kx.strip_exits(exits).output.shape == (None, CLASSES)
    # TensorFlow's convolutions on the CPU take this format too, in the builds for x86.
    x = images(model)
    out = exits(x)
    np.testing.assert_allclose(ops.softmax(out["final"]), model(x), atol=1e-6)
    exits.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    for name, logits in out.items():
        np.testing.assert_allclose(served.serve(x)[name], logits, atol=1e-5)


# keras.applications ------------------------------------------------------------------------------

APPLICATIONS = {
    "MobileNet": {"alpha": 0.25, "input_shape": (32, 32, 3)},
    "MobileNetV3Small": {"alpha": 0.75, "minimalistic": True, "input_shape": (48, 32, 3)},
    "EfficientNetB0": {"input_shape": (32, 32, 3)},
    "DenseNet121": {"input_shape": (32, 32, 3)},
    "NASNetMobile": {"input_shape": (32, 32, 3)},
    "ConvNeXtTiny": {"input_shape": (32, 32, 3)},
    "ResNet50": {"input_shape": (32, 32, 3), "classifier_activation": None},
    "VGG16": {"input_shape": (32, 32, 3)},
}
WIDTHS = {"MobileNet": 256, "MobileNetV3Small": 1024, "EfficientNetB0": 1280}
WIDTHS |= {"DenseNet121": 1024, "NASNetMobile": 1056, "ConvNeXtTiny": 768, "ResNet50": 2048, "VGG16": 4096}
SAVED = ("MobileNet", "MobileNetV3Small")


@pytest.mark.parametrize("name", APPLICATIONS)
def test_keras_applications(name, tmp_path):
    model = getattr(keras.applications, name)(weights=None, classes=7, **APPLICATIONS[name])
    randomise(model)
    x = images(model, count=2)
    classifier = next(la for la in reversed(model.layers) if isinstance(la, layers.Dense | layers.Conv2D))
    # Logits of about 1, or with random weights the softmax is as good as one-hot.
    expected = logits_by_hand(model, classifier, x)
    scale = np.abs(expected).max()
    classifier.set_weights([w / scale for w in classifier.get_weights()])
    expected /= scale
    assert np.ptp(expected) > 0.1
    before = np.asarray(model(x))
    exits = kx.add_exits(model, 3, head="separable" if name in SAVED else "linear")
    out = exits(x)
    np.testing.assert_allclose(out["final"], expected, atol=1e-5)
    activated = out["final"] if name == "ResNet50" else ops.softmax(out["final"])
    np.testing.assert_allclose(activated, before, atol=1e-6)
    assert {logits.shape for logits in out.values()} == {(2, 7)}
    assert {f.shape for f in kx.exit_features(exits).values()} == {(None, WIDTHS[name])}
    stripped = kx.strip_exits(exits)
    np.testing.assert_allclose(stripped(x), before, atol=1e-6)
    assert stripped.count_params() == model.count_params()
    assert kx.cost(exits).parameters == exits.count_params()
    if name in SAVED:
        loaded = reload(exits, tmp_path)
        assert same(loaded(x), out)
        assert kx.exit_names(loaded) == ["exit_1", "exit_2", "exit_3", "final"]


@pytest.mark.parametrize("name", ["VGG11", "ResNeXt29"])
def test_our_applications_by_stage(name, tmp_path):
    build = getattr(kx.applications, name)
    model = randomise(build(input_shape=(32, 32, 3), classes=7, width=1 / 64 if "NeXt" in name else 1 / 16))
    x = images(model, count=2)
    exits = kx.add_exits(model, 3, placement="stage")
    out = exits(x)
    classifier = next(la for la in reversed(model.layers) if isinstance(la, layers.Dense))
    expected = logits_by_hand(model, classifier, x)
    np.testing.assert_allclose(out["final"], expected, atol=1e-5 * max(np.abs(expected).max(), 1))
    np.testing.assert_allclose(kx.strip_exits(exits)(x), model(x), atol=1e-6)
    # three resolutions, none of them that of the last map, and work spared at each
    sides = [source(exits, exit_name).shape[1] for exit_name in kx.exit_names(exits)[:-1]]
    assert sides == sorted(set(sides), reverse=True)
    costs = kx.cost(exits)
    assert costs.parameters == exits.count_params()
    assert min(costs.stage_multiply_adds) > classifier.kernel.shape[0] * 7
    if name == "ResNeXt29":  # it has a layer of this library
        assert same(reload(exits, tmp_path)(x), out)


def test_a_headless_application_in_a_sequential_model():
    """The commonest network of all: preprocessing, a backbone without its top, pooling, a new classifier."""
    body = keras.applications.MobileNet(
        weights=None, alpha=0.25, include_top=False, input_shape=(32, 32, 3), name="mobilenet"
    )
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.RandomFlip(),
            layers.Rescaling(1 / 127.5, offset=-1),
            body,
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.2),
            layers.Dense(CLASSES, activation="softmax", name="classifier"),
        ]
    )
    randomise(model)
    x = 255 * images(model)
    exits = kx.add_exits(model, ["mobilenet/conv_pw_3_relu", "mobilenet/conv_pw_9_relu"], head="linear")
    # Keras augments where `training` is left open.
    expected = logits_by_hand(model, model.get_layer("classifier"), x)
    np.testing.assert_allclose(exits(x, training=False)["final"], expected, atol=1e-5)
    assert {f.shape for f in kx.exit_features(exits).values()} == {(None, 256)}


# What is refused ---------------------------------------------------------------------------------


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(CLASSES)

    def call(self, inputs):
        return self.dense(inputs)


class Overridden(keras.Model):
    """A functional model whose own `call` does more than its graph says."""

    def __init__(self):
        inputs = keras.Input((16, 16, 3))
        super().__init__(inputs, classify(conv(conv(conv(inputs, 4), 6, 2), 8, 2)))

    def call(self, inputs, training=None):
        return super().call(inputs / 255.0, training=training)


def two_outputs():
    inputs = keras.Input((16, 16, 3))
    x = conv(conv(inputs, 4), 6, 2)
    return keras.Model(inputs, [classify(x), classify(x, name="other")])


def two_inputs():
    one, two = keras.Input((16, 16, 3)), keras.Input((16, 16, 3))
    return keras.Model([one, two], classify(conv(one + two, 6, 2)))


def vectors():
    return keras.Sequential([keras.Input((9,)), layers.Dense(8), layers.Dense(CLASSES)])


def perceptron():
    """Images in, but no convolution."""
    hidden = [layers.Flatten(), layers.Dense(8, activation="relu")]
    return keras.Sequential([keras.Input((16, 16, 3)), *hidden, layers.Dense(CLASSES, "softmax")])


def segmentation():
    inputs = keras.Input((16, 16, 3))
    return keras.Model(inputs, layers.Conv2D(CLASSES, 1, activation="softmax")(conv(inputs, 4)))


def unshaped():
    """A Sequential model that Keras cannot make functional, though it has been called."""

    class Opaque(layers.Layer):
        def call(self, inputs):
            return inputs * 2.0

        def compute_output_spec(self, *args, **kwargs):
            raise NotImplementedError

    body = [Opaque(), layers.Conv2D(4, 3), layers.Conv2D(4, 3)]
    model = keras.Sequential([*body, layers.GlobalAveragePooling2D(), layers.Dense(CLASSES)])
    model(np.zeros((1, 16, 16, 3)))
    return model


REFUSED = {
    "softmax over the rows": (
        lambda: ending(lambda x: layers.Softmax(axis=0)(dense(pooled()(x)))),
        "(?s)does not run over the classes.*axis 0",
    ),
    "ops.softmax over the rows": (
        lambda: ending(lambda x: ops.softmax(dense(pooled()(x)), axis=0)),
        "does not run over the classes",
    ),
    "softmax over a single column": (
        lambda: ending(lambda x: layers.Softmax()(layers.Reshape((CLASSES, 1))(dense(pooled()(x))))),
        "does not run over the classes",
    ),
    "multi-label": (lambda: ending(lambda x: dense(pooled()(x), activation="sigmoid")), "multi-label"),
    "multi-label Activation": (
        lambda: ending(lambda x: layers.Activation("sigmoid")(dense(pooled()(x)))),
        "multi-label",
    ),
    "regression": (lambda: ending(lambda x: dense(pooled()(x), units=1)), "regression"),
    "regression, relu": (
        lambda: ending(lambda x: dense(pooled()(x), units=1, activation="relu")),
        "regression",
    ),
    "Dense relu": (lambda: ending(lambda x: dense(pooled()(x), activation="relu")), "activation.*'relu'"),
    "relu, then softmax": (
        lambda: ending(lambda x: layers.Softmax()(pooled()(pixel(x, activation="relu")))),
        "two activations",
    ),
    "two softmaxes": (
        lambda: ending(lambda x: layers.Softmax()(dense(pooled()(x), activation="softmax"))),
        "two activations",
    ),
    "scaled logits": (
        lambda: ending(lambda x: ops.softmax(dense(pooled()(x)) / 3.0)),
        "does not end in a classifier",
    ),
    "no classifier": (lambda: ending(lambda x: pooled()(x)), "does not end in a classifier"),
    "BatchNorm on the logits": (
        lambda: ending(lambda x: layers.BatchNormalization()(dense(pooled()(x)))),
        "does not end in a classifier.*BatchNormalization",
    ),
    # The mean of softmaxes is not the softmax of the mean: there are no logits to give.
    "softmax, then pooling": (
        lambda: ending(lambda x: pooled()(pixel(x, activation="softmax"))),
        "(?i)expected",
    ),
    "softmax layer, then pooling": (
        lambda: ending(lambda x: pooled()(layers.Softmax()(pixel(x)))),
        "(?i)expected",
    ),
    # 4×4 pixels with 5 classes each are no 80 classes, and no 5 either.
    "a map of classes, flat": (
        lambda: ending(lambda x: layers.Softmax()(layers.Flatten()(pixel(x)))),
        "(?i)expected",
    ),
    "a map of classes by Dense, flat": (lambda: ending(lambda x: layers.Flatten()(dense(x))), "(?i)expected"),
    "a sequence of one": (
        lambda: ending(lambda x: layers.Flatten()(dense(layers.Reshape((1, 8))(pooled()(x))))),
        "(?i)expected",
    ),
    # Four questions with five answers each.
    "several softmaxes side by side": (
        lambda: ending(
            lambda x: layers.Flatten()(layers.Softmax()(layers.Reshape((4, 5))(dense(pooled()(x), units=20))))
        ),
        "(?i)expected",
    ),
    "segmentation": (segmentation, "not one row of class scores"),
    "a sequence": (
        lambda: ending(lambda x: dense(layers.Reshape((16, 8))(x), activation="softmax")),
        "not one row of class scores",
    ),
    "two outputs": (two_outputs, "several outputs"),
    "exits already": (lambda: kx.add_exits(plain(*SIXTEEN, size=16), 1), "exits already.*strip_exits"),
    "two inputs": (two_inputs, "one batch of images"),
    "vectors": (vectors, "one batch of images.*shape"),
    "no convolution": (perceptron, "feature map"),
    "unbuilt": (lambda: keras.Sequential([layers.Conv2D(4, 3), layers.Dense(5)]), "not built.*keras.Input"),
    "subclassed": (Subclassed, "Subclassed, a subclassed model"),
    "a call of its own": (Overridden, "Overridden"),
    "not functional": (unshaped, "functional"),
    "no model": (lambda: "resnet50", "functional and Sequential models only"),
    "a layer": (lambda: layers.Dense(5), "functional and Sequential models only"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_models_that_are_refused(case):
    build, message = case
    model = build()
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}") as error:
        kx.add_exits(model, 1)
    assert re.search(r"(?s)\n  Expected: .*\n  Received: .*\n  Fix: ", str(error.value))


@pytest.mark.parametrize(
    "name", ["multi-label", "two outputs", "softmax, then pooling", "a map of classes, flat"]
)
def test_a_refusal_leaves_the_model_alone(name):
    model = REFUSED[name][0]()
    x = images(model)
    config, out = model.to_json(), model(x)
    with pytest.raises(ValueError):
        kx.add_exits(model, 1)
    assert model.to_json() == config
    assert all(same(a, b) for a, b in zip(tf.nest.flatten(model(x)), tf.nest.flatten(out), strict=True))


@pytest.mark.parametrize("call", [kx.exit_names, kx.exit_features, kx.strip_exits])
@pytest.mark.parametrize("build", [sequential, Subclassed, two_outputs], ids=lambda build: build.__name__)
def test_models_without_exits_are_refused(call, build):
    with pytest.raises(ValueError, match=r"(?s)not a multi-exit model.*Received.*Fix.*add_exits"):
        call(build())


@pytest.mark.parametrize("build", [Subclassed, two_outputs], ids=lambda build: build.__name__)
def test_costs_of_models_with_neither_exits_nor_one_output_are_refused(build):
    with pytest.raises(ValueError, match=r"(?s)not a multi-exit model.*Received.*Fix.*add_exits"):
        kx.cost(build())


def test_stripping_refuses_what_it_does_not_know():
    exits = kx.add_exits(plain(*SIXTEEN, size=16), 2)
    with pytest.raises(ValueError, match=r"(?s)`exit`.*'exit_1' or 'exit_2' or 'final'.*exit='exit_3'"):
        kx.strip_exits(exits, "exit_3")
    for activation in ("softmax", "linear", keras.activations.softmax, True):
        with pytest.raises(ValueError, match="`activation`"):
            kx.strip_exits(exits, activation=activation)


def test_logits_layers_are_known_to_keras():
    assert keras.saving.get_registered_name(ExitLogits) == "keras_exitens>ExitLogits"

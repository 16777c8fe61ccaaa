"""Nested models whose layers have the same names: opened, shared, saved."""

import keras
import numpy as np
import pytest
from harness import CLASSES, classify, conv, images, logits_by_hand, randomise, same, source, sources
from keras import layers, ops

import keras_exitens as kx
from keras_exitens._graph.dag import Graph
from keras_exitens._graph.flattening import flatten
from keras_exitens._graph.wrapping import unwrapped, wrap
from keras_exitens._keras import call_that_made

pytestmark = pytest.mark.filterwarnings(
    "ignore:To leave early saves nothing"
)  # in networks as small as these


def twins():
    """Two backbones of one kind, side by side."""

    def body(name):
        keras.backend.clear_session()  # automatic names begin again, as in a new process
        inputs = keras.Input((16, 16, 3))
        x = conv(inputs / 2.0, 4)
        x = x + conv(x, 4)
        return keras.Model(inputs, conv(x, 6, 2), name=name)

    left, right = body("left"), body("right")
    inputs = keras.Input((16, 16, 3))
    x = layers.concatenate([left(inputs), right(inputs[:, ::-1])])
    return keras.Model(inputs, classify(conv(x, 8, 2, name="joined")), name="twins")


def shared():
    """One after the other, one of them twice, each with a layer that is called on maps of two sizes."""

    def body(name, channels):
        inputs = keras.Input((None, None, channels))
        x = layers.Conv2D(4, 3, 2, padding="same", name="conv")(inputs)
        x = layers.BatchNormalization(name="bn")(x)
        both = layers.Conv2D(4, 3, padding="same", activation="relu", name="both")
        y = layers.UpSampling2D(name="up")(both(layers.MaxPooling2D(2, name="down")(x)))
        return keras.Model(inputs, layers.Add(name="sum")([both(x), y]), name=name)

    inputs = keras.Input((32, 32, 3))
    twice = body("two", 4)
    x = twice(twice(body("one", 3)(inputs)))
    return keras.Model(inputs, classify(layers.Conv2D(8, 3, name="conv")(x)), name="shared")


def deep():
    """Models in models, where layers and models of all depths have the same names."""

    def leaf(name, channels):
        conv = layers.Conv2D(4, 3, padding="same", name="a")
        return keras.Sequential([keras.Input((16, 16, channels)), conv], name=name)

    def branch(name, channels):
        inputs = keras.Input((16, 16, channels))
        x = layers.BatchNormalization(name="b")(leaf("leaf", channels)(inputs))
        return keras.Model(
            inputs, layers.ReLU(name="c")(leaf("top", 4)(layers.Dropout(0.0, name="a")(x))), name=name
        )

    inputs = keras.Input((16, 16, 3), name="b")
    x = layers.Conv2D(6, 3, 2, name="a")(branch("second", 4)(branch("first", 3)(inputs)))
    return keras.Model(inputs, classify(layers.ReLU(name="c")(x)), name="deep")


def arguments():
    """Layers that are called with more than one tensor and by keyword, or give more than one."""

    def body(name):
        inputs = keras.Input((8, 8, 4))
        one, two = ops.split(layers.Conv2D(4, 3, padding="same", name="conv")(inputs), 2, axis=-1)
        attention = layers.MultiHeadAttention(1, 2, attention_axes=(1, 2), name="attention")
        x = layers.Concatenate(name="join")([attention(one, value=two), two])
        return keras.Model(inputs, layers.BatchNormalization(name="bn")(x, training=False), name=name)

    inputs = keras.Input((16, 16, 3))
    first, second = body("first"), body("second")
    x = second(first(conv(inputs, 4, 2)), training=False)
    return keras.Model(inputs, classify(conv(x, 6, 2)), name="arguments")


CLASHING = {
    twins: ["left/conv2d", "right/conv2d"],
    shared: ["one/both", "two/bn"],
    deep: ["first/leaf/a", "second/b"],
    arguments: ["first/conv", "second/attention"],
}


@pytest.fixture(params=CLASHING, ids=lambda build: build.__name__)
def case(request):
    return randomise(request.param()), CLASHING[request.param]


def test_exits_stand_inside_all_of_them(case):
    model, names = case
    x = images(model)
    exits = kx.add_exits(model, names, head="linear")
    expected = logits_by_hand(model, model.get_layer("classifier"), x)
    np.testing.assert_allclose(exits(x)["final"], expected, atol=1e-5)
    inside = [unwrapped(source(exits, f"exit_{i}")._keras_history.operation) for i in (1, 2)]
    for layer, name in zip(inside, names, strict=True):
        *path, last = name.split("/")
        found = model
        for part in path:
            found = found.get_layer(part)
        assert layer.name == last
        assert layer in found.layers or layer in found.operations
    assert {id(v) for v in model.variables} <= {id(v) for v in exits.variables}
    np.testing.assert_allclose(kx.strip_exits(exits)(x), model(x), atol=1e-6)
    assert {id(v) for v in kx.strip_exits(exits).variables} == {id(v) for v in model.variables}


def test_compute_places_exits_inside_both():
    found = sources(exits := kx.add_exits(twins(), 5), kx.exit_names(exits))
    assert any(name.startswith("right_") for name in found)
    assert any(not name.startswith(("right_", "joined")) for name in found)
    assert kx.cost(exits).parameters == exits.count_params()


def test_layers_keep_their_names_and_models_their_numbers(case):
    model, names = case
    x = images(model)
    config, before = model.to_json(), model(x)
    kx.add_exits(model, names)
    assert model.to_json() == config
    assert same(model(x), before)


def step(model, x):
    """One step of plain gradient descent on the sum of the losses, in training mode."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), dict.fromkeys(model.output, loss), run_eagerly=True)
    model.fit(x, dict.fromkeys(model.output, np.arange(len(x)) % CLASSES), verbose=0)
    return model(x)


def test_saved_loaded_and_cloned_they_stay_shared(case, tmp_path):
    """Each copy has as many weights, gives the same bits, and is the same after a training step too."""
    model, names = case
    x = images(model)
    exits = kx.add_exits(model, names, head="linear")
    exits.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    cloned = keras.models.clone_model(exits)
    cloned.set_weights(exits.get_weights())
    rebuilt = keras.Model.from_config(exits.get_config())
    exits.save_weights(tmp_path / "model.weights.h5")
    rebuilt.load_weights(tmp_path / "model.weights.h5")
    out = exits(x)
    copies = loaded, cloned, rebuilt
    for copy in copies:
        assert same(copy(x), out)
        assert copy.count_params() == exits.count_params()
        assert kx.exit_names(copy) == ["exit_1", "exit_2", "final"]
        np.testing.assert_allclose(kx.strip_exits(copy)(x), model(x), atol=1e-6)
    after = step(exits, x)
    assert np.abs(after["final"] - out["final"]).max() > 1e-3
    for copy in copies:
        for name, logits in step(copy, x).items():
            np.testing.assert_allclose(logits, after[name], atol=1e-5)


def test_a_wrapped_operation_stays_as_it_is_when_made_flat_again():
    exits = kx.add_exits(twins(), 3)
    again = flatten(exits)
    assert [type(la) for la in exits.layers] == [
        type(la) for la in keras.Model(again.inputs, again.outputs).layers
    ]
    assert [s.operation.name for s in Graph.of(exits).steps] == [
        s.operation.name for s in Graph.of(keras.Model(again.inputs, again.outputs)).steps
    ]


def test_exits_for_a_network_that_was_stripped():
    model = randomise(twins())
    x = images(model)
    again = kx.add_exits(kx.strip_exits(kx.add_exits(model, 3)), 4)
    np.testing.assert_allclose(ops.softmax(again(x)["final"]), model(x), atol=1e-6)


def test_a_cast_at_the_door_gets_a_name_of_its_own():
    """Bytes enter two models: what casts them must not clash with an operation of that name inside."""

    def body(name):
        keras.backend.clear_session()
        inputs = keras.Input((16, 16, 3))
        return keras.Model(inputs, conv(ops.cast(inputs, "float32"), 4), name=name)

    left, right = body("left"), body("right")
    inputs = keras.Input((16, 16, 3), dtype="uint8")
    keras.backend.clear_session()
    x = layers.concatenate([left(inputs), right(inputs)])
    model = randomise(keras.Model(inputs, classify(conv(x, 6, 2))))
    x = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3)).astype("uint8")
    exits = kx.add_exits(model, ["left/conv2d", "right/conv2d"], head="linear")
    np.testing.assert_allclose(ops.softmax(exits(x)["final"]), model(x), atol=1e-6)
    copy = keras.models.clone_model(exits)
    copy.set_weights(exits.get_weights())
    assert same(copy(x), exits(x))


def test_a_layer_that_is_called_in_two_ways_keeps_its_model_closed():
    def body(name, channels):
        inputs = keras.Input((8, 8, channels))
        norm = layers.BatchNormalization(name="norm")
        x = norm(layers.Conv2D(4, 3, padding="same", name="conv")(inputs))
        return keras.Model(inputs, norm(x, training=False), name=name)

    inputs = keras.Input((8, 8, 3))
    x = body("second", 4)(body("first", 3)(inputs))
    model = randomise(keras.Model(inputs, classify(conv(x, 6))))
    x = images(model)
    exits = kx.add_exits(model, ["first/conv", "second"], head="linear")
    np.testing.assert_allclose(ops.softmax(exits(x)["final"]), model(x), atol=1e-6)
    with pytest.raises(ValueError, match=r"(?s)'second' cannot be opened.*rename the layers of 'second'"):
        kx.add_exits(model, ["second/conv"])


def test_wrap_leaves_open_the_sizes_that_differ():
    dense = layers.Conv2D(2, 1, name="conv")
    outs = [dense(keras.Input(shape)) for shape in ((8, 4, 3), (6, 4, 3))]
    wrapper = wrap(dense, [call_that_made(out) for out in outs], "w")
    assert wrapper.inputs[0].shape == (None, None, 4, 3)
    assert unwrapped(wrapper) is dense
    assert unwrapped(dense) is dense
    twice = keras.Model(i := keras.Input((4, 4, 2)), dense_twice(layers.Conv2D(2, 1))(i))
    assert unwrapped(twice) is twice


def dense_twice(layer):
    return lambda x: layer(layer(x))

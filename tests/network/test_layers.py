"""Exit heads, and the layer that turns a classifier into logits."""

import math
import threading

import keras
import numpy as np
import pytest
from harness import randomise
from keras import layers, ops

from keras_exitens._attach.heads import HEADS, apply_head, multiply_adds
from keras_exitens._graph.counting import count_operations
from keras_exitens._graph.dag import Graph
from keras_exitens._network.exit_logits import ExitLogits

RNG = np.random.default_rng(0)


# Classifiers, the shape of what enters them, and the axes of the map that are averaged ----------

CLASSIFIERS = {
    "softmax": (lambda: layers.Dense(5, activation="softmax"), (7,)),
    "logits": (lambda: layers.Dense(5), (7,)),
    "without a bias": (lambda: layers.Dense(5, use_bias=False, activation="log_softmax"), (7,)),
    "one unit": (lambda: layers.Dense(1, activation="sigmoid"), (7,)),
    "activation is a layer": (lambda: layers.Dense(5, activation=layers.Softmax()), (7,)),
    "1x1 convolution": (lambda: layers.Conv2D(5, 1, activation="softmax"), (3, 4, 7)),
    "convolution to one pixel": (lambda: layers.Conv2D(5, 1), (1, 1, 7)),
    "one filter": (lambda: layers.Conv2D(1, 1, activation="sigmoid"), (3, 4, 7)),
    "Dense on a map": (lambda: layers.Dense(5, activation="softmax"), (3, 4, 7)),
}


@pytest.fixture(params=CLASSIFIERS.values(), ids=CLASSIFIERS.keys())
def case(request):
    """A layer of logits, what enters it, and the logits by a matrix product in NumPy."""
    build, shape = request.param
    classifier = build()
    x = RNG.normal(size=(6, *shape)).astype("float32")
    classifier.build(x.shape)
    for w in classifier.weights:
        w.assign(RNG.normal(size=w.shape))
    layer = ExitLogits(classifier, name="exit")
    kernel, *bias = (np.asarray(w, "float64") for w in classifier.weights)
    logits = x.astype("float64") @ kernel.reshape(kernel.shape[-2:]) + sum(bias)
    logits = logits.reshape(6, -1, logits.shape[-1]).mean(axis=1)
    if logits.shape[-1] == 1:
        logits = np.concatenate([0 * logits, logits], axis=-1)
    return layer, x, logits


def test_logits_are_the_classifier_without_its_activation(case):
    layer, x, expected = case
    got = layer(x)
    assert got.dtype == "float32"
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_symbolic_shape_is_the_real_one(case):
    layer, x, expected = case
    symbolic = layer(keras.Input(x.shape[1:]))
    assert symbolic.shape == (None, expected.shape[1])
    assert symbolic.dtype == "float32"
    model = keras.Model(inputs := keras.Input(x.shape[1:]), layer(inputs))
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-5)


def test_the_classifier_is_shared_and_keeps_its_activation(case):
    layer, x, _ = case
    classifier, activation = layer.classifier, layer.classifier.activation
    before = np.asarray(classifier(x))
    layer(x)
    assert classifier.activation is activation
    np.testing.assert_array_equal(classifier(x), before)
    assert [id(v) for v in layer.variables] == [id(v) for v in classifier.variables]


def test_the_same_after_a_round_trip_through_the_config(case):
    layer, x, _ = case
    again = ExitLogits.from_config(layer.get_config())
    assert again.name == "exit"
    assert again.classifier is not layer.classifier
    assert type(again.activation) is type(layer.activation)
    again.build(x.shape)
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(again(x), layer(x))


@pytest.mark.parametrize("activation", ["softmax", "log_softmax", "sigmoid", "linear", None])
def test_the_activation_survives_the_config(activation):
    layer = ExitLogits(layers.Dense(5), activation, name="exit_7", trainable=False)
    again = ExitLogits.from_config(layer.get_config())
    assert again.activation is keras.activations.get(activation) is layer.activation
    assert (again.name, again.trainable) == ("exit_7", False)


def test_two_logits_of_a_single_unit_have_the_sigmoid_as_softmax():
    classifier = layers.Dense(1, activation="sigmoid")
    x = RNG.normal(size=(8, 3)).astype("float32") * 4
    probability = np.asarray(classifier(x))
    logits = np.asarray(ExitLogits(classifier, "sigmoid")(x))
    np.testing.assert_array_equal(logits[:, 0], 0)
    softmax = np.asarray(ops.softmax(logits))
    np.testing.assert_allclose(softmax, np.concatenate([1 - probability, probability], axis=1), atol=1e-6)


def test_the_activation_comes_back_after_an_error():
    classifier = layers.Dense(3, activation="softmax")
    layer = ExitLogits(classifier)
    layer(np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"axis|shape"):
        layer(np.ones((2, 5)))
    assert classifier.activation is keras.activations.softmax


def test_two_threads_do_not_take_the_activation_from_the_user():
    """Two calls that overlap: the second begins while the first runs, and ends after it."""
    first_runs, second_runs, first_ended = (threading.Event() for _ in range(3))

    class Slow(layers.Dense):
        def call(self, inputs):
            if threading.current_thread().name == "first":
                first_runs.set()
                second_runs.wait(10)
            elif threading.current_thread().name == "second":
                second_runs.set()
                first_ended.wait(10)
            return super().call(inputs)

    classifier = Slow(3, activation="softmax")
    layer = ExitLogits(classifier)
    x = np.ones((2, 4), "float32")
    layer(x)

    def run():
        layer(x)
        if threading.current_thread().name == "first":
            first_ended.set()

    threads = [threading.Thread(target=run, name=name) for name in ("first", "second")]
    for thread in threads:
        thread.start()
        first_runs.wait(10)
    for thread in threads:
        thread.join(30)
    assert classifier.activation is keras.activations.softmax
    np.testing.assert_allclose(ops.sum(classifier(x), axis=-1), 1, rtol=1e-6)


def test_training_the_logits_trains_the_classifier():
    classifier = layers.Dense(3, activation="softmax")
    model = keras.Sequential([keras.Input((4,)), ExitLogits(classifier)])
    before = classifier.get_weights()
    x, y = RNG.normal(size=(8, 4)).astype("float32"), RNG.integers(0, 3, 8)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.train_on_batch(x, y)
    z = x @ before[0] + before[1]
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    gradient = x.T @ (p - np.eye(3)[y]) / 8
    np.testing.assert_allclose(classifier.get_weights()[0], before[0] - 0.01 * gradient, rtol=1e-5)


@pytest.mark.parametrize(
    ("policy", "rtol"), [("mixed_bfloat16", 2**-8), ("mixed_float16", 2**-11), ("float64", 1e-7)]
)
def test_the_classifier_computes_in_its_own_precision(policy, rtol):
    """Logits are float32, but the matrix product is the one that the user's network does."""
    classifier = layers.Dense(5, activation="softmax", dtype=policy)
    x = ops.cast(RNG.normal(size=(6, 7)), classifier.compute_dtype)
    classifier.build(x.shape)
    for w in classifier.weights:
        w.assign(RNG.normal(size=w.shape))
    got = ExitLogits(classifier)(x)
    assert got.dtype == "float32"
    kernel, bias = (ops.cast(w, classifier.compute_dtype) for w in classifier.weights)
    np.testing.assert_array_equal(got, ops.cast(ops.matmul(x, kernel) + bias, "float32"))
    exact = np.asarray(ops.cast(x, "float64")) @ np.asarray(ops.cast(classifier.kernel, "float64"))
    exact = exact + np.asarray(ops.cast(classifier.bias, "float64"))
    assert np.abs(np.asarray(got) - exact).max() <= 4 * rtol * np.abs(exact).max()


def test_inputs_of_full_precision_reach_a_float32_classifier_untouched():
    """The policy of the logits layer itself must not round what passes through it."""
    classifier = layers.Dense(2, dtype="float32", kernel_initializer="ones")
    x = np.array([[1 + 2**-20]], "float32")
    got = ExitLogits(classifier, dtype="mixed_bfloat16")(x)
    np.testing.assert_array_equal(got, [[1 + 2**-20] * 2])


def test_channels_first_convolutions_have_their_shape():
    """Built only: TensorFlow has no such convolution on the CPU."""
    layer = ExitLogits(layers.Conv2D(5, 1, data_format="channels_first"))
    assert layer(keras.Input((7, 3, 4))).shape == (None, 5)
    assert layer.classifier.kernel.shape == (1, 1, 7, 5)


# Heads -----------------------------------------------------------------------------------------


def head(name, *, shape=(16, 16, 4), width=24, features=24, halvings=2, data_format="channels_last"):
    inputs = keras.Input(shape)
    # The head reads the precision of the layer it stands on.
    tensor = layers.Conv2D(
        shape[0 if data_format == "channels_first" else -1], 1, name="body", data_format=data_format
    )(inputs)
    feature = apply_head(
        name,
        tensor,
        width=width,
        features=features,
        halvings=halvings,
        data_format=data_format,
        name="exit_1",
    )
    return keras.Model(inputs, feature)


def own(model, kind=layers.Layer):
    return [la for la in model.layers if la.name.startswith("exit_1") and isinstance(la, kind)]


@pytest.mark.parametrize("halvings", [0, 1, 2, 3])
@pytest.mark.parametrize("name", HEADS)
def test_one_strided_convolution_a_halving(name, halvings):
    model = head(name, halvings=halvings)
    strides = [la.strides for la in own(model, layers.Conv2D | layers.DepthwiseConv2D)]
    if name == "linear":
        assert strides == []
    else:
        assert strides.count((2, 2)) == halvings
        assert set(strides) <= {(1, 1), (2, 2)}
        assert strides, "a convolutional head has a block even where nothing is left to halve"
    pool = model.get_layer("exit_1_pool")
    side = 16 if name == "linear" else 16 // 2**halvings
    assert pool.input.shape[1:3] == (side, side)
    assert model.output.shape == (None, 24)


@pytest.mark.parametrize("name", HEADS)
def test_features_have_the_width_that_enters_the_classifier(name):
    projected = head(name, width=24, features=40)
    assert projected.output.shape == (None, 40)
    assert projected.layers[-1].name == "exit_1_project"
    pooled = {"linear": 4, "light": 8}.get(name, 24)
    assert projected.get_layer("exit_1_pool").output.shape == (None, pooled)
    straight = head(name, width=24, features=pooled)
    assert "exit_1_project" not in [la.name for la in straight.layers]


def test_widths_double_and_end_at_the_width_of_the_last_map():
    def outputs(model, part):
        return [
            la.filters for la in own(model, layers.Conv2D) if la.name.endswith(f"_{part}_conv")
        ]  # parts of a block are a, b, c

    assert outputs(head("conv", width=24, halvings=3), "a") == [8, 16, 24]
    assert outputs(head("conv", width=6, halvings=3), "a") == [6, 6, 6]
    assert outputs(head("separable", width=24, halvings=2), "b") == [8, 24]
    bottleneck = head("bottleneck", width=24, halvings=2)
    assert [outputs(bottleneck, part) for part in "abc"] == [[2, 6], [2, 6], [8, 24]]
    assert outputs(head("bottleneck", width=26, halvings=1), "a") == [7]  # a quarter, rounded up


# Trainable parameters of a head from 4 channels to 24, one halving: convolutions have no bias,
# a BatchNorm has 2 a channel.
PARAMETERS = {
    "conv": 9 * 4 * 24 + 2 * 24,
    "bottleneck": (4 * 6 + 2 * 6) + (9 * 6 * 6 + 2 * 6) + (6 * 24 + 2 * 24),
    "separable": (9 * 4 + 2 * 4) + (4 * 24 + 2 * 24),
    "linear": 4 * 24 + 24,
    "light": (9 * 4 + 2 * 4) + (4 * 8 + 2 * 8) + (8 * 24 + 24),
}


@pytest.mark.parametrize(
    ("channels", "width", "halvings", "widths"),
    [
        (4, 64, 0, [8]),  # twice the exit's channels
        (4, 64, 1, [8]),
        (4, 64, 2, [8]),  # none on the largest map
        (4, 24, 4, [8, 16, 24]),  # no fewer than 64, or than the last map has
        (16, 128, 3, [32, 64]),
        (64, 128, 1, [64]),
        (64, 512, 4, [128, 256, 128]),  # 512² / 8 weights are 128 × 256, and 256 × 128
        (128, 512, 1, [256]),
        (256, 512, 1, [128]),
        (512, 512, 0, [64]),
        (512, 101, 1, [64]),
    ],
)
def test_the_light_head_doubles_its_width_while_that_is_cheap(channels, width, halvings, widths):
    model = head("light", shape=(64, 64, channels), width=width, halvings=halvings)
    convs = [la for la in own(model, layers.Conv2D) if type(la) is layers.Conv2D]
    assert [conv.filters for conv in convs] == widths
    assert {(conv.kernel_size, conv.strides) for conv in convs} == {((1, 1), (1, 1))}


@pytest.mark.parametrize("shape", [(16, 16, 4), (7, 9, 12), (1, 1, 40)])
@pytest.mark.parametrize("halvings", [0, 1, 3])
@pytest.mark.parametrize("features", [24, 10])
@pytest.mark.parametrize("name", HEADS)
def test_the_cost_of_a_head_is_known_without_building_it(name, features, halvings, shape):
    leads_to = {"width": 24, "features": features, "halvings": halvings}
    model = head(name, shape=shape, **leads_to)
    found = sum(c.multiply_adds for c in count_operations(Graph.of(model))) - math.prod(shape) * shape[-1]
    assert multiply_adds(name, shape[:2], shape[-1], **leads_to) == found


@pytest.mark.parametrize("name", HEADS)
def test_parameters_of_a_head(name):
    model = head(name, halvings=1)
    count = sum(int(np.prod(v.shape)) for la in own(model) for v in la.trainable_variables)
    assert count == PARAMETERS[name]


@pytest.mark.parametrize("name", HEADS)
def test_a_head_normalises_and_rectifies_every_convolution(name):
    model = randomise(head(name))
    kinds = (layers.Conv2D, layers.DepthwiseConv2D)
    convs = len(own(model, kinds[0] | kinds[1]))
    assert len(own(model, layers.BatchNormalization)) == len(own(model, layers.ReLU)) == convs
    x = RNG.normal(size=(4, 16, 16, 4)).astype("float32")
    pooled = keras.Model(model.input, model.get_layer("exit_1_pool").output)
    if name != "linear":
        assert np.asarray(pooled(x)).min() >= 0


def test_new_layers_have_the_prefix_of_their_exit():
    for name in HEADS:
        new = [la.name for la in head(name, features=40).layers[2:]]
        assert new
        assert all(n.startswith("exit_1_") for n in new)


@pytest.mark.parametrize("name", HEADS)
def test_channels_first_heads(name):
    model = head(name, shape=(4, 16, 16), data_format="channels_first", halvings=1)
    assert model.output.shape == (None, 24)
    for layer in own(model, layers.BatchNormalization):
        assert layer.axis == 1


@pytest.mark.parametrize("name", HEADS)
def test_a_head_computes_in_the_precision_of_what_it_stands_on(name):
    keras.config.set_dtype_policy("mixed_bfloat16")
    inputs = keras.Input((8, 8, 4))
    tensor = layers.Conv2D(4, 1)(inputs)
    keras.config.set_dtype_policy("float32")
    arguments = {"width": 8, "features": 9, "halvings": 1, "data_format": "channels_last", "name": "exit_1"}
    model = keras.Model(inputs, apply_head(name, tensor, **arguments))
    assert {la.dtype_policy.name for la in own(model)} == {"mixed_bfloat16"}


@pytest.mark.parametrize(("body", "now"), [("mixed_bfloat16", "float32"), ("float32", "mixed_bfloat16")])
def test_the_precision_of_a_head_on_an_operator(body, now):
    """`x + y` has no policy of its own; the head still computes as the network does, not as a global now."""
    keras.config.set_dtype_policy(body)
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 1)(inputs)
    tensor = x + layers.Conv2D(4, 1)(x)
    keras.config.set_dtype_policy(now)
    arguments = {"width": 8, "features": 9, "halvings": 1, "data_format": "channels_last", "name": "exit_1"}
    model = keras.Model(inputs, apply_head("conv", tensor, **arguments))
    assert {la.compute_dtype for la in own(model)} == {layers.Dense(1, dtype=body).compute_dtype}


# Callables -------------------------------------------------------------------------------------


def test_a_callable_that_gives_a_map_is_pooled_and_projected():
    seen = []

    def own_head(tensor, width, name):
        seen.append((tensor.shape, width, name))
        return layers.Conv2D(width // 2, 5, 4, name=f"{name}_mine")(tensor)

    model = head(own_head)
    assert seen == [((None, 16, 16, 4), 24, "exit_1")]
    assert [la.name for la in own(model)] == ["exit_1_mine", "exit_1_pool", "exit_1_project"]
    assert model.output.shape == (None, 24)


@pytest.mark.parametrize(("units", "extra"), [(24, []), (10, ["exit_1_project"])])
def test_a_callable_that_gives_a_vector_is_not_pooled(units, extra):
    def own_head(tensor, width, name):
        return layers.Dense(units, name=f"{name}_mine")(layers.Flatten(name=f"{name}_flat")(tensor))

    model = head(own_head)
    assert [la.name for la in own(model)] == ["exit_1_flat", "exit_1_mine", *extra]


WRONG = {
    "nothing": lambda tensor, width, name: None,
    "an array": lambda tensor, width, name: np.zeros((2, 4)),
    "a list": lambda tensor, width, name: [tensor],
    "a layer": lambda tensor, width, name: layers.Dense(width),
    "a sequence": lambda tensor, width, name: layers.Reshape((16, -1))(tensor),
    "five dimensions": lambda tensor, width, name: layers.Reshape((2, 8, 16, 4))(tensor),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_what_a_callable_gives_is_checked(wrong):
    with pytest.raises(ValueError, match=r"(?s)head of `exit_1`.*Expected.*Received.*Fix"):
        head(wrong)

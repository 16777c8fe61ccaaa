"""Early exit: decisions, order, what is not computed, odd rows, saving, and the optimized copy."""

import collections
import math

import harness
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_exitens as kx
from keras_exitens import policies
from keras_exitens._stages.freezing import FrozenStage

KINDS = ("max_probability", "entropy", "margin", "patience")


@keras.saving.register_keras_serializable("test_early_exit")
class Counter(layers.Layer):
    """Passes its input on, and counts the rows that it has seen and the fewest at a time."""

    def build(self, shape):
        kind = {"shape": (), "dtype": "int32", "trainable": False}
        self.rows = self.add_weight(initializer="zeros", name="rows", **kind)
        self.fewest = self.add_weight(initializer=keras.initializers.Constant(999), name="fewest", **kind)

    def call(self, x):
        rows = tf.shape(x)[0]
        self.rows.assign_add(rows)
        self.fewest.assign(tf.minimum(self.fewest, rows))
        return x

    def reset(self):
        self.rows.assign(0)
        self.fewest.assign(999)


def made(marker=layers.Identity):
    """A network with a layer `mark_0` ... `mark_3` before each exit and before the end, and these layers."""
    keras.utils.set_random_seed(9)  # with it, some rows leave at every exit by every policy
    x = inputs = keras.Input((12, 12, 3))
    marks = []
    for i, (filters, strides) in enumerate(((8, 1), (10, 2), (12, 2), (16, 1))):
        marks.append(marker(name=f"mark_{i}"))
        x = marks[-1](harness.conv(x, filters, strides, name=f"conv_{i}"))
    plain = keras.Model(inputs, harness.classify(x))
    return harness.randomise(kx.add_exits(plain, ["mark_0", "mark_1", "mark_2"], head="linear")), marks


def stacked(model, x):
    logits = model(x, training=False)
    return np.stack([logits[name] for name in kx.exit_names(model)])


def spread(kind, logits, ensemble=False):
    """Thresholds such that some rows leave at each exit."""
    exits = len(logits)
    if kind == "patience":
        return [1.5, 2, 2][: exits - 1]
    policy = policies.get(kind)(0.0, ensemble=ensemble)
    state, scores = {}, []
    for i, z in enumerate(logits[:-1]):
        _, score, state = policy.for_exits(exits).observe(z, i, state)
        scores.append(score)
    found = []
    here = np.ones(logits.shape[1], bool)
    for score in scores:
        found.append(float(np.median(np.sort(score[here])[len(score[here]) // 2 :][:2])))
        here &= score < found[-1]
    return found


def varied(x, seed=0):
    """Images unlike each other as a whole, so that classifiers with random weights tell them apart."""
    rng = np.random.default_rng(seed)
    return (x * rng.uniform(0.5, 3, (len(x), 1, 1, 1)) + rng.normal(0, 1, (len(x), 1, 1, 3))).astype(
        "float32"
    )


def images(rows=40):
    return varied(np.random.default_rng(3).normal(size=(rows, 12, 12, 3)))


@pytest.fixture(scope="module")
def network():
    return made()[0]


@pytest.fixture(scope="module")
def counting():
    return made(Counter)


@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_simulation_row_by_row(network, kind, ensemble):
    model = network
    x = images()
    logits = stacked(model, x)
    policy = policies.get(kind)(spread(kind, logits, ensemble), 1.5, ensemble=ensemble)
    if kind != "patience":
        policy = policies.get(kind)(spread(kind, logits, ensemble), ensemble=ensemble)
    wanted = policy.simulate(logits)
    found = kx.EarlyExit(model, policy).predict(x, batch_size=17, verbose=0)
    assert len(np.unique(wanted["exit"])) >= 3, "the case tests too little"
    np.testing.assert_array_equal(found["exit"], wanted["exit"])
    for key in ("logits", "score"):
        np.testing.assert_allclose(found[key], wanted[key], rtol=0, atol=1e-5 * np.abs(wanted[key]).max())
    assert {key: value.dtype for key, value in found.items()} == {
        "logits": "float32",
        "exit": "int32",
        "score": "float32",
    }


def test_rows_that_left_are_not_computed(counting):
    model, counters = counting
    x = images()
    policy = policies.MaxProbability(spread("max_probability", stacked(model, x)))
    early = kx.EarlyExit(model, policy)
    for counter in counters:
        counter.reset()
    exits = early.predict(x, batch_size=8, verbose=0)["exit"]
    assert [int(c.rows.numpy()) for c in counters] == [int(np.sum(exits >= i)) for i in range(4)]
    assert min(int(c.fewest.numpy()) for c in counters) >= 1


def test_no_layer_sees_a_batch_without_rows(counting):
    model, counters = counting
    early = kx.EarlyExit(model, policies.MaxProbability(-math.inf))
    for counter in counters:
        counter.reset()
    found = tf.function(early.route, input_signature=[tf.TensorSpec((None, 12, 12, 3))], autograph=False)
    empty = found(images(0))
    assert {key: value.shape.as_list() for key, value in empty.items()} == {
        "logits": [0, 5],
        "exit": [0],
        "score": [0],
    }
    assert int(counters[0].fewest.numpy()) == 1
    np.testing.assert_array_equal(found(images(3))["exit"], 0)
    assert [int(c.rows.numpy()) for c in counters[1:]] == [0, 0, 0]
    for nothing in (early.predict(images(0)), early.predict_on_batch(images(0))):
        assert nothing["logits"].shape == (0, 5) and nothing["exit"].dtype == "int32"


def test_thresholds_that_always_and_never_fire(network):
    model = network
    x = images()
    full = model.predict(x, batch_size=40, verbose=0)
    for threshold, name in ((-math.inf, "exit_1"), (math.inf, "final")):
        found = kx.EarlyExit(model, policies.Margin(threshold)).predict(x, batch_size=40, verbose=0)
        np.testing.assert_array_equal(found["logits"], full[name])
        assert set(found["exit"]) == {kx.exit_names(model).index(name)}


@pytest.mark.parametrize("optimize", [False, True])
def test_batch_size_order_and_neighbours(network, optimize):
    model = network
    x = images()
    early = kx.EarlyExit(
        model, policies.MaxProbability(spread("max_probability", stacked(model, x))), optimize=optimize
    )
    wanted = early.predict(x, batch_size=40, verbose=0)
    order = np.random.default_rng(0).permutation(40)
    shuffled = early.predict(x[order], batch_size=13, verbose=0)
    alone = early.predict(x[:6], batch_size=1, verbose=0)
    called = {key: np.asarray(value) for key, value in early(x).items()}
    for found, rows in ((shuffled, order), (alone, np.arange(6)), (called, np.arange(40))):
        np.testing.assert_array_equal(found["exit"], wanted["exit"][rows])
        largest = np.abs(wanted["logits"]).max()
        np.testing.assert_allclose(found["logits"], wanted["logits"][rows], rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_row_with_a_pixel_that_is_not_finite(network, kind, bad, optimize):
    model = network
    x = images(12)
    logits = stacked(model, images())
    early = kx.EarlyExit(model, policies.get(kind)(spread(kind, logits)), optimize=optimize)
    clean = early.predict(x, batch_size=12, verbose=0)
    x[5, 3, 4, 1] = bad
    found = early.predict(x, batch_size=12, verbose=0)
    assert found["exit"][5] == 3 and math.isnan(found["score"][5])
    others = np.arange(12) != 5
    np.testing.assert_array_equal(found["exit"][others], clean["exit"][others])
    np.testing.assert_allclose(found["logits"][others], clean["logits"][others], atol=1e-5)


def test_disabled_exit_is_not_computed():
    heads = {}

    def head(tensor, width, name):
        heads[name] = Counter(name=f"{name}_counter")
        return layers.GlobalAveragePooling2D(name=f"{name}_pool")(heads[name](tensor))

    model = harness.randomise(kx.add_exits(harness.sequential(), exits=2, head=head))
    x = harness.images(model)
    early = kx.EarlyExit(model, policies.Patience(2, enabled=[False, True], ensemble=True))
    for counter in heads.values():
        counter.reset()
    found = early.predict(x, verbose=0)
    assert int(heads["exit_1"].rows.numpy()) == 0 and int(heads["exit_2"].rows.numpy()) == len(x)
    wanted = early.policy.simulate(stacked(model, x))
    np.testing.assert_array_equal(found["exit"], wanted["exit"])
    np.testing.assert_allclose(found["logits"], wanted["logits"], atol=1e-5)


class Batches(keras.utils.PyDataset):
    def __init__(self, x):
        super().__init__()
        self.x = x

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return self.x[10 * i : 10 * i + 10], np.zeros(10)


def test_whatever_the_data_come_as(network):
    model = network
    x = images()
    early = kx.EarlyExit(model, policies.Entropy(spread("entropy", stacked(model, x))))
    wanted = early.predict(x, verbose=0)
    ways = {
        "tf.data": tf.data.Dataset.from_tensor_slices((x, np.zeros(40))).batch(7),
        "generator": ((x[i : i + 10], np.zeros(10)) for i in range(0, 40, 10)),
        "PyDataset": Batches(x),
    }
    for data in ways.values():
        np.testing.assert_array_equal(early.predict(data, verbose=0)["exit"], wanted["exit"])
    on_batch = early.predict_on_batch(x)
    np.testing.assert_array_equal(on_batch["exit"], wanted["exit"])
    integers = np.random.default_rng(0).integers(0, 255, (5, 12, 12, 3)).astype("uint8")
    np.testing.assert_allclose(
        early(integers)["logits"], early(integers.astype("float32"))["logits"], rtol=1e-6
    )


def test_saved_and_loaded(network, tmp_path):
    model = network
    x = images()
    policy = policies.Margin(spread("margin", stacked(model, x)), [1.0, 1.1, 1.2, 1.3], ensemble=True)
    early = kx.EarlyExit(model, policy, optimize=True, name="leaves_early")
    early.save(tmp_path / "early.keras")
    loaded = keras.models.load_model(tmp_path / "early.keras", safe_mode=True)
    assert loaded.policy == early.policy and loaded.optimize and loaded.name == "leaves_early"
    assert len(loaded.weights) == len(model.weights), "the layers are saved once"
    found, wanted = loaded.predict(x, verbose=0), early.predict(x, verbose=0)
    assert harness.same(found, wanted)
    early.save_weights(tmp_path / "early.weights.h5")
    other = kx.EarlyExit(made()[0], policy)
    other.load_weights(tmp_path / "early.weights.h5")
    np.testing.assert_array_equal(other.predict(x, verbose=0)["exit"], wanted["exit"])


def test_additions_are_written_so_that_tensorflow_fuses_them():
    inputs = keras.Input((8, 8, 6), name="images")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3, padding="same")(inputs)))
    x = layers.ReLU()(inputs + layers.Conv2D(6, 3, padding="same")(x))  # a residual block
    x = x + layers.GlobalAveragePooling2D(keepdims=True)(x)  # broadcast over height and width
    x = keras.ops.transpose(x, (0, 3, 1, 2)) + np.arange(8.0, dtype="float32")  # along the last axis
    x = 0.5 + keras.ops.expand_dims(x, 1) + keras.ops.ones((8,))  # a number, and more than four axes
    model = harness.randomise(keras.Model({"images": inputs}, {"logits": x}))
    frozen, plain = (FrozenStage(model, (), for_tensorflow=flag) for flag in (True, False))
    count, before = (collections.Counter(node.op for node in stage.graph.node) for stage in (frozen, plain))
    kinds = ("AddN", "BiasAdd", "AddV2")
    assert sum(count[kind] for kind in kinds) == sum(before[kind] for kind in kinds)
    assert (count["AddN"], before["AddN"]) == (1, 0)  # the block
    # The biases of both convolutions and of the normalisation, and the last axis; not what is broadcast
    # otherwise.
    assert count["BiasAdd"] >= 4 and count["BiasAdd"] > before["BiasAdd"] and count["AddV2"] >= 3
    for rows in (1, 5):
        given = {"images": tf.constant(np.random.default_rng(0).normal(size=(rows, 8, 8, 6)), "float32")}
        found = tf.function(frozen, autograph=False)(given)["logits"]
        wanted = model(given)["logits"]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_constants_follow_the_weights():
    model, _ = made()
    x = images()
    policy = policies.MaxProbability(spread("max_probability", stacked(model, x)))
    plain, early = (kx.EarlyExit(model, policy, optimize=optimize) for optimize in (False, True))
    early.predict(x, verbose=0)
    bias = next(v for v in model.trainable_weights if v.path.endswith("exit_1_classifier/bias"))
    changes = [
        lambda: [v.assign(v * 0.7) for v in model.trainable_weights],
        lambda: bias.assign(np.eye(5)[2] * 40),  # a single number
    ]
    for change in changes:
        change()
        wanted = plain.predict(x, verbose=0)
        for found in (early.predict(x, verbose=0), early.predict_on_batch(x)):
            np.testing.assert_array_equal(found["exit"], wanted["exit"])
            largest = np.abs(wanted["logits"]).max()
            np.testing.assert_allclose(found["logits"], wanted["logits"], rtol=0, atol=1e-5 * largest)


def test_constants_are_not_made_anew_without_need(network):
    model = network
    early = kx.EarlyExit(model, policies.MaxProbability(0.5), optimize=True)
    early.predict(images(), verbose=0)
    function, frozen = early.predict_function, early._chain._frozen
    early.predict(images(), verbose=0)
    assert early.predict_function is function and early._chain._frozen is frozen


def test_layer_that_writes_at_inference_cannot_be_a_constant(counting):
    early = kx.EarlyExit(counting[0], policies.MaxProbability(0.5), optimize=True)
    with pytest.raises(ValueError, match=r"mark_0(.|\n)*optimize=False"):
        early.predict(images(), verbose=0)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("optimize", [False, True])
def test_half_precision(precision, optimize):
    keras.config.set_dtype_policy(precision)
    try:
        model = harness.randomise(kx.add_exits(harness.dense_concat(), exits=2, head="linear"))
    finally:
        keras.config.set_dtype_policy("float32")
    x = varied(harness.images(model, count=32))
    logits = stacked(model, x)
    policy = policies.MaxProbability(spread("max_probability", logits))
    found = kx.EarlyExit(model, policy, optimize=optimize).predict(x, verbose=0)
    assert found["logits"].dtype == "float32"
    wanted = policy.simulate(logits)
    # Half precision rounds by kernel: rows whose scores are that near to a threshold may go either way.
    scores = np.stack([policies.MaxProbability(0).score(z) for z in logits[:-1]])
    clear = (np.abs(scores - np.array(policy.thresholds)[:, None]) > 0.02).all(axis=0)
    assert clear.sum() >= 20
    np.testing.assert_array_equal(found["exit"][clear], wanted["exit"][clear])
    np.testing.assert_allclose(
        found["logits"][clear], wanted["logits"][clear], rtol=0, atol=0.02 * np.abs(wanted["logits"]).max()
    )


def test_summary_measures(network):
    model = network
    x = images()
    policy = policies.MaxProbability(
        spread("max_probability", stacked(model, x)), enabled=[True, False, True]
    )
    early = kx.EarlyExit(model, policy)
    found = early.predict(x, verbose=0)
    labels = np.where(np.arange(40) < 30, found["logits"].argmax(-1), 0)
    report = early.benchmark((x, labels), batch_size=16)
    np.testing.assert_allclose(report.shares, [np.mean(found["exit"] == i) for i in range(4)])
    assert report.accuracy == np.mean(found["logits"].argmax(-1) == labels) and report.rows == 40
    final = model(x, training=False)["final"].numpy().argmax(-1)
    assert report.full_accuracy == np.mean(final == labels)
    assert report.agreement == np.mean(final == found["logits"].argmax(-1))
    assert report.shares[1] == 0 and math.isnan(report.exit_accuracy[1])
    costs = kx.cost(model)
    ways = [
        sum(costs.stages[: i + 1]) + sum(h for j, h in enumerate(costs.heads[: i + 1]) if j != 1)
        for i in range(4)
    ]
    assert report.multiply_adds == pytest.approx(np.mean([ways[i] for i in found["exit"]]))
    assert report.seconds > 0 and report.full_seconds > 0
    assert f"{report.shares[0]:.1%}" in str(report) and "full network" in str(report)
    one_hot = tf.data.Dataset.from_tensor_slices((x, np.eye(5)[labels])).batch(9)
    assert early.benchmark(one_hot).accuracy == report.accuracy
    with pytest.raises(ValueError, match="no labels"):
        early.benchmark(tf.data.Dataset.from_tensor_slices(x).batch(9))
    with pytest.raises(ValueError, match="no rows"):
        early.benchmark(one_hot.take(0))


def test_summary_without_data_is_kerass(network, capsys):
    early = kx.EarlyExit(network, policies.MaxProbability(0.5), name="leaves_early")
    lines = []
    assert early.summary(print_fn=lambda line, **_: lines.append(line)) is None
    assert "leaves_early" in "\n".join(lines)
    early.summary(80)
    assert "leaves_early" in capsys.readouterr().out


def test_as_a_layer_of_another_model(network):
    model = network
    early = kx.EarlyExit(model, policies.MaxProbability(0.4))
    inputs = keras.Input((12, 12, 3))
    whole = keras.Model(inputs, early(inputs / 2.0))
    found = whole.predict(images(), verbose=0)
    np.testing.assert_array_equal(found["exit"], early.predict(images() / 2, verbose=0)["exit"])


def test_thresholds_as_an_input(network):
    model = network
    early = kx.EarlyExit(model, policies.MaxProbability(0.5))
    x = images()
    routed = tf.function(early.route, autograph=False)
    logits = stacked(model, x)
    for thresholds in ([0.1, 0.2, 0.3], [0.9, 0.3, 0.5], [2.0, 2.0, 2.0]):
        wanted = policies.MaxProbability(thresholds).decide(logits)
        np.testing.assert_array_equal(routed(x, tf.constant(thresholds))["exit"], wanted)


def test_hand_built_model_without_a_final_exit():
    inputs = keras.Input((16, 16, 3))
    x = harness.conv(inputs, 4)
    first = harness.classify(x, None, "early")
    model = keras.Model(inputs, {"a": first, "b": harness.classify(harness.conv(x, 6, 2), None, "late")})
    x = harness.images(model)
    found = kx.EarlyExit(model, policies.MaxProbability(math.inf)).predict(x, verbose=0)
    np.testing.assert_array_equal(found["logits"], model.predict(x, verbose=0)["b"])


@pytest.mark.parametrize(
    "wrong, message",
    [
        (np.zeros((12, 12, 3), "float32"), r"\(batch, 12, 12, 3\)(.|\n)*images\[None\]"),
        (np.zeros((2, 12, 12, 1), "float32"), r"shape \(\w+, 12, 12, 1\)"),
        (np.zeros((2, 11, 12, 3), "float32"), r"shape \(\w+, 11, 12, 3\)"),
        (np.zeros((2, 12, 12, 3), "bool"), "of bool"),
        (np.zeros((0, 12, 12, 1), "float32"), "12, 12, 1"),
    ],
)
def test_images_that_do_not_fit(network, wrong, message):
    early = kx.EarlyExit(network, policies.MaxProbability(0.5))
    with pytest.raises(ValueError, match=message):
        early.predict(wrong, verbose=0)
    if len(wrong):
        with pytest.raises(ValueError, match=message.replace(r"\w+", "2")):
            early(wrong)


def test_what_it_cannot_be_made_of(network):
    model = network
    with pytest.raises(TypeError, match=r"policy=0\.9"):
        kx.EarlyExit(model, 0.9)
    with pytest.raises(ValueError, match="K = 4"):
        kx.EarlyExit(model, policies.MaxProbability([0.5, 0.5]))
    with pytest.raises(ValueError, match="not a multi-exit model"):
        kx.EarlyExit(harness.sequential(), policies.MaxProbability(0.5))
    with pytest.raises(ValueError, match="its attribute `model`"):
        kx.EarlyExit(kx.ExitEnsembleDistiller(model), policies.MaxProbability(0.5))
    inputs = keras.Input((16, 16, 3))
    probabilities = {"final": harness.classify(harness.conv(inputs, 4))}
    with pytest.raises(ValueError, match="not logits"):
        kx.EarlyExit(keras.Model(inputs, probabilities), policies.MaxProbability(0.5))


def test_it_is_for_inference(network):
    early = kx.EarlyExit(network, policies.MaxProbability(0.5))
    early.compile(optimizer="sgd", loss="mse")
    with pytest.raises(NotImplementedError, match="ExitEnsembleDistiller"):
        early.fit(images(), np.zeros(40), verbose=0)
    with pytest.raises(NotImplementedError, match=r"early\.benchmark"):
        early.evaluate(images(), np.zeros(40), verbose=0)


def applications():
    """The families that deployments use, as small as they come."""
    made = keras.applications
    body = made.MobileNetV2(weights=None, include_top=False, input_shape=(32, 32, 3), alpha=0.35)
    return {
        "ResNet50": lambda: made.ResNet50(weights=None, input_shape=(32, 32, 3), classes=6),
        "DenseNet121": lambda: made.DenseNet121(weights=None, input_shape=(64, 64, 3), classes=6),
        "InceptionV3": lambda: made.InceptionV3(weights=None, input_shape=(139, 139, 3), classes=6),
        "MobileNetV3Small": lambda: made.MobileNetV3Small(weights=None, input_shape=(32, 32, 3), classes=6),
        "EfficientNetB0": lambda: made.EfficientNetB0(weights=None, input_shape=(32, 32, 3), classes=6),
        "ConvNeXtTiny": lambda: made.ConvNeXtTiny(weights=None, input_shape=(32, 32, 3), classes=6),
        "NASNetMobile": lambda: made.NASNetMobile(weights=None, input_shape=(32, 32, 3), classes=6),
        "transfer": lambda: keras.Sequential(
            [
                keras.Input((32, 32, 3)),
                layers.Rescaling(1 / 127.5, offset=-1.0),
                layers.RandomFlip(),
                body,
                layers.GlobalAveragePooling2D(),
                layers.Dropout(0.2),
                layers.Dense(6, activation="softmax"),
            ]
        ),
    }


FAST = ("MobileNetV3Small",)


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.sweep) for name in applications()],
)
def test_applications(name):
    """One compiled graph gives, row by row, what the whole model and the policy say."""
    keras.utils.set_random_seed(0)
    model = harness.randomise(kx.add_exits(applications()[name](), exits=3, head="linear"))
    x = varied(harness.images(model, count=24))
    x = x * 40 + 128 if name in ("MobileNetV3Small", "EfficientNetB0", "ConvNeXtTiny", "transfer") else x
    harness.settle(model, x)
    logits = stacked(model, x)
    policy = policies.MaxProbability(spread("max_probability", logits))
    wanted = policy.simulate(logits)
    assert len(np.unique(wanted["exit"])) >= 3
    scores = np.stack([policies.MaxProbability(0).score(z) for z in logits[:-1]])
    clear = (np.abs(scores - np.array(policy.thresholds)[:, None]) > 1e-5).all(axis=0)
    assert clear.sum() >= 18
    for optimize in (False, True):
        found = kx.EarlyExit(model, policy, optimize=optimize).predict(x, batch_size=24, verbose=0)
        np.testing.assert_array_equal(found["exit"][clear], wanted["exit"][clear])
        np.testing.assert_allclose(
            found["logits"][clear],
            wanted["logits"][clear],
            rtol=0,
            atol=2e-5 * np.abs(logits).max(),
        )
    full = model.predict(x, batch_size=24, verbose=0)
    # Bit for bit, unless TensorFlow fuses an operation before a cut with one after it in the whole model.
    atol = 1e-5 * np.abs(full["final"]).max() if name == "NASNetMobile" else 0
    never, always = (
        kx.EarlyExit(model, policies.MaxProbability(threshold)).predict(x, batch_size=24, verbose=0)
        for threshold in (math.inf, -math.inf)
    )
    np.testing.assert_allclose(never["logits"], full["final"], rtol=0, atol=atol)
    np.testing.assert_allclose(always["logits"], full["exit_1"], rtol=0, atol=atol)
    # Other neighbours, in another order, in batches of other sizes.
    early = kx.EarlyExit(model, policy)
    order = np.random.default_rng(0).permutation(len(x))
    wanted, found = (
        early.predict(x, batch_size=24, verbose=0),
        early.predict(x[order], batch_size=7, verbose=0),
    )
    wanted = {key: value[order][clear[order]] for key, value in wanted.items()}
    found = {key: value[clear[order]] for key, value in found.items()}
    np.testing.assert_array_equal(found["exit"], wanted["exit"])
    np.testing.assert_allclose(
        found["logits"], wanted["logits"], rtol=0, atol=1e-5 * np.abs(wanted["logits"]).max()
    )

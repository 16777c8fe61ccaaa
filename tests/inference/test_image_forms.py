"""Images as people have them: of any dtype, in dicts and lists, of several sizes."""

import math
from typing import NamedTuple

import harness
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_exitens as kx
from keras_exitens import policies, runtime

ROWS = 12
DTYPES = ["uint8", "int8", "int32", "int64", "float16", "float32", "float64"]


def made(shape=(12, 12, 3), dtype=None, name="image"):
    inputs = keras.Input(shape, dtype=dtype, name=name)
    x = layers.Rescaling(1 / 64, dtype="float32" if dtype in ("uint8", "int32") else None)(inputs)
    x = harness.conv(x, 6, 1, name="first")
    x = harness.conv(x, 8, 2, name="second")
    plain = keras.Model(inputs, harness.classify(harness.conv(x, 8, 1)))
    return harness.randomise(kx.add_exits(plain, ["second"], head="linear"))


def images(shape=(12, 12, 3)):
    """Whole numbers that every dtype holds."""
    return np.random.default_rng(0).integers(0, 100, (ROWS, *shape))


class Case(NamedTuple):
    """A network, images, and what it has to say of them by a policy that lets half of them leave early."""

    model: keras.Model
    x: np.ndarray
    y: np.ndarray
    policy: policies.Policy
    right: dict[str, np.ndarray]

    @property
    def accuracy(self):
        return (self.right["logits"].argmax(-1) == self.y).mean()

    def early(self, optimize=False):
        return kx.EarlyExit(self.model, self.policy, optimize=optimize)


def case_of(model, x):
    logits = model.predict(x, verbose=0)
    scores = np.asarray(policies.MaxProbability(0.5).score(logits["exit_1"]))
    policy = policies.MaxProbability(float(np.median(scores)))
    right = policy.for_exits(2).simulate(np.stack(list(logits.values())))
    assert set(right["exit"]) == {0, 1}, "the case tests too little"
    return Case(model, x, np.arange(len(x)) % 5, policy, right)


@pytest.fixture(scope="module")
def case():
    return case_of(made(), images().astype("float32"))


def assert_same(found, right):
    np.testing.assert_array_equal(found["exit"], right["exit"])
    scale = np.abs(right["logits"]).max()
    np.testing.assert_allclose(found["logits"], right["logits"], rtol=0, atol=1e-4 * scale)


class Sequence(keras.utils.PyDataset):
    def __init__(self, x):
        super().__init__()
        self.x = x

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return (self.x[4 * index : 4 * index + 4],)


WAYS = {
    "predict": lambda early, x: early.predict(x, verbose=0),
    "batches": lambda early, x: early.predict(x, batch_size=5, verbose=0),
    "predict_on_batch": lambda early, x: early.predict_on_batch(x),
    "tensor": lambda early, x: early.predict(tf.constant(x), verbose=0),
    "call": lambda early, x: {key: value.numpy() for key, value in early(tf.constant(x)).items()},
    "data set": lambda e, x: e.predict(tf.data.Dataset.from_tensor_slices(x).batch(5), verbose=0),
    "generator": lambda e, x: e.predict(((x[i : i + 4],) for i in range(0, ROWS, 4)), verbose=0),
    "PyDataset": lambda early, x: early.predict(Sequence(x), verbose=0),
}


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_images_of_any_dtype(case, dtype, optimize):
    early = case.early(optimize)
    for way in WAYS.values():
        assert_same(way(early, case.x.astype(dtype)), case.right)


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("taken", ["uint8", "int32", "float16", "float64"])
def test_networks_that_take_other_dtypes(taken, optimize):
    case = case_of(made(dtype=taken), images().astype(taken))
    for dtype in ("uint8", "float32", "float64", taken):
        found = case.early(optimize).predict(images().astype(dtype), verbose=0)
        assert_same(found, case.right)


def test_a_pixel_that_is_not_finite_is_seen_before_it_is_cast():
    x, model = images().astype("float32"), made(dtype="uint8")
    x[3, 0, 0, 0] = np.nan
    found = kx.EarlyExit(model, policies.MaxProbability(0.0)).predict(x, verbose=0)
    assert found["exit"].tolist() == [1 if i == 3 else 0 for i in range(ROWS)]
    assert np.isnan(found["score"]).tolist() == [i == 3 for i in range(ROWS)]


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_benchmark_of_any_dtype(case, dtype, optimize):
    found = case.early(optimize).benchmark((case.x.astype(dtype), case.y), batch_size=5)
    assert (found.rows, found.accuracy) == (ROWS, case.accuracy)
    np.testing.assert_allclose(found.shares, [np.mean(case.right["exit"] == i) for i in range(2)])


GIVEN = {"dict": lambda x: {"image": x}, "list": lambda x: [x]}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN.keys())
@pytest.mark.parametrize("optimize", [False, True])
def test_images_in_a_dict_or_list(case, given, optimize):
    early, x = case.early(optimize), case.x
    for found in (early.predict(given(x), verbose=0), early.predict_on_batch(given(x))):
        assert_same(found, case.right)
    called = early(keras.tree.map_structure(tf.constant, given(x)))
    assert_same({key: value.numpy() for key, value in called.items()}, case.right)
    records = kx.collect(case.model, (given(x), case.y), verbose=0)
    np.testing.assert_allclose(records.logits, list(case.model.predict(x, verbose=0).values()), atol=1e-4)
    assert early.benchmark((given(x), case.y)).accuracy == case.accuracy


@pytest.mark.parametrize("optimize", [False, True])
def test_data_sets_of_dicts(case, optimize):
    batches = tf.data.Dataset.from_tensor_slices(({"image": case.x}, case.y)).batch(5)
    early = case.early(optimize)
    assert_same(early.predict(batches, verbose=0), case.right)
    assert early.benchmark(batches).accuracy == case.accuracy
    assert len(kx.collect(case.model, batches, verbose=0)) == ROWS


@pytest.mark.parametrize("given", [lambda x: [x, x], lambda x: {"image": x, "more": x}, lambda x: []])
def test_several_inputs_are_refused(case, given):
    with pytest.raises(ValueError, match="not images that the network can take"):
        case.early().predict_on_batch(given(case.x))
    with pytest.raises(ValueError, match="not images that the network can take"):
        kx.collect(case.model, (given(case.x), case.y), verbose=0)


@pytest.mark.parametrize("labels", [lambda y: {"exit_1": y, "final": y}, lambda y: {"final": y}])
def test_labels_of_each_exit_are_refused(case, labels):
    x, y = case.x, labels(case.y)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    distiller = kx.ExitEnsembleDistiller(case.model)
    distiller.compile("sgd")
    before = case.model.get_weights()
    for call in (
        lambda: distiller.fit(x, y, verbose=0),
        lambda: distiller.fit(batches, verbose=0),
        lambda: distiller.fit(x, case.y, validation_data=(x, y), verbose=0),
        lambda: distiller.evaluate(batches, verbose=0),
        lambda: distiller.train_on_batch(x, y),
        lambda: case.early().benchmark(batches),
        lambda: kx.collect(case.model, batches, verbose=0),
    ):
        with pytest.raises(ValueError, match="labels come as several"):
            call()
    assert all(map(np.array_equal, case.model.get_weights(), before))


def test_a_network_of_two_inputs_is_refused_when_it_is_wrapped():
    image, meta = keras.Input((8, 8, 3)), keras.Input((2,))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))
    outputs = {"exit_1": layers.Dense(3)(x), "final": layers.Dense(3)(layers.Concatenate()([x, meta]))}
    model = keras.Model([image, meta], outputs)
    with pytest.raises(ValueError, match="one input"):
        kx.EarlyExit(model, policies.MaxProbability(0.5))
    with pytest.raises(ValueError, match="one input"):
        kx.measured_cost(model)


# Sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimize", [False, True])
def test_several_sizes_in_one_data_set(optimize):
    sizes, model = [(12, 12), (16, 20), (12, 12), (9, 30)], made((None, None, 3))
    policy = case_of(model, images((16, 20, 3)).astype("float32")).policy
    batches = [
        (images((*size, 3))[: 4 - i].astype("float32"), np.arange(4 - i)) for i, size in enumerate(sizes)
    ]
    right = [
        policy.for_exits(2).simulate(np.stack(list(model.predict(x, verbose=0).values()))) for x, _ in batches
    ]
    early = kx.EarlyExit(model, policy, optimize=optimize)
    found = early.benchmark(iter(batches))
    hits = np.concatenate([r["logits"].argmax(-1) == y for r, (_, y) in zip(right, batches, strict=True)])
    assert (found.rows, found.accuracy) == (10, hits.mean())
    for (x, _), expected in zip(batches, right, strict=True):
        assert_same(early.predict_on_batch(x), expected)


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize(
    "shape", [(3, 9, 9, 3), (3, 12, 12, 1), (12, 12, 3), (3, 12, 12)], ids=["size", "channels", "one", "grey"]
)
def test_a_graph_that_was_made_for_all_sizes_looks_at_each_batch(case, shape, optimize):
    """Batches of two sizes have TensorFlow forget the sizes; then a pooled network takes any image at all."""
    early = case.early(optimize)
    for rows in (12, 5, 7):
        early.predict(case.x[:rows], batch_size=rows, verbose=0)
    wrong = np.zeros(shape, "float32")
    for given in (wrong, ((batch,) for batch in [wrong]), tf.data.Dataset.from_tensors(wrong)):
        with pytest.raises(ValueError, match=r"Expected: numbers of shape \(batch, 12, 12, 3\)"):
            early.predict(given, verbose=0)
    assert_same(early.predict(case.x, verbose=0), case.right)


@pytest.mark.parametrize("way", ["predict", "fit", "evaluate", "train_on_batch", "test_on_batch", "collect"])
def test_so_does_one_that_trains_or_collects(case, way):
    distiller = kx.ExitEnsembleDistiller(made(), kx.objectives.CrossEntropy())
    distiller.compile(keras.optimizers.SGD(0.0))
    collect = _collector(distiller)
    ways = {
        "predict": lambda x, y: distiller.predict(x, verbose=0),
        "fit": lambda x, y: distiller.fit(x, y, verbose=0),
        "evaluate": lambda x, y: distiller.evaluate(x, y, verbose=0),
        "train_on_batch": distiller.train_on_batch,
        "test_on_batch": distiller.test_on_batch,
        "collect": lambda x, y: collect((x, y), 32, 0),
    }
    run = ways[way]
    for rows in (12, 5, 7):
        run(case.x[:rows], case.y[:rows])
    before = [v.numpy() for v in distiller.weights]
    for shape in ((3, 9, 9, 3), (3, 9, 12, 3), (3, 12, 12, 1)):
        with pytest.raises(ValueError, match=r"12, 12, 3|expected|incompatible"):
            run(np.zeros(shape, "float32"), np.zeros(3, int))
    for kept, now in zip(before, distiller.weights, strict=True):
        np.testing.assert_array_equal(kept, now.numpy())
    run(case.x, case.y)


def _collector(distiller):
    from keras_exitens._calibration.collect import Collector

    return Collector(distiller)


def large_only(least):
    """A network of images of any size that are at least so large: convolutions take the borders away."""
    x = inputs = keras.Input((None, None, 3))
    for i in range((least - 8) // 32):
        x = layers.Conv2D(4, 17, activation="relu", name=f"conv_{2 * i}")(x)
        x = layers.Conv2D(4, 17, activation="relu", name=f"conv_{2 * i + 1}")(x)
    x = layers.BatchNormalization()(layers.Conv2D(4, 7, name="last")(x))
    plain = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    return kx.add_exits(plain, ["conv_1"], head="linear")


@pytest.mark.parametrize("least", [72, 136])
def test_networks_that_need_large_images(least, tmp_path):
    model = large_only(least)
    x = np.random.default_rng(0).normal(size=(2, least, least + 3, 3)).astype("float32")
    early = kx.EarlyExit(model, policies.MaxProbability(0.9), optimize=True)
    right = kx.EarlyExit(model, policies.MaxProbability(0.9)).predict(x, verbose=0)
    np.testing.assert_allclose(early.predict(x, verbose=0)["logits"], right["logits"], atol=1e-5)
    early.export(tmp_path / "onnx", "onnx")
    found = runtime.load(tmp_path / "onnx").predict(x)
    np.testing.assert_allclose(found["logits"], right["logits"], atol=1e-4)


# Export ------------------------------------------------------------------------------------------

REPRESENTATIVE = {
    **{dtype: (lambda x, dtype=dtype: x.astype(dtype)) for dtype in DTYPES},
    "list of batches": lambda x: [x[:5], x[5:]],
    "pairs": lambda x: tf.data.Dataset.from_tensor_slices((x, np.arange(ROWS))).batch(5),
    "bytes in a data set": lambda x: tf.data.Dataset.from_tensor_slices(x.astype("uint8")).batch(5),
    "dicts": lambda x: tf.data.Dataset.from_tensor_slices({"image": x}).batch(5),
    "generator": lambda x: (part for part in (x[:5], x[5:])),
    "function": lambda x: lambda: ([x[i : i + 1]] for i in range(ROWS)),
    "PyDataset": Sequence,
}


@pytest.mark.parametrize("given", REPRESENTATIVE.values(), ids=REPRESENTATIVE.keys())
def test_representative_data(case, given, tmp_path):
    manifest = case.early().export(
        tmp_path / "onnx", "onnx", representative_data=given(images()), verify=False
    )
    assert (manifest.agreement.rows, manifest.agreement.same_class) == (ROWS, 1.0)


@pytest.mark.parametrize("given", ["uint8", "pairs", "function"])
def test_representative_data_of_eight_bits(case, given, tmp_path):
    found = []
    for name, data in (("right", case.x), ("given", REPRESENTATIVE[given](images()))):
        case.early().export(tmp_path / name, "litert", quantize="int8", representative_data=data)
        found.append(runtime.load(tmp_path / name).predict(case.x)["logits"])
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    "data, message",
    [
        (images((5, 5, 3)), "not images that the network can take"),
        ([], "no representative images"),
        (tf.data.Dataset.from_tensor_slices(images()).batch(4).repeat(), "never ends"),
    ],
    ids=["size", "none", "endless"],
)
def test_representative_data_that_do_not_do(case, data, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        case.early().export(tmp_path / "onnx", "onnx", representative_data=data)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["onnx", "litert"])
@pytest.mark.parametrize("taken", ["float16", "uint8", "int32"])
def test_exports_of_networks_that_take_other_dtypes(taken, format, tmp_path):
    case = case_of(made(dtype=taken), images().astype(taken))
    case.early().export(tmp_path / format, format)
    found = runtime.load(tmp_path / format).predict(case.x, thresholds=[math.inf])
    right = case.model.predict(case.x, verbose=0)["final"]
    tolerance = (2e-2 if taken == "float16" else 1e-4) * np.abs(right).max()
    np.testing.assert_allclose(found["logits"], right, rtol=0, atol=tolerance)

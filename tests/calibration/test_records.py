"""Records: from every kind of data, with nothing of the model changed; saved, mapped, and refused."""

import re

import harness
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_exitens as kx

ROWS = 37


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return harness.randomise(kx.add_exits(harness.operators(), exits=2))


@pytest.fixture(scope="module")
def data(model):
    return harness.images(model, ROWS), np.arange(ROWS) % harness.CLASSES


def batches(*arrays, size=16):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(size)


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = slice(16 * index, 16 * index + 16)
        return self.x[rows], self.y[rows]


def generator(x, y):
    for start in range(0, ROWS, 16):
        yield x[start : start + 16], y[start : start + 16]


FORMS = {
    "arrays": lambda x, y: (x, y),
    "list": lambda x, y: [x, y[:, None]],
    "one-hot": lambda x, y: (x, keras.utils.to_categorical(y, harness.CLASSES)),
    "tensors": lambda x, y: (tf.constant(x), tf.constant(y)),
    "tf.data": batches,
    "one-hot tf.data": lambda x, y: batches(x, keras.utils.to_categorical(y, harness.CLASSES)),
    "PyDataset": Batches,
    "generator": generator,
}


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("form", FORMS)
def test_logits_and_labels_in_order_from_every_kind_of_data(model, data, form):
    x, y = data
    records = kx.collect(model, FORMS[form](x, y), batch_size=16, verbose=0)
    assert records.names == ("exit_1", "exit_2", "final") and records.ids is None
    assert (records.exits, len(records), records.classes) == (3, ROWS, harness.CLASSES)
    assert records.logits.dtype == "float32" and records.labels.dtype == "int64"
    np.testing.assert_array_equal(records.labels, y)
    wanted = model(x, training=False)
    for name, logits in zip(records.names, records.logits, strict=True):
        np.testing.assert_allclose(logits, wanted[name], atol=1e-5)


def test_distiller_gives_the_records_of_its_network_and_nothing_changes(model, data):
    distiller = kx.ExitEnsembleDistiller(model)
    before = [w.copy() for w in distiller.get_weights()]
    records = kx.collect(distiller, data, verbose=0)
    assert harness.same(records.logits, kx.collect(model, data, verbose=0).logits)
    assert all(harness.same(a, b) for a, b in zip(before, distiller.get_weights(), strict=True))
    assert [layer.trainable for layer in model.layers] == [True] * len(model.layers)


def test_exits_come_in_their_own_order_not_that_of_the_outputs():
    x = inputs = keras.Input((4,))
    outputs = {}
    for i in range(11):
        x = keras.layers.Dense(4, activation="tanh")(x)
        outputs["final" if i == 10 else f"exit_{i + 1}"] = keras.layers.Dense(3)(x)
    model = keras.Model(inputs, dict(sorted(outputs.items())))
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    records = kx.collect(model, (x, np.zeros(5, int)), verbose=0)
    assert records.names == (*(f"exit_{i}" for i in range(1, 11)), "final")
    np.testing.assert_allclose(records.logits[1], model(x)["exit_2"], atol=1e-6)


def test_network_without_early_exits(data):
    model = kx.add_exits(harness.operators(), exits=0)
    for form in (data, batches(*data)):
        records = kx.collect(model, form, verbose=0)
        assert records.names == ("final",) and records.logits.shape == (1, ROWS, harness.CLASSES)


def test_ids_are_kept_and_rows_of_weight_zero_left_out(model, data):
    x, y = data
    numbers = np.arange(ROWS) * 3
    names = np.array([f"bild_{i}ä.png" for i in range(ROWS)])
    for given, wanted in ((numbers, numbers), (names, names)):
        for form in ((x, y, given), batches(x, y, given)):
            np.testing.assert_array_equal(kx.collect(model, form, verbose=0).ids, wanted)
    weights = (np.arange(ROWS) % 3 > 0).astype("float32")
    for form in ((x, y, weights), batches(x, y, weights)):
        records = kx.collect(model, form, verbose=0)
        np.testing.assert_array_equal(records.labels, y[weights == 1])
        np.testing.assert_allclose(records.logits[2], model(x[weights == 1])["final"], atol=1e-5)
        assert records.ids is None


def test_half_precision_gives_float32(data):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = kx.add_exits(harness.sequential(), exits=1)
    assert kx.collect(model, data, verbose=0).logits.dtype == "float32"


@pytest.mark.parametrize("memory_map", [False, True])
def test_saved_records_are_the_same(model, data, tmp_path, memory_map):
    records = kx.collect(model, (*data, np.arange(ROWS)), verbose=0)
    path = tmp_path / "records.npz"
    records.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["records.npz"]
    loaded = kx.ExitRecords.load(path, model=model, memory_map=memory_map)
    assert isinstance(loaded.logits, np.memmap) == memory_map
    for name in ("logits", "labels", "ids"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(records, name))
    assert loaded.names == records.names and loaded.fingerprint == records.fingerprint
    with np.load(path) as plain:  # any program with NumPy can read it
        np.testing.assert_array_equal(plain["logits"], records.logits)
    part = loaded.take([3, 1])
    np.testing.assert_array_equal(part.logits, records.logits[:, [3, 1]])
    np.testing.assert_array_equal(part.ids, [3, 1])


def test_records_of_other_weights_are_refused(model, data, tmp_path):
    records = kx.collect(model, data, verbose=0)
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    records.check(copy)
    records.save(tmp_path / "records.npz")
    weights = copy.get_weights()
    weights[-1][0] += 1e-6
    copy.set_weights(weights)
    for refuse in (lambda: records.check(copy), lambda: kx.ExitRecords.load(tmp_path / "records.npz", copy)):
        with pytest.raises(ValueError, match="of other weights"):
            refuse()
    with pytest.warns(UserWarning, match="of other weights"):
        records.check(copy, strict=False)
    with pytest.raises(ValueError, match="of other weights"):
        kx.ExitRecords(records.logits, records.labels).check(model)


def test_loading_a_saved_model_keeps_the_fingerprint(model, data, tmp_path):
    records = kx.collect(model, data, verbose=0)
    model.save(tmp_path / "model.keras")
    records.check(keras.models.load_model(tmp_path / "model.keras"))


LOGITS, LABELS = np.zeros((3, 4, 5), "float32"), np.arange(4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((LOGITS[0], LABELS), "wrong form(.|\n)*shape (4, 5)"),
        ((LOGITS[:, :0], LABELS[:0]), "at least one of each"),
        ((LOGITS[:0], LABELS), "at least one of each"),
        ((LOGITS.astype(str), LABELS), "wrong form"),
        ((LOGITS, LABELS[:3]), "4 labels for logits"),
        ((LOGITS, LABELS + 2), "Labels are out of range"),
        ((LOGITS, LABELS - 1), "Labels are out of range"),
        ((LOGITS, LABELS.astype(str)), "not numbers"),
        ((LOGITS, LABELS + 0.5), "not whole numbers"),
        ((LOGITS, np.zeros((4, 3))), "wrong shape"),
        ((LOGITS, None), "not numbers"),
        ((LOGITS, LABELS, ["a", "b"]), "3 names"),
        ((LOGITS, LABELS, None, [1, 2]), "4 ids"),
        (
            (np.where(np.arange(4)[:, None] == 2, np.nan, LOGITS), LABELS),
            "'exit_1' are not finite(.|\n)*image 2",
        ),
        ((np.where(np.arange(4)[:, None] == 3, np.inf, LOGITS), LABELS), "not finite(.|\n)*image 3"),
    ],
)
def test_arrays_that_are_no_records(arguments, message):
    pattern = message.replace("(4, 5)", re.escape("(4, 5)"))
    with pytest.raises(ValueError, match=pattern):
        kx.ExitRecords(*arguments)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_data_that_cannot_be_collected(model, data):
    x, y = data
    spec = (tf.TensorSpec((None, *x.shape[1:])), tf.TensorSpec((None,), tf.int32))
    empty = tf.data.Dataset.from_generator(lambda: iter(()), output_signature=spec)
    refused = {
        "no labels": [batches(x).map(lambda x: x)],
        "not images with their labels": [(x,), (x, y[:3]), (x[:0], y[:0]), (x, 3), (x, y, y, y)],
        "never ends": [batches(x, y).repeat()],
        "There are no data": [empty, batches(x, y).take(0), None],
        "Labels are out of range": [(x, y + 1), batches(x, y - 1)],
        "Sample weights": [(x, y, np.full(ROWS, 0.5)), batches(x, y, np.full(ROWS, 2.0))],
        "Unrecognized data type": [5],
    }
    for message, cases in refused.items():
        for case in cases:
            with pytest.raises(ValueError, match=message):
                kx.collect(model, case, verbose=0)
    with pytest.raises(ValueError, match="not a multi-exit model"):
        kx.collect(harness.sequential(), data, verbose=0)


def test_files_that_are_no_records(tmp_path):
    path = tmp_path / "records.npz"
    records = kx.ExitRecords(LOGITS, LABELS)
    with pytest.raises(FileNotFoundError):
        kx.ExitRecords.load(path)
    with pytest.raises(ValueError, match=r"'records\.npy\.npz'"):
        records.save(tmp_path / "records.npy")
    records.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    for memory_map in (False, True):
        with pytest.raises(ValueError, match="could not be read as records"):
            kx.ExitRecords.load(path, memory_map=memory_map)
    np.savez(path, logits=LOGITS, labels=LABELS, names=["a", "b", "c"], schema=2)
    with pytest.raises(ValueError, match="schema 2"):
        kx.ExitRecords.load(path)
    np.savez(path, something=LOGITS)
    with pytest.raises(ValueError, match="schema -1"):
        kx.ExitRecords.load(path)
    np.savez_compressed(path, logits=LOGITS, labels=LABELS, names=["a", "b", "c"], schema=1)
    assert len(kx.ExitRecords.load(path)) == 4
    with pytest.raises(ValueError, match="compressed"):
        kx.ExitRecords.load(path, memory_map=True)


def test_any_byte_that_differs_is_noticed_or_changes_nothing(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "records.npz"
    records = kx.ExitRecords(rng.normal(size=(2, 3, 4)).astype("float32"), np.arange(3))
    records.save(path)
    content, noticed = path.read_bytes(), 0
    for place in range(len(content)):
        other = bytearray(content)
        other[place] ^= 1 << rng.integers(8)
        path.write_bytes(other)
        try:
            found = kx.ExitRecords.load(path)
        except ValueError as refused:
            assert "Fix: " in str(refused)
            noticed += 1
            continue
        np.testing.assert_array_equal(found.logits, records.logits)
        np.testing.assert_array_equal(found.labels, records.labels)
        assert found.names == records.names
    assert noticed > len(content) // 2, "check sums cover the arrays"


def test_labels_in_the_place_of_the_batch_size(model, data):
    """As Keras's `evaluate` takes them."""
    early = kx.EarlyExit(model, kx.policies.MaxProbability(0.5))
    for call in (lambda: kx.collect(model, *data), lambda: early.benchmark(*data)):
        with pytest.raises(
            TypeError, match=r"ndarray as `batch_size` of shape \(37,\)(?s:.*)\(images, labels\)"
        ):
            call()


def test_records_say_what_they_are(model, data):
    assert repr(kx.collect(model, data, verbose=0)) == "<ExitRecords: 37 images, 3 exits, 5 classes>"

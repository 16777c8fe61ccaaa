"""The loss and the labels: every value from logits, every mistake told before a weight is changed."""

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from keras import ops

import keras_exitens as kx
from keras_exitens._inputs.labels import check_labels, standard_labels
from keras_exitens._training.losses import per_sample

CLASSES, ROWS = 4, 12  # three times as many rows as classes: no shape fits by chance


def small(classes=CLASSES):
    """Two exits on a vector, trained by cross-entropy."""
    inputs = keras.Input((6,))
    x = keras.layers.Dense(5, name="body")(inputs)
    outputs = {name: keras.layers.Dense(classes, name=name)(x) for name in ("exit_1", "final")}
    return kx.ExitEnsembleDistiller(keras.Model(inputs, outputs), kx.objectives.CrossEntropy())


def compiled(classes=CLASSES, **options):
    distiller = small(classes)
    distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), **options)
    return distiller


def data(classes=CLASSES, rows=ROWS):
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(rows, classes))
    soft = rng.dirichlet(np.ones(classes), size=rows)
    return rng.normal(size=(rows, 6)).astype("float32"), logits, soft.argmax(axis=1), soft


def one_hot(y, classes=CLASSES):
    return np.eye(classes, dtype="float32")[y]


def weights_of(distiller):
    """Everything that training changes."""
    variables = [*distiller.model.variables, *distiller.variables, *distiller.optimizer.variables]
    return [np.asarray(v) for v in variables]


def assert_untouched(distiller, before):
    after = weights_of(distiller)
    assert len(after) == len(before)
    assert all(np.array_equal(a, b) for a, b in zip(after, before, strict=True))


def values(loss, y, logits, classes=CLASSES):
    return np.asarray(per_sample(loss, classes)(standard_labels(ops.convert_to_tensor(y), classes), logits))


# Values -----------------------------------------------------------------------------------------


def smoothed(y, amount=0.1):
    return one_hot(y) * (1 - amount) + amount / CLASSES


def focal(y, z, alpha=0.25, gamma=2.0):
    p = reference.softmax(z)[np.arange(len(y)), y]
    return alpha * (1 - p) ** gamma * -np.log(p)


def twice(y, logits):
    """A user's function of ids."""
    return 2 * ops.sparse_categorical_crossentropy(y, logits, from_logits=True)


class Halved(keras.losses.Loss):
    """A user's class of loss."""

    def call(self, y, logits):
        return 0.5 * ops.sparse_categorical_crossentropy(y, logits, from_logits=True)


SPARSE = {
    "None": None,
    "'sparse_categorical_crossentropy'": "sparse_categorical_crossentropy",
    "'SparseCategoricalCrossentropy'": "SparseCategoricalCrossentropy",
    "'crossentropy'": "crossentropy",
    "'ce'": "ce",
    "instance": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "function": keras.losses.sparse_categorical_crossentropy,
}
CATEGORICAL = {
    "'categorical_crossentropy'": "categorical_crossentropy",
    "'CategoricalCrossentropy'": "CategoricalCrossentropy",
    "instance": keras.losses.CategoricalCrossentropy(from_logits=True),
    "function": keras.losses.categorical_crossentropy,
}


@pytest.mark.parametrize("loss", [*SPARSE.values(), *CATEGORICAL.values()], ids=[*SPARSE, *CATEGORICAL])
def test_class_ids_give_the_cross_entropy_of_logits(loss):
    _, logits, y, _ = data()
    for labels in (y, y[:, None], y.astype("uint8"), y.astype("float32")):
        np.testing.assert_allclose(values(loss, labels, logits), reference.ce(logits, y), rtol=1e-6)


@pytest.mark.parametrize("loss", [None, "ce", *CATEGORICAL.values()], ids=["None", "'ce'", *CATEGORICAL])
def test_probabilities_give_the_cross_entropy_of_logits(loss):
    _, logits, y, soft = data()
    np.testing.assert_allclose(values(loss, soft, logits), reference.ce(logits, soft), rtol=1e-6)
    for labels in (one_hot(y), one_hot(y).astype("int32"), one_hot(y).astype("bool")):
        np.testing.assert_allclose(values(loss, labels, logits), reference.ce(logits, y), rtol=1e-6)


@pytest.mark.parametrize("form", ["ids", "one-hot"])
@pytest.mark.parametrize(
    "loss, expected",
    [
        (
            keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
            lambda z, y: reference.ce(z, smoothed(y)),
        ),
        (keras.losses.CategoricalFocalCrossentropy(from_logits=True), lambda z, y: focal(y, z)),
        (
            keras.losses.CategoricalFocalCrossentropy(alpha=0.5, gamma=3.0, from_logits=True),
            lambda z, y: focal(y, z, 0.5, 3.0),
        ),
        ("categorical_focal_crossentropy", lambda z, y: focal(y, z)),
        (
            "categorical_hinge",
            lambda z, y: np.maximum(0, 1 - (one_hot(y) * z).sum(1) + ((1 - one_hot(y)) * z).max(1)),
        ),
        (keras.losses.MeanSquaredError(), lambda z, y: ((z - one_hot(y)) ** 2).mean(axis=1)),
        ("mse", lambda z, y: ((z - one_hot(y)) ** 2).mean(axis=1)),
    ],
    ids=[
        "smoothing",
        "focal",
        "focal, weights",
        "'focal'",
        "'categorical_hinge'",
        "MeanSquaredError",
        "'mse'",
    ],
)
def test_losses_of_one_hot_labels_take_ids_too(loss, expected, form):
    _, logits, y, _ = data()
    for rows in (ROWS, CLASSES):  # as many rows as classes must not broadcast
        labels = (y if form == "ids" else one_hot(y))[:rows]
        np.testing.assert_allclose(
            values(loss, labels, logits[:rows]), expected(logits, y)[:rows], rtol=1e-5, err_msg=f"{rows} rows"
        )


@pytest.mark.parametrize("loss, factor", [(twice, 2), (Halved(), 0.5)], ids=["function", "class"])
def test_a_loss_of_ones_own(loss, factor):
    _, logits, y, _ = data()
    np.testing.assert_allclose(values(loss, y, logits), factor * reference.ce(logits, y), rtol=1e-6)


def test_ignored_classes_stay_ignored():
    _, logits, y, _ = data()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=1)
    np.testing.assert_allclose(values(loss, y, logits), reference.ce(logits, y) * (y != 1), rtol=1e-6)
    assert (y == 1).any()


@pytest.mark.parametrize("loss", ["binary_crossentropy", "BinaryCrossentropy"])
def test_binary_cross_entropy_by_name_is_that_of_two_logits(loss):
    _, logits, y, _ = data(classes=2)
    p = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    expected = -np.where(y == 1, np.log(p), np.log(1 - p))
    np.testing.assert_allclose(values(loss, y, logits, classes=2), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "loss, expected",
    [
        ("sparse_categorical_crossentropy", lambda z, y: reference.ce(z, y)),
        (
            keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2),
            lambda z, y: reference.ce(z, smoothed(y, 0.2)),
        ),
        (twice, lambda z, y: 2 * reference.ce(z, y)),
    ],
    ids=["name", "smoothing", "function"],
)
def test_the_loss_that_is_logged_is_the_one_that_was_given(loss, expected):
    x, _, y, _ = data()
    distiller = compiled(loss=loss)
    logits = distiller.predict(x, verbose=0)
    value = sum(expected(logits[name].astype("float64"), y).mean() for name in ("exit_1", "final"))
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(logs["classification_loss"], value, rtol=1e-5)


def test_sparse_losses_do_not_take_probabilities():
    _, logits, y, _ = data()
    with pytest.raises(ValueError, match=r"(?s)sparse_categorical_crossentropy.*\(12, 4\).*Fix"):
        values("sparse_categorical_crossentropy", one_hot(y), logits)


# Losses that are refused --------------------------------------------------------------------------

K = keras.losses
REFUSED = [
    ("SparseCategoricalCrossentropy(from_logits=False)", K.SparseCategoricalCrossentropy()),
    ("CategoricalCrossentropy(from_logits=False)", K.CategoricalCrossentropy(label_smoothing=0.1)),
    ("CategoricalFocalCrossentropy(from_logits=False)", K.CategoricalFocalCrossentropy()),
    ("KLDivergence", K.KLDivergence()),
    ("KLDivergence", "KLDivergence"),
    ("kl_divergence", "kl_divergence"),
    ("kl_divergence", K.kl_divergence),
    ("kl", "kld"),
    ("kl", "KLD"),
    ("Poisson", K.Poisson()),
    ("poisson", "poisson"),
    ("poisson", K.poisson),
    ("BinaryCrossentropy", K.BinaryCrossentropy(from_logits=True)),
    ("BinaryFocalCrossentropy", K.BinaryFocalCrossentropy(from_logits=True)),
    ("binary_crossentropy", "binary_crossentropy"),
    ("binary_crossentropy", K.binary_crossentropy),
    ("b", "bce"),
    ("binary_focal_crossentropy", "binary_focal_crossentropy"),
    ("CategoricalGeneralizedCrossEntropy", K.CategoricalGeneralizedCrossEntropy()),
    ("reduction='sum'", K.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")),
    ("reduction='mean'", K.CategoricalCrossentropy(from_logits=True, reduction="mean")),
    ("reduction=None", K.CategoricalCrossentropy(from_logits=True, reduction=None)),
    ("['ce']", ["ce"]),
    ("{'final': 'ce'}", {"final": "ce"}),
    ("3", 3),
    ("SparseCategoricalCrossentropy", K.SparseCategoricalCrossentropy),
    ("no_such_loss", "no_such_loss"),
]


@pytest.mark.parametrize("received, loss", REFUSED, ids=[f"{type(v).__name__} {r}" for r, v in REFUSED])
def test_a_refused_loss_is_named_and_changes_nothing(received, loss):
    distiller = compiled(run_eagerly=True)
    optimizer, before = distiller.optimizer, weights_of(distiller)
    with pytest.raises(ValueError) as error:
        distiller.compile("adam", loss=loss)
    message = str(error.value)
    assert received.lower() in message.lower()
    if loss != "no_such_loss":  # that one is Keras's own error
        assert "Expected: " in message
        assert "Fix: " in message
    assert distiller.optimizer is optimizer
    assert_untouched(distiller, before)
    x, _, y, _ = data()
    distiller.train_on_batch(x, y)  # still compiled as before
    assert optimizer.iterations == 1


@pytest.mark.parametrize(
    "options, received, fix",
    [
        ({"loss_weights": [1, 2]}, "loss_weights", "CrossEntropy(weights="),
        ({"loss_weights": {"final": 2.0}}, "loss_weights", "CrossEntropy(weights="),
        ({"metrics": {"final": "accuracy"}}, "{'final': 'accuracy'}", "metrics=['accuracy']"),
        ({"weighted_metrics": {"final": ["acc"]}}, "{'final': ['acc']}", "weighted_metrics=['accuracy']"),
    ],
    ids=["loss_weights", "loss_weights dict", "metrics", "weighted_metrics"],
)
def test_refused_arguments_of_compile_change_nothing(options, received, fix):
    distiller = compiled()
    optimizer, before = distiller.optimizer, weights_of(distiller)
    with pytest.raises(ValueError) as error:
        distiller.compile("adam", **options)
    assert received in str(error.value)
    assert fix in str(error.value)
    assert distiller.optimizer is optimizer
    assert_untouched(distiller, before)


def mean_over_the_batch(y, logits):
    return ops.mean(ops.sparse_categorical_crossentropy(y, logits, from_logits=True))


def test_a_loss_that_reduces_the_batch_is_refused_at_the_first_step():
    x, _, y, _ = data()
    distiller = compiled(loss=mean_over_the_batch)
    before = weights_of(distiller)
    with pytest.raises(ValueError, match=r"(?s)mean_over_the_batch.*\(batch,\).*shape \(\).*unreduced"):
        distiller.fit(x, y, verbose=0)
    assert_untouched(distiller, before)


# Labels -----------------------------------------------------------------------------------------


def changed(y, value):
    y = np.array(y, "float64" if isinstance(value, float) else "int64")
    y[-1] = value
    return y


IDS = data()[2]
WRONG_LABELS = {
    "too large": (changed(IDS, CLASSES), ["0 … 3", "to 4"]),
    "negative": (changed(IDS, -1), ["0 … 3", "from -1"]),
    "fraction": (changed(IDS, 1.5), ["1.5"]),
    "NaN": (changed(IDS, float("nan")), ["nan"]),
    "strings": (np.array(["cat", "dog"] * (ROWS // 2)), ["not numbers", "StringLookup"]),
    "objects": (np.array(["cat", "dog"] * (ROWS // 2), object), ["not numbers", "object"]),
    "column, too large": (changed(IDS, CLASSES)[:, None], ["0 … 3", "to 4"]),
    "negative probabilities": (one_hot(IDS) - 0.1, ["negative", "-0.1"]),
    "NaN probabilities": (one_hot(IDS) * np.nan, ["NaN"]),
    "rank 3": (np.zeros((ROWS, CLASSES, 1)), ["(batch,)", "4, 1)"]),
    "other width": (np.zeros((ROWS, CLASSES + 1)), ["(batch, 4)", "5)"]),
    "none": (None, ["no labels", "(images, labels)"]),
}
ENTRIES = {
    "fit": lambda d, x, y: d.fit(x, y, batch_size=4, verbose=0),
    "evaluate": lambda d, x, y: d.evaluate(x, y, verbose=0),
    "train_on_batch": lambda d, x, y: d.train_on_batch(x, y),
    "test_on_batch": lambda d, x, y: d.test_on_batch(x, y),
    "validation_data": lambda d, x, y: d.fit(x, IDS, validation_data=(x, y), verbose=0),
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES.keys())
@pytest.mark.parametrize("labels, words", WRONG_LABELS.values(), ids=WRONG_LABELS.keys())
def test_wrong_labels_in_memory_change_nothing(labels, words, entry):
    distiller = compiled()
    before = weights_of(distiller)
    with pytest.raises(ValueError) as error:
        entry(distiller, data()[0], labels)
    assert all(word in str(error.value) for word in [*words, "Expected: ", "Fix: "]), str(error.value)
    assert_untouched(distiller, before)


@pytest.mark.parametrize("loss", [None, "categorical_crossentropy"])
@pytest.mark.parametrize("value", [CLASSES, -1, 1000])
def test_wrong_labels_of_a_data_set_are_told_by_the_step(value, loss):
    """A data set is not read ahead: the batches before the wrong one are trained on, that one is not."""
    x, _, y, _ = data()
    distiller, twin = compiled(loss=loss), compiled(loss=loss)
    twin.model.set_weights(distiller.model.get_weights())
    twin.fit(x[:8], y[:8], batch_size=4, shuffle=False, verbose=0)
    dataset = tf.data.Dataset.from_tensor_slices((x, changed(y, value))).batch(4)
    with pytest.raises(ValueError, match=rf"(?s)0 … 3.*{value}.*Fix"):
        distiller.fit(dataset, verbose=0)
    for found, expected in zip(distiller.model.get_weights(), twin.model.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "labels, words",
    [
        (WRONG_LABELS["strings"][0], ["not numbers", "StringLookup"]),
        (WRONG_LABELS["rank 3"][0], ["(batch,)", "4, 1)"]),
        (WRONG_LABELS["other width"][0], ["(batch, 4)", "5)"]),
    ],
    ids=["strings", "rank 3", "other width"],
)
def test_wrong_kinds_of_labels_of_a_data_set_change_nothing(labels, words):
    distiller = compiled()
    before = weights_of(distiller)
    with pytest.raises(ValueError) as error:
        distiller.fit(tf.data.Dataset.from_tensor_slices((data()[0], labels)).batch(4), verbose=0)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert_untouched(distiller, before)


def test_a_data_set_without_labels():
    distiller = compiled()
    with pytest.raises(ValueError, match="no labels"):
        distiller.fit(tf.data.Dataset.from_tensor_slices(data()[0]).batch(4), verbose=0)


@pytest.mark.parametrize(
    "labels, rank",
    [
        (IDS, 1),
        (IDS[:, None], 1),
        (IDS.astype("uint8"), 1),
        (IDS.astype("float32"), 1),
        (IDS[:, None].astype("float64"), 1),
        (IDS % 2 == 1, 1),
        (one_hot(IDS), 2),
        (one_hot(IDS).astype("int64"), 2),
        (np.full((ROWS, CLASSES), 0.25, "float16"), 2),
    ],
)
def test_labels_of_every_kind_become_ids_or_probabilities(labels, rank):
    check_labels(labels, CLASSES)
    found = standard_labels(ops.convert_to_tensor(labels), CLASSES)
    expected = labels.reshape(ROWS) if rank == 1 else labels
    np.testing.assert_array_equal(np.asarray(found).astype("float64"), expected.astype("float64"))
    assert keras.backend.is_float_dtype(found.dtype) == (rank == 2)


@pytest.mark.parametrize("batched", [True, False])
def test_labels_that_are_not_arrays_are_left_to_the_step(batched):
    """Checking must not consume a data set or a generator."""

    def rows():
        for i in range(3):
            yield np.zeros((4, 6), "float32"), IDS[4 * i : 4 * i + 4]

    steps = rows()
    check_labels(steps, CLASSES)
    check_labels(None, CLASSES)
    assert len(list(steps)) == 3
    if batched:
        distiller = compiled()
        distiller.fit(rows(), steps_per_epoch=3, verbose=0)
        assert distiller.optimizer.iterations == 3

"""Metrics, once an exit: their values by hand from the logits, their names, and who reads them."""

import keras
import numpy as np
import pytest
import reference

import keras_exitens as kx
from keras_exitens._training.exit_metrics import ExitMetric

ROWS, CLASSES = 16, 4
BATCH = 9  # the last batch is smaller
NAMES = ("exit_1", "exit_2", "final")
M = keras.metrics


def passing(classes=CLASSES, exits=3, dtype=None):
    """A distiller whose logits are its inputs, `(batch, exits, classes)`: made for `evaluate`."""
    inputs = keras.Input((exits, classes), dtype=dtype)
    names = [f"exit_{i}" for i in range(1, exits)] + ["final"]
    model = keras.Model(inputs, {name: inputs[:, i] for i, name in enumerate(names)})
    return kx.ExitEnsembleDistiller(model, kx.objectives.CrossEntropy())


def data(classes=CLASSES, rows=ROWS):
    """Logits `(rows, 3, classes)`, far from ties, and class ids; every class is there."""
    rng = np.random.default_rng(1)
    return (3 * rng.normal(size=(rows, 3, classes))).astype("float32"), rng.permutation(rows) % classes


def per_exit(logits):
    """Name of an exit, or "ensemble", to its logits."""
    return {**dict(zip(NAMES, logits.swapaxes(0, 1), strict=True)), "ensemble": logits.mean(axis=1)}


def one_hot(y, classes=CLASSES):
    return np.eye(classes, dtype="float32")[y]


def evaluate(logits, y, distiller=None, **options):
    distiller = distiller or passing(logits.shape[-1])
    distiller.compile("sgd", **{"run_eagerly": True, **options})
    return distiller.evaluate(logits, y, batch_size=BATCH, verbose=0, return_dict=True)


# Values by hand -----------------------------------------------------------------------------------


def accuracy(z, y):
    return (z.argmax(axis=1) == y).mean()


def cross_entropy(z, y):
    return reference.ce(z.astype("float64"), y).mean()


def in_top(k):
    return lambda z, y: np.mean([label in row.argsort()[-k:] for row, label in zip(z, y, strict=True)])


def micro_precision(z, y):
    """Of all class probabilities above a half, those of the right class."""
    chosen = reference.softmax(z) > 0.5
    return (chosen & (one_hot(y) > 0)).sum() / chosen.sum()


def recall_of_class_2(z, y):
    return (reference.softmax(z)[y == 2, 2] > 0.5).mean()


def f1(z, y):
    """F1 of each class, a row counting for its largest probability."""
    found = one_hot(z.argmax(axis=1))
    right = (found * one_hot(y)).sum(axis=0)
    return 2 * right / (found.sum(axis=0) + one_hot(y).sum(axis=0))


def squared_error(z, y):
    return ((reference.softmax(z) - one_hot(y)) ** 2).mean()


def mean_iou(z, y):
    found = z.argmax(axis=1)
    both = [((found == c) & (y == c)).sum() / ((found == c) | (y == c)).sum() for c in range(CLASSES)]
    return np.mean(both)


MULTI_CLASS = {
    "'accuracy'": (lambda: "accuracy", "accuracy", accuracy),
    "'acc'": (lambda: "acc", "acc", accuracy),
    "SparseCategoricalAccuracy": (lambda: M.SparseCategoricalAccuracy(name="a"), "a", accuracy),
    "CategoricalAccuracy": (lambda: M.CategoricalAccuracy(name="a"), "a", accuracy),
    "'crossentropy'": (lambda: "crossentropy", "crossentropy", cross_entropy),
    "'sparse_categorical_crossentropy'": (
        lambda: "sparse_categorical_crossentropy",
        "sparse_categorical_crossentropy",
        cross_entropy,
    ),
    "'categorical_crossentropy'": (
        lambda: "categorical_crossentropy",
        "categorical_crossentropy",
        cross_entropy,
    ),
    "function": (lambda: M.sparse_categorical_crossentropy, "sparse_categorical_crossentropy", cross_entropy),
    "from_logits, sparse": (
        lambda: M.SparseCategoricalCrossentropy(from_logits=True, name="nll"),
        "nll",
        cross_entropy,
    ),
    "from_logits": (lambda: M.CategoricalCrossentropy(from_logits=True, name="nll"), "nll", cross_entropy),
    "sparse top 2": (lambda: M.SparseTopKCategoricalAccuracy(k=2, name="top2"), "top2", in_top(2)),
    "top 2": (lambda: M.TopKCategoricalAccuracy(k=2, name="top2"), "top2", in_top(2)),
    "Precision": (lambda: M.Precision(name="p"), "p", micro_precision),
    "'Precision'": (lambda: "Precision", "Precision", micro_precision),
    "Recall of a class": (lambda: M.Recall(class_id=2, name="r"), "r", recall_of_class_2),
    "F1Score": (lambda: M.F1Score(name="f1"), "f1", f1),
    "F1Score macro": (lambda: M.F1Score(average="macro", name="f1"), "f1", lambda z, y: f1(z, y).mean()),
    "'mse'": (lambda: "mse", "mse", squared_error),
    "OneHotMeanIoU": (lambda: M.OneHotMeanIoU(CLASSES, name="iou"), "iou", mean_iou),
    "MeanIoU": (lambda: M.MeanIoU(CLASSES, sparse_y_pred=False, name="iou"), "iou", mean_iou),
}


@pytest.mark.parametrize("kind", ["ids", "one-hot"])
@pytest.mark.parametrize("metric, name, by_hand", MULTI_CLASS.values(), ids=MULTI_CLASS.keys())
def test_metrics_of_many_classes(metric, name, by_hand, kind):
    logits, y = data()
    logs = evaluate(logits, one_hot(y) if kind == "one-hot" else y, metrics=[metric()])
    for exit_, z in per_exit(logits).items():
        np.testing.assert_allclose(logs[f"{exit_}_{name}"], by_hand(z, y), rtol=2e-5, err_msg=exit_)


def positive(z):
    """Probability of class 1."""
    return 1 / (1 + np.exp(z[:, 0].astype("float64") - z[:, 1]))


def area(z, y):
    """How often a positive row has the larger probability."""
    score = positive(z)
    return (score[y == 1][:, None] > score[y == 0][None]).mean()


def log_loss(z, y):
    return -np.log(np.where(y == 1, positive(z), 1 - positive(z))).mean()


BINARY = {
    "'accuracy'": (lambda: "accuracy", "accuracy", accuracy),
    "AUC": (lambda: M.AUC(num_thresholds=20_000, name="auc"), "auc", area),
    "AUC from_logits": (
        lambda: M.AUC(num_thresholds=20_000, from_logits=True, name="auc"),
        "auc",
        area,
    ),
    "Precision": (lambda: M.Precision(name="p"), "p", lambda z, y: y[positive(z) > 0.5].mean()),
    "Recall": (lambda: M.Recall(name="r"), "r", lambda z, y: (positive(z) > 0.5)[y == 1].mean()),
    "BinaryAccuracy": (lambda: M.BinaryAccuracy(name="a"), "a", accuracy),
    "'binary_crossentropy'": (lambda: "binary_crossentropy", "binary_crossentropy", log_loss),
    "BinaryCrossentropy from_logits": (
        lambda: M.BinaryCrossentropy(from_logits=True, name="n"),
        "n",
        log_loss,
    ),
    "F1Score": (
        lambda: M.F1Score(threshold=0.5, name="f1"),
        "f1",
        lambda z, y: [2 * y[positive(z) > 0.5].sum() / ((positive(z) > 0.5).sum() + y.sum())],
    ),
}


@pytest.mark.parametrize("metric, name, by_hand", BINARY.values(), ids=BINARY.keys())
def test_metrics_of_two_classes_are_those_of_class_1(metric, name, by_hand):
    logits, y = data(classes=2)
    logs = evaluate(logits, y, metrics=[metric()])
    for exit_, z in per_exit(logits).items():
        np.testing.assert_allclose(logs[f"{exit_}_{name}"], by_hand(z, y), rtol=1e-4, err_msg=exit_)


# All of keras.metrics, two classes, labels as ids. What a network ending in Dense(1, "sigmoid") would give:
# columns of the label and of the probability of class 1.
CLASS_1 = {
    "AUC": lambda: M.AUC(),
    "AUC from_logits": lambda: M.AUC(from_logits=True),
    "AUC PR": lambda: M.AUC(curve="PR", num_thresholds=50),
    "BinaryAccuracy": lambda: M.BinaryAccuracy(threshold=0.3),
    "BinaryCrossentropy": lambda: M.BinaryCrossentropy(label_smoothing=0.1),
    "BinaryCrossentropy from_logits": lambda: M.BinaryCrossentropy(from_logits=True),
    "BinaryIoU": lambda: M.BinaryIoU(),
    "BinaryIoU of class 0": lambda: M.BinaryIoU(target_class_ids=[0], threshold=0.7),
    "ConcordanceCorrelation": lambda: M.ConcordanceCorrelation(axis=0),
    "CosineSimilarity": lambda: M.CosineSimilarity(),
    "F1Score": lambda: M.F1Score(threshold=0.4),
    "FBetaScore": lambda: M.FBetaScore(beta=2.0, threshold=0.4, average="micro"),
    "FalseNegatives": lambda: M.FalseNegatives(thresholds=[0.2, 0.6]),
    "FalsePositives": lambda: M.FalsePositives(),
    "Hinge": lambda: M.Hinge(),
    "KLDivergence": lambda: M.KLDivergence(),
    "LogCoshError": lambda: M.LogCoshError(),
    "MeanAbsoluteError": lambda: M.MeanAbsoluteError(),
    "MeanAbsolutePercentageError": lambda: M.MeanAbsolutePercentageError(),
    "MeanSquaredError": lambda: M.MeanSquaredError(),
    "MeanSquaredLogarithmicError": lambda: M.MeanSquaredLogarithmicError(),
    "PearsonCorrelation": lambda: M.PearsonCorrelation(axis=0),
    "Poisson": lambda: M.Poisson(),
    "Precision": lambda: M.Precision(thresholds=[0.3, 0.7]),
    "PrecisionAtRecall": lambda: M.PrecisionAtRecall(0.6),
    "R2Score": lambda: M.R2Score(),
    "Recall": lambda: M.Recall(thresholds=0.2),
    "RecallAtPrecision": lambda: M.RecallAtPrecision(0.6),
    "RootMeanSquaredError": lambda: M.RootMeanSquaredError(),
    "SensitivityAtSpecificity": lambda: M.SensitivityAtSpecificity(0.6),
    "SpecificityAtSensitivity": lambda: M.SpecificityAtSensitivity(0.6),
    "SquaredHinge": lambda: M.SquaredHinge(),
    "TrueNegatives": lambda: M.TrueNegatives(),
    "TruePositives": lambda: M.TruePositives(),
}
# Metrics that look at each class: one-hot rows, and the probabilities of both.
BOTH_CLASSES = {
    "AUC multi_label": lambda: M.AUC(multi_label=True, num_labels=2),
    "AUC multi_label, weights": lambda: M.AUC(multi_label=True, label_weights=[0.2, 0.8]),
    "CategoricalAccuracy": lambda: M.CategoricalAccuracy(),
    "CategoricalCrossentropy": lambda: M.CategoricalCrossentropy(label_smoothing=0.1),
    "CategoricalHinge": lambda: M.CategoricalHinge(),
    "F1Score of each": lambda: M.F1Score(),
    "F1Score macro": lambda: M.F1Score(average="macro"),
    "FBetaScore weighted": lambda: M.FBetaScore(beta=0.5, average="weighted"),
    "OneHotIoU": lambda: M.OneHotIoU(2, [0]),
    "OneHotMeanIoU": lambda: M.OneHotMeanIoU(2),
    "Precision of class 0": lambda: M.Precision(class_id=0),
    "Precision top_k": lambda: M.Precision(top_k=1),
    "PrecisionAtRecall of class 0": lambda: M.PrecisionAtRecall(0.6, class_id=0),
    "Recall of class 0": lambda: M.Recall(class_id=0, thresholds=0.4),
    "Recall of class 1": lambda: M.Recall(class_id=1),
    "RecallAtPrecision of class 0": lambda: M.RecallAtPrecision(0.6, class_id=0),
    "SensitivityAtSpecificity of class 0": lambda: M.SensitivityAtSpecificity(0.6, class_id=0),
    "SpecificityAtSensitivity of class 0": lambda: M.SpecificityAtSensitivity(0.6, class_id=0),
    "TopKCategoricalAccuracy": lambda: M.TopKCategoricalAccuracy(k=1),
}
# Metrics that want class ids, and probabilities or predicted ids.
IDS = {
    "IoU": (lambda: M.IoU(2, [1]), np.argmax),
    "IoU of scores": (lambda: M.IoU(2, [1], sparse_y_pred=False), lambda p, axis: p),
    "MeanIoU": (lambda: M.MeanIoU(2), np.argmax),
    "SparseCategoricalAccuracy": (lambda: M.SparseCategoricalAccuracy(), lambda p, axis: p),
    "SparseCategoricalCrossentropy": (lambda: M.SparseCategoricalCrossentropy(), lambda p, axis: p),
    "SparseTopKCategoricalAccuracy": (lambda: M.SparseTopKCategoricalAccuracy(k=1), lambda p, axis: p),
}


def stock(metric, y, scores):
    """Value of a metric that gets the rows in the batches of `evaluate`."""
    for start in range(0, len(y), BATCH):
        rows = slice(start, start + BATCH)
        metric.update_state(y[rows], np.asarray(scores[rows], scores.dtype.str.replace("f8", "f4")))
    return np.asarray(metric.result())


def two_classes(rows=60):
    """Logits that lean the right way by more at later exits, and ids, two thirds of them class 0."""
    rng = np.random.default_rng(3)
    y = (rng.uniform(size=rows) < 1 / 3).astype("int64")
    logits = rng.normal(size=(rows, 3, 2)) + np.eye(2)[y][:, None] * np.array([0.3, 0.8, 1.5])[:, None]
    return logits.astype("float32"), y


def check_against_stock(make, expected):
    logits, y = two_classes()
    logs = evaluate(logits, y, metrics=[metric := make()])
    for exit_, z in per_exit(logits).items():
        found = logs[f"{exit_}_{metric.name}"]
        np.testing.assert_allclose(found, expected(y, z), rtol=1e-4, atol=1e-6, err_msg=exit_)


@pytest.mark.parametrize("make", CLASS_1.values(), ids=CLASS_1.keys())
def test_of_two_classes_it_is_the_metric_of_a_sigmoid_network(make):
    def expected(y, z):
        on_logits = make().get_config().get("from_logits")
        column = (z[:, 1] - z[:, 0]) if on_logits else positive(z)
        return stock(make(), y[:, None], column[:, None])

    check_against_stock(make, expected)


@pytest.mark.parametrize("make", BOTH_CLASSES.values(), ids=BOTH_CLASSES.keys())
def test_of_two_classes_it_is_the_metric_of_each_where_it_looks_at_each(make):
    check_against_stock(make, lambda y, z: stock(make(), one_hot(y, 2), reference.softmax(z)))


@pytest.mark.parametrize("make, prediction", IDS.values(), ids=IDS.keys())
def test_of_two_classes_it_gets_ids_where_it_wants_ids(make, prediction):
    check_against_stock(make, lambda y, z: stock(make(), y, prediction(reference.softmax(z), axis=-1)))


def test_areas_of_each_class_from_logits_are_those_from_probabilities():
    logits, y = two_classes()
    areas = [M.AUC(multi_label=True, from_logits=from_logits, name="a") for from_logits in (False, True)]
    found = [evaluate(logits, y, metrics=[area])["final_a"] for area in areas]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


class OwnRecall(M.Recall):
    """Inherits how it reads labels."""

    def result(self):
        return 100 * super().result()


class OwnReading(M.Metric):
    """Reads labels itself: gets them as they are, and all probabilities."""

    def __init__(self, name="own", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.total = self.add_weight(name="total", initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        assert len(y_true.shape) == 1 and y_pred.shape[1:] == (2,)
        self.total.assign_add(keras.ops.sum(y_pred[:, 1]))

    def result(self):
        return self.total


@pytest.mark.parametrize("make", [lambda: OwnRecall(name="r"), lambda: OwnRecall(class_id=0, name="r")])
def test_subclasses_of_the_users_are_fed_alike(make):
    stock_one = M.Recall(class_id=make().class_id)

    def expected(y, z):
        stock_one.reset_state()
        p = positive(z)[:, None]
        given = (y[:, None], p) if stock_one.class_id is None else (one_hot(y, 2), reference.softmax(z))
        return 100 * stock(stock_one, *given)

    check_against_stock(make, expected)


def test_a_metric_that_reads_labels_itself():
    check_against_stock(OwnReading, lambda y, z: positive(z).sum())


def test_no_metric_of_keras_is_left_out():
    classes = {value for value in vars(M).values() if isinstance(value, type) and issubclass(value, M.Metric)}
    tested = {
        type(make()) for make in (*CLASS_1.values(), *BOTH_CLASSES.values(), *(m for m, _ in IDS.values()))
    }
    # These take values, not labels; the last compares exact values, which probabilities are not.
    assert classes - tested == {M.Metric, M.Mean, M.Sum, M.MeanMetricWrapper, M.Accuracy}


@pytest.mark.parametrize("name", ["crossentropy", "ce"])
def test_cross_entropy_of_two_classes(name):
    logits, y = two_classes()
    logs = evaluate(logits, y, metrics=[name])
    for exit_, z in per_exit(logits).items():
        np.testing.assert_allclose(logs[f"{exit_}_{name}"], log_loss(z, y), rtol=1e-5, err_msg=exit_)


@pytest.mark.parametrize("classes", [2, CLASSES])
def test_a_column_of_ids_is_as_good_as_a_row(classes):
    logits, y = data(classes)
    metrics = ["accuracy", "categorical_crossentropy", *(["binary_accuracy"] if classes == 2 else [])]
    row, column = (evaluate(logits, labels, metrics=metrics) for labels in (y, y[:, None]))
    assert row == column
    np.testing.assert_allclose(row["final_accuracy"], accuracy(logits[:, 2], y))


def test_soft_labels_count_for_their_largest_class_where_ids_are_wanted():
    logits, _ = data()
    soft = np.random.default_rng(0).dirichlet(np.ones(CLASSES), size=ROWS).astype("float32")
    logs = evaluate(logits, soft, metrics=["accuracy", "crossentropy"])
    for exit_, z in per_exit(logits).items():
        np.testing.assert_allclose(logs[f"{exit_}_accuracy"], accuracy(z, soft.argmax(axis=1)))
        np.testing.assert_allclose(logs[f"{exit_}_crossentropy"], cross_entropy(z, soft), rtol=1e-5)


def test_as_many_rows_as_classes():
    logits, y = data()
    logits, y = logits[:CLASSES], y[:CLASSES]
    logs = evaluate(logits, y, metrics=["binary_accuracy", "mse"])
    p = reference.softmax(logits[:, 2])
    np.testing.assert_allclose(logs["final_binary_accuracy"], ((p > 0.5) == one_hot(y)).mean())
    np.testing.assert_allclose(logs["final_mse"], squared_error(logits[:, 2], y), rtol=1e-5)


def test_values_are_those_of_the_logits_that_predict_gives():
    inputs = keras.Input((5,))
    first = keras.layers.Dense(CLASSES, name="exit_1")(inputs)
    final = keras.layers.Dense(CLASSES, name="final")(keras.layers.Dense(7)(inputs))
    distiller = kx.ExitEnsembleDistiller(
        keras.Model(inputs, {"exit_1": first, "final": final}), kx.objectives.CrossEntropy()
    )
    distiller.compile("sgd", metrics=["accuracy", "sparse_categorical_crossentropy"])
    x, (_, y) = np.random.default_rng(0).normal(size=(ROWS, 5)).astype("float32"), data()
    logits = distiller.predict(x, verbose=0)
    logs = distiller.evaluate(x, y, batch_size=7, verbose=0, return_dict=True)
    assert set(logits) == {"exit_1", "final", "ensemble"}
    for exit_, z in logits.items():
        np.testing.assert_allclose(logs[f"{exit_}_accuracy"], accuracy(z, y))
        expected = cross_entropy(z, y)
        np.testing.assert_allclose(logs[f"{exit_}_sparse_categorical_crossentropy"], expected, rtol=1e-5)


def test_half_precision_logits_are_measured_in_float32():
    logits, y = data()
    logits = logits.astype("float16")
    distiller = passing(dtype="float16")
    logs = evaluate(logits, y, distiller, metrics=["sparse_categorical_crossentropy", "ce"])
    for exit_, z in per_exit(logits.astype("float32")).items():
        np.testing.assert_allclose(logs[f"{exit_}_ce"], cross_entropy(z, y), rtol=2e-5, err_msg=exit_)
        found = logs[f"{exit_}_sparse_categorical_crossentropy"]
        np.testing.assert_allclose(found, cross_entropy(z, y), rtol=2e-5, err_msg=exit_)
    assert logits.dtype == "float16"


def test_binary_cross_entropy_over_one_hot_columns():
    """Keras remembers the logits behind a softmax, and would take them for those of a sigmoid."""
    logits, y = data()
    logs = evaluate(logits, one_hot(y), metrics=["binary_crossentropy"])
    for exit_, z in per_exit(logits).items():
        p = reference.softmax(z)
        expected = -(one_hot(y) * np.log(p) + (1 - one_hot(y)) * np.log(1 - p)).mean()
        np.testing.assert_allclose(logs[f"{exit_}_binary_crossentropy"], expected, rtol=1e-4, err_msg=exit_)


# Weights of samples -------------------------------------------------------------------------------


@pytest.mark.parametrize("column", [False, True])
def test_weighted_metrics_use_sample_weight_and_metrics_do_not(column):
    logits, y = data()
    w = np.random.default_rng(0).uniform(0, 2, ROWS).astype("float32")
    distiller = passing()
    distiller.compile("sgd", metrics=["accuracy"], weighted_metrics=[M.CategoricalAccuracy(name="weighted")])
    weights = w[:, None] if column else w
    logs = distiller.evaluate(logits, y, sample_weight=weights, batch_size=7, verbose=0, return_dict=True)
    for exit_, z in per_exit(logits).items():
        right = z.argmax(axis=1) == y
        np.testing.assert_allclose(logs[f"{exit_}_accuracy"], right.mean(), rtol=1e-6)
        np.testing.assert_allclose(logs[f"{exit_}_weighted"], (w * right).sum() / w.sum(), rtol=1e-6)


# Names and copies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metrics, names",
    [
        (None, []),
        ([], []),
        ("accuracy", ["accuracy"]),
        (("acc",), ["acc"]),
        (["accuracy", M.AUC(name="area", multi_label=True)], ["accuracy", "area"]),
        ([M.SparseTopKCategoricalAccuracy(k=2, name="top2"), "ce"], ["top2", "ce"]),
    ],
    ids=["None", "empty", "one", "tuple", "instance", "two"],
)
def test_logs_are_named_exit_then_metric(metrics, names):
    logits, y = data()
    logs = evaluate(logits, one_hot(y), metrics=metrics)
    terms = {"loss", "classification_loss", "distillation_loss", "feature_loss"}
    assert set(logs) == terms | {f"{exit_}_{name}" for exit_ in (*NAMES, "ensemble") for name in names}


def test_eleven_exits_are_not_mixed_up():
    """exit_10 sorts before exit_2, and a dict may be sorted on its way."""
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(ROWS, 12, CLASSES)).astype("float32")
    inputs = keras.Input((12, CLASSES))
    total, outputs = inputs[:, 0], {}
    names = [f"exit_{i}" for i in range(1, 12)] + ["final"]
    for i, name in enumerate(names):
        total = total if i == 0 else total + inputs[:, i]
        outputs[name] = total
    model = keras.Model(inputs, {name: outputs[name] for name in sorted(outputs)})
    distiller = kx.ExitEnsembleDistiller(model, kx.objectives.CrossEntropy())
    y = data()[1]
    logs = evaluate(parts, y, distiller, metrics=["ce"])
    sums = parts.cumsum(axis=1)
    for i, name in enumerate(names):
        np.testing.assert_allclose(logs[f"{name}_ce"], cross_entropy(sums[:, i], y), rtol=1e-5)
    np.testing.assert_allclose(logs["ensemble_ce"], cross_entropy(sums.mean(axis=1), y), rtol=1e-5)
    assert list(distiller.predict(parts, verbose=0)) == [*names, "ensemble"]


def test_two_metrics_of_one_name_are_both_logged():
    logits, y = data()
    logs = evaluate(logits, y, metrics=[M.SparseTopKCategoricalAccuracy(k=k) for k in (1, 3)])
    values = [value for key, value in logs.items() if key.startswith("final_")]
    np.testing.assert_allclose(sorted(values), [accuracy(logits[:, 2], y), in_top(3)(logits[:, 2], y)])


def test_the_users_metric_is_copied_and_stays_as_it_was():
    logits, y = data()
    metric = M.SparseTopKCategoricalAccuracy(k=2, name="top2")
    metric.update_state(y, logits[:, 0])
    before = float(metric.result())
    distiller = passing()
    for _ in range(2):
        logs = evaluate(logits, y, distiller, metrics=[metric])
        np.testing.assert_allclose(logs["final_top2"], in_top(2)(logits[:, 2], y))
    assert float(metric.result()) == before
    assert metric.name == "top2"


def test_values_start_anew_with_each_epoch():
    logits, y = data()
    distiller = passing()
    evaluate(np.zeros_like(logits), one_hot(y), distiller, metrics=["ce", M.F1Score(name="f1")])
    second = distiller.evaluate(logits, one_hot(y), verbose=0, return_dict=True)
    np.testing.assert_allclose(second["final_ce"], cross_entropy(logits[:, 2], y), rtol=1e-5)
    np.testing.assert_allclose(second["final_f1"], f1(logits[:, 2], y), rtol=1e-5)


@pytest.mark.parametrize("eagerly", [True, False])
def test_compiling_again_replaces_the_metrics(eagerly):
    logits, y = data()
    distiller = passing()
    first = evaluate(logits, y, distiller, metrics=["accuracy"], run_eagerly=eagerly)
    count = len(distiller.metrics), len(distiller.metrics_variables)
    again = evaluate(logits, y, distiller, metrics=["accuracy"], run_eagerly=eagerly)
    assert again == first
    assert (len(distiller.metrics), len(distiller.metrics_variables)) == count
    other = evaluate(logits, y, distiller, metrics=["ce"], run_eagerly=eagerly)
    assert set(other) == {key.replace("_accuracy", "_ce") for key in first}


class Rate(M.Metric):
    """How many rows are of the class that is asked for: a user's metric with a config."""

    def __init__(self, wanted=0, name="rate", **kwargs):
        super().__init__(name=name, **kwargs)
        self.wanted = wanted
        self.hits = self.add_weight(shape=(), initializer="zeros", name="hits")
        self.rows = self.add_weight(shape=(), initializer="zeros", name="rows")

    def update_state(self, y_true, y_pred, sample_weight=None):
        found = keras.ops.argmax(y_pred, axis=-1)
        self.hits.assign_add(keras.ops.sum(keras.ops.cast(found == self.wanted, "float32")))
        self.rows.assign_add(keras.ops.cast(keras.ops.shape(y_pred)[0], "float32"))

    def result(self):
        return self.hits / self.rows

    def get_config(self):
        return {**super().get_config(), "wanted": self.wanted}


class NoConfig(Rate):
    def __init__(self, table):
        super().__init__(len(table), name="no_config")

    def get_config(self):
        raise NotImplementedError


def test_a_users_metric_keeps_its_arguments():
    logits, y = data()
    logs = evaluate(logits, y, metrics=[Rate(wanted=3)])
    for exit_, z in per_exit(logits).items():
        np.testing.assert_allclose(logs[f"{exit_}_rate"], (z.argmax(axis=1) == 3).mean())


def test_a_metric_that_cannot_be_copied_is_named():
    with pytest.raises(ValueError, match=r"(?s)no_config.*NoConfig.*get_config"):
        passing().compile("sgd", metrics=[NoConfig([1, 2])])


def largest_probability(y_true, y_pred):
    return keras.ops.max(y_pred, axis=-1)


def test_a_users_function_gets_probabilities():
    logits, y = data()
    logs = evaluate(logits, y, metrics=[largest_probability])
    for exit_, z in per_exit(logits).items():
        expected = reference.softmax(z).max(axis=1).mean()
        np.testing.assert_allclose(logs[f"{exit_}_largest_probability"], expected, rtol=1e-5)


def test_a_loss_from_logits_as_a_metric_gets_logits():
    """In one batch: a loss gives one number a batch, whatever its rows."""
    logits, y = (a[:7] for a in data())
    logs = evaluate(logits, y, metrics=[keras.losses.SparseCategoricalCrossentropy(from_logits=True)])
    for exit_, z in per_exit(logits).items():
        found = logs[f"{exit_}_sparse_categorical_crossentropy"]
        np.testing.assert_allclose(found, cross_entropy(z, y), rtol=1e-5, err_msg=exit_)


@pytest.mark.parametrize("metric", ["no_such_metric", None, ["accuracy"], 3])
def test_what_is_not_a_metric_is_refused_at_once(metric):
    distiller = passing()
    with pytest.raises(ValueError):
        distiller.compile("sgd", metrics=[metric])
    assert not distiller.compiled


# Which way is better ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metric, name, direction",
    [
        ("accuracy", "accuracy", "greater"),
        (M.SparseTopKCategoricalAccuracy(k=2, name="top2"), "top2", "greater"),
        (M.F1Score(average="macro", name="f1"), "f1", "greater"),
        ("crossentropy", "crossentropy", "less"),
        (M.CategoricalCrossentropy(from_logits=True, name="nll"), "nll", "less"),
    ],
    ids=["accuracy", "top2", "f1", "crossentropy", "nll"],
)
def test_keras_finds_which_way_is_better(metric, name, direction):
    logits, y = data()
    distiller = passing()
    evaluate(logits, one_hot(y), distiller, metrics=[metric])
    callback = keras.callbacks.EarlyStopping(f"val_final_{name}")
    callback.set_model(distiller)
    callback._set_monitor_op()
    assert callback.monitor_op.__name__ == direction


def test_a_metric_without_a_direction_is_not_taken_for_a_loss():
    """Keras asks for `mode` then; taken for a loss, a user's accuracy would stop training at its best."""
    logits, y = data()
    distiller = passing()
    evaluate(logits, y, distiller, metrics=[largest_probability, Rate()])
    for name in ("largest_probability", "rate"):
        callback = keras.callbacks.EarlyStopping(f"val_final_{name}")
        callback.set_model(distiller)
        with pytest.raises(ValueError, match="mode='max'"):
            callback._set_monitor_op()


def test_an_exit_metric_tells_its_config():
    metric = ExitMetric(M.SparseTopKCategoricalAccuracy(k=2, name="top2"), "exit_2", 1)
    assert metric.name == "exit_2_top2"
    logits, y = data()
    stacked = np.concatenate([logits, logits.mean(axis=1, keepdims=True)], axis=1)
    metric.update_state(y, stacked)
    np.testing.assert_allclose(metric.result(), in_top(2)(logits[:, 1], y))
    metric.reset_state()
    assert float(metric.result()) == 0

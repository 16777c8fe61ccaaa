"""Rows without a label, told by `ignore_class` of the loss: as if they had not been there."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from distillers import CASES, CLASSES, data, distiller_of

import keras_exitens as kx

M = keras.metrics
METRICS = ["accuracy", "crossentropy", M.F1Score(average="macro", name="f1"), M.MeanIoU(CLASSES, name="iou")]


def loss(ignored=255):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignored)


def labelled(ignored, rows=16):
    """Images, ids of which a third is the ignored one, and which rows are not ignored."""
    x, y = data(rows)
    if not 0 <= ignored < CLASSES:
        y[::3] = ignored
    assert 0 < (y == ignored).sum() < rows
    return x, y, y != ignored


def check_same(one, other):
    for a, b in zip(one.weights, other.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=a.path)


@pytest.mark.parametrize("form", ["arrays", "column", "data set", "weighted"])
@pytest.mark.parametrize("ignored", [255, -1, 2], ids=str)
def test_a_step_is_that_of_the_other_rows(ignored, form):
    x, y, kept = labelled(ignored)
    w = np.random.default_rng(1).uniform(0.5, 2, len(y)).astype("float32")
    distiller, other = distiller_of(loss=loss(ignored)), distiller_of()
    options = {"sample_weight": w} if form == "weighted" else {}
    given = (x, y[:, None] if form == "column" else y)
    if form == "data set":
        given = (tf.data.Dataset.from_tensor_slices((x, y.astype("int32"))).batch(16),)
    found = distiller.fit(*given, **({} if form == "data set" else {"batch_size": 16}), **options, verbose=0)
    options = {"sample_weight": w[kept]} if form == "weighted" else {}
    wanted = other.fit(x[kept], y[kept], batch_size=16, verbose=0, **options)
    check_same(distiller, other)
    assert {*found.history} == {*wanted.history}
    for name, value in wanted.history.items():
        np.testing.assert_allclose(found.history[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_objective_leaves_them_out(case):
    x, y, kept = labelled(255)
    distiller, other = distiller_of(case, loss=loss()), distiller_of(case)
    for _ in range(3):
        distiller.train_on_batch(x, y)
        other.train_on_batch(x[kept], y[kept])
    check_same(distiller, other)


def test_metrics_and_losses_of_evaluate():
    x, y, kept = labelled(255)
    w = np.random.default_rng(1).uniform(0.5, 2, len(y)).astype("float32")
    options = {"metrics": METRICS, "weighted_metrics": ["accuracy", "ce"]}
    distiller, other = distiller_of(loss=loss(), **options), distiller_of(**options)
    found = distiller.evaluate(x, y, 16, sample_weight=w, verbose=0, return_dict=True)
    wanted = other.evaluate(x[kept], y[kept], 16, sample_weight=w[kept], verbose=0, return_dict=True)
    assert {*found} == {*wanted} and "ensemble_iou" in found
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "metric", [M.AUC(), M.Precision(), M.BinaryAccuracy(), M.Recall(class_id=0), M.BinaryIoU(), M.F1Score()]
)
def test_metrics_of_two_classes(metric):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 2, 2)).astype("float32"), rng.integers(0, 2, 30)
    y[::4] = 255
    inputs = keras.Input((2, 2))
    model = keras.Model(inputs, {"exit_1": inputs[:, 0], "final": inputs[:, 1]})
    found = []
    for rows, options in ((slice(None), {"loss": loss()}), (y != 255, {})):
        distiller = kx.ExitEnsembleDistiller(model, kx.objectives.CrossEntropy())
        distiller.compile("sgd", metrics=[metric], **options)
        found.append(distiller.evaluate(x[rows], y[rows], 30, verbose=0, return_dict=True))
    for name, value in found[1].items():
        np.testing.assert_allclose(found[0][name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("case", ["eed mse", "dbt annealed"])
def test_a_batch_without_labels_teaches_nothing(case):
    x, _ = data(8)
    distiller = distiller_of(CASES[case], loss=loss(), metrics=["accuracy"])
    before = {v.path: v.numpy() for v in distiller.variables}
    logs = distiller.train_on_batch(x, np.full(8, 255), return_dict=True)
    assert logs["loss"] == 0 and logs["final_accuracy"] == 0
    changed = [v.path for v in distiller.variables if not np.array_equal(v, before[v.path])]
    assert [path.split("/")[-1] for path in changed] == ["step"]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_other_ids_are_still_out_of_range(jit_compile):
    x, y, _ = labelled(255)
    distiller = distiller_of(loss=loss(), jit_compile=jit_compile)
    before = distiller.model.get_weights()
    with pytest.raises(ValueError, match="out of range"):
        distiller.fit(x, np.where(y == 1, 7, y), verbose=0)
    with pytest.raises(ValueError, match="out of range"):
        distiller.fit(x, y, validation_data=(x, np.where(y == 1, 7, y)), verbose=0)
    assert all(map(np.array_equal, distiller.model.get_weights(), before))
    distiller.fit(x, y, validation_data=(x, y), verbose=0)
    distiller.compile("sgd")
    with pytest.raises(ValueError, match=r"(?s)out of range.*255"):
        distiller.fit(x, y, verbose=0)


def test_it_is_saved_with_the_distiller(tmp_path):
    x, y, _ = labelled(255)
    distiller = distiller_of(loss=loss(), metrics=["accuracy"])
    distiller.fit(x, y, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    wanted = distiller.evaluate(x, y, verbose=0, return_dict=True)
    found = loaded.evaluate(x, y, verbose=0, return_dict=True)
    assert {*found} == {*wanted}
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)

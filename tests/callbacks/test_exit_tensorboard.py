"""ExitTensorBoard on a real run: what TensorBoard itself reads from the logs, and shows in a browser."""

import contextlib
import io
import json
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import browser
import harness
import keras
import numpy as np
import pytest

import keras_exitens as kx

pytest.importorskip("tensorboard")
matplotlib = pytest.importorskip("matplotlib.image")

EPOCHS = 3


def distiller(objective=None):
    keras.utils.set_random_seed(0)
    model = kx.ExitEnsembleDistiller(kx.add_exits(harness.sequential(), exits=2), objective)
    model.compile(keras.optimizers.SGD(0.05), metrics=["accuracy", "crossentropy"])
    return model


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, harness.CLASSES, 64)
    images = rng.normal(size=(64, 16, 16, 3)).astype("float32") + labels[:, None, None, None]
    return images, labels


@pytest.fixture(scope="module")
def logs(data, tmp_path_factory):
    """A run with a picture after epochs 2 and 3 (the last), and its history."""
    folder = tmp_path_factory.mktemp("logs")
    model = distiller(kx.objectives.EED("kl", temperature=2.5))
    board = kx.callbacks.ExitTensorBoard(folder / "run", data=data, figure_freq=2)
    history = model.fit(*data, epochs=EPOCHS, validation_data=data, callbacks=[board], verbose=0)
    return folder, history.history, model


@pytest.fixture(scope="module")
def server(logs):
    """The address of a TensorBoard on the logs, once it has read them."""
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs[0]), "--port", "0"]
        process = subprocess.Popen(
            [*command, "--load_fast=false"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        line = next(line for line in process.stderr if "http://" in line)
        address = "http://" + line.split("http://")[1].split()[0].rstrip("/")
        address = f"http://localhost:{address.rsplit(':', 1)[1]}"
        deadline = time.monotonic() + 120
        while "run/validation" not in get(address, "runs"):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield address


def get(address, path, body=None):
    request = urllib.request.Request(f"{address}/data/{path}", json.dumps(body).encode() if body else None)
    if body:
        request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_all_exits_share_a_chart(server, logs):
    layout = get(server, "plugin/custom_scalars/layout")
    charts = {chart["title"]: chart["multiline"]["tag"][0] for chart in layout["category"][0]["chart"]}
    assert set(charts) == {"accuracy", "crossentropy"}
    for metric, tag in charts.items():
        path = f"plugin/custom_scalars/scalars?run=run%2Fvalidation&tag={urllib.parse.quote(tag)}"
        found = get(server, path)["tag_to_events"]
        names = ["exit_1", "exit_2", "final", "ensemble"]
        assert set(found) == {f"epoch_{name}_{metric}" for name in names}
        for name in names:
            values = [value for _, _, value in found[f"epoch_{name}_{metric}"]]
            np.testing.assert_allclose(values, logs[1][f"val_{name}_{metric}"], rtol=1e-5)
    terms = layout["category"][1]["chart"][0]["multiline"]["tag"][0]
    found = get(server, f"plugin/custom_scalars/scalars?run=run%2Ftrain&tag={urllib.parse.quote(terms)}")
    assert set(found["tag_to_events"]) == {
        f"epoch_{term}loss" for term in ("", "classification_", "distillation_", "feature_")
    }


def test_pictures_histograms_and_the_cost_of_leaving_early(server, logs, data):
    pictures = get(server, "plugin/images/images?run=run&tag=tradeoff&sample=0")
    assert [picture["step"] for picture in pictures] == [1, 2]
    with urllib.request.urlopen(
        f"{server}/data/plugin/images/individualImage?{pictures[1]['query']}"
    ) as file:
        picture = matplotlib.imread(io.BytesIO(file.read()))
    assert picture.shape[1] == 1100 and len(np.unique(picture)) > 30
    histogram = get(server, "plugin/histograms/histograms?run=run&tag=early_exit/exit_taken")
    assert [step for _, step, _ in histogram] == [1, 2]
    _, _, buckets = histogram[-1]
    assert len(buckets) == 3 and sum(count for *_, count in buckets) == len(data[0])
    curve = kx.tradeoff(kx.collect(logs[2], data, verbose=0), kx.cost(logs[2].model))
    for name in ("cost", "accuracy"):
        found = get(server, f"plugin/scalars/scalars?run=run&tag=early_exit/{name}&format=json")
        assert found[-1][2] == pytest.approx(getattr(curve.chosen, name), rel=1e-5)


def test_hyperparameters_of_the_objective_with_the_accuracy(server, logs):
    body = {"experimentName": "", "colParams": [], "allowedStatuses": [], "startIndex": 0, "sliceSize": 10}
    body["colParams"] = [{"metric": {"group": "validation", "tag": "epoch_final_accuracy"}}]
    body["allowedStatuses"] = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    (group,) = get(server, "plugin/hparams/session_groups", body)["sessionGroups"]
    values = group["hparams"]
    assert values["objective"] == "EED" and values["objective.output_loss"] == "kl"
    assert values["objective.temperature"] == 2.5 and values["early_exits"] == 2
    assert values["learning_rate"] == pytest.approx(0.05) and values["optimizer"] == "SGD"
    (metric,) = group["metricValues"]
    assert metric["value"] == pytest.approx(logs[1]["val_final_accuracy"][-1], rel=1e-5)


def test_tensorboard_in_a_browser(server, logs):
    with browser.chromium() as window:

        def tab(name):
            window.get("about:blank")
            window.get(f"{server}/#{name}")

        tab("scalars")
        browser.wait_for(window, "early_exit/cost", "epoch_exit_1_accuracy", "epoch_final_accuracy")
        tab("custom_scalars")
        lines = [
            f"epoch_{name}_accuracy (run/validation)" for name in ("exit_1", "exit_2", "final", "ensemble")
        ]
        browser.wait_for(window, *lines, "loss and its terms")
        tab("images")
        browser.wait_for(window, "tradeoff", pictures=[(1100, 680)])
        tab("histograms")
        browser.wait_for(window, "early_exit/exit_taken")
        tab("hparams")
        accuracy = logs[1]["val_final_accuracy"][-1]
        browser.wait_for(window, "objective.temperature", "EED", "kl", f"{accuracy:.5}")


def test_nothing_of_the_training_changes_and_without_data_there_is_no_picture(data, tmp_path):
    plain, watched = distiller(), distiller()
    first = plain.fit(*data, epochs=2, validation_data=data, verbose=0, shuffle=False)
    board = kx.callbacks.ExitTensorBoard(tmp_path / "with", data=data, figure_freq=1)
    second = watched.fit(*data, epochs=2, validation_data=data, verbose=0, shuffle=False, callbacks=[board])
    assert first.history == second.history
    assert all(harness.same(a, b) for a, b in zip(plain.get_weights(), watched.get_weights(), strict=True))
    board = kx.callbacks.ExitTensorBoard(tmp_path / "without")
    plain.fit(*data, verbose=0, callbacks=[board])
    names = {path.parent.name for path in (tmp_path / "without").rglob("events.*")}
    assert names == {"without", "train"}


def test_what_makes_no_sense_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="figure_freq=0"):
        kx.callbacks.ExitTensorBoard(tmp_path, figure_freq=0)
    with pytest.raises(ValueError, match="read only once"):
        kx.callbacks.ExitTensorBoard(tmp_path, data=iter([data]))
    model = harness.sequential()
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="needs the exits"):
        model.fit(*data, callbacks=[kx.callbacks.ExitTensorBoard(tmp_path)], verbose=0)
    assert not list(tmp_path.iterdir())

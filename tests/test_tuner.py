"""Searches over exits, objectives and learning rates, with every tuner of KerasTuner."""

import functools
import json
import os
import pathlib
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
import searches
from keras import layers
from searches import GOAL, backbone, data, search, space

import keras_exitens as kx

keras_tuner = pytest.importorskip("keras_tuner")

TUNERS = {
    "random": lambda s, **o: keras_tuner.RandomSearch(s, GOAL, max_trials=2, **o),
    "bayesian": lambda s, **o: keras_tuner.BayesianOptimization(
        s, GOAL, max_trials=2, num_initial_points=1, **o
    ),
    "grid": lambda s, **o: keras_tuner.GridSearch(s, GOAL, max_trials=2, **o),
    "hyperband": lambda s, **o: keras_tuner.Hyperband(s, GOAL, max_epochs=2, factor=2, **o),
}


@pytest.mark.parametrize(
    "kind", ["random", *(pytest.param(k, marks=pytest.mark.slow) for k in ("bayesian", "grid", "hyperband"))]
)
def test_every_tuner_finds_distillers_that_can_be_used(kind, tmp_path):
    options = {"directory": tmp_path, "project_name": "p", "seed": 1}
    found = search(TUNERS[kind](space(), **options))
    (best,) = found.get_best_models(1)
    assert isinstance(best, kx.ExitEnsembleDistiller)
    (trial,) = found.oracle.get_best_trials(1)
    assert trial.score == max(t.score for t in found.oracle.trials.values() if t.score is not None)
    x, y = data()
    logs = best.evaluate(x, y, verbose=0, return_dict=True)
    network = kx.cost(best.model)
    accuracies = [logs[f"{name}_accuracy"] for name in ("exit_1", "final")]
    area = kx.tuner.tradeoff_area(accuracies, network.cumulative, network.backbone)
    np.testing.assert_allclose(area, trial.score, rtol=1e-6)
    assert best.optimizer.iterations > 0 and best.optimizer.variables[2].numpy().any()  # momenta
    assert best.fit(x, y, verbose=0).history["loss"]

    again = TUNERS[kind](space(), **options)  # trials are restored from the folder
    assert {t.trial_id: t.score for t in again.oracle.trials.values()} == {
        t.trial_id: t.score for t in found.oracle.trials.values()
    }


def test_the_defaults_search_everything_and_what_is_fixed_is_not_searched():
    hp = keras_tuner.HyperParameters()
    kx.tuner.ExitHyperModel(backbone).build(hp)
    assert {p.name for p in hp.space} - {"network"} == {
        *("exits", "placement", "head", "objective"),
        *("temperature", "teacher_weight", "feature_weight", "learning_rate"),
    }
    hp = keras_tuner.HyperParameters()
    distiller = space(objective="byot", temperature=2.5, feature_weight=0.5).build(hp)
    assert [p.name for p in hp.space] == ["teacher_weight", "network"]
    assert hp.get("network") == "(8, 8, 1) to 3 classes, 511 weights"
    assert (distiller.objective.temperature, distiller.objective.feature_weight) == (2.5, 0.5)
    assert distiller.objective.alpha == hp.get("teacher_weight")
    np.testing.assert_allclose(distiller.optimizer.learning_rate, 0.05)


@pytest.mark.parametrize("name", kx.tuner._OBJECTIVES)
def test_values_reach_the_objective(name):
    hp = keras_tuner.HyperParameters()
    model = space(objective=name, learning_rate=(0.01, 0.1))
    hp.Float("learning_rate", 0.01, 0.1, sampling="log")
    hp.values["learning_rate"] = 0.03
    distiller = model.build(hp)
    np.testing.assert_allclose(distiller.optimizer.learning_rate, 0.03)
    names = {p.name for p in hp.space} - {"learning_rate", "network"}
    assert names == set(kx.tuner._OBJECTIVES[name][1])
    if "temperature" in names:
        assert distiller.objective.temperature == hp.get("temperature")


def test_the_area_under_the_tradeoff():
    area = kx.tuner.tradeoff_area
    assert area([1.0], [0.0], 10) == 1.0  # always right, at no cost
    assert area([0.8, 1.0], [5, 10], 10) == pytest.approx(0.5 * 0.9)
    assert area([0.8, 0.6], [5, 10], 10) == pytest.approx(0.5 * 0.8)  # nobody need go on
    assert area([0.8, 1.0], [5, 15], 10) == pytest.approx(0.5 * 0.85)  # the end is beyond the budget
    assert area([0.5, 1.0], [12, 20], 10) == 0.0


@pytest.mark.parametrize(
    "options, words",
    [
        ({"objective": "eed", "teacher_weight": 0.5, "feature_weight": 1.0}, "nothing to search"),
        ({"objective": "edd"}, "did you mean 'eed'"),
        ({"temperature": (0.0, 1.0)}, "temperature"),
        ({"teacher_weight": (0.5, 2.0)}, "teacher_weight"),
        ({"learning_rate": (0.1, 0.01)}, "learning_rate"),
        ({"head": ()}, "`head` holds no value"),
    ],
)
def test_what_cannot_be_searched_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        space(**options)


def test_the_folder_of_another_project_is_told(tmp_path):
    def other(hp):
        model = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(3)])
        model.compile(keras.optimizers.SGD(hp.Choice("rate", [0.1, 0.2])), "mse")
        return model

    options = {"max_trials": 2, "directory": tmp_path, "project_name": "p"}
    goal = keras_tuner.Objective("val_loss", "min")
    x, _ = data()
    one = keras_tuner.RandomSearch(other, goal, **{**options, "max_trials": 1})
    one.search(x, np.zeros((24, 3)), validation_split=0.5, verbose=0)
    with pytest.raises(ValueError, match=r"(?s)another project.*Expected.*Received.*'rate'.*overwrite=True"):
        search(keras_tuner.RandomSearch(space(), GOAL, **options))


def test_the_folder_of_another_network_is_told(tmp_path):
    """Its hyperparameters have the same names; also where all its trials are done already."""

    def wider():
        model = backbone()
        x = layers.Dense(5, activation="softmax")(model.layers[-2].output)
        return keras.Model(model.inputs, x)

    options = {"max_trials": 1, "directory": tmp_path, "project_name": "p"}
    search(keras_tuner.RandomSearch(space(), GOAL, **options))
    other = kx.tuner.ExitHyperModel(wider, exits=1, head="linear", placement="compute", learning_rate=0.05)
    words = r"(?s)another project.*to 5 classes.*to 3 classes.*overwrite=True"
    with pytest.raises(ValueError, match=words):
        keras_tuner.RandomSearch(other, GOAL, **options).get_best_models(1)
    with pytest.raises(ValueError, match=words):
        search(keras_tuner.RandomSearch(other, GOAL, **{**options, "max_trials": 2}))


class Stop(keras.callbacks.Callback):
    """Ends the search by an error in its second trial, as an interruption would."""

    trials = 0

    def on_train_begin(self, logs=None):
        Stop.trials += 1
        if Stop.trials == 2:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_search_goes_on_and_tensorboard_has_its_hyperparameters(tmp_path):
    options = {"max_trials": 3, "directory": tmp_path, "project_name": "p", "seed": 1}
    Stop.trials = 0
    with pytest.raises(KeyboardInterrupt):
        search(keras_tuner.RandomSearch(space(), GOAL, **options), callbacks=[Stop()])
    (first,) = [t for t in trials_in(tmp_path) if t["status"] == "COMPLETED"]

    board = keras.callbacks.TensorBoard(tmp_path / "board")
    found = search(keras_tuner.RandomSearch(space(), GOAL, **options), callbacks=[board])
    trials = {trial["trial_id"]: trial for trial in trials_in(tmp_path)}
    assert [t["status"] for t in trials.values()] == ["COMPLETED"] * 3
    assert trials[first["trial_id"]] == first
    written = {
        trial_id: values for trial_id, values in hyperparameters_in(tmp_path / "board").items() if values
    }
    assert set(written) == set(trials) - {first["trial_id"]}  # the trials since
    for trial_id, values in written.items():
        assert values == found.oracle.trials[trial_id].hyperparameters.values


def trials_in(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("p/trial_*/trial.json"))]


def hyperparameters_in(folder):
    """Id of a trial -> its hyperparameters, as TensorBoard reads them."""
    from google.protobuf import json_format
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.plugins.hparams import metadata

    found = {}
    for path in folder.rglob("events.*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag == metadata.SESSION_START_INFO_TAG:
                    content = value.metadata.plugin_data.content
                    info = metadata.parse_session_start_info_plugin_data(content)
                    values = {k: json_format.MessageToDict(v) for k, v in info.hparams.items()}
                    found[path.relative_to(folder).parts[0]] = values
    return found


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precisions_are_searched_too(precision, tmp_path):
    keras.config.set_dtype_policy(precision)
    tuner = keras_tuner.RandomSearch(
        space(), GOAL, max_trials=2, directory=tmp_path, project_name="p", seed=1
    )
    (best,) = search(tuner).get_best_models(1)
    assert [t.status for t in tuner.oracle.trials.values()] == ["COMPLETED"] * 2
    convolutions = [c for c in best.model.layers if isinstance(c, layers.Conv2D)]
    assert {c.compute_dtype for c in convolutions} == {precision.removeprefix("mixed_")}
    x, y = data()
    logs = best.evaluate(x, y, verbose=0, return_dict=True)
    network = kx.cost(best.model)
    accuracies = [logs[f"{name}_accuracy"] for name in ("exit_1", "final")]
    area = kx.tuner.tradeoff_area(accuracies, network.cumulative, network.backbone)
    (trial,) = tuner.oracle.get_best_trials(1)
    np.testing.assert_allclose(area, trial.score, rtol=1e-6)
    assert best.fit(x, y, verbose=0).history["loss"]


WORKER = """
import sys
import keras_tuner
from searches import GOAL, search, space
options = {"directory": sys.argv[1], "project_name": "p", "seed": 1}
tuner = keras_tuner.RandomSearch(space(), GOAL, max_trials=4, **options)
found = search(tuner)
print("trials of", found.tuner_id, len(found.oracle.get_best_trials(9)))
"""


@pytest.mark.slow
def test_a_chief_and_two_workers_share_a_search(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    support = pathlib.Path(searches.__file__).parent
    paths = os.pathsep.join([str(support), str(support.parents[1]), os.environ.get("PYTHONPATH", "")])
    shared = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(port), "PYTHONPATH": paths}
    processes = []
    for name in ("chief", "worker-0", "worker-1"):
        environment = {**os.environ, **shared, "KERASTUNER_TUNER_ID": name}
        command = [sys.executable, "-c", WORKER, str(tmp_path)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
    try:
        outputs = [process.communicate(timeout=400)[0] for process in processes[1:]]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes[1:]] == [0, 0], outputs
    assert all("trials of worker" in output for output in outputs)
    trials = list((tmp_path / "p").glob("trial_*/trial.json"))
    assert len(trials) == 4
    statuses = [json.loads(path.read_text())["status"] for path in trials]
    assert statuses == ["COMPLETED"] * 4


M = keras.metrics
METRICS = {
    "acc": ["acc"],
    "none": None,
    "others alone": ["crossentropy", M.SparseTopKCategoricalAccuracy(k=2)],
    "one": "accuracy",
    "an object": [M.SparseCategoricalAccuracy(name="right"), "acc"],
    "of one-hot rows": (M.CategoricalAccuracy(),),
    "by its long name": ["ce", "sparse_categorical_accuracy"],
}


@pytest.mark.parametrize("metrics", METRICS.values(), ids=METRICS.keys())
def test_the_tradeoff_is_logged_whatever_is_measured(metrics, tmp_path):
    tuner = keras_tuner.RandomSearch(space(metrics=metrics), GOAL, max_trials=1, directory=tmp_path)
    search(tuner)
    (trial,) = tuner.oracle.trials.values()
    assert 0 < trial.score <= 1


@pytest.mark.parametrize("goal", ["val_tradeof", "val_final_acc", ["val_tradeoff", "val_finale_accuracy"]])
def test_a_goal_that_is_not_logged_ends_the_search(goal, tmp_path):
    goals = [keras_tuner.Objective(name, "max") for name in (goal if isinstance(goal, list) else [goal])]
    tuner = keras_tuner.RandomSearch(
        space(), goals if len(goals) > 1 else goals[0], max_trials=1, directory=tmp_path
    )
    with pytest.raises(keras_tuner.errors.FatalValueError, match=r"(?s)not logged.*val_final_accuracy"):
        search(tuner)


def test_a_search_without_validation_data_ends(tmp_path):
    x, y = data()
    tuner = keras_tuner.RandomSearch(space(), GOAL, max_trials=1, directory=tmp_path)
    with pytest.raises(keras_tuner.errors.FatalValueError, match=r"(?s)not logged.*validation_data"):
        tuner.search(x, y, epochs=1, verbose=0)


@pytest.mark.parametrize(
    "backbone, words",
    [
        (lambda hp: backbone(), r"takes arguments.*function \(hp\)"),
        (lambda *, width: backbone(), r"takes arguments"),
        (backbone(), r"not a function.*clone_model"),
        ("ResNet18", r"not a function"),
        (None, r"not a function"),
    ],
    ids=["hp", "keyword", "model", "name", "None"],
)
def test_what_gives_no_network_is_refused(backbone, words):
    with pytest.raises(TypeError, match=f"(?s){words}"):
        kx.tuner.ExitHyperModel(backbone)


@pytest.mark.parametrize(
    "backbone",
    [
        lambda width=1: backbone(),
        functools.partial(lambda n: backbone(), 3),
        keras.Sequential,
    ],
    ids=["default", "partial", "class"],
)
def test_functions_that_may_be_called_without_arguments_are_taken(backbone):
    assert kx.tuner.ExitHyperModel(backbone).backbone is backbone

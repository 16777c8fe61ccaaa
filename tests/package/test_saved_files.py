"""What an earlier version saved loads, and gives what it gave then; `tests/data/saved/make.py` wrote it."""

import importlib.util
import json
import pathlib

import keras
import numpy as np
import pytest
from harness import needs_keras

import keras_exitens as kx

# Keras reads no file of a newer Keras: the names of its arguments stand in it.
pytestmark = needs_keras("3.15")
SAVED = pathlib.Path(__file__).parents[1] / "data/saved"
NAMES = ["exit_1", "exit_2", "final"]
# Of logits of about 0.1: another machine has other kernels.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def made_anew():
    """The network as `make.py` builds it, for a program that is started again."""
    spec = importlib.util.spec_from_file_location("make", SAVED / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    return kx.add_exits(make.network(), 2, head="separable")


@pytest.fixture(scope="module")
def expected():
    return dict(np.load(SAVED / "expected.npz"))


def check_logits(model, expected):
    found = model.predict(expected["images"], verbose=0)
    for name in NAMES:
        np.testing.assert_allclose(found[name], expected[f"logits_{name}"], **CLOSE)


def check_early(found, expected):
    np.testing.assert_array_equal(found["exit"], expected["early_exit"])
    assert len(set(found["exit"])) == 3, "every exit is taken by some image"
    np.testing.assert_allclose(found["logits"], expected["early_logits"], **CLOSE)
    np.testing.assert_allclose(found["score"], expected["early_score"], **CLOSE)


def test_network(expected):
    model = keras.models.load_model(SAVED / "network.keras")
    assert kx.exit_names(model) == NAMES
    check_logits(model, expected)
    plain = kx.strip_exits(model).predict(expected["images"], verbose=0)
    np.testing.assert_allclose(plain, expected["stripped"], **CLOSE)


def test_stripped_network(expected):
    model = keras.models.load_model(SAVED / "stripped.keras")
    np.testing.assert_allclose(model.predict(expected["images"], verbose=0), expected["stripped"], **CLOSE)


def test_distiller_with_its_optimizer_and_state(expected):
    distiller = keras.models.load_model(SAVED / "distiller.keras")
    check_logits(distiller.model, expected)
    assert distiller.objective.get_config() == {"weight": 0.25, "temperature": "annealed"}
    assert int(distiller.optimizer.iterations) == expected["step"] == 6
    state = {
        v.name: v.numpy() for v in distiller.non_trainable_variables if v.name in ("step", "temperature")
    }
    assert state == {"step": expected["step"], "temperature": expected["temperature"]}
    logs = distiller.fit(expected["images"], expected["labels"], verbose=0).history
    assert np.isfinite(logs["loss"]).all() and int(distiller.optimizer.iterations) == 7


def test_early_exit_with_its_policy(expected):
    early = keras.models.load_model(SAVED / "early.keras")
    assert isinstance(early, kx.EarlyExit) and isinstance(early.policy, kx.policies.Entropy)
    check_early(early.predict(expected["images"], verbose=0), expected)


def test_records(expected):
    records = kx.ExitRecords.load(SAVED / "records.npz")
    assert records.names == tuple(NAMES)
    np.testing.assert_array_equal(records.labels, expected["labels"])
    for name, logits in zip(NAMES, records.logits, strict=True):
        np.testing.assert_allclose(logits, expected[f"logits_{name}"], **CLOSE)
    records.check(keras.models.load_model(SAVED / "network.keras"))


@pytest.mark.parametrize(
    "config", json.loads((SAVED / "objects.json").read_text()), ids=lambda c: c["class_name"]
)
def test_objectives_and_policies(config):
    loaded = keras.saving.deserialize_keras_object(config)
    assert type(loaded).__name__ == config["class_name"]
    again = json.loads(json.dumps(loaded.get_config()))
    found = config["config"].pop("calibration", None)
    calibration = again.pop("calibration", None)
    assert again == config["config"]
    if found:
        assert isinstance(loaded.calibration, kx.policies.Calibration)
        assert {key: calibration[key] for key in found} == found


@pytest.mark.parametrize("format", ["onnx", "litert"])
def test_export(format, expected):
    network = kx.runtime.load(SAVED / format)
    check_early(network.predict(expected["images"]), expected)


def test_backup_of_a_training(expected, tmp_path):
    """A new run takes up weights, optimizer and step where the backup was made: at the end of the run."""
    (tmp_path / "training.backup").write_bytes((SAVED / "training.backup").read_bytes())
    keras.utils.set_random_seed(1)
    distiller = kx.ExitEnsembleDistiller(made_anew(), kx.objectives.DBT(0.25, "annealed"))
    distiller.compile(kx.optimizers.SGD(0.05, momentum=0.9, l2=1e-3), metrics=["accuracy"])
    backup = kx.callbacks.StepBackup(tmp_path / "training.backup", every=2)
    assert backup.restore(distiller) == 6
    assert int(distiller.optimizer.iterations) == 6
    check_logits(distiller.model, expected)
    history = distiller.fit(
        *(expected["images"], expected["labels"]), 4, 3, 0, [backup], initial_epoch=2, shuffle=False
    )
    assert int(distiller.optimizer.iterations) == 9 and np.isfinite(history.history["loss"]).all()

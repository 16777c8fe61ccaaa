"""Files of one backend on every other, and none of them loads TensorFlow."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import saved
from contracts import BACKEND, data
from harness import needs_keras

EVERYTHING = """
import sys, numpy as np, keras, keras_exitens as kx
from contracts import distiller, data
made = distiller(); images, labels = data(16)
made.fit(images, labels, verbose=0)
records = kx.collect(made.model, (images, labels), verbose=0)
policy = kx.calibrate(records, kx.cost(made.model), cost_budget=0.9)
kx.EarlyExit(made.model, policy).benchmark((images, labels))
kx.tradeoff(records, kx.cost(made.model)).table()
kx.data.load("digits"); kx.tuner.ExitHyperModel
print("tensorflow" in sys.modules)
"""


@needs_keras("3.15")  # by which they were written
@pytest.mark.parametrize("origin", saved.BACKENDS)
def test_what_one_backend_saved_says_the_same_here(origin):
    early = keras.saving.load_model(saved.FOLDER / f"{origin}.keras")
    stored = np.load(saved.FOLDER / f"{origin}.npz")
    images, _ = data(100, seed=3)
    assert len({*stored["exit"].tolist()}) > 1
    found = early.predict(images, verbose=0)
    thresholds = np.asarray(early.policy.thresholds)
    near = np.abs(stored["score"][:, None] - thresholds).min(axis=1) < 1e-4
    assert near.mean() <= 0.05
    assert (found["exit"] == stored["exit"])[~near].all()
    largest = np.abs(stored["logits"]).max()
    np.testing.assert_allclose(found["logits"][~near], stored["logits"][~near], atol=1e-5 * largest)
    logits = early.model.predict(images, verbose=0)
    for name in early.exit_names:
        np.testing.assert_allclose(logits[name], stored[f"logits of {name}"], atol=1e-5 * largest)


def test_tensorflow_is_loaded_under_its_own_backend_alone():
    found = subprocess.run(
        [sys.executable, "-c", EVERYTHING],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split()[-1] == str(BACKEND == "tensorflow")


def test_other_backends_are_refused_by_name():
    code = "import keras; keras.config.backend = lambda: 'numpy'; import keras_exitens"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode != 0 and "Fix: set KERAS_BACKEND=tensorflow, jax or torch" in found.stderr

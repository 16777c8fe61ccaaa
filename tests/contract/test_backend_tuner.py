"""A search with KerasTuner on every backend."""

import numpy as np
import pytest
from contracts import data, network

import keras_exitens as kx

keras_tuner = pytest.importorskip("keras_tuner")


def test_a_search_finds_the_best_trial(tmp_path):
    images, labels = data(96)
    model = kx.tuner.ExitHyperModel(network, exits=(1, 2), head="linear", objective="cross-entropy")
    goal = keras_tuner.Objective("val_final_accuracy", "max")
    tuner = keras_tuner.RandomSearch(
        model, objective=goal, max_trials=2, directory=tmp_path, project_name="search", seed=0
    )
    tuner.search(images, labels, validation_data=(images, labels), epochs=1, verbose=0)
    best, *others = tuner.oracle.get_best_trials(2)
    assert others and np.isfinite(best.score) and best.score >= others[0].score

"""A search of few trials, over the exits of a tiny network."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_exitens as kx

keras_tuner = pytest.importorskip("keras_tuner")

GOAL = keras_tuner.Objective("val_tradeoff", "max")


def backbone():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, padding="same", activation="relu"),
            layers.Conv2D(4, 3, 2, padding="same", activation="relu"),
            layers.Conv2D(8, 3, 2, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, activation="softmax"),
        ]
    )


def space(**options):
    fixed = {"exits": 1, "head": "linear", "placement": "compute", "learning_rate": 0.05}
    return kx.tuner.ExitHyperModel(backbone, **{**fixed, "objective": ["eed", "dbt"], **options})


def data(rows=24):
    rng = np.random.default_rng(0)
    y = np.arange(rows) % 3
    return (rng.normal(size=(rows, 8, 8, 1)) + y[:, None, None, None]).astype("float32"), y


def search(tuner, **options):
    x, y = data()
    tuner.search(x, y, validation_data=(x, y), epochs=1, verbose=0, **options)
    return tuner

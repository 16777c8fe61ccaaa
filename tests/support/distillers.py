"""The tiny network of `reference.py` in Keras, and distillers that train it by every objective."""

from typing import NamedTuple

import keras
import numpy as np
import reference
from keras import layers

import keras_exitens as kx
from keras_exitens import objectives

CHANNELS, WIDTH, CLASSES = 3, 5, 4
EXITS = reference.EXITS
L2 = 0.01


def network(l2=0.0, dtype=None, classes=CLASSES, width=WIDTH, widths=None):
    """Three 1×1 convolutions with ReLU; after each, pooling and a classifier."""

    def decay():
        return keras.regularizers.L2(l2) if l2 else None

    x = inputs = keras.Input((4, 4, CHANNELS))
    outputs = {}
    for conv, exit_, w in zip(reference.CONVS, EXITS, widths or [width] * 3, strict=True):
        conv = layers.Conv2D(w, 1, activation="relu", kernel_regularizer=decay(), dtype=dtype, name=conv)
        x = conv(x)
        feature = layers.GlobalAveragePooling2D(dtype=dtype)(x)
        dense = layers.Dense(classes, kernel_regularizer=decay(), dtype=dtype, name=exit_)
        outputs[exit_] = dense(feature)
    return keras.Model(inputs, outputs)


def parameters(seed=0):
    return reference.init_params(np.random.default_rng(seed), CHANNELS, WIDTH, CLASSES)


def variables(model):
    """Name in the reference to variable of the Keras model."""
    return {
        f"{name}/{kind}": getattr(model.get_layer(name), kind)
        for name in (*reference.CONVS, *EXITS)
        for kind in ("kernel", "bias")
    }


def with_parameters(model, params):
    for name, variable in variables(model).items():
        variable.assign(params[name].reshape(variable.shape))
    return model


def assert_parameters(model, params, rtol=1e-5):
    for name, variable in variables(model).items():
        found = np.asarray(variable).reshape(params[name].shape)
        np.testing.assert_allclose(found, params[name], rtol=rtol, atol=1e-6, err_msg=name)


def vectors(rows=12):
    rng = np.random.default_rng(0)
    return rng.normal(1, 2, size=(rows, 6)).astype("float32"), rng.integers(0, CLASSES, rows)


def data(rows=13, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 4, 4, CHANNELS)).astype("float32"), rng.integers(0, CLASSES, rows)


class Case(NamedTuple):
    """An objective and its reference: functions of (logits, features, y)."""

    objective: callable
    terms: callable
    gradients: callable


CASES = {
    "eed mse": Case(lambda: objectives.EED("mse"), reference.eed, reference.eed_grad),
    "eed kl": Case(
        lambda: objectives.EED("kl", output_weight=0.3, temperature=2.0, feature_weight=0.5),
        lambda z, f, y: reference.eed(
            z, f, y, output_loss="kl", output_weight=0.3, temperature=2.0, feature_weight=0.5
        ),
        lambda z, f, y: reference.eed_grad(
            z, f, y, output_loss="kl", output_weight=0.3, temperature=2.0, feature_weight=0.5
        ),
    ),
    "eed, no features": Case(
        lambda: objectives.EED("mse", feature_weight=0),
        lambda z, f, y: reference.eed(z, f, y, feature_weight=0),
        lambda z, f, y: reference.eed_grad(z, f, y, feature_weight=0),
    ),
    "beed": Case(objectives.BEED, reference.beed, reference.beed_grad),
    "dbt": Case(
        objectives.DBT, lambda z, f, y: reference.dbt(z, y), lambda z, f, y: reference.dbt_grad(z, y)
    ),
    "dbt annealed": Case(
        lambda: objectives.DBT(temperature="annealed"),
        lambda z, f, y: reference.dbt(z, y, temperature=1.0),
        lambda z, f, y: reference.dbt_grad(z, y, temperature=1.0),
    ),
    "byot": Case(objectives.BYOT, reference.byot, reference.byot_grad),
    "byot t squared": Case(
        lambda: objectives.BYOT(t_squared=True),
        lambda z, f, y: reference.byot(z, f, y, t_squared=True),
        lambda z, f, y: reference.byot_grad(z, f, y, t_squared=True),
    ),
    "cross-entropy": Case(
        lambda: objectives.CrossEntropy([0.5, 1, 2]),
        lambda z, f, y: reference.cross_entropy(z, y, weights=[0.5, 1, 2]),
        lambda z, f, y: reference.cross_entropy_grad(z, y, weights=[0.5, 1, 2]),
    ),
}


def distiller_of(case=None, optimizer=None, params=None, l2=0.0, dtype=None, **options):
    case = case or CASES["eed mse"]
    model = with_parameters(network(l2, dtype), parameters() if params is None else params)
    distiller = kx.ExitEnsembleDistiller(model, case.objective())
    distiller.compile(optimizer or keras.optimizers.SGD(0.1), **options)
    return distiller

"""Trains on one device and on two replicas; `test_replicas.py` runs this in a process of its own.

A process can have its logical devices set once only, and collectives of two strategies in it clash: all runs
share one strategy.

    python tests/replicated.py <folder for the results> <quick or slow>
"""

import contextlib
import json
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf
import test_distiller as tests
from keras import layers

import keras_exitens as kx

BATCH = 8
# Name of the run -> (objective, rows, epochs). On two replicas 13 rows leave an uneven last batch, 9 rows a
# replica without any.
RUNS = {
    **{f"{case}, 17 rows": (case, 17, 1) for case in tests.CASES if case != "dbt annealed"},
    "eed mse, 13 rows": ("eed mse", 13, 1),
    "dbt annealed, 11 rows": ("dbt annealed", 11, 1),
    "eed kl, 9 rows, 3 epochs": ("eed kl", 9, 3),
}


def train(run, scope, **options):
    """History, weights, evaluation and predictions of one run."""
    case, rows, epochs = RUNS[run]
    params, (x, y), rate = tests.parameters(), tests.data(rows), 0.05
    if case == "dbt annealed":
        # The final exit is sure of rows 4 to 7 and 10, and unsure of the others.
        params["final/kernel"] *= 0.3
        params["final/bias"] *= 0
        sure = np.isin(np.arange(rows), [4, 5, 6, 7, 10])
        x *= np.where(sure, 400, 0.05).astype("float32")[:, None, None, None]
        rate = 1e-5
    w = np.random.default_rng(1).uniform(0, 2, rows).astype("float32")
    measured = {"metrics": ["accuracy"], "weighted_metrics": ["crossentropy"]} if epochs > 1 else {}
    with scope:
        optimizer = keras.optimizers.SGD(rate, momentum=0.9)
        distiller = tests.distiller_of(
            tests.CASES[case], optimizer, params, l2=tests.L2, **measured, **options
        )
    fit = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    if epochs > 1:
        fit["validation_data"] = (x[::-1], y[::-1], w)
    logs = distiller.fit(x, y, sample_weight=w, epochs=epochs, **fit).history
    results = {f"log {key}": value for key, value in logs.items()}
    results |= {f"weight {i} {v.name}": v.numpy() for i, v in enumerate(distiller.weights)}
    if epochs > 1:
        logs = distiller.evaluate(x, y, BATCH, sample_weight=w, verbose=0, return_dict=True)
        results |= {f"evaluate {key}": value for key, value in logs.items()}
        predicted = distiller.predict(x, BATCH, verbose=0)
        results |= {f"predict {key}": value for key, value in predicted.items()}
        results["order"] = list(predicted)
    return results


def regularised(scope):
    """Activities are regularised by their mean over the rows, of which replicas have 3 and 2, or 1 and 0."""
    with scope:
        inputs = keras.Input((6,))
        x = layers.Dense(5, activity_regularizer=keras.regularizers.L2(0.5), kernel_initializer="ones")(
            inputs
        )
        outputs = {name: layers.Dense(4, kernel_initializer="ones")(x) for name in ("exit_1", "final")}
        distiller = kx.ExitEnsembleDistiller(keras.Model(inputs, outputs))
        distiller.compile(keras.optimizers.SGD(0.001))
    x, y = tests.vectors(14)
    for rows in (slice(0, 5), slice(5, 6), slice(6, 14)):
        logs = distiller.fit(x[rows], y[rows], batch_size=BATCH, verbose=0).history
    return {"loss": logs["loss"], **{f"{i}": v.numpy() for i, v in enumerate(distiller.weights)}}


def half_precision(scope):
    """Ten steps of dynamic loss scaling from a scale that overflows."""
    keras.config.set_dtype_policy("mixed_float16")
    with scope:
        distiller = tests.distiller_of(optimizer=keras.optimizers.SGD(0.05))
        distiller.optimizer.build(distiller.trainable_variables)
        distiller.optimizer.dynamic_scale.assign(2.0**18)
    x, y = tests.data(17)
    distiller.fit(x, y, batch_size=BATCH, epochs=4, shuffle=False, verbose=0)
    keras.config.set_dtype_policy("float32")
    return {
        "scale": distiller.optimizer.dynamic_scale.numpy(),
        "skipped": distiller.skipped_steps,
        **{f"{i}": v.numpy() for i, v in enumerate(distiller.weights)},
    }


def error_of(action):
    """The error of an action, as text."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def refusals(scope):
    """What ends in a clear error on two replicas."""

    def batch_norm():
        inputs = keras.Input((6,))
        x = layers.BatchNormalization()(inputs)
        model = keras.Model(inputs, {name: layers.Dense(4)(x) for name in ("exit_1", "final")})
        distiller = kx.ExitEnsembleDistiller(model)
        distiller.compile("sgd")
        return distiller

    with scope():
        inside, distiller = tests.network(), batch_norm()
    outside = tests.network()
    x, y = tests.vectors(9)
    found = {
        "inside": error_of(lambda: kx.ExitEnsembleDistiller(inside)),
        "batch norm, evaluation": error_of(lambda: distiller.evaluate(x, y, BATCH, verbose=0)),
        "batch norm, training": error_of(lambda: distiller.fit(x, y, batch_size=BATCH, verbose=0)),
        "batch norm, enough rows": error_of(lambda: distiller.fit(x[:8], y[:8], batch_size=BATCH, verbose=0)),
        "steps per execution": error_of(lambda: distiller.compile("sgd", steps_per_execution=2)),
        "optimizer": error_of(lambda: distiller.compile(keras.optimizers.Adam())),
    }
    with scope():
        found["outside"] = error_of(lambda: kx.ExitEnsembleDistiller(outside))
    return found


def other_ways(scope):
    """A batch of fewer rows than replicas, single batches, and saving between epochs."""
    x, y = tests.data(11)
    with scope():
        distiller = tests.distiller_of()
    distiller.compile("sgd", metrics=["accuracy"])  # made by its name, the optimizer is made in the scope
    results = {
        f"one row {k}": v for k, v in distiller.fit(x[:1], y[:1], batch_size=1, verbose=0).history.items()
    }
    results |= {f"train {k}": v for k, v in distiller.train_on_batch(x, y, return_dict=True).items()}
    results |= {f"test {k}": v for k, v in distiller.test_on_batch(x, y, return_dict=True).items()}
    results |= {f"predict {k}": v for k, v in distiller.predict_on_batch(x).items()}
    with tempfile.TemporaryDirectory() as folder:
        distiller.save(f"{folder}/distiller.keras")
        with scope():
            loaded = keras.saving.load_model(f"{folder}/distiller.keras")
    results |= {
        f"loaded {k}": v
        for k, v in loaded.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0).history.items()
    }
    return results


def main(folder, part):
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    assert strategy.num_replicas_in_sync == 2
    for which, scope in (("one", contextlib.nullcontext), ("two", strategy.scope)):
        if part == "quick":
            results = {run: train(run, scope(), run_eagerly=RUNS[run][2] == 1) for run in RUNS}
            results["regularised"] = regularised(scope())
        else:
            results = {"half precision": half_precision(scope()), "other ways": other_ways(scope)}
        for run, values in results.items():
            np.savez(f"{folder}/{run} {which}.npz", **values)
    if part == "quick":
        with open(f"{folder}/refusals.json", "w") as file:
            json.dump(refusals(strategy.scope), file, indent=1)


if __name__ == "__main__":
    main(*sys.argv[1:])

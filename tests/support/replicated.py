"""Trains on one device and on two replicas; `test_replicas.py` runs this in a process of its own.

A process can have its logical devices set once only, and collectives of two strategies in it clash: all runs
share one strategy.

    python tests/support/replicated.py <folder for the results> <quick or slow>
"""

import collections
import contextlib
import json
import sys
import tempfile

import distillers
import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_exitens as kx

BATCH = 8
# Name of the run -> (objective, rows, epochs). On two replicas 13 rows leave an uneven last batch, 9 rows a
# replica without any.
RUNS = {
    **{f"{case}, 17 rows": (case, 17, 1) for case in distillers.CASES if case != "dbt annealed"},
    "eed mse, 13 rows": ("eed mse", 13, 1),
    "dbt annealed, 11 rows": ("dbt annealed", 11, 1),
    "eed kl, 9 rows, 3 epochs": ("eed kl", 9, 3),
    "dbt, 11 rows, 3 epochs, ignored": ("dbt", 11, 3),
}


def train(run, scope, **options):
    """History, weights, evaluation and predictions of one run."""
    case, rows, epochs = RUNS[run]
    params, (x, y), rate = distillers.parameters(), distillers.data(rows), 0.05
    if case == "dbt annealed":
        # The final exit is sure of rows 4 to 7 and 10, and unsure of the others.
        params["final/kernel"] *= 0.3
        params["final/bias"] *= 0
        sure = np.isin(np.arange(rows), [4, 5, 6, 7, 10])
        x *= np.where(sure, 400, 0.05).astype("float32")[:, None, None, None]
        rate = 1e-5
    w = np.random.default_rng(1).uniform(0, 2, rows).astype("float32")
    measured = {"metrics": ["accuracy"], "weighted_metrics": ["crossentropy"]} if epochs > 1 else {}
    if run.endswith("ignored"):
        y[[0, 1, 2, 3, 6, 9]] = 255  # the first replica has no label at all in the first batch
        measured["loss"] = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    with scope:
        optimizer = keras.optimizers.SGD(rate, momentum=0.9)
        distiller = distillers.distiller_of(
            distillers.CASES[case], optimizer, params, l2=distillers.L2, **measured, **options
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
    x, y = distillers.vectors(14)
    for rows in (slice(0, 5), slice(5, 6), slice(6, 14)):
        logs = distiller.fit(x[rows], y[rows], batch_size=BATCH, verbose=0).history
    return {"loss": logs["loss"], **{f"{i}": v.numpy() for i, v in enumerate(distiller.weights)}}


def collected(scope, rows=17):
    """What `collect` finds, outside and inside of the scope; the last batch leaves a replica without rows."""
    x, y = distillers.data(rows)
    with scope():
        model = distillers.with_parameters(distillers.network(), distillers.parameters())
        inside = kx.collect(model, (x, y), batch_size=BATCH, verbose=0)
        batches = tf.data.Dataset.from_tensor_slices((x, y, np.arange(rows))).batch(BATCH)
        streamed = kx.collect(model, batches, verbose=0)
    outside = kx.collect(model, (x, y), batch_size=BATCH, verbose=0)
    found = {"inside": inside, "streamed": streamed, "outside": outside}
    results = {f"{where} logits": records.logits for where, records in found.items()}
    results |= {f"{where} labels": records.labels for where, records in found.items()}
    return {**results, "streamed ids": streamed.ids}


def early_exit(scope, rows=11):
    """Every way to ask an `EarlyExit`; the last batch leaves a replica with few rows, or none."""
    keras.utils.set_random_seed(3)
    with scope():
        plain = keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                layers.Conv2D(4, 3, activation="relu", name="first"),
                layers.BatchNormalization(),
                layers.Conv2D(6, 3, activation="relu"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(3),
            ]
        )
        model = kx.add_exits(plain, ["first"], head="linear")
    x = 5 * np.random.default_rng(0).normal(size=(rows, 8, 8, 3)).astype("float32")
    scores = np.asarray(kx.policies.Margin(0.0).score(model.predict(x, verbose=0)["exit_1"]))
    batches = tf.data.Dataset.from_tensor_slices(x).batch(3)
    results = {}
    for optimize in (False, True):
        with scope():
            early = kx.EarlyExit(model, kx.policies.Margin(float(np.median(scores))), optimize=optimize)
        ways = {
            "predict": lambda early=early: early.predict(x, verbose=0),
            "batches of 5": lambda early=early: early.predict(x, 5, verbose=0),
            "data set": lambda early=early: early.predict(batches, verbose=0),
            "predict_on_batch": lambda early=early: early.predict_on_batch(x),
        }
        for way, ask in ways.items():
            results |= {f"{way} {optimize} {key}": value for key, value in ask().items()}
        results[f"rows {optimize}"] = early.benchmark((x, np.arange(rows) % 3), batch_size=4).rows
    return results


def mixed_bfloat16(scope):
    """Two epochs, of which the last batches leave a replica without rows."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    with scope():
        distiller = distillers.distiller_of(optimizer=keras.optimizers.SGD(0.05), metrics=["accuracy"])
    x, y = distillers.data(17)
    fit = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    logs = distiller.fit(x, y, epochs=2, validation_data=(x, y), **fit).history
    predicted = distiller.predict(x, BATCH, verbose=0)
    keras.config.set_dtype_policy("float32")
    found = {
        "computed in": np.array(distiller.model.layers[1].compute_dtype),
        "kept in": np.array(str(distiller.model.weights[0].dtype)),
        **{f"log {key}": value for key, value in logs.items()},
        **{f"predict {key}": value.astype("float32") for key, value in predicted.items()},
    }
    return {**found, **{f"weight {i}": v.numpy() for i, v in enumerate(distiller.weights)}}


class Stop(keras.callbacks.Callback):
    """Ends training by an error at the beginning of an epoch, as an interruption would."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def stock_callbacks(make, scope, folder, name="stock"):
    """Three epochs at a stretch, and three that BackupAndRestore and ModelCheckpoint take up after two.

    Args:
        make: function that gives a new distiller, always the same.
        scope: that of the strategy.
        folder: for the files.
        name: of the backups; each worker needs one of its own, since Keras lets all of them write.
    """
    x, y = distillers.data(17)
    fit = {"batch_size": BATCH, "epochs": 3, "shuffle": False, "verbose": 0, "validation_data": (x, y)}
    straight, interrupted, resumed = make(), make(), make()
    straight.fit(x, y, **fit)
    saver = keras.callbacks.ModelCheckpoint(f"{folder}/{name} {{epoch}}.keras")
    best = keras.callbacks.ModelCheckpoint(
        f"{folder}/{name}.weights.h5", "val_loss", save_best_only=True, save_weights_only=True
    )

    def backup():
        return keras.callbacks.BackupAndRestore(f"{folder}/{name} backup")

    with contextlib.suppress(KeyboardInterrupt):
        interrupted.fit(x, y, callbacks=[backup(), saver, best, Stop(2)], **fit)
    epochs = collections.Counter()
    count = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: epochs.update([epoch]))
    resumed.fit(x, y, callbacks=[backup(), count], **fit)
    with scope():
        loaded = keras.saving.load_model(f"{folder}/{name} 2.keras")
    loaded.fit(x, y, initial_epoch=2, **fit)
    best_weights = make()
    best_weights.load_weights(f"{folder}/{name}.weights.h5")
    measured = best_weights.evaluate(x, y, BATCH, verbose=0, return_dict=True)
    found = {"straight": straight, "resumed": resumed, "loaded": loaded}
    return {
        "epochs of the resumed run": list(epochs),
        "best val_loss": best.best,
        "val_loss of the best weights": measured["loss"],
        **{f"{key} {i}": v.numpy() for key, d in found.items() for i, v in enumerate(d.weights)},
    }


def callbacks(scope):
    def make():
        with scope():
            optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
            return distillers.distiller_of(optimizer=optimizer, metrics=["accuracy"])

    with tempfile.TemporaryDirectory() as folder:
        return stock_callbacks(make, scope, folder)


def step_backup(scope):
    """Interrupted within the second epoch, and resumed at the step of the backup before."""
    import resuming

    def make():
        with scope():
            optimizer = keras.optimizers.Adam(0.01)
            return distillers.distiller_of(distillers.CASES["dbt annealed"], optimizer, metrics=["accuracy"])

    with tempfile.TemporaryDirectory() as folder:
        straight = make()
        resuming.fit(straight, kx.callbacks.StepBackup(f"{folder}/straight"))
        resuming.interrupt(make(), kx.callbacks.StepBackup(f"{folder}/backup", every=2), at=8)
        resumed, backup = make(), kx.callbacks.StepBackup(f"{folder}/backup", every=2)
        done = backup.restore(resumed)
        resuming.fit(resumed, backup, start=done)
    found = {"straight": straight, "resumed": resumed}
    return {
        "resumed at": done,
        **{f"{key} {i}": v for key, d in found.items() for i, v in enumerate(resuming.state(d))},
    }


def searched(strategy):
    """A search whose trials train on all replicas of a strategy."""
    import keras_tuner
    import searches

    x, y = searches.data()
    with tempfile.TemporaryDirectory() as folder:
        tuner = keras_tuner.RandomSearch(
            searches.space(objective="eed"),
            searches.GOAL,
            max_trials=1,
            seed=1,
            directory=folder,
            distribution_strategy=strategy,
        )
        tuner.search(x, y, validation_data=(x, y), epochs=2, verbose=0)
        (best,), (trial,) = tuner.get_best_models(1), tuner.oracle.get_best_trials(1)
        logs = best.evaluate(x, y, verbose=0, return_dict=True)
    network = kx.cost(best.model)
    accuracies = [logs[f"{name}_accuracy"] for name in ("exit_1", "final")]
    return {
        "replicas": best.distribute_strategy.num_replicas_in_sync,
        "score": trial.score,
        "area": kx.tuner.tradeoff_area(accuracies, network.cumulative, network.backbone),
    }


def half_precision(scope):
    """Ten steps of dynamic loss scaling from a scale that overflows."""
    keras.config.set_dtype_policy("mixed_float16")
    with scope:
        distiller = distillers.distiller_of(optimizer=keras.optimizers.SGD(0.05))
        distiller.optimizer.build(distiller.trainable_variables)
        distiller.optimizer.dynamic_scale.assign(2.0**18)
    x, y = distillers.data(17)
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
        inside, distiller = distillers.network(), batch_norm()
    outside = distillers.network()
    x, y = distillers.vectors(9)
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
    x, y = distillers.data(11)
    with scope():
        distiller = distillers.distiller_of()
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
            results["collected"] = collected(scope)
            results["early exit"] = early_exit(scope)
        else:
            results = {
                "mixed_float16": half_precision(scope()),
                "mixed_bfloat16": mixed_bfloat16(scope),
                "other ways": other_ways(scope),
                "callbacks": callbacks(scope),
                "step backup": step_backup(scope),
            }
        for run, values in results.items():
            np.savez(f"{folder}/{run} {which}.npz", **values)
    if part == "quick":
        with open(f"{folder}/refusals.json", "w") as file:
            json.dump(refusals(strategy.scope), file, indent=1)
    else:
        np.savez(f"{folder}/searched.npz", **searched(strategy))


if __name__ == "__main__":
    main(*sys.argv[1:])

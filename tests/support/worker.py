"""One worker of a job on loopback; `test_multi_worker.py` runs it in processes of its own, TF_CONFIG set.

python tests/support/worker.py <train, stream, more or stock> <folder> [<step to die at>]
"""

import json
import os
import sys

import keras
import numpy as np
import tensorflow as tf

ROWS, BATCH, STEPS, EPOCHS = 17, 8, 6, 2
PRECISIONS = ("mixed_bfloat16", "mixed_float16")
INDEX = json.loads(os.environ["TF_CONFIG"])["task"]["index"] if "TF_CONFIG" in os.environ else 0


def results(distiller, logs):
    weights = {f"weight {i} {v.name}": v.numpy() for i, v in enumerate(distiller.weights)}
    return {**weights, **{f"log {key}": value for key, value in logs.items()}}


def make(distillers):
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    return distillers.distiller_of(optimizer=optimizer, l2=distillers.L2, metrics=["accuracy"])


def train(distillers, distiller, order=slice(None)):
    """Two epochs on 17 rows, in batches of 8: for the last one of each, one worker has no rows."""
    x, y = distillers.data(ROWS)
    fit = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    history = distiller.fit(x[order], y[order], epochs=EPOCHS, validation_data=(x[:9], y[:9]), **fit).history
    logs = distiller.evaluate(x, y, batch_size=BATCH, verbose=0, return_dict=True)
    predicted = distiller.predict(x, batch_size=BATCH, verbose=0)
    return {
        **results(distiller, history),
        **{f"evaluate {key}": value for key, value in logs.items()},
        **{f"predict {key}": value for key, value in predicted.items()},
    }


def train_in_other_orders(distillers, precision):
    """What `train` gives in one process when the rows of each batch come in other orders: rounding alone."""
    keras.config.set_dtype_policy(precision)
    rng = np.random.default_rng(0)
    batches = np.split(np.arange(ROWS), range(BATCH, ROWS, BATCH))
    orders = [np.concatenate([rng.permutation(batch) for batch in batches]) for _ in range(3)]
    found = [train(distillers, make(distillers), order) for order in orders]
    keras.config.set_dtype_policy("float32")
    return found


def stream(distillers, distiller, folder, die_at=0):
    """Epochs of 6 batches, each a function of the step; from the last backup on."""
    import interrupted

    import keras_exitens as kx

    x, y = map(tf.constant, distillers.data(40))

    def batch(step):
        rows = (step * 5 + 3 * tf.range(BATCH, dtype=tf.int64)) % 40
        return tf.gather(x, rows), tf.gather(y, rows)

    backup = kx.callbacks.StepBackup(f"{folder}/backup", every=2)
    done = backup.restore(distiller)
    print(f"from step {done}", flush=True)
    data = tf.data.Dataset.counter(done).map(batch)
    history = distiller.fit(
        data,
        epochs=EPOCHS,
        initial_epoch=done // STEPS,
        steps_per_epoch=STEPS,
        verbose=0,
        callbacks=[backup, interrupted.Die(die_at)],
    ).history
    return results(distiller, {key: values[-1] for key, values in history.items()})


def more(distillers, scope, folder):
    """Half precisions, and Keras's own callbacks."""
    import replicated

    import keras_exitens as kx

    def made():
        with scope():
            return make(distillers)

    found = {}
    for precision in PRECISIONS:
        keras.config.set_dtype_policy(precision)
        distiller = made()
        for name, value in train(distillers, distiller).items():
            found[f"{precision} {name}"] = value
        found[f"{precision} skipped"] = distiller.skipped_steps
        with scope():
            records = kx.collect(distiller, distillers.data(ROWS), batch_size=BATCH, verbose=0)
        found[f"{precision} collected"] = records.logits
        found[f"{precision} computed in"] = distiller.model.layers[1].compute_dtype
    keras.config.set_dtype_policy("float32")
    for name, value in replicated.stock_callbacks(made, scope, folder, f"worker {INDEX}").items():
        found[f"callbacks {name}"] = value
    return found


def stock():
    """Whether Keras trains a model of its own on several workers (keras-team/keras#20585)."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse", metrics=["mae"])
    model.fit(np.zeros((8, 3)), np.zeros((8, 2)), batch_size=4, verbose=0)


def main(part, folder, die_at=0):
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    import distillers

    with strategy.scope():
        if part == "stock":
            stock()
            print("Keras trains by itself")
            return
        distiller = make(distillers)
    if part == "train":
        found = train(distillers, distiller)
    elif part == "stream":
        found = stream(distillers, distiller, folder, int(die_at))
    else:
        found = more(distillers, strategy.scope, folder)
    np.savez(f"{folder}/{INDEX}.npz", **found)


if __name__ == "__main__":
    main(*sys.argv[1:])

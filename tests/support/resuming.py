"""A short training that an error interrupts, for what is to go on at the very step."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from distillers import data


def stream(start=0):
    """Endless batches of 4 rows, each a function of the step."""
    x, y = map(tf.constant, data(20))

    def batch(step):
        rows = (step * 3 + tf.range(4, dtype=tf.int64)) % 20
        return tf.gather(x, rows), tf.gather(y, rows)

    return tf.data.Dataset.counter(start).map(batch)


def fit(distiller, backup, start=0, callbacks=(), epochs=2, **options):
    return distiller.fit(
        stream(start),
        epochs=epochs,
        steps_per_epoch=5,
        initial_epoch=start // 5,
        shuffle=False,
        verbose=0,
        callbacks=[backup, *callbacks],
        **options,
    ).history


class Stop(keras.callbacks.Callback):
    """Ends training by an error, as an interruption would."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def on_train_batch_end(self, batch, logs=None):
        self.at -= 1
        if self.at == 0:
            raise KeyboardInterrupt


def interrupt(distiller, backup, at, **options):
    with pytest.raises(KeyboardInterrupt):
        fit(distiller, backup, callbacks=[Stop(at)], **options)


def state(distiller):
    return [np.asarray(v) for v in [*distiller.variables, *distiller.optimizer.variables]]

"""A short training that may be killed and resumed; `test_step_backup.py` runs it in processes of its own.

python tests/support/interrupted.py <folder> [<step to die at>]
"""

import os
import pathlib
import signal
import sys

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_exitens as kx

EPOCHS, EVERY = 3, 3


class Die(keras.callbacks.Callback):
    """Kills this very process after so many steps of it."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def make(splits):
    """Batch normalisation, dropout, an annealed objective, momentum and averaged weights."""
    x = inputs = keras.Input(splits.input_shape)
    outputs = {}
    for name in ("exit_1", "exit_2", "final"):
        x = layers.Conv2D(6, 3, padding="same")(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        pooled = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
        outputs[name] = layers.Dense(splits.classes, name=name)(pooled)
    distiller = kx.ExitEnsembleDistiller(
        keras.Model(inputs, outputs), kx.objectives.DBT(temperature="annealed")
    )
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True, ema_momentum=0.9)
    distiller.compile(optimizer, metrics=["accuracy"])
    return distiller


def train(folder, die_after=0):
    """Trains from the last backup on; returns the distiller and its history."""
    keras.utils.set_random_seed(1)
    splits = kx.data.load("digits", 128)
    distiller = make(splits)
    backup = kx.callbacks.StepBackup(folder / "backup", every=EVERY)
    fit = splits.fit_arguments(EPOCHS, start=backup.restore(distiller))
    stop = keras.callbacks.EarlyStopping("val_final_accuracy", patience=9, restore_best_weights=True)
    slower = keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=1, min_delta=10)
    log = keras.callbacks.CSVLogger(folder / "log.csv", append=True)
    history = distiller.fit(**fit, verbose=0, callbacks=[backup, stop, slower, log, Die(die_after)])
    return distiller, stop, history


def main(folder, die_after=0):
    tf.config.experimental.enable_op_determinism()
    folder = pathlib.Path(folder)
    distiller, stop, history = train(folder, int(die_after))
    variables = [*distiller.variables, *distiller.optimizer.variables]
    results = {f"{i} {v.name}": v.numpy() for i, v in enumerate(variables)}
    results |= {f"best {i}": v for i, v in enumerate(stop.best_weights)}
    results |= {f"log {key}": values[-1] for key, values in history.history.items()}
    np.savez(folder / "result.npz", wait=stop.wait, best=stop.best, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])

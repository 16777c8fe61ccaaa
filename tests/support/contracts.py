"""What the contract tests share: a small network and data, without a backend of their own."""

import keras
import numpy as np
from keras import layers

import keras_exitens as kx

BACKEND = keras.config.backend()
CLASSES = 4


def network(dtype=None, *, regularised=False):
    """A convolutional network with batch normalisation, shallow enough that rounding stays small."""
    keywords = {"dtype": dtype}
    x = inputs = keras.Input((12, 12, 3), name="image")
    for width in (4, 8, 12):
        regulariser = keras.regularizers.L2(0.01) if regularised else None
        x = layers.Conv2D(
            width, 3, padding="same", use_bias=False, kernel_regularizer=regulariser, **keywords
        )(x)
        x = layers.BatchNormalization(momentum=0.9, **keywords)(x)
        x = layers.ReLU(**keywords)(x)
        x = layers.MaxPooling2D(**keywords)(x)
    x = layers.GlobalAveragePooling2D(**keywords)(x)
    outputs = layers.Dense(CLASSES, "softmax", name="classifier", **keywords)(x)
    return keras.Model(inputs, outputs, name="network")


def data(rows=148, seed=1):
    """Images whose brightness tells their class, and the classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, rows)
    images = rng.normal(size=(rows, 12, 12, 3)) + 0.5 * labels[:, None, None, None]
    return images.astype("float32"), labels


def distiller(objective=None, *, dtype=None, optimizer=None, metrics=("accuracy",), **compiled):
    """A compiled distiller of a network with two early exits."""
    made = kx.ExitEnsembleDistiller(kx.add_exits(network(dtype), 2), objective)
    optimizer = optimizer or kx.optimizers.SGD(0.02, momentum=0.9, l2=5e-4)
    made.compile(optimizer, metrics=list(metrics), **compiled)
    return made


def weights(model):
    return [keras.ops.convert_to_numpy(v) for v in model.weights]


def spread_policy(records, kind=kx.policies.MaxProbability):
    """Thresholds in the widest gap of the middle scores: about half of the rows leave at each exit."""
    scores = kind(0.5).score(records.logits)[:-1]
    rows = scores.shape[1]
    middle = np.sort(scores, axis=1)[:, rows // 3 : -rows // 3]
    place = np.diff(middle, axis=1).argmax(axis=1)
    return kind([(row[i] + row[i + 1]) / 2 for row, i in zip(middle, place, strict=True)])


class Batches(keras.utils.PyDataset):
    """Arrays in batches, as a user's own data set would give them."""

    def __init__(self, *arrays, size=32):
        super().__init__()
        self.arrays, self.size = arrays, size

    def __len__(self):
        return -(-len(self.arrays[0]) // self.size)

    def __getitem__(self, index):
        return tuple(array[index * self.size : (index + 1) * self.size] for array in self.arrays)

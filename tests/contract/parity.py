"""Five steps of training under each objective, from one set of weights.

    KERAS_BACKEND=tensorflow PYTHONPATH=tests/support python tests/contract/parity.py

writes data/parity.npz, the weights that TensorFlow comes to; every backend is held to them.
"""

import pathlib

import keras
import numpy as np
from contracts import data, network

import keras_exitens as kx

FILE = pathlib.Path(__file__).with_name("data") / "parity.npz"
SIZES = ((16, 16), (5, 6))
RATE = 0.005  # with larger steps a rectifier flips in one backend and not in the other
RAMP = keras.optimizers.schedules.PolynomialDecay(1.0, 5, 0.1)
# Name of a case -> objective, whether layers have regularisers, and arguments of `fit`.
CASES = {
    "EED mse": (kx.objectives.EED("mse"), False, {}),
    "EED kl, a schedule, sample weights": (
        kx.objectives.EED("kl", feature_weight=RAMP),
        True,
        {"sample_weight": np.random.default_rng(2).random(148).astype("float32")},
    ),
    "BEED": (kx.objectives.BEED(), False, {}),
    "DBT, annealed": (kx.objectives.DBT(temperature="annealed"), False, {}),
    "BYOT, class weights": (
        kx.objectives.BYOT(),
        False,
        {"class_weight": {0: 1.0, 1: 2.0, 2: 0.5, 3: 1.0}},
    ),
    "cross-entropy": (kx.objectives.CrossEntropy(), True, {}),
}


def train(name, initial=None):
    """What a case comes to: dict from a name to an array.

    Args:
        name: of `CASES`.
        initial: list of arrays to begin with; by default the network's own.
    """
    objective, regularised, arguments = CASES[name]
    images, labels = data()
    keras.utils.set_random_seed(3)
    model = kx.add_exits(network(regularised=regularised), 2)
    if initial is not None:
        model.set_weights(initial)
    found = {f"before {i}": weight for i, weight in enumerate(model.get_weights())}
    distiller = kx.ExitEnsembleDistiller(model, objective)
    weighted = ["accuracy"] if arguments else None
    optimizer = kx.optimizers.SGD(RATE, momentum=0.9, l2=5e-4)
    distiller.compile(optimizer, metrics=["accuracy", "crossentropy"], weighted_metrics=weighted)
    history = distiller.fit(images, labels, batch_size=32, shuffle=False, verbose=0, **arguments).history
    measured = distiller.evaluate(images, labels, batch_size=32, verbose=0, return_dict=True)
    found |= {f"after {i}": weight for i, weight in enumerate(model.get_weights())}
    found |= {f"log {key}": np.float64(values[-1]) for key, values in history.items()}
    found |= {f"measured {key}": np.float64(value) for key, value in measured.items()}
    state = {
        variable.name: variable for variable in distiller.non_trainable_variables if len(variable.shape) == 0
    }
    found |= {f"state {key}": np.float64(keras.ops.convert_to_numpy(v)) for key, v in state.items()}
    return found


def resized(size):
    """The first test images of the digits at another size, as bytes."""
    splits = kx.data.load("digits", batch_size=3, image_size=size, augment=None)
    images = np.asarray(next(iter(splits.test))[0])
    return np.round(255 * (images * splits.std[0] + splits.mean[0])).astype("uint8")


def main():
    assert keras.config.backend() == "tensorflow"
    FILE.parent.mkdir(exist_ok=True)
    sizes = {f"resized {size}": resized(size) for size in SIZES}
    cases = {f"{name}/{key}": value for name in CASES for key, value in train(name).items()}
    np.savez_compressed(FILE, **cases, **sizes)


if __name__ == "__main__":
    main()

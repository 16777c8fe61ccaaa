"""A network that was trained, calibrated and saved on one backend, and what it said there.

    KERAS_BACKEND=jax PYTHONPATH=tests/support python tests/contract/saved.py

writes data/jax.keras and data/jax.npz. Every backend loads the files of all of them.
"""

import pathlib

import keras
import numpy as np
from contracts import BACKEND, data, distiller, spread_policy

import keras_exitens as kx

FOLDER = pathlib.Path(__file__).with_name("data")
BACKENDS = ("tensorflow", "jax", "torch")


def main():
    keras.utils.set_random_seed(5)
    images, labels = data(300)
    made = distiller()
    made.fit(images, labels, epochs=2, verbose=0)
    records = kx.collect(made.model, data(200, seed=2), verbose=0)
    policy = spread_policy(records, kx.policies.Margin)
    early = kx.EarlyExit(made.model, policy)
    early.save(FOLDER / f"{BACKEND}.keras")
    seen, _ = data(100, seed=3)
    found = early.predict(seen, verbose=0)
    print(BACKEND, np.bincount(found["exit"], minlength=3))
    logits = made.predict(seen, verbose=0)
    np.savez_compressed(
        FOLDER / f"{BACKEND}.npz", **found, **{f"logits of {name}": z for name, z in logits.items()}
    )


if __name__ == "__main__":
    main()

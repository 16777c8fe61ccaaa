"""Which backend Keras runs on, and TensorFlow where it is that one.

What is a backend's own stands in files of its name, such as `_training/step_jax.py`; all else is written in
`keras.ops` and NumPy. Under another backend TensorFlow is never imported.
"""

from typing import Any

import keras
import numpy as np

__all__ = ["NAME", "random_state", "set_random_state", "tf"]

NAME: str = keras.config.backend()
tf: Any = None

if NAME == "tensorflow":
    import tensorflow

    tf = tensorflow
elif NAME not in ("jax", "torch"):
    raise ImportError(
        f"keras_exitens does not run on Keras's backend {NAME!r}, which cannot train.\n"
        "Expected: tensorflow, jax or torch\n"
        f"Received: {NAME}\n"
        "Fix: set KERAS_BACKEND=tensorflow, jax or torch before Keras is imported"
    )


def random_state() -> dict[str, np.ndarray]:
    """The random numbers that a backend keeps outside of the variables of models: PyTorch's, for dropout."""
    if NAME != "torch":
        return {}
    import torch

    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return {device: state.numpy() for device, state in states.items()}


def set_random_state(states: dict[str, np.ndarray]) -> None:
    """Goes on from what `random_state` gave."""
    if NAME != "torch":
        return
    import torch

    for device, state in states.items():
        if device == "cpu":
            torch.set_rng_state(torch.from_numpy(state))
        elif int(device.removeprefix("cuda:")) < torch.cuda.device_count():
            torch.cuda.set_rng_state(torch.from_numpy(state), device)

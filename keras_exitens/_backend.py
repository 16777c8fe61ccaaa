"""Which backend Keras runs on, and TensorFlow where it is that one.

What is a backend's own stands in files of its name, such as `_training/step_jax.py`; all else is written in
`keras.ops` and NumPy. Under another backend TensorFlow is never imported.
"""

from typing import Any

import keras

__all__ = ["NAME", "tf"]

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

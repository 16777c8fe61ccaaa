"""What `EarlyExit` runs, on the backend that Keras runs on.

Each way has a file of its own with a class `Runner`, the base of `EarlyExit`: `call`, `route`, `predict` and
`predict_on_batch`. TensorFlow routes in one graph, JAX and PyTorch from the host, stage by stage.
"""

from typing import TYPE_CHECKING

from keras_exitens._backend import NAME

__all__ = ["Runner"]


if TYPE_CHECKING or NAME == "tensorflow":  # the types are those of one of them
    from keras_exitens._inference.runner_tensorflow import Runner as Runner
else:
    from keras_exitens._inference.runner_host import Runner as Runner

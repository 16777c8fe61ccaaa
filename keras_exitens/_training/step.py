"""What a distiller does with one batch, on the backend that Keras runs on.

Each backend has a file of its own with a class `Step`, the base of `ExitEnsembleDistiller`. It overrides what
Keras's trainer calls for a batch, around methods that all share: `_run` (the forward pass), `_loss`,
`_advance` (the state of the objective) and `_logs`. Everything else of the trainer is Keras's.
"""

from typing import TYPE_CHECKING

import keras

from keras_exitens._backend import NAME

__all__ = ["Step", "prepared"]


if TYPE_CHECKING or NAME == "tensorflow":  # the types are those of one of them
    from keras_exitens._training.step_tensorflow import Step as Step
elif NAME == "jax":
    from keras_exitens._training.step_jax import Step as Step
else:
    from keras_exitens._training.step_torch import Step as Step


def prepared(network: keras.Model) -> keras.Model:
    """The network as it is trained: with TensorFlow's kernel of batch normalisation, else as it is."""
    if NAME == "tensorflow":
        from keras_exitens._training.normalization import with_fused_normalization

        return with_fused_normalization(network)
    return network

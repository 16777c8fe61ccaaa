"""The pipelines over images in memory: endless and augmented for training, else one pass.

TensorFlow has `tf.data`, in a file of its own; other backends get NumPy arrays in `PyDataset`s.
"""

from typing import TYPE_CHECKING

from keras_exitens._backend import NAME

__all__ = ["Pipelines"]


if TYPE_CHECKING or NAME == "tensorflow":  # the types are those of one of them
    from keras_exitens.data.pipelines_tensorflow import Pipelines as Pipelines
else:
    from keras_exitens.data.pipelines_host import Pipelines as Pipelines

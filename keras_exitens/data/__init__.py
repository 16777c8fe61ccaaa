"""Images for training, validation, calibration and test, as `tf.data` pipelines or NumPy batches."""

from keras_exitens.data.loading import load
from keras_exitens.data.splits import Splits

__all__ = ["Splits", "load"]

"""Keras callbacks of the library."""

from keras_exitens.callbacks.exit_tensorboard import ExitTensorBoard
from keras_exitens.callbacks.step_backup import StepBackup

__all__ = ["ExitTensorBoard", "StepBackup"]

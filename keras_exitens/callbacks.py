"""Keras callbacks of the library."""

from keras_exitens.exit_tensorboard import ExitTensorBoard
from keras_exitens.step_backup import StepBackup

__all__ = ["ExitTensorBoard", "StepBackup"]

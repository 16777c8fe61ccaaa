"""Training step on TensorFlow: one graph, on all replicas of a strategy."""

import keras
import tensorflow as tf
from keras import ops

from keras_exitens import _checks as checks
from keras_exitens._inputs import replicas
from keras_exitens._keras import LocalSymbolicBuild
from keras_exitens._training.shared_step import SharedStep
from keras_exitens._types import Data, Tensor

__all__ = ["Step"]


class Step(LocalSymbolicBuild, SharedStep):
    """The steps that `keras.Model` calls for a batch; see `step.py`."""

    def train_step(self, data: Data) -> dict[str, Tensor]:
        """One update of the weights from one batch `(x, y[, sample_weight])`."""
        x, y, sample_weight = self._unpacked(data)
        with tf.GradientTape() as tape:
            outputs, features = self._run(x, training=True)
            loss, new_state = self._loss(outputs, features, y, sample_weight)
            loss = self.optimizer.scale_loss(loss)
        weights, scale = self.trainable_variables, self._loss_scale()
        if weights:
            self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        else:
            checks.warn("The network does not have any trainable weights: nothing is learned.")
        if scale is not None:
            # Dynamic loss scaling skips the update of gradients that overflow, and lowers the scale.
            self._skipped.assign_add(ops.cast(self._loss_scale() < scale, self._skipped.dtype))
        with tf.control_dependencies([loss]):  # a batch that fails is no step
            self._advance(new_state)
        return self._logs(x, y, outputs, sample_weight)

    def test_step(self, data: Data) -> dict[str, Tensor]:
        """Loss and metrics of one batch; changes no weight, statistic or state."""
        return self._measured(*self._unpacked(data))

    def predict_step(self, data: Data) -> dict[str, Tensor]:
        """Logits of all exits and of the ensemble of one batch `(x[, y, sample_weight])`."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return replicas.gatherable(self._run(x, training=False)[0], replicas.of_model(self))

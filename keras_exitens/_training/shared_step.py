"""What the training steps of all backends have in common."""

from typing import Any

import keras
from keras import ops

from keras_exitens._inputs.labels import standard_labels
from keras_exitens._keras import loss_scale
from keras_exitens._types import Data, Tensor

__all__ = ["SharedStep"]


class SharedStep:
    """Base of each backend's `Step`. The attributes are those of the distiller and of `keras.Model`."""

    classes: int
    optimizer: Any
    trainable_variables: Any
    non_trainable_variables: Any
    metrics_variables: Any
    zero_grad: Any
    _run: Any
    _loss: Any
    _advance: Any
    _logs: Any
    _skipped: Any

    def _unpacked(self, data: Data) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels in their one form, and sample weights or `None`, of a batch."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        return x, standard_labels(y, self.classes), sample_weight

    def _measured(self, x: Tensor, y: Tensor, sample_weight: Tensor) -> dict[str, Tensor]:
        """The logs of a batch that nothing is learned from."""
        outputs, features = self._run(x, training=False)
        self._loss(outputs, features, y, sample_weight)
        return self._logs(x, y, outputs, sample_weight)

    def _scaled(self) -> bool:
        """Whether the optimizer scales losses, and skips the update of gradients that overflow."""
        return self._skipped is not None and isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)

    def _loss_scale(self) -> Tensor:
        """The factor as it is now: an update that is skipped lowers it."""
        return ops.copy(loss_scale(self.optimizer)) if self._scaled() else None

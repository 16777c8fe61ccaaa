"""Training step on PyTorch: forward, `backward`, update; all of it eager, unless Keras compiles it."""

import torch

from keras_exitens import _checks as checks
from keras_exitens._training.shared_step import SharedStep
from keras_exitens._types import Data, Tensor

__all__ = ["Step"]


class Step(SharedStep):
    """The steps that `keras.Model` calls for a batch; see `step.py`."""

    def train_step(self, data: Data) -> dict[str, Tensor]:
        """One update of the weights from one batch `(x, y[, sample_weight])`."""
        x, y, sample_weight = self._unpacked(data)
        outputs, features = self._run(x, training=True)
        loss, new_state = self._loss(outputs, features, y, sample_weight)
        weights, scale = self.trainable_variables, self._loss_scale()
        if weights:
            self.zero_grad()
            self.optimizer.scale_loss(loss).backward()
            with torch.no_grad():
                self.optimizer.apply([weight.value.grad for weight in weights], weights)
        else:
            checks.warn("The network does not have any trainable weights: nothing is learned.")
        # The state is an input of the loss: it must not change before `backward`.
        with torch.no_grad():
            if scale is not None:
                # Dynamic loss scaling skips the update of gradients that overflow, and lowers the scale.
                self._skipped.assign_add((self._loss_scale() < scale).to(torch.int32))
            self._advance(new_state)
            return self._logs(x, y, outputs, sample_weight)

    def test_step(self, data: Data) -> dict[str, Tensor]:
        """Loss and metrics of one batch; changes no weight, statistic or state."""
        return self._measured(*self._unpacked(data))

"""Training step on JAX: a pure function of all variables and a batch, which Keras compiles.

Variables cannot be assigned to in a compiled function: within a `keras.StatelessScope` they have the values
that came in, and assigning gives them new ones there, which go out.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import keras

from keras_exitens import _checks as checks
from keras_exitens._keras import StateKept
from keras_exitens._training.shared_step import SharedStep
from keras_exitens._types import Data, Tensor

__all__ = ["Step"]

Arrays: TypeAlias = Sequence[jax.Array]


class Step(StateKept, SharedStep):
    """The steps that `keras.Model` calls for a batch; see `step.py`."""

    def train_step(
        self, state: tuple[Arrays, Arrays, Arrays, Arrays], data: Data
    ) -> tuple[dict[str, Tensor], tuple[Arrays, Arrays, Arrays, Arrays]]:
        """One update of the weights from one batch `(x, y[, sample_weight])`."""
        trainable, others, optimizer, metrics = state
        x, y, sample_weight = self._unpacked(data)

        def loss_of(trainable: Arrays) -> Any:
            known = [*self._values(trainable, others, metrics), *self._optimizer_values(optimizer)]
            with keras.StatelessScope(known, collect_losses=True) as scope:
                outputs, features = self._run(x, training=True)
                loss, new_state = self._loss(outputs, features, y, sample_weight)
                self._advance(new_state)
                logs = self._logs(x, y, outputs, sample_weight)
                loss = self.optimizer.scale_loss(loss)
            after = (self.non_trainable_variables, self.metrics_variables)
            return loss, (logs, *([scope.get_current_value(v) for v in variables] for variables in after))

        gradients, (logs, others, metrics) = jax.grad(loss_of, has_aux=True)(trainable)
        if not trainable:
            checks.warn("The network does not have any trainable weights: nothing is learned.")
            return logs, (trainable, others, optimizer, metrics)
        before = optimizer
        trainable, optimizer = self.optimizer.stateless_apply(before, gradients, trainable)
        if self._scaled():
            # Dynamic loss scaling skips the update of gradients that overflow, and lowers the scale.
            scale = _index(self.optimizer.variables, self.optimizer.dynamic_scale)
            skipped = _index(self.non_trainable_variables, self._skipped)
            others[skipped] += (optimizer[scale] < before[scale]).astype(others[skipped].dtype)
        return logs, (trainable, others, optimizer, metrics)

    def test_step(
        self, state: tuple[Arrays, Arrays, Arrays], data: Data
    ) -> tuple[dict[str, Tensor], tuple[Arrays, Arrays, Arrays]]:
        """Loss and metrics of one batch; changes no weight, statistic or state."""
        trainable, others, metrics = state
        x, y, sample_weight = self._unpacked(data)
        known = self._values(trainable, others, metrics)
        with keras.StatelessScope(known, collect_losses=True) as scope:
            logs = self._measured(x, y, sample_weight)
        metrics = [scope.get_current_value(v) for v in self.metrics_variables]
        return logs, (trainable, others, metrics)

    def _values(self, trainable: Arrays, others: Arrays, metrics: Arrays) -> list[tuple[Any, Any]]:
        """Pairs of a variable and its value in this step."""
        return [
            *zip(self.trainable_variables, trainable, strict=True),
            *zip(self.non_trainable_variables, others, strict=True),
            *zip(self.metrics_variables, metrics, strict=True),
        ]

    def _optimizer_values(self, optimizer: Arrays) -> list[tuple[Any, Any]]:
        return list(zip(self.optimizer.variables, optimizer, strict=True))


def _index(variables: Sequence[Any], wanted: Any) -> int:
    return next(i for i, variable in enumerate(variables) if variable is wanted)

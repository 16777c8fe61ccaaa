"""What every objective is: `Objective`, the base class."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypeAlias

import keras
from keras import ops

from keras_exitens import _checks as checks
from keras_exitens._types import Tensor
from keras_exitens.objectives.ensemble import at_least_float32

__all__ = ["TERMS", "Objective", "SampleLoss", "State", "Tensors", "Terms", "check_students", "cross_entropy"]

TERMS = ("classification", "distillation", "feature")

Tensors: TypeAlias = list[Tensor] | Any  # one an exit; for features `None` where they are not used
State: TypeAlias = Mapping[str, Tensor]
Terms: TypeAlias = dict[str, Tensor]
SampleLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # (y, logits) -> (batch,)


def cross_entropy(y: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy of each sample from logits, `(batch,)`; `y` is class ids or class probabilities."""
    if len(y.shape) == len(logits.shape):
        return ops.categorical_crossentropy(ops.cast(y, logits.dtype), logits, from_logits=True)
    return ops.sparse_categorical_crossentropy(y, logits, from_logits=True)


class Objective:
    """Base class of the objectives. To write one's own: implement `terms`, register it with
    `keras.saving.register_keras_serializable`, and store each argument under its own name (or override
    `get_config`).
    """

    uses_features: bool = False

    def initial_state(self) -> dict[str, float]:
        """Names and first values of the scalars that the objective carries from batch to batch."""
        return {}

    def check(self, exits: int) -> None:
        """Raises `ValueError` where the objective cannot teach a network with that many exits."""

    def terms(self, logits: Tensors, features: Tensors, y: Tensor, state: State, loss: SampleLoss) -> Terms:
        """The terms of one batch.

        Args:
            logits, features, y, state: see the module; logits and features are lists, at least float32.
            loss: function `(y, logits) -> (batch,)`, the classification loss of each sample.

        Returns:
            A dict with any of the keys `"classification"`, `"distillation"`, `"feature"`.
        """
        raise NotImplementedError

    def next_state(
        self, logits: Tensors, state: State, batch_mean: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """The state after a batch; `batch_mean` reduces a `(batch,)` tensor to its mean over all replicas."""
        return {}

    def __call__(
        self,
        logits: Sequence[Tensor],
        features: Sequence[Tensor] | None,
        y: Tensor,
        state: State,
        *,
        loss: SampleLoss = cross_entropy,
        batch_mean: Callable[[Tensor], Tensor] = ops.mean,
    ) -> tuple[Terms, dict[str, Tensor]]:
        logits = at_least_float32(logits)
        features = None if features is None else at_least_float32(features)
        terms = self.terms(logits, features, y, state, loss)
        if not terms or not set(terms) <= set(TERMS):
            raise checks.error(
                f"{type(self).__name__}.terms gives terms that are not known.",
                expected=f"a dict with one or more of the keys {TERMS}",
                received=f"keys {tuple(terms)}",
                fix="rename them; several losses of one kind are added up under one name",
            )
        return terms, self.next_state(logits, state, batch_mean)

    def get_config(self) -> dict[str, Any]:
        return {
            name: keras.saving.serialize_keras_object(value)
            for name, value in vars(self).items()
            if not name.startswith("_")
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})


def check_students(objective: Objective, exits: int) -> None:
    """Raises `ValueError` where there is no early exit to teach."""
    if exits < 2:
        raise checks.error(
            f"{type(objective).__name__} has nobody to teach: the final exit is the only one.",
            expected="at least one early exit",
            received="a network with the final exit alone",
            fix="attach exits: add_exits(model, exits=1) or more",
        )

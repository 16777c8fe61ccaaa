"""Distillation-based training: the final exit teaches."""

from collections.abc import Callable
from typing import Any, Literal

import keras
from keras import ops

from keras_exitens._types import Tensor
from keras_exitens.objectives import distances, weights
from keras_exitens.objectives.objective import Objective, SampleLoss, State, Tensors, Terms, check_students
from keras_exitens.objectives.weights import Weight

__all__ = ["DBT"]


@keras.saving.register_keras_serializable(package="keras_exitens")
class DBT(Objective):
    """Distillation-based training: the final exit teaches the early ones.

    `L = (1-C) CE(z_K, y) + sum_{i<K} (1-C) CE(z_i, y) + C T² H(sg p_T(z_K), p_T(z_i))`.

    Args:
        weight: C in [0, 1], or a schedule.
        temperature: T > 0; `"annealed"`: T starts at 1 and is multiplied by 1.05 after each batch in which
            the mean of `max p_T(z_K)` exceeds 0.5. The annealed T is a weight of the distiller: saved, and
            the same on all replicas.

    Raises:
        ValueError: an argument is out of range.

    Reference: Phuong & Lampert, Distillation-Based Training for Multi-Exit Architectures, ICCV 2019.
    Deviation: the authors' global scale of 10/K is left out.
    """

    _START, _FACTOR, _CONFIDENCE = 1.0, 1.05, 0.5

    def __init__(self, weight: Weight = 0.5, temperature: float | Literal["annealed"] = 4.0) -> None:
        self.weight = weights.checked("weight", weight, high=1)
        annealed = isinstance(temperature, str) and temperature == "annealed"
        self.temperature = temperature if annealed else weights.positive("temperature", temperature)

    def initial_state(self) -> dict[str, float]:
        return {"temperature": self._START} if self.temperature == "annealed" else {}

    def check(self, exits: int) -> None:
        check_students(self, exits)

    def _temperature(self, state: State, like: Tensor) -> Any:
        if self.temperature == "annealed":
            return ops.cast(state["temperature"], like.dtype)
        return self.temperature

    def terms(self, logits: Tensors, features: Tensors, y: Tensor, state: State, loss: SampleLoss) -> Terms:
        *students, final = logits
        weight = weights.at(self.weight, state, final)
        temperature = self._temperature(state, final)
        teacher = ops.stop_gradient(final)
        soft = sum(distances.softened_cross_entropy(teacher, z, temperature) for z in students)
        return {
            "classification": (1 - weight) * sum(loss(y, z) for z in logits),
            "distillation": weight * temperature**2 * soft,
        }

    def next_state(
        self, logits: Tensors, state: State, batch_mean: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        if self.temperature != "annealed":
            return {}
        temperature = state["temperature"]
        confidence = batch_mean(
            ops.max(distances.softened(logits[-1], self._temperature(state, logits[-1])), axis=-1)
        )
        return {
            "temperature": ops.where(confidence > self._CONFIDENCE, temperature * self._FACTOR, temperature)
        }

"""Exit-ensemble distillation."""

from typing import Literal

import keras
from keras import ops

from keras_exitens import _checks as checks
from keras_exitens._types import Tensor
from keras_exitens.objectives import distances, weights
from keras_exitens.objectives.ensemble import mean
from keras_exitens.objectives.objective import Objective, SampleLoss, State, Tensors, Terms
from keras_exitens.objectives.weights import Weight

__all__ = ["EED"]


@keras.saving.register_keras_serializable(package="keras_exitens")
class EED(Objective):
    """Exit-ensemble distillation: the mean of all exits teaches every exit, the final one too.

    `L = sum_i CE(z_i, y) + L_O + L_F`, with the teachers `z̄ = sg(mean z_i)` and `f̄ = sg(mean f_i)`:

    - `output_loss="mse"`: `L_O = w sum_i mean_c (z_i - z̄)²`,
    - `output_loss="kl"`: `L_O = w T² sum_i H(p_T(z̄), p_T(z_i))`, a cross-entropy as in the authors' program,
    - `L_F = v sum_i mean_d (f_i - f̄)² [f_i > 0 or f̄ > 0]`.

    Args:
        output_loss: `"kl"` (default), `"mse"`, or `None` for no output distillation. `"mse"` is the form of
            the reference program; it gains where a network over-fits hundreds of images a class, and costs
            where there are few, or training is short.
        output_weight: w, a number ≥ 0 or a schedule; default 1 for `"mse"` and 0.1 for `"kl"`.
        temperature: T > 0, used by `"kl"`.
        feature_weight: v, a number ≥ 0 or a schedule; 0 turns feature distillation off, as the distiller does
            by default. Features that have to agree slow a network down that has little time; one that is
            trained until it over-fits, with `head="conv"`, gains by them.

    Raises:
        ValueError: an argument is out of range.

    Example:

    ```python
    distiller = kx.ExitEnsembleDistiller(model, kx.objectives.EED("mse", feature_weight=0))
    ```

    Reference: Lee & Lee, Students are the Best Teacher: Exit-Ensemble Distillation with Multi-Exits,
    arXiv 2104.00299.
    """

    def __init__(
        self,
        output_loss: Literal["mse", "kl"] | None = "kl",
        output_weight: Weight | None = None,
        temperature: float = 3.0,
        feature_weight: Weight = 1.0,
    ) -> None:
        self.output_loss = checks.one_of("output_loss", output_loss, ("mse", "kl", None))
        if output_weight is None:
            output_weight = 0.1 if output_loss == "kl" else 1.0
        self.output_weight = weights.checked("output_weight", output_weight)
        self.temperature = weights.positive("temperature", temperature)
        self.feature_weight = weights.checked("feature_weight", feature_weight)

    @property
    def uses_features(self) -> bool:  # type: ignore[override]
        return not weights.is_off(self.feature_weight)

    def terms(self, logits: Tensors, features: Tensors, y: Tensor, state: State, loss: SampleLoss) -> Terms:
        terms = {"classification": sum(loss(y, z) for z in logits)}
        if self.output_loss is not None:
            teacher = ops.stop_gradient(mean(logits))
            weight = weights.at(self.output_weight, state, logits[0])
            terms["distillation"] = weight * sum(self._output_loss(teacher, z) for z in logits)
        if self.uses_features:
            teacher = ops.stop_gradient(mean(features))
            weight = weights.at(self.feature_weight, state, logits[0])
            terms["feature"] = weight * sum(distances.active_squared_error(teacher, f) for f in features)
        return terms

    def _output_loss(self, teacher: Tensor, student: Tensor) -> Tensor:
        if self.output_loss == "mse":
            return distances.squared_error(teacher, student)
        return self.temperature**2 * distances.softened_cross_entropy(teacher, student, self.temperature)

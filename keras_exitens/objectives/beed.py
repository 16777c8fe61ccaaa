"""Balanced exit-ensemble distillation."""

import keras
from keras import ops

from keras_exitens import _checks as checks
from keras_exitens._types import Tensor
from keras_exitens.objectives import distances, weights
from keras_exitens.objectives.ensemble import weighted_mean
from keras_exitens.objectives.objective import Objective, SampleLoss, State, Tensors, Terms
from keras_exitens.objectives.weights import Weight

__all__ = ["BEED"]


@keras.saving.register_keras_serializable(package="keras_exitens")
class BEED(Objective):
    """Balanced exit-ensemble distillation: later exits weigh more in the teacher, and learn less from it.

    With teacher weights `b_i = β^(i-1) / sum_j β^(j-1)` for logits and features, and `k_i = K - i`:

    `L = sum_i (2 - α^k_i) CE(z_i, y) + α^k_i T² KL(p_T(z̄) || p_T(z_i)) + v mean_d (f_i - f̄)²`.

    Args:
        alpha: α ≥ 1; `α^(K-1)` must stay below 2, or the first exit would be taught to be wrong.
        beta: β > 0.
        temperature: T > 0.
        feature_weight: v, a number ≥ 0 or a schedule.

    Raises:
        ValueError: an argument is out of range; α too large for the network (when the distiller is made).

    Reference: Lee & Lee, Rethinking Online Knowledge Distillation with Multi-Exits, ACCV 2022. Deviation:
    the authors' program compares unpooled maps, this one pooled features.
    """

    def __init__(
        self, alpha: float = 1.15, beta: float = 1.6, temperature: float = 3.0, feature_weight: Weight = 0.1
    ) -> None:
        self.alpha = weights.plain(checks.number("alpha", alpha, low=1))
        self.beta = weights.positive("beta", beta)
        self.temperature = weights.positive("temperature", temperature)
        self.feature_weight = weights.checked("feature_weight", feature_weight)

    @property
    def uses_features(self) -> bool:  # type: ignore[override]
        return not weights.is_off(self.feature_weight)

    def check(self, exits: int) -> None:
        if self.alpha ** (exits - 1) >= 2:
            largest = 2 ** (1 / (exits - 1))
            raise checks.error(
                "`alpha` is too large for this many exits: the first one would be taught to be wrong.",
                expected=f"alpha ** (exits - 1) < 2, so alpha < {largest:.6g} for {exits} exits",
                received=f"alpha={self.alpha}, {self.alpha} ** {exits - 1} = {self.alpha ** (exits - 1):.4g}",
                fix=f"pass alpha={int(largest * 1000 - 1e-9) / 1000}, or use fewer exits",
            )

    def terms(self, logits: Tensors, features: Tensors, y: Tensor, state: State, loss: SampleLoss) -> Terms:
        exits = len(logits)
        self.check(exits)
        total = sum(self.beta**i for i in range(exits))
        shares = [self.beta**i / total for i in range(exits)]
        mixing = [self.alpha ** (exits - 1 - i) for i in range(exits)]
        teacher = ops.stop_gradient(weighted_mean(logits, shares))
        soft = [distances.softened_kl(teacher, z, self.temperature) for z in logits]
        terms = {
            "classification": sum((2 - a) * loss(y, z) for a, z in zip(mixing, logits, strict=True)),
            "distillation": self.temperature**2 * sum(a * s for a, s in zip(mixing, soft, strict=True)),
        }
        if self.uses_features:
            teacher = ops.stop_gradient(weighted_mean(features, shares))
            terms["feature"] = weights.at(self.feature_weight, state, logits[0]) * sum(
                distances.squared_error(teacher, f) for f in features
            )
        return terms

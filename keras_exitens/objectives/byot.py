"""Be your own teacher: the final exit teaches, by logits and by features."""

import keras
from keras import ops

from keras_exitens import _checks as checks
from keras_exitens._types import Tensor
from keras_exitens.objectives import distances, weights
from keras_exitens.objectives.objective import Objective, SampleLoss, State, Tensors, Terms, check_students
from keras_exitens.objectives.weights import Weight

__all__ = ["BYOT"]


@keras.saving.register_keras_serializable(package="keras_exitens")
class BYOT(Objective):
    """Be your own teacher: the final exit teaches the early ones, by logits and by features.

    `L = CE(z_K, y) + sum_{i<K} (1-α) CE(z_i, y) + α τ H(sg p_T(z_K), p_T(z_i)) + λ ‖f_i - sg f_K‖²`, the norm
    summed over features.

    Args:
        alpha: α in [0, 1], or a schedule.
        temperature: T > 0.
        feature_weight: λ, a number ≥ 0 or a schedule.
        t_squared: τ = T² if true, else τ = 1 (default).

    Raises:
        ValueError: an argument is out of range.

    Reference: Zhang et al., Be Your Own Teacher, ICCV 2019. Deviations from the authors' code: the feature
    term is a squared norm of pooled features of one width (theirs is an unsquared norm of adapted maps), and
    the teacher's logits carry no gradient in either term.
    """

    def __init__(
        self,
        alpha: Weight = 0.3,
        temperature: float = 3.0,
        feature_weight: Weight = 0.03,
        *,
        t_squared: bool = False,
    ) -> None:
        self.alpha = weights.checked("alpha", alpha, high=1)
        self.temperature = weights.positive("temperature", temperature)
        self.feature_weight = weights.checked("feature_weight", feature_weight)
        self.t_squared = checks.one_of("t_squared", t_squared, (False, True))

    @property
    def uses_features(self) -> bool:  # type: ignore[override]
        return not weights.is_off(self.feature_weight)

    def check(self, exits: int) -> None:
        check_students(self, exits)

    def terms(self, logits: Tensors, features: Tensors, y: Tensor, state: State, loss: SampleLoss) -> Terms:
        *students, final = logits
        alpha = weights.at(self.alpha, state, final)
        scale = self.temperature**2 if self.t_squared else 1.0
        teacher = ops.stop_gradient(final)
        soft = sum(distances.softened_cross_entropy(teacher, z, self.temperature) for z in students)
        terms = {
            "classification": loss(y, final) + (1 - alpha) * sum(loss(y, z) for z in students),
            "distillation": alpha * scale * soft,
        }
        if self.uses_features:
            teacher = ops.stop_gradient(features[-1])
            terms["feature"] = weights.at(self.feature_weight, state, logits[0]) * sum(
                ops.sum(ops.square(f - teacher), axis=-1) for f in features[:-1]
            )
        return terms

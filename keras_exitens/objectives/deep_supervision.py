"""The baseline: cross-entropy at every exit, no distillation."""

from collections.abc import Sequence

import keras

from keras_exitens import _checks as checks
from keras_exitens._types import Tensor
from keras_exitens.objectives import weights as term_weights
from keras_exitens.objectives.objective import Objective, SampleLoss, State, Tensors, Terms
from keras_exitens.objectives.weights import Weight

__all__ = ["CrossEntropy"]


@keras.saving.register_keras_serializable(package="keras_exitens")
class CrossEntropy(Objective):
    """Deep supervision: `L = sum_i w_i CE(z_i, y)`. The baseline, without any distillation.

    Args:
        weights: K numbers ≥ 0 or schedules, one per exit, final exit last; default 1 each.

    Raises:
        ValueError: a weight is negative, or their number is not that of the exits.
    """

    def __init__(self, weights: Sequence[Weight] | None = None) -> None:
        if weights is not None and not isinstance(weights, list | tuple):
            raise checks.error(
                "`weights` is not a list.",
                expected="None, or one number or schedule for each exit",
                received=f"weights={weights!r}",
                fix=f"pass weights=[{weights!r}, ...], the final exit's last",
            )
        self.weights = None if weights is None else [term_weights.checked("weights", w) for w in weights]

    def check(self, exits: int) -> None:
        if self.weights is not None and len(self.weights) != exits:
            raise checks.error(
                "The number of weights is not the number of exits.",
                expected=f"{exits} weights, the final exit's last",
                received=f"{len(self.weights)} weights: {self.weights}",
                fix=f"pass {exits} weights, or weights=None for 1 each",
            )

    def terms(self, logits: Tensors, features: Tensors, y: Tensor, state: State, loss: SampleLoss) -> Terms:
        self.check(len(logits))
        given = [1.0] * len(logits) if self.weights is None else self.weights
        shares = [term_weights.at(w, state, logits[0]) for w in given]
        return {"classification": sum(w * loss(y, z) for w, z in zip(shares, logits, strict=True))}

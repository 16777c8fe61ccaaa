"""The policy that asks whether enough exits agree."""

from collections.abc import Sequence

import keras
import numpy as np

from keras_exitens import _scores as scores
from keras_exitens._types import Tensor
from keras_exitens.policies.policy import Policy, array_module

__all__ = ["Patience"]


@keras.saving.register_keras_serializable(package="keras_exitens")
class Patience(Policy):
    """Leaves where enough exits in a row have predicted the same class.

    Args:
        thresholds: how many enabled exits, this one included, must agree: 2 is the least that waits for
            anything. One number for all exits, or a list of K − 1.
        temperatures, enabled, ensemble: as in `Policy`. Temperatures change no prediction, hence nothing.

    Reference: Zhou et al., BERT Loses Patience: Fast and Robust Inference with Early Exit, arXiv 2006.04152,
    whose patience t is `thresholds=t + 1` here.
    """

    def __init__(
        self,
        thresholds: float | Sequence[float] | np.ndarray = 2,
        temperatures: float | Sequence[float] | np.ndarray = 1.0,
        *,
        enabled: bool | Sequence[bool] | np.ndarray = True,
        ensemble: bool = False,
    ) -> None:
        super().__init__(thresholds, temperatures, enabled=enabled, ensemble=ensemble)

    def _scored(self, logits: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return scores.agreement(array_module(logits), logits, state)

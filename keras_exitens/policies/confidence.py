"""Policies that ask how sure one exit is."""

import keras

from keras_exitens import _scores as scores
from keras_exitens._types import Tensor
from keras_exitens.policies.policy import Policy, array_module

__all__ = ["Entropy", "Margin", "MaxProbability"]


@keras.saving.register_keras_serializable(package="keras_exitens")
class MaxProbability(Policy):
    """Leaves where the most probable class is probable enough: `max softmax(z / T) >= threshold`.

    Args: as `Policy`; a threshold is a probability.

    Reference: Hendrycks & Gimpel, A Baseline for Detecting Misclassified Examples, arXiv 1610.02136.
    """

    _highest = 1.0

    def score(self, logits: Tensor) -> Tensor:
        return scores.max_probability(array_module(logits), logits)


@keras.saving.register_keras_serializable(package="keras_exitens")
class Entropy(Policy):
    """Leaves where the entropy `H` of the prediction is low enough.

    `1 - H(softmax(z / T)) / ln(classes) >= threshold`

    Args: as `Policy`; a threshold of 1 asks for certainty, one of 0 for nothing.

    Reference: Teerapittayanon et al., BranchyNet, arXiv 1709.01686.
    """

    _highest = 1.0

    def score(self, logits: Tensor) -> Tensor:
        return scores.entropy(array_module(logits), logits)


@keras.saving.register_keras_serializable(package="keras_exitens")
class Margin(Policy):
    """Leaves where the best class is far enough ahead of the second.

    `p_first - p_second >= threshold`, with `p = softmax(z / T)`

    Args: as `Policy`; a threshold is a difference of probabilities.
    """

    _highest = 1.0

    def score(self, logits: Tensor) -> Tensor:
        return scores.margin(array_module(logits), logits)

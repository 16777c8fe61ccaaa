"""From the outputs of all exits to one teacher."""

from collections.abc import Sequence

from keras import ops

from keras_exitens._types import Tensor

__all__ = ["at_least_float32", "mean", "weighted_mean"]


def at_least_float32(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors in float32, or in float64 where they are float64 already: losses never lose precision."""
    return [
        t if t.dtype == "float64" else ops.cast(t, "float32") for t in map(ops.convert_to_tensor, tensors)
    ]


def mean(tensors: Sequence[Tensor]) -> Tensor:
    """The ensemble of exits: the mean of K tensors of one shape."""
    return weighted_mean(tensors, [1 / len(tensors)] * len(tensors))


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """`sum(w_i * t_i)` over K tensors of one shape, with weights that sum to 1."""
    return sum(w * t for w, t in zip(weights, tensors, strict=True))

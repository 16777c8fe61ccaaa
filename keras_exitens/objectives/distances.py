"""How far a student is from its teacher, sample by sample."""

from keras import ops

from keras_exitens._types import Tensor

__all__ = ["active_squared_error", "softened", "softened_cross_entropy", "softened_kl", "squared_error"]


def softened(logits: Tensor, temperature: Tensor) -> Tensor:
    """`p_T(logits) = softmax(logits / T)`."""
    return ops.softmax(logits / temperature)


def softened_cross_entropy(teacher: Tensor, student: Tensor, temperature: Tensor) -> Tensor:
    """`H(p_T(teacher), p_T(student))` of each sample, from logits."""
    return -ops.sum(softened(teacher, temperature) * ops.log_softmax(student / temperature), axis=-1)


def softened_kl(teacher: Tensor, student: Tensor, temperature: Tensor) -> Tensor:
    """`KL(p_T(teacher) || p_T(student))` of each sample, from logits."""
    gap = ops.log_softmax(teacher / temperature) - ops.log_softmax(student / temperature)
    return ops.sum(softened(teacher, temperature) * gap, axis=-1)


def squared_error(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean over the last axis of the squared difference, per sample."""
    return ops.mean(ops.square(student - teacher), axis=-1)


def active_squared_error(teacher: Tensor, student: Tensor) -> Tensor:
    """The same, of features that are active (above 0) in teacher or student; the others count as 0."""
    active = ops.logical_or(student > 0, teacher > 0)
    return ops.mean(ops.where(active, ops.square(student - teacher), 0.0), axis=-1)

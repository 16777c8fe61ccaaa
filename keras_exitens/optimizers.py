"""SGD as the paper's program has it."""

from typing import Any

import keras

from keras_exitens import _checks as checks
from keras_exitens._types import Tensor

__all__ = ["SGD"]


@keras.saving.register_keras_serializable(package="keras_exitens")
class SGD(keras.optimizers.SGD):
    """`keras.optimizers.SGD` with weight decay as L2 in the gradient: `g + l2 * w` in place of `g`.

    This is what PyTorch's SGD and the papers' recipes call weight decay. Keras's own `weight_decay` is
    decoupled: it shrinks the weights beside the momentum. All trainable variables decay, biases and the
    scales of batch normalisation included.

    Args:
        learning_rate: float or schedule.
        momentum: float in [0, 1).
        l2: float ≥ 0, added to the gradient as `l2 * w`; 5e-4 in the paper.
        **kwargs: further arguments of `keras.optimizers.SGD`, but `weight_decay`.

    Raises:
        ValueError: `l2` is negative, or `weight_decay` is given.

    Example:

    ```python
    distiller.compile(optimizer=kx.optimizers.SGD(0.1, momentum=0.9, l2=5e-4))
    ```
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 0.01,
        momentum: float = 0.0,
        l2: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("weight_decay") is not None:
            raise checks.error(
                "`weight_decay` means decoupled decay in Keras, beside `l2`.",
                expected="one kind of decay",
                received=f"weight_decay={kwargs['weight_decay']}, l2={l2}",
                fix="pass l2=..., or use keras.optimizers.SGD for decoupled decay",
            )
        super().__init__(learning_rate=learning_rate, momentum=momentum, **kwargs)
        self.l2 = checks.number("l2", l2, low=0)

    def update_step(self, gradient: Tensor, variable: Tensor, learning_rate: Tensor) -> None:
        if self.l2:
            gradient = gradient + keras.ops.cast(self.l2 * variable, gradient.dtype)
        super().update_step(gradient, variable, learning_rate)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "l2": self.l2}

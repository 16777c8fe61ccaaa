"""Exit heads: from a feature map to the pooled feature of an exit."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import keras
from keras import layers

from keras_exitens import _checks as checks
from keras_exitens._graph.wrapping import unwrapped
from keras_exitens._keras import call_that_made, operation_that_made

__all__ = ["HEADS", "apply_head"]


def _policy_of(tensor: keras.KerasTensor) -> Any:
    """The dtype policy of the layer that a tensor comes from; operations such as `x + y` have none."""
    while (call := call_that_made(tensor)) is not None:
        operation = unwrapped(call.operation)
        if isinstance(operation, layers.Layer):
            return operation.dtype_policy
        tensor = call.inputs[0]
    return operation_that_made(tensor).dtype_policy


def apply_head(
    head: str | Callable[..., Any],
    tensor: keras.KerasTensor,
    *,
    width: int,
    features: int,
    halvings: int,
    data_format: str,
    name: str,
) -> keras.KerasTensor:
    """Leads a feature map to the pooled feature of one exit.

    Args:
        head: a name in `HEADS`, or a callable `(tensor, width, name) -> map or vector`.
        tensor: KerasTensor, the feature map `(batch, height, width, channels)` at the exit.
        width: int, channels of the backbone's last feature map.
        features: int, D, the width that enters the backbone's classifier.
        halvings: int, how often height and width are still halved between the exit and the last map.
        data_format: `"channels_last"` or `"channels_first"`.
        name: str, prefix of the names of the new layers.

    Returns:
        KerasTensor `(batch, D)`.
    """
    # New layers compute as the layer does that they are attached to, whatever the global policy is now.
    dtype = _policy_of(tensor)
    if callable(head):
        out = head(tensor, width, name)
    else:
        out = _Blocks(name, data_format, dtype).run(HEADS[head], tensor, width, halvings)
    if not isinstance(out, keras.KerasTensor) or len(out.shape) not in (2, 4):
        raise checks.error(
            f"The head of `{name}` does not give a feature map or a vector.",
            expected="a KerasTensor (batch, height, width, channels) or (batch, features)",
            received=repr(out),
            fix="let the callable `head(tensor, width, name)` return the output of a Keras layer",
        )
    if len(out.shape) == 4:
        out = layers.GlobalAveragePooling2D(data_format=data_format, dtype=dtype, name=f"{name}_pool")(out)
    if out.shape[-1] != features:
        out = layers.Dense(features, dtype=dtype, name=f"{name}_project")(out)
    return out


class _Blocks:
    """Builds the blocks of one head: convolution, batch normalisation, ReLU, with systematic names."""

    def __init__(self, name: str, data_format: str, dtype: Any) -> None:
        self.name = name
        self.common = {"data_format": data_format, "dtype": dtype}
        self.axis = -1 if data_format == "channels_last" else 1
        self.block = 0

    def run(
        self, block: "Block | None", tensor: keras.KerasTensor, width: int, halvings: int
    ) -> keras.KerasTensor:
        """One `block` a halving, doubling the width each time and ending at `width`."""
        if block is None:
            return tensor
        count = max(halvings, 1)
        for i in range(1, count + 1):
            self.block = i
            out_width = width if i == count else min(width, tensor.shape[self.axis] * 2)
            tensor = block(self, tensor, out_width, 2 if halvings else 1)
        return tensor

    def conv(
        self, tensor: keras.KerasTensor, width: int, size: int, strides: int, part: str
    ) -> keras.KerasTensor:
        name = f"{self.name}_block{self.block}_{part}"
        conv = layers.Conv2D(
            width,
            size,
            strides,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            name=f"{name}_conv",
            **self.common,
        )
        return self.norm(conv(tensor), name)

    def depthwise(self, tensor: keras.KerasTensor, strides: int, part: str) -> keras.KerasTensor:
        name = f"{self.name}_block{self.block}_{part}"
        conv = layers.DepthwiseConv2D(
            3,
            strides,
            padding="same",
            use_bias=False,
            depthwise_initializer="he_normal",
            name=f"{name}_conv",
            **self.common,
        )
        return self.norm(conv(tensor), name)

    def norm(self, tensor: keras.KerasTensor, name: str) -> keras.KerasTensor:
        dtype = self.common["dtype"]
        tensor = layers.BatchNormalization(
            axis=self.axis, momentum=0.9, epsilon=1e-5, dtype=dtype, name=f"{name}_bn"
        )(tensor)
        return layers.ReLU(dtype=dtype, name=f"{name}_relu")(tensor)


Block: TypeAlias = Callable[[_Blocks, keras.KerasTensor, int, int], keras.KerasTensor]


def _conv_block(blocks: _Blocks, tensor: keras.KerasTensor, width: int, strides: int) -> keras.KerasTensor:
    return blocks.conv(tensor, width, 3, strides, "a")


def _bottleneck_block(
    blocks: _Blocks, tensor: keras.KerasTensor, width: int, strides: int
) -> keras.KerasTensor:
    inner = math.ceil(width / 4)
    tensor = blocks.conv(tensor, inner, 1, 1, "a")
    tensor = blocks.conv(tensor, inner, 3, strides, "b")
    return blocks.conv(tensor, width, 1, 1, "c")


def _separable_block(
    blocks: _Blocks, tensor: keras.KerasTensor, width: int, strides: int
) -> keras.KerasTensor:
    return blocks.conv(blocks.depthwise(tensor, strides, "a"), width, 1, 1, "b")


# Name of a head -> the block that is repeated once a halving (`None`: straight to pooling).
HEADS: dict[str, Block | None] = {
    "conv": _conv_block,
    "bottleneck": _bottleneck_block,
    "separable": _separable_block,
    "linear": None,
}

"""Exit heads: from a feature map to the pooled feature of an exit."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import keras
from keras import layers

from keras_exitens import _checks as checks
from keras_exitens._graph.wrapping import unwrapped
from keras_exitens._keras import call_that_made, operation_that_made

__all__ = ["HEADS", "apply_head", "multiply_adds"]


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
    blocks = _Layers(name, data_format, _policy_of(tensor), features)
    out = head(tensor, width, name) if callable(head) else HEADS[head](blocks, tensor, width, halvings)
    if not isinstance(out, keras.KerasTensor) or len(out.shape) not in (2, 4):
        raise checks.error(
            f"The head of `{name}` does not give a feature map or a vector.",
            expected="a KerasTensor (batch, height, width, channels) or (batch, features)",
            received=repr(out),
            fix="let the callable `head(tensor, width, name)` return the output of a Keras layer",
        )
    if len(out.shape) == 4:
        out = blocks.pool(out)
    return out if out.shape[-1] == features else blocks.project(out)


def multiply_adds(
    head: str, size: tuple[int, ...], channels: int, *, width: int, features: int, halvings: int
) -> int:
    """What `apply_head` adds to the cost of one image, by the same code, without building anything.

    Args:
        head: a name in `HEADS`.
        size: `(height, width)` of the map at the exit.
        channels: int, its channels.
        width, features, halvings: as in `apply_head`.
    """
    blocks = _Count(features)
    out = HEADS[head](blocks, _Map(size[0], size[1], channels), width, halvings)
    if blocks.channels(out) != features:
        blocks.project(out)
    return blocks.total


class _Blocks:
    """What heads are made of. Subclasses build layers of it, or count what they would cost."""

    block = 0  # number of the block, in the names of its layers

    def channels(self, tensor: Any) -> int:
        raise NotImplementedError

    def conv(self, tensor: Any, width: int, size: int, strides: int, part: str) -> Any:
        """Convolution, batch normalisation, ReLU."""
        raise NotImplementedError

    def depthwise(self, tensor: Any, strides: int, part: str) -> Any:
        """3×3 depthwise convolution, batch normalisation, ReLU."""
        raise NotImplementedError

    def pool(self, tensor: Any) -> Any:
        """Global average pooling."""
        raise NotImplementedError

    def project(self, tensor: Any) -> Any:
        """A dense layer of D units."""
        raise NotImplementedError


class _Layers(_Blocks):
    """Builds a head of layers with systematic names, on KerasTensors."""

    def __init__(self, name: str, data_format: str, dtype: Any, features: int) -> None:
        self.name = name
        self.features = features
        self.common = {"data_format": data_format, "dtype": dtype}
        self.axis = -1 if data_format == "channels_last" else 1

    def channels(self, tensor: keras.KerasTensor) -> int:
        return tensor.shape[self.axis]

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

    def pool(self, tensor: keras.KerasTensor) -> keras.KerasTensor:
        return layers.GlobalAveragePooling2D(name=f"{self.name}_pool", **self.common)(tensor)

    def project(self, tensor: keras.KerasTensor) -> keras.KerasTensor:
        name = f"{self.name}_project"
        return layers.Dense(self.features, dtype=self.common["dtype"], name=name)(tensor)

    def norm(self, tensor: keras.KerasTensor, name: str) -> keras.KerasTensor:
        """Batch normalisation and ReLU."""
        dtype = self.common["dtype"]
        tensor = layers.BatchNormalization(
            axis=self.axis, momentum=0.9, epsilon=1e-5, dtype=dtype, name=f"{name}_bn"
        )(tensor)
        return layers.ReLU(dtype=dtype, name=f"{name}_relu")(tensor)


class _Map(NamedTuple):
    """The shape of one image's map; 1 × 1 once it is pooled."""

    height: int
    width: int
    channels: int

    def strided(self, strides: int, channels: int) -> "_Map":
        return _Map(-(-self.height // strides), -(-self.width // strides), channels)

    @property
    def pixels(self) -> int:
        return self.height * self.width


class _Count(_Blocks):
    """Counts the multiply-adds of a head, on the shapes of its maps."""

    def __init__(self, features: int) -> None:
        self.features = features
        self.total = 0

    def channels(self, tensor: _Map) -> int:
        return tensor.channels

    def conv(self, tensor: _Map, width: int, size: int, strides: int, part: str) -> _Map:
        out = tensor.strided(strides, width)
        self.total += out.pixels * size**2 * tensor.channels * width
        return out

    def depthwise(self, tensor: _Map, strides: int, part: str) -> _Map:
        out = tensor.strided(strides, tensor.channels)
        self.total += out.pixels * 9 * tensor.channels
        return out

    def pool(self, tensor: _Map) -> _Map:
        return _Map(1, 1, tensor.channels)

    def project(self, tensor: _Map) -> _Map:
        self.total += tensor.channels * self.features
        return _Map(1, 1, self.features)


Head: TypeAlias = Callable[[Any, Any, int, int], Any]  # (blocks, tensor, width, halvings) -> map or vector
Block: TypeAlias = Callable[[Any, Any, int, int], Any]  # (blocks, tensor, width, strides) -> map


def _conv_block(blocks: _Blocks, tensor: Any, width: int, strides: int) -> Any:
    return blocks.conv(tensor, width, 3, strides, "a")


def _bottleneck_block(blocks: _Blocks, tensor: Any, width: int, strides: int) -> Any:
    inner = math.ceil(width / 4)
    tensor = blocks.conv(tensor, inner, 1, 1, "a")
    tensor = blocks.conv(tensor, inner, 3, strides, "b")
    return blocks.conv(tensor, width, 1, 1, "c")


def _separable_block(blocks: _Blocks, tensor: Any, width: int, strides: int) -> Any:
    return blocks.conv(blocks.depthwise(tensor, strides, "a"), width, 1, 1, "b")


def _one_a_halving(block: Block) -> Head:
    """One `block` a halving, at least one; widths double, and end at that of the last map."""

    def head(blocks: _Blocks, tensor: Any, width: int, halvings: int) -> Any:
        count = max(halvings, 1)
        for i in range(1, count + 1):
            blocks.block = i
            out_width = width if i == count else min(width, blocks.channels(tensor) * 2)
            tensor = block(blocks, tensor, out_width, 2 if halvings else 1)
        return tensor

    return head


def _light(blocks: _Blocks, tensor: Any, width: int, halvings: int, least: int = 64) -> Any:
    """`separable` without what is dear: no 1×1 convolution on the largest map, nor one of many weights.

    It has no hidden layer behind the pooling: where the network is trained with its exits, that costs the
    network's own accuracy (docs/heads.md).
    """
    count, strides = max(halvings, 1), 2 if halvings else 1
    for i in range(1, count + 1):
        blocks.block = i
        if i == 1 < count:
            tensor = blocks.depthwise(tensor, strides, "a")
            continue
        channels = blocks.channels(tensor)
        # At most width² / 8 weights; but in narrow networks not so few channels that classes get lost.
        most = max(width**2 // (8 * channels), min(width, least))
        tensor = _separable_block(blocks, tensor, min(2 * channels, most), strides)
    return tensor


def _linear(blocks: _Blocks, tensor: Any, width: int, halvings: int) -> Any:
    return tensor


HEADS: dict[str, Head] = {
    "light": _light,
    "conv": _one_a_halving(_conv_block),
    "bottleneck": _one_a_halving(_bottleneck_block),
    "separable": _one_a_halving(_separable_block),
    "linear": _linear,
}

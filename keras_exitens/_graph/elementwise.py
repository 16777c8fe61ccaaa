"""What one call does beside multiply-adds: normalisation, pooling, activations, sums of branches.

The unit is one operation on one number, at inference:

| what | operations |
| --- | --- |
| a bias | 1 for each number that comes out |
| an activation or another function of one number, however long it takes | 1 |
| softmax | 3: exponential, sum, division |
| n tensors added, multiplied or compared element by element | n - 1 for each number that comes out |
| normalisation with fixed statistics (batch normalisation, rescaling) | 2: multiply, add |
| layer and group normalisation | 7: mean, variance (3), scaling, scale and offset |
| RMS normalisation; unit normalisation | 4; 3 |
| pooling | 1 for each number that a window reads |
| mean, sum or maximum over axes | 1 for each number that goes in |
| resizing | 1 for each number that is interpolated between: bilinear 4, bicubic 16 |
| reshaping, padding, concatenation, casts, dropout, augmentation: numbers are moved, or nothing is done | 0 |
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
from keras import layers

from keras_exitens._graph.calls import Call, attention_axes, find
from keras_exitens._graph.dag import Shape

__all__ = ["activation_operations", "other_operations"]

Rule: TypeAlias = Callable[[Call], int | None]  # what a call costs; `None` where that is not known


def other_operations(call: Call) -> int | None:
    """Operations of a `Call` beside its multiply-adds; `None` where the layer or operation is not known."""
    rule = find(call, _LAYERS, _OPERATIONS) or _PRIVATE_LAYERS.get(call.kind)
    return None if rule is None else rule(call)


def activation_operations(activation: Callable[..., Any] | None, numbers: int) -> int:
    """Operations of an activation function (as Keras's layers hold it) on so many numbers."""
    if activation is None or activation is keras.activations.linear:
        return 0
    heavy = (keras.activations.softmax, keras.activations.log_softmax)
    return numbers * (3 if activation in heavy else 1)


def _numbers(shapes: Sequence[Shape]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def _each(count: int) -> Rule:
    return lambda call: count * _numbers(call.outputs)


def _nothing(call: Call) -> int:
    return 0


def _read(call: Call) -> int:
    return _numbers(call.inputs)


def _activation(call: Call) -> int:
    return activation_operations(call.operation.activation, math.prod(call.output))


def _after_product(call: Call) -> int:
    """The bias and the activation of a convolution or a matrix product."""
    layer, numbers = call.operation, math.prod(call.output)
    biased = getattr(layer, "use_bias", False) or getattr(layer, "bias_axes", None)
    return (numbers if biased else 0) + activation_operations(layer.activation, numbers)


def _merge(call: Call) -> int:
    return (len(call.inputs) - 1) * math.prod(call.output)


def _average(call: Call) -> int:
    return len(call.inputs) * math.prod(call.output)


def _pool(call: Call) -> int:
    return math.prod(call.output) * math.prod(call.operation.pool_size)


def _pool_operation(call: Call) -> int:
    size = call.operation.pool_size
    rank = len(call.output) - 2
    return math.prod(call.output) * (size**rank if isinstance(size, int) else math.prod(size))


_READS = {"nearest": 0, "bilinear": 4, "bicubic": 16, "lanczos3": 36, "lanczos5": 100}


def _resize(call: Call) -> int | None:
    reads = _READS.get(call.operation.interpolation)
    return None if reads is None else reads * math.prod(call.output)


def _dot_layer(call: Call) -> int:
    return 3 * _read(call) if call.operation.normalize else 0


def _attention(call: Call) -> int:
    """The softmax over the scores, and what makes them where it is no product."""
    query, value, *rest = call.argument("inputs")
    key = rest[0] if rest else value
    scores = math.prod(query[:-1]) * key[-2]
    layer = call.operation
    sums = 0
    if isinstance(layer, layers.AdditiveAttention):
        sums = 2 * query[-1]  # an addition and a tanh
    elif layer.score_mode == "concat":
        sums = (4 if layer.use_scale else 3) * query[-1] + 1
    elif layer.use_scale:
        sums = 1
    return scores * (3 + sums)


def _multi_head_attention(call: Call) -> int:
    """Scaling of the queries, softmax over the scores of every head, biases of the four projections."""
    layer = call.operation
    query, value, key = (call.argument(name) for name in ("query", "value", "key"))
    key = value if key is None else key
    axes = attention_axes(layer, len(query))
    positions = math.prod(query[:-1])
    keys, values = layer.num_heads * layer.key_dim, layer.num_heads * layer.value_dim
    scores = positions * math.prod(key[axis] for axis in axes) * layer.num_heads
    biases = (
        positions * (keys + call.output[-1]) + math.prod(key[:-1]) * keys + math.prod(value[:-1]) * values
    )
    return positions * keys + 3 * scores + (biases if layer.use_bias else 0)


def _grouped_query_attention(call: Call) -> int:
    layer = call.operation
    query, value, key = (call.argument(name) for name in ("query", "value", "key"))
    key = value if key is None else key
    positions = math.prod(query[:-1])
    wide, narrow = (heads * layer.head_dim for heads in (layer.num_query_heads, layer.num_key_value_heads))
    scores = positions * key[-2] * layer.num_query_heads
    biases = positions * (wide + query[-1]) + (math.prod(key[:-1]) + math.prod(value[:-1])) * narrow
    gated = getattr(layer, "use_gate", False)  # since Keras 3.14
    gate = positions * wide * (3 if layer.use_bias else 2) if gated else 0
    return positions * wide + 3 * scores + (biases if layer.use_bias else 0) + gate


def _dot_product_attention(call: Call) -> int:
    query, key = call.argument("query"), call.argument("key")
    scores = math.prod(query[:-1]) * key[1]
    return math.prod(query) + 3 * scores


def _of_prefix(*prefixes: str) -> tuple[type, ...]:
    """Layers of Keras whose names begin so."""
    found = {getattr(layers, name) for name in dir(layers) if name.startswith(prefixes)}
    return tuple(sorted((k for k in found if isinstance(k, type)), key=lambda kind: kind.__name__))


_CONVOLUTIONS = _of_prefix("Conv1D", "Conv2D", "Conv3D", "DepthwiseConv", "SeparableConv")
_LAYERS: dict[Any, Rule] = {
    (*_CONVOLUTIONS, layers.Dense, layers.EinsumDense): _after_product,
    layers.Dot: _dot_layer,
    layers.MultiHeadAttention: _multi_head_attention,
    layers.GroupQueryAttention: _grouped_query_attention,
    layers.Attention: _attention,
    (layers.BatchNormalization, layers.Normalization, layers.Rescaling): _each(2),
    (layers.LayerNormalization, layers.GroupNormalization): _each(7),
    layers.RMSNormalization: _each(4),
    (layers.UnitNormalization, layers.Softmax): _each(3),
    (layers.ReLU, layers.LeakyReLU, layers.ELU, layers.PReLU): _each(1),
    layers.Activation: _activation,
    layers.Average: _average,
    (layers.Add, layers.Subtract, layers.Multiply, layers.Maximum, layers.Minimum): _merge,
    _of_prefix("Global", "Adaptive"): _read,
    _of_prefix("MaxPooling", "AveragePooling"): _pool,
    (layers.UpSampling2D, layers.Resizing): _resize,
    (
        *_of_prefix("ZeroPadding", "Cropping", "SpatialDropout", "Random", "Gaussian"),
        *(layers.AugMix, layers.CutMix, layers.MixUp, layers.RandAugment),
        *(layers.CenterCrop, layers.UpSampling1D, layers.UpSampling3D, layers.Concatenate, layers.Embedding),
        *(layers.ActivityRegularization, layers.AlphaDropout, layers.Dropout, layers.Identity),
        *(layers.Flatten, layers.Masking, layers.Permute, layers.RepeatVector, layers.Reshape),
    ): _nothing,
}
# Layers of keras.applications and KerasHub that have no public class.
_PRIVATE_LAYERS: dict[str | None, Rule] = {
    "CustomScaleLayer": _each(2),
    "LayerScale": _each(1),
    "StochasticDepth": _nothing,
}


def _named(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_OPERATIONS: dict[str, Rule] = {
    **_named(
        "Absolute Add Arctan Cbrt Ceil Celu Clip Cos Cosh Divide DivideNoNan Elu Equal Erf Exp Exp2 "
        "Expm1 Floor FloorDivide Fmax Fmin Gelu Greater GreaterEqual HardShrink HardSigmoid "
        "HardSilu HardTanh LeakyRelu Less LessEqual Log Log10 Log1p Log2 LogicalAnd LogicalNot "
        "LogicalOr LogSigmoid Maximum Minimum Mod Multiply NanToNum Negative NotEqual Outer Power "
        "Reciprocal Relu Relu6 Round Rsqrt Selu Sigmoid Sign Silu Sin Sinh SoftShrink Softplus "
        "Softsign SparsePlus SparseSigmoid Sqrt Square Squareplus Subtract Tan Tanh TanhShrink "
        "Threshold TrueDivide Trunc Where",
        _each(1),
    ),
    **_named("LogSoftmax Normalize Softmax", _each(3)),
    **_named("BatchNorm", _each(2)),
    **_named("LayerNorm", _each(7)),
    **_named("RMSNorm", _each(4)),
    **_named(
        "AdaptiveAveragePool AdaptiveMaxPool All Amax Amin Any Argmax Argmin CountNonzero Cumprod "
        "Cumsum Max Mean Min Prod Sum",
        _read,
    ),
    **_named("Moments Std Var", lambda call: 4 * _read(call)),
    **_named("AveragePool MaxPool", _pool_operation),
    "Resize": _resize,
    "DotProductAttention": _dot_product_attention,
    **_named(
        "Append BroadcastTo Cast Concatenate Conv ConvertToTensor ConvTranspose Copy CropImages "
        "DepthToSpace DepthwiseConv Dot Einsum ExpandDims ExtractPatches Flip Full FullLike GetItem "
        "Hstack Identity Inner Matmul Moveaxis OneHot OnesLike Pad PadImages Ravel Rearrange Repeat "
        "Reshape Roll Rot90 SaturateCast SeparableConv Slice SpaceToDepth Split Squeeze Stack "
        "StopGradient Swapaxes Take TakeAlongAxis Tensordot Tile Transpose Unstack Vdot Vstack "
        "ZerosLike",
        _nothing,
    ),
}

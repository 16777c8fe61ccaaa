"""Multiply-adds of one call: convolutions, matrix products and attention, for one image.

One multiply-add is one multiplication with its addition. As in the literature, a window that hangs over the
edge counts in full, biases are not counted, and two tensors multiplied element by element are no product.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from keras import layers

from keras_exitens._graph.calls import Call, attention_axes, find
from keras_exitens._graph.dag import Shape

__all__ = ["products"]

Rule: TypeAlias = Callable[[Call], int | None]  # what a call costs; `None` where that is not known


def products(call: Call) -> int | None:
    """Multiply-adds of a `Call`, 0 where it makes no products; `None` where their number is not known."""
    rule = find(call, _LAYERS, _OPERATIONS)
    return 0 if rule is None else rule(call)


# Convolutions: outputs × the numbers that each of them is a sum of -------------------------------


def _conv(call: Call) -> int:
    layer = call.operation
    window = math.prod(layer.kernel_size) * call.channels(call.inputs[0]) // layer.groups
    return call.positions(call.output) * layer.filters * window


def _conv_transpose(call: Call) -> int:
    layer, before = call.operation, call.inputs[0]
    window = math.prod(layer.kernel_size) * layer.filters
    return call.positions(before) * call.channels(before) * window


def _depthwise(call: Call) -> int:
    return math.prod(call.output) * math.prod(call.operation.kernel_size)


def _separable(call: Call) -> int:
    layer = call.operation
    between = call.channels(call.inputs[0]) * layer.depth_multiplier
    return call.positions(call.output) * between * (math.prod(layer.kernel_size) + layer.filters)


def _conv_operation(call: Call) -> int:
    _, kernel = call.operands()
    return math.prod(call.output) * math.prod(kernel[:-1])


def _conv_transpose_operation(call: Call) -> int:
    before, kernel = call.operands()  # the kernel is (height, width, filters, channels)
    return math.prod(before) * math.prod(kernel[:-1])


def _depthwise_operation(call: Call) -> int:
    _, kernel = call.operands()
    return math.prod(call.output) * math.prod(kernel[:-2])


def _separable_operation(call: Call) -> int:
    _, depthwise, pointwise = call.operands()
    between, filters = math.prod(depthwise[-2:]), pointwise[-1]
    return math.prod(call.output) // filters * between * (math.prod(depthwise[:-2]) + filters)


# Matrix products: outputs × the contracted size --------------------------------------------------


def _dense(call: Call) -> int:
    return math.prod(call.inputs[0]) * call.operation.units


def _dot_layer(call: Call) -> int:
    axes = call.operation.axes
    first = axes if isinstance(axes, int) else axes[0]
    return math.prod(call.output) * call.inputs[0][first]


def _matmul(call: Call) -> int:
    return math.prod(call.output) * call.operands()[0][-1]


def _dot(call: Call) -> int:
    # With a scalar, ops.dot multiplies element by element.
    return _matmul(call) if all(call.operands()) else 0


def _vdot(call: Call) -> int:
    return math.prod(call.operands()[0])


def _tensordot(call: Call) -> int:
    first, axes = call.operands()[0], call.operation.axes
    if isinstance(axes, int):
        contracted = first[len(first) - axes :]
    else:
        chosen = axes[0] if isinstance(axes[0], list | tuple) else axes[:1]
        contracted = tuple(first[axis] for axis in chosen)
    return math.prod(call.output) * math.prod(contracted)


def _einsum_dense(call: Call) -> int | None:
    return _einsum_of(call.operation.equation, [call.inputs[0], tuple(call.operation.kernel.shape)])


def _einsum(call: Call) -> int | None:
    return _einsum_of(call.operation.subscripts, call.operands())


def _einsum_of(equation: str, shapes: Sequence[Shape]) -> int | None:
    """Every combination of the labels of two operands is one multiply-add; one operand is only summed up.

    What more operands cost depends on the order of the contractions: `None`.
    """
    terms = equation.replace(" ", "").split("->")[0].split(",")
    if len(terms) != 2:
        return 0 if len(terms) == 1 else None
    sizes: dict[str | int, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        before, dots, after = term.partition("...")
        hidden = len(shape) - len(before) - len(after) if dots else 0
        # What an ellipsis stands for is aligned at its end.
        labels = [*before, *range(-hidden, 0), *after]
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values())


# Attention ---------------------------------------------------------------------------------------


def _multi_head_attention(call: Call) -> int:
    """Projections of queries, keys and values, their two products, and the projection of the result."""
    layer = call.operation
    query, key, value = _query_key_value(call)
    keys, values = layer.num_heads * layer.key_dim, layer.num_heads * layer.value_dim
    axes = attention_axes(layer, len(query))
    seen = math.prod(key[axis] for axis in axes)  # positions that each position attends to
    positions = math.prod(query[:-1])
    projected = (
        math.prod(query) * keys
        + math.prod(key) * keys
        + math.prod(value) * values
        + positions * values * call.output[-1]
    )
    return projected + positions * seen * (keys + values)


def _grouped_query_attention(call: Call) -> int:
    layer = call.operation
    query, key, value = _query_key_value(call)
    wide, narrow = (heads * layer.head_dim for heads in (layer.num_query_heads, layer.num_key_value_heads))
    gates = math.prod(query) * wide if getattr(layer, "use_gate", False) else 0  # since Keras 3.14
    projected = 2 * math.prod(query) * wide + gates + (math.prod(key) + math.prod(value)) * narrow
    return projected + math.prod(query[:-1]) * key[-2] * 2 * wide


def _attention(call: Call) -> int:
    """Scores and their product with the values; `score_mode="concat"` multiplies nothing for the scores."""
    query, value, *rest = call.argument("inputs")
    key = rest[0] if rest else value
    scores = math.prod(query[:-1]) * key[-2]
    return scores * (value[-1] + (query[-1] if call.operation.score_mode == "dot" else 0))


def _additive_attention(call: Call) -> int:
    """Scores are sums of `tanh(q + k)`, weighted where `use_scale` is set."""
    query, value, *rest = call.argument("inputs")
    key = rest[0] if rest else value
    scores = math.prod(query[:-1]) * key[-2]
    return scores * (value[-1] + (query[-1] if call.operation.use_scale else 0))


def _dot_product_attention(call: Call) -> int:
    query, key = call.argument("query"), call.argument("key")
    return math.prod(query) * key[1] * 2


def _query_key_value(call: Call) -> tuple[Shape, Shape, Shape]:
    query, value, key = (call.argument(name) for name in ("query", "value", "key"))
    return query, value if key is None else key, value


# The transposed, depthwise and separable convolutions are looked up before the plain ones.
_LAYERS: dict[Any, Rule] = {
    (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose): _conv_transpose,
    (layers.DepthwiseConv1D, layers.DepthwiseConv2D): _depthwise,
    (layers.SeparableConv1D, layers.SeparableConv2D): _separable,
    (layers.Conv1D, layers.Conv2D, layers.Conv3D): _conv,
    layers.EinsumDense: _einsum_dense,
    layers.Dense: _dense,
    layers.Dot: _dot_layer,
    layers.MultiHeadAttention: _multi_head_attention,
    layers.GroupQueryAttention: _grouped_query_attention,
    layers.AdditiveAttention: _additive_attention,
    layers.Attention: _attention,
}
_OPERATIONS: dict[str, Rule] = {
    "Conv": _conv_operation,
    "ConvTranspose": _conv_transpose_operation,
    "DepthwiseConv": _depthwise_operation,
    "SeparableConv": _separable_operation,
    "Matmul": _matmul,
    "Dot": _dot,
    "Inner": _dot,
    "Vdot": _vdot,
    "Tensordot": _tensordot,
    "Einsum": _einsum,
    "DotProductAttention": _dot_product_attention,
}

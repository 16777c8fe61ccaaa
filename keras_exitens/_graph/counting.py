"""Multiply-adds and other operations of every step of a graph; what is not known is named in a warning."""

import collections
import typing
from collections.abc import Callable, Sequence

from keras import layers

from keras_exitens import _checks as checks
from keras_exitens._graph.calls import Call
from keras_exitens._graph.dag import Graph, Shape
from keras_exitens._graph.elementwise import other_operations
from keras_exitens._graph.products import products
from keras_exitens._graph.traced import traced_operations
from keras_exitens._keras import is_functional

__all__ = ["COMPOSITES", "Operations", "count_call", "count_operations"]


class Operations(typing.NamedTuple):
    """What one call, one layer or one part of a network computes for one image.

    Attributes:
        multiply_adds: int, of convolutions, matrix products and attention.
        other: int, operations on single numbers beside these; `elementwise` lists what counts how much.
    """

    multiply_adds: int
    other: int

    def times(self, factor: int) -> "Operations":
        return Operations(self.multiply_adds * factor, self.other * factor)


NotKnown: typing.TypeAlias = Callable[[Call], Operations]


def count_operations(
    graph: Graph, input_shapes: Sequence[Shape] | None = None, *, warn: bool = True
) -> list[Operations]:
    """Counts the operations of one image through each step of a graph.

    Args:
        graph: a `Graph`.
        input_shapes: shapes of its inputs, batch size 1; by default `Graph.nominal_shapes`.
        warn: whether to name the layers that are not known, which count as zero, in a warning.

    Returns:
        A list of `Operations`, parallel to `graph.steps`.
    """
    shapes = graph.nominal_shapes if input_shapes is None else graph.shapes(input_shapes)
    unknown: dict[str, list[str]] = collections.defaultdict(list)

    def not_known(call: Call) -> Operations:
        unknown[type(call.operation).__name__].append(call.operation.name)
        return Operations(0, 0)

    counts = [count_call(Call.of_step(step, shapes), not_known) for step in graph.steps]
    if unknown and warn:
        listed = ", ".join(f"{kind} ({len(found)}, such as {found[0]!r})" for kind, found in unknown.items())
        checks.warn(f"The operations of these kinds of layers are not known and count as zero: {listed}.")
    return counts


def count_call(call: Call, not_known: NotKnown) -> Operations:
    """What one call computes; `not_known(call)` says what counts for a layer that nobody knows."""
    for kind, rule in COMPOSITES.items():
        if isinstance(call.operation, kind):
            return rule(call, not_known)
    if is_functional(call.operation):
        body = Graph.of(call.operation)
        shapes = body.shapes(call.inputs)
        parts = [count_call(Call.of_step(step, shapes), not_known) for step in body.steps]
        return Operations(*map(sum, zip((0, 0), *parts, strict=True)))
    multiply_adds, other = products(call), other_operations(call)
    if multiply_adds is None or other is None:
        traced = traced_operations(call)
        return not_known(call) if traced is None else Operations(*traced)
    return Operations(multiply_adds, other)


def _time_distributed(call: Call, not_known: NotKnown) -> Operations:
    (shape,) = call.inputs
    inner = Call.of_layer(call.operation.layer, (shape[0], *shape[2:]))
    return count_call(inner, not_known).times(shape[1])


def _spectral_normalization(call: Call, not_known: NotKnown) -> Operations:
    # Its iterations run in training only.
    return count_call(Call.of_layer(call.operation.layer, call.inputs[0]), not_known)


# Layers that consist of others, by class; `_network.exit_logits` adds its own.
COMPOSITES: dict[type, Callable[[Call, NotKnown], Operations]] = {
    layers.TimeDistributed: _time_distributed,
    layers.SpectralNormalization: _spectral_normalization,
}

"""Multiply-adds and other operations of every step of a graph; what is not known is named in a warning."""

import collections
import math
import typing

from keras import layers

from keras_exitens import checks
from keras_exitens.calls import Call
from keras_exitens.elementwise import activation_operations, other_operations
from keras_exitens.graph import Graph
from keras_exitens.layers import ExitLogits
from keras_exitens.products import products
from keras_exitens.traced import traced_operations
from keras_exitens.wrapping import is_functional

__all__ = ["Operations", "count_operations"]


class Operations(typing.NamedTuple):
    """What one call, one layer or one part of a network computes for one image.

    Attributes:
        multiply_adds: int, of convolutions, matrix products and attention.
        other: int, operations on single numbers beside these; `elementwise` lists what counts how much.
    """

    multiply_adds: int
    other: int

    def times(self, factor):
        return Operations(self.multiply_adds * factor, self.other * factor)


def count_operations(graph, input_shapes=None, warn=True):
    """Counts the operations of one image through each step of a graph.

    Args:
        graph: a `Graph`.
        input_shapes: shapes of its inputs, batch size 1; by default those of `Graph.shapes`.
        warn: whether to name the layers that are not known, which count as zero, in a warning.

    Returns:
        A list of `Operations`, parallel to `graph.steps`.
    """
    shapes = graph.shapes(input_shapes)
    unknown = collections.defaultdict(list)

    def not_known(call):
        unknown[type(call.operation).__name__].append(call.operation.name)
        return Operations(0, 0)

    counts = [_count(Call.of_step(step, shapes), not_known) for step in graph.steps]
    if unknown and warn:
        listed = ", ".join(f"{kind} ({len(found)}, such as {found[0]!r})" for kind, found in unknown.items())
        checks.warn(f"The operations of these kinds of layers are not known and count as zero: {listed}.")
    return counts


def _count(call, not_known):
    operation = call.operation
    if isinstance(operation, ExitLogits):
        return _exit_logits(call, not_known)
    if isinstance(operation, layers.TimeDistributed):
        (shape,) = call.inputs
        inner = Call.of_layer(operation.layer, (shape[0], *shape[2:]))
        return _count(inner, not_known).times(shape[1])
    if isinstance(operation, layers.SpectralNormalization):  # its iterations run in training only
        return _count(Call.of_layer(operation.layer, call.inputs[0]), not_known)
    if is_functional(operation):
        body = Graph.of(operation)
        shapes = body.shapes(call.inputs)
        parts = [_count(Call.of_step(step, shapes), not_known) for step in body.steps]
        return Operations(*map(sum, zip((0, 0), *parts, strict=True)))
    counts = products(call), other_operations(call)
    if None in counts:
        counts = traced_operations(call)
    return not_known(call) if counts is None else Operations(*counts)


def _exit_logits(call, not_known):
    """A classifier without its activation, and the mean over the map that a convolution gives."""
    classifier = call.operation.classifier
    inner = Call.of_layer(classifier, call.inputs[0])
    made = _count(inner, not_known)
    numbers = math.prod(inner.output)
    activated = activation_operations(classifier.activation, numbers)
    averaged = numbers if len(inner.output) > 2 else 0
    return Operations(made.multiply_adds, made.other - activated + averaged)

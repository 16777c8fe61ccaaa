"""Operations of layers that no table knows, such as somebody's own: read off the TensorFlow graph."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from keras import tree

from keras_exitens._backend import tf
from keras_exitens._graph.calls import Call
from keras_exitens._keras import graph_function, takes_training
from keras_exitens._types import Tensor

__all__ = ["traced_operations"]

Graph: TypeAlias = Any  # of TensorFlow
Operation: TypeAlias = Any


def traced_operations(call: Call) -> tuple[int, int] | None:
    """Counts the operations of one call by tracing it, at inference and for one image.

    Products and other operations count as those of Keras's own layers do. What only rearranges numbers counts
    as nothing.

    Args:
        call: a `Call`.

    Returns:
        `(multiply_adds, other)`, or `None` where it cannot be told: the call cannot be traced with float32
        tensors, has loops or branches, or makes shapes that depend on the data; or Keras does not run on
        TensorFlow.
    """
    if tf is None:
        return None
    try:
        known = [op for op in _traced(call) if op.type not in _FREE]
        if any(op.type in _FLOW for op in known):
            return None
        products = sum(_PRODUCTS[op.type](op) for op in known if op.type in _PRODUCTS)
        return products, sum(_other(op) for op in known if op.type not in _PRODUCTS)
    except Exception:  # whatever the layer of somebody else raises: then it is not known
        return None


def _traced(call: Call) -> list[Operation]:
    """The TensorFlow operations of one call."""
    signature = [tf.TensorSpec(shape, "float32") for shape in call.tensors()]

    @tf.function(input_signature=signature, autograph=False)
    def run(*tensors: Tensor) -> list[Tensor]:
        args, kwargs = call.arguments(tensors)
        if takes_training(call.operation):
            kwargs = {"training": False, **kwargs}
        return tree.flatten(call.operation(*args, **kwargs))

    graph = run.get_concrete_function().graph
    return list(_running(graph, graph.inputs[: len(signature)]))


def _running(graph: Graph, tensors: Sequence[Tensor]) -> Iterator[Operation]:
    """The operations of a graph that depend on `tensors`, those of called functions in place of the calls.

    What depends on the weights alone is left out: at inference it is a constant.
    """
    seen: set[str] = set()
    pending = list(tensors)
    reached = {id(t) for t in tensors}
    while pending:
        for op in pending.pop().consumers():
            reached.update(map(id, op.outputs))
            if op.name not in seen:
                seen.add(op.name)
                pending.extend(op.outputs)
    for op in graph.get_operations():
        if op.name in seen and op.type in ("PartitionedCall", "StatefulPartitionedCall"):
            body = graph_function(graph, op.get_attr("f").name).graph
            entering = zip(body.inputs, op.inputs, strict=True)
            yield from _running(body, [inside for inside, t in entering if id(t) in reached])
        elif op.name in seen:
            yield op


def _numbers(tensor: Tensor) -> int:
    return math.prod(tensor.shape.as_list())


def _convolution(op: Operation) -> int:
    """Each number of the output is a sum over a window; a kernel is `(*window, channels, filters)`."""
    return _numbers(op.outputs[0]) * math.prod(op.inputs[1].shape.as_list()[:-1])


def _depthwise(op: Operation) -> int:
    return _numbers(op.outputs[0]) * math.prod(op.inputs[1].shape.as_list()[:2])


def _transposed(op: Operation) -> int:
    """Each number of the input goes into a window; a kernel is `(*window, filters, channels)`."""
    return _numbers(op.inputs[2]) * math.prod(op.inputs[1].shape.as_list()[:-1])


def _product(op: Operation) -> int:
    transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
    return _numbers(op.outputs[0]) * op.inputs[0].shape.as_list()[-2 if transposed else -1]


def _einsum(op: Operation) -> int:
    terms = op.get_attr("equation").decode().split("->")[0].split(",")
    sizes = itertools.chain(*(t.shape.as_list() for t in op.inputs))
    return math.prod(dict(zip("".join(terms), sizes, strict=True)).values())


_PRODUCTS = {
    "Conv2D": _convolution,
    "Conv3D": _convolution,
    "DepthwiseConv2dNative": _depthwise,
    "Conv2DBackpropInput": _transposed,
    "Conv3DBackpropInputV2": _transposed,
    "MatMul": _product,
    "BatchMatMulV2": _product,
    "BatchMatMulV3": _product,
    "Einsum": _einsum,
}
_FLOW = {"If", "StatelessIf", "While", "StatelessWhile", "Case", "StatelessCase", "Enter", "Switch"}
# Where numbers are moved or made up, and nothing is computed from them.
_FREE = {
    *(
        "Placeholder",
        "Const",
        "NoOp",
        "ReadVariableOp",
        "AssignVariableOp",
        "AssignAddVariableOp",
        "Identity",
        "IdentityN",
        "Cast",
        "StopGradient",
        "CheckNumerics",
    ),
    *("Shape", "Reshape", "Squeeze", "ExpandDims", "Transpose", "Pad", "PadV2", "MirrorPad", "Fill"),
    *(
        "StridedSlice",
        "Slice",
        "Split",
        "SplitV",
        "ConcatV2",
        "Pack",
        "Unpack",
        "Tile",
        "GatherV2",
        "ReverseV2",
    ),
    *("Roll", "SpaceToDepth", "DepthToSpace", "SpaceToBatchND", "BatchToSpaceND", "BroadcastTo", "Range"),
    *("ExtractImagePatches", "OnesLike", "ZerosLike", "ResizeNearestNeighbor"),
}
_REDUCTIONS = ("Sum", "Mean", "Max", "Min", "Prod", "All", "Any", "ArgMax", "ArgMin")


def _other(op: Operation) -> int:
    """One operation for each number that comes out; for each that goes in where several become one."""
    if op.type in _REDUCTIONS:
        return _numbers(op.inputs[0])
    if op.type in ("AvgPool", "MaxPool", "AvgPool3D", "MaxPool3D"):
        return _numbers(op.outputs[0]) * math.prod(op.get_attr("ksize"))
    if op.type == "FusedBatchNormV3":
        return 2 * _numbers(op.outputs[0])
    # Arithmetic of shapes is not of numbers.
    return sum(_numbers(t) for t in op.outputs[:1] if t.dtype.is_floating)

"""One operation as a model of its own, so that two of the same name can stand in one network.

Names of operations are unique within a functional model. Where two nested models hold layers of one name,
their flat form cannot hold both; but it can hold one of them and a model, under another name, that holds the
other. The layer itself is neither renamed nor copied, and one that is called several times stays one after
loading.
"""

import keras
from keras import tree

__all__ = ["alike", "call_arguments", "is_functional", "unwrapped", "wrap"]

_PLAIN = (str, int, float, bool, type(None))


def is_functional(operation):
    """Whether an operation is a functional or Sequential model without a `call` of its own."""
    if not isinstance(operation, keras.Model):
        return False
    functional = operation._functional if isinstance(operation, keras.Sequential) else operation
    if not isinstance(functional, keras.Function):
        return False
    own = (keras.Sequential, *(kind for kind in type(operation).__mro__ if kind.__name__ == "Functional"))
    return any(type(operation).call is kind.call for kind in own)


def wrap(operation, nodes, name):
    """A functional model that consists of one operation, shared.

    Args:
        operation: a layer or another operation.
        nodes: list of the `Node`s of the calls that the result has to stand for, `alike`.
        name: str, name of the result.

    Returns:
        A functional model that takes the list of tensors of such a call. Sizes in which the calls differ are
        left open.
    """
    first = nodes[0]
    inputs = [
        keras.Input(
            batch_shape=[sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True)],
            dtype=tensor.dtype,
            name=f"{operation.name}_input_{i}",
        )
        for i, (tensor, *shapes) in enumerate(
            zip(first.input_tensors, *([t.shape for t in node.input_tensors] for node in nodes), strict=True)
        )
    ]
    remaining = iter(inputs)
    args, kwargs = tree.map_structure(
        lambda x: next(remaining) if isinstance(x, keras.KerasTensor) else x,
        (first.arguments.args, first.arguments.kwargs),
    )
    return keras.Model(inputs, operation(*args, **kwargs), name=name)


def unwrapped(operation):
    """The operation in a model that consists of a single one, as `wrap` makes them; else `operation`."""
    if is_functional(operation) and not isinstance(operation, keras.Sequential):
        inside = [op for op in operation.operations if not isinstance(op, keras.layers.InputLayer)]
        if len(inside) == 1 and len(operation._nodes) == len(operation.inputs) + 1:
            return inside[0]
    return operation


def call_arguments(node):
    """What an operation is called with, also where the node calls a model that stands for it."""
    operation = unwrapped(node.operation)
    if operation is node.operation:
        return node.arguments
    return operation._inbound_nodes[node.operation.outputs[0]._keras_history.node_index].arguments


def alike(nodes):
    """Whether several calls of one operation are the same but for the sizes of their tensors."""
    first, *others = [(node.arguments.args, node.arguments.kwargs) for node in nodes]
    return all(_alike(first, other) for other in others)


def _alike(one, other):
    def form(value):
        return (value.dtype, len(value.shape)) if isinstance(value, keras.KerasTensor) else value

    try:
        tree.assert_same_structure(one, other)
    except (TypeError, ValueError):
        return False
    return all(
        a is b or (type(a) is type(b) and isinstance(a, (*_PLAIN, tuple)) and a == b)
        for a, b in zip(map(form, tree.flatten(one)), map(form, tree.flatten(other)), strict=True)
    )

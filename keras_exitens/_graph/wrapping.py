"""One operation as a model of its own, so that two of the same name can stand in one network.

Names of operations are unique within a functional model. Where two nested models hold layers of one name,
their flat form cannot hold both; but it can hold one of them and a model, under another name, that holds the
other. The layer itself is neither renamed nor copied, and one that is called several times stays one after
loading.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import tree

from keras_exitens._keras import OperationCall, is_functional, single_call

__all__ = ["alike", "unwrapped", "unwrapped_call", "wrap"]

_PLAIN = (str, int, float, bool, type(None))


def wrap(operation: keras.Operation, calls: Sequence[OperationCall], name: str) -> keras.Model:
    """A functional model that consists of one operation, shared.

    Args:
        operation: a layer or another operation.
        calls: the calls that the result has to stand for, `alike`.
        name: name of the result.

    Returns:
        A functional model that takes the list of tensors of such a call. Sizes in which the calls differ are
        left open.
    """
    first = calls[0]
    inputs = [
        keras.Input(
            batch_shape=[sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True)],
            dtype=tensor.dtype,
            name=f"{operation.name}_input_{i}",
        )
        for i, (tensor, *shapes) in enumerate(
            zip(first.inputs, *([t.shape for t in call.inputs] for call in calls), strict=True)
        )
    ]
    remaining = iter(inputs)
    args, kwargs = tree.map_structure(
        lambda x: next(remaining) if isinstance(x, keras.KerasTensor) else x, (first.args, first.kwargs)
    )
    return keras.Model(inputs, operation(*args, **kwargs), name=name)


def unwrapped(operation: keras.Operation) -> keras.Operation:
    """The operation in a model that consists of a single one, as `wrap` makes them; else `operation`."""
    inner = _inside(operation)
    return operation if inner is None else inner.operation


def unwrapped_call(call: OperationCall) -> OperationCall:
    """The call of the operation itself, also where a model is called that stands for it."""
    return _inside(call.operation) or call


def _inside(operation: keras.Operation) -> OperationCall | None:
    if is_functional(operation) and not isinstance(operation, keras.Sequential):
        return single_call(operation)
    return None


def alike(calls: Sequence[OperationCall]) -> bool:
    """Whether several calls of one operation are the same but for the sizes of their tensors."""
    first, *others = [(call.args, call.kwargs) for call in calls]
    return all(_alike(first, other) for other in others)


def _alike(one: Any, other: Any) -> bool:
    def form(value: Any) -> Any:
        return (value.dtype, len(value.shape)) if isinstance(value, keras.KerasTensor) else value

    try:
        tree.assert_same_structure(one, other)
    except (TypeError, ValueError):
        return False
    return all(
        a is b or (type(a) is type(b) and isinstance(a, (*_PLAIN, tuple)) and a == b)
        for a, b in zip(map(form, tree.flatten(one)), map(form, tree.flatten(other)), strict=True)
    )

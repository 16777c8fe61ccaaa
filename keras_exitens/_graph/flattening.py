"""Nested models made flat: `flatten` replaces them by the operations they consist of, to any depth."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
from keras import tree

from keras_exitens._graph.dag import Graph, calls_between
from keras_exitens._graph.wrapping import alike, unwrapped, wrap
from keras_exitens._keras import (
    OperationCall,
    functional_of,
    is_functional,
    operation_that_made,
    takes_training,
)

__all__ = ["Flat", "flatten"]


@dataclasses.dataclass(frozen=True, eq=False)
class Flat:
    """A network without nested models.

    Attributes:
        graph: its `Graph`.
        inputs, outputs: structures of KerasTensors, like those of the model it is the flat form of.
        named: dict from layer name to that layer's (first) output tensor. A layer `b` of a nested model `a`
            is named `"a/b"`, whatever the depth.
    """

    graph: Graph
    inputs: Any
    outputs: Any
    named: dict[str, keras.KerasTensor]


def flatten(model: keras.Model, known: Graph | None = None) -> Flat:
    """Replaces nested functional models by the operations they consist of, to any depth.

    The layers are called again on new symbolic tensors, so weights are shared with `model` and the numbers
    are the same. A model without nested models comes back as it is. A layer of a nested model whose name is
    that of another layer comes as a model of its own (see `wrapping`), named after the nested model and the
    layer.

    Args:
        model: a functional or built Sequential model.
        known: as of `Graph`.
    """
    model = functional_of(model)
    if not any(is_functional(op) for op in model.operations):
        named: dict[str, keras.KerasTensor] = {}
        graph = Graph(model.inputs, model.outputs, known)
        for step in graph.steps:
            named.setdefault(step.operation.name, step.outputs[0])
        return Flat(graph, model.input, model.output, named)
    inputs = tree.map_structure(_fresh_input, model.input)
    flattening = _Flattening(model)
    outputs = flattening.call(model, tree.flatten(inputs), {}, prefix="")
    graph = Graph(tree.flatten(inputs), outputs, known)
    return Flat(graph, inputs, tree.pack_sequence_as(model.output, outputs), flattening.named)


def _fresh_input(tensor: keras.KerasTensor) -> keras.KerasTensor:
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name)


class _Flattening:
    """Calls the operations of a model one by one; those of nested models likewise, under unique names."""

    def __init__(self, model: keras.Model) -> None:
        self.named: dict[str, keras.KerasTensor] = {}
        # The names in use, with their operations: a model nested twice shares its own.
        self.taken = {op.name: op for op in model.operations if not is_functional(op)}
        # By the id of an operation in a nested model: the calls of it there, and the model that holds it.
        self.calls: dict[int, list[OperationCall]] = {}
        self.wrappers: dict[int, keras.Model] = {}
        self._collect(model, set())

    def _collect(self, model: keras.Model, seen: set[int]) -> None:
        for call in calls_between(model.inputs, model.outputs):
            operation = call.operation
            self.calls.setdefault(id(operation), []).append(call)
            if is_functional(operation) and id(operation) not in seen:
                seen.add(id(operation))
                self._collect(functional_of(operation), seen)

    def call(
        self,
        model: keras.Model,
        arguments: list[keras.KerasTensor],
        call_kwargs: dict[str, Any],
        prefix: str,
    ) -> list[keras.KerasTensor]:
        """Calls `model` on the flat list `arguments` of tensors; returns the flat list of its outputs."""
        values = dict(zip((id(t) for t in model.inputs), arguments, strict=True))
        for call in calls_between(model.inputs, model.outputs):
            operation = call.operation
            args, kwargs = call.fill_in(values)
            if call_kwargs and takes_training(operation):
                kwargs = {**call_kwargs, **kwargs}
            path = f"{prefix}{operation.name}"
            if self._opens(operation):
                made = self._call_inside(operation, tree.flatten(args or kwargs["inputs"]), kwargs, path)
            else:
                made = tree.flatten(self._call_one(operation, args, kwargs, call_kwargs, path))
            values.update(zip((id(t) for t in call.outputs), made, strict=True))
            self.named.setdefault(path, made[0])
        return [values[id(t)] for t in model.outputs]

    def _call_inside(
        self, model: keras.Model, entering: list[keras.KerasTensor], kwargs: dict[str, Any], path: str
    ) -> list[keras.KerasTensor]:
        """Calls the operations of a nested model in its place."""
        body = functional_of(model)
        cast = [self._cast(t, inside.dtype, path) for inside, t in zip(body.inputs, entering, strict=True)]
        training = {key: v for key, v in kwargs.items() if key == "training" and v is not None}
        return self.call(body, cast, training, f"{path}/")

    def _opens(self, operation: keras.Operation) -> bool:
        """Whether an operation is a nested model that can be replaced by what it consists of."""
        if not is_functional(operation):
            return False
        first = dict(self.taken)
        clashing = [op for op in _inner_operations(operation) if first.setdefault(op.name, op) is not op]
        if clashing == [unwrapped(operation)]:
            return False  # it is such a model of one operation already
        return all(alike(self.calls[id(op)]) for op in clashing)

    def _call_one(
        self, operation: keras.Operation, args: Any, kwargs: Any, call_kwargs: dict[str, Any], path: str
    ) -> Any:
        """Calls an operation by its name, or in a model of its own where the name is taken."""
        if self.taken.setdefault(operation.name, operation) is operation:
            return operation(*args, **kwargs)
        if id(operation) not in self.wrappers:
            wrapper = wrap(operation, self.calls[id(operation)], self._unique(path))
            self.wrappers[id(operation)] = self.taken[wrapper.name] = wrapper
        tensors = [t for t in tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)]
        return self.wrappers[id(operation)](tensors[0] if len(tensors) == 1 else tensors, **call_kwargs)

    def _cast(self, tensor: keras.KerasTensor, dtype: str, path: str) -> keras.KerasTensor:
        """A functional model casts what enters it to the dtype of its inputs; so does its flat form."""
        if tensor.dtype == dtype:
            return tensor
        tensor = keras.ops.cast(tensor, dtype)
        operation = operation_that_made(tensor)
        operation.name = self._unique(f"{path}/{operation.name}")
        self.taken[operation.name] = operation
        return tensor

    def _unique(self, path: str) -> str:
        """A free name for what stands at a path."""
        name = stem = path.replace("/", "_")
        count = 0
        while name in self.taken:
            count += 1
            name = f"{stem}_{count}"
        return name


def _inner_operations(model: keras.Model) -> Iterator[keras.Operation]:
    """The operations of a functional model and of those nested in it; models and inputs left out."""
    for operation in functional_of(model).operations:
        if is_functional(operation):
            yield from _inner_operations(operation)
        elif not isinstance(operation, keras.layers.InputLayer):
            yield operation

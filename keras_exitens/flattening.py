"""Nested models made flat: `flatten` replaces them by the operations they consist of, to any depth."""

import keras
from keras import tree

from keras_exitens.graph import Graph, nodes_between
from keras_exitens.wrapping import alike, is_functional, unwrapped, wrap

__all__ = ["flatten"]


def flatten(model):
    """Replaces nested functional models by the operations they consist of, to any depth.

    The layers are called again on new symbolic tensors, so weights are shared with `model` and the numbers
    are the same. A model without nested models comes back as it is. A layer of a nested model whose name is
    that of another layer comes as a model of its own (see `wrapping`), named after the nested model and the
    layer.

    Args:
        model: a functional or built Sequential model.

    Returns:
        `(inputs, outputs, named)`: the structures of KerasTensors of the flat network, and a dict from
        layer name to that layer's (first) output tensor. A layer `b` of a nested model `a` is named
        `"a/b"`, whatever the depth.
    """
    model = _functional(model)
    if not any(is_functional(op) for op in model.operations):
        named = {}
        for step in Graph.of(model).steps:
            named.setdefault(step.operation.name, step.outputs[0])
        return model.input, model.output, named
    inputs = tree.map_structure(_fresh_input, model.input)
    flattening = _Flattening(model)
    outputs = flattening.call(model, tree.flatten(inputs), {}, prefix="")
    return inputs, tree.pack_sequence_as(model.output, outputs), flattening.named


def _fresh_input(tensor):
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name)


def _functional(model):
    """The functional model inside a Sequential one; a functional model itself."""
    return model._functional if isinstance(model, keras.Sequential) else model


class _Flattening:
    """Calls the operations of a model one by one; those of nested models likewise, under unique names."""

    def __init__(self, model):
        self.named = {}
        # The names in use, with their operations: a model nested twice shares its own.
        self.taken = {op.name: op for op in model.operations if not is_functional(op)}
        self.calls = {}  # id of an operation in a nested model -> the nodes at which it is called there
        self.wrappers = {}  # id of an operation -> the model that holds it
        self._collect(model, set())

    def _collect(self, model, seen):
        for node in nodes_between(model.inputs, model.outputs):
            self.calls.setdefault(id(node.operation), []).append(node)
            if is_functional(node.operation) and id(node.operation) not in seen:
                seen.add(id(node.operation))
                self._collect(_functional(node.operation), seen)

    def call(self, model, arguments, call_kwargs, prefix):
        """Calls `model` on the flat list `arguments` of tensors; returns the flat list of its outputs."""
        values = dict(zip((id(t) for t in model.inputs), arguments, strict=True))
        for node in nodes_between(model.inputs, model.outputs):
            operation = node.operation
            args, kwargs = node.arguments.fill_in(values)
            if call_kwargs and getattr(operation, "_call_has_training_arg", False):
                kwargs = {**call_kwargs, **kwargs}
            path = f"{prefix}{operation.name}"
            if self._opens(operation):
                body = _functional(operation)
                entering = tree.flatten(args or kwargs["inputs"])
                entering = [
                    self._cast(t, inside.dtype, path) for inside, t in zip(body.inputs, entering, strict=True)
                ]
                training = {k: v for k, v in kwargs.items() if k == "training" and v is not None}
                made = self.call(body, entering, training, f"{path}/")
            else:
                made = tree.flatten(self._call_one(node, args, kwargs, call_kwargs, path))
            values.update(zip((id(t) for t in node.outputs), made, strict=True))
            self.named.setdefault(path, made[0])
        return [values[id(t)] for t in model.outputs]

    def _opens(self, operation):
        """Whether an operation is a nested model that can be replaced by what it consists of."""
        if not is_functional(operation):
            return False
        first = dict(self.taken)
        clashing = [op for op in _inner_operations(operation) if first.setdefault(op.name, op) is not op]
        if clashing == [unwrapped(operation)]:
            return False  # it is such a model of one operation already
        return all(alike(self.calls[id(op)]) for op in clashing)

    def _call_one(self, node, args, kwargs, call_kwargs, path):
        """Calls an operation by its name, or in a model of its own where the name is taken."""
        operation = node.operation
        if self.taken.setdefault(operation.name, operation) is operation:
            return operation(*args, **kwargs)
        if id(operation) not in self.wrappers:
            wrapper = wrap(operation, self.calls[id(operation)], self._unique(path))
            self.wrappers[id(operation)] = self.taken[wrapper.name] = wrapper
        tensors = [t for t in tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)]
        return self.wrappers[id(operation)](tensors[0] if len(tensors) == 1 else tensors, **call_kwargs)

    def _cast(self, tensor, dtype, path):
        """A functional model casts what enters it to the dtype of its inputs; so does its flat form."""
        if tensor.dtype == dtype:
            return tensor
        tensor = keras.ops.cast(tensor, dtype)
        operation = tensor._keras_history.operation
        operation.name = self._unique(f"{path}/{operation.name}")
        self.taken[operation.name] = operation
        return tensor

    def _unique(self, path):
        """A free name for what stands at a path."""
        name = stem = path.replace("/", "_")
        count = 0
        while name in self.taken:
            count += 1
            name = f"{stem}_{count}"
        return name


def _inner_operations(model):
    """The operations of a functional model and of those nested in it; models and inputs left out."""
    for operation in _functional(model).operations:
        if is_functional(operation):
            yield from _inner_operations(operation)
        elif not isinstance(operation, keras.layers.InputLayer):
            yield operation

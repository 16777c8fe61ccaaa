"""A functional Keras model as a directed acyclic graph of operation calls.

Everything that attaches, costs or cuts a network asks the same few questions: in which order do the
operations run, which tensors does a tensor depend on, and which tensors are still needed at a given point.
`Graph` answers them. Nested models are made flat first, so that no caller sees them.
"""

import dataclasses

import keras
import tensorflow as tf
from keras import tree

from keras_exitens.wrapping import alike, call_arguments, is_functional, unwrapped, wrap

__all__ = ["Graph", "Step", "flatten", "inner_layers", "is_functional", "is_map", "spatial_size"]

NOMINAL_SIZE = 224  # pixels assumed where a model takes images of any size


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One call of one operation: `outputs = operation(inputs)`. A shared layer gives several steps."""

    index: int
    node: object

    @property
    def operation(self):
        """What runs: a layer or another operation, or a model that stands for one (see `wrapping`)."""
        return self.node.operation

    @property
    def unwrapped(self):
        """The layer or operation itself, also where a model stands for it."""
        return unwrapped(self.node.operation)

    @property
    def keywords(self):
        """Arguments that the operation itself is called with by name."""
        return call_arguments(self.node).kwargs

    @property
    def inputs(self):
        return self.node.input_tensors

    @property
    def outputs(self):
        return self.node.outputs


class Graph:
    """The steps between the inputs and the outputs of a model, in an order in which they can run.

    Args:
        inputs: list of KerasTensors at which the graph begins.
        outputs: list of KerasTensors at which it ends.
    """

    def __init__(self, inputs, outputs):
        self.inputs = list(inputs)
        self.outputs = list(outputs)
        self.steps = [Step(i, node) for i, node in enumerate(_ordered_nodes(self.inputs, self.outputs))]
        self._producer = {id(t): step for step in self.steps for t in step.outputs}

    @classmethod
    def of(cls, model):
        """The graph of a functional model, from its inputs to all of its outputs."""
        return cls(model.inputs, model.outputs)

    def producer(self, tensor):
        """The step that makes `tensor`, or `None` for an input of the graph."""
        return self._producer.get(id(tensor))

    def ancestors(self, *tensors):
        """Indices of all steps that have to run to make `tensors`."""
        found = set()
        pending = [self.producer(t) for t in tensors]
        while pending:
            step = pending.pop()
            if step is not None and step.index not in found:
                found.add(step.index)
                pending.extend(self.producer(t) for t in step.inputs)
        return found

    def increments(self, tensors):
        """What each of some tensors needs beyond those before it: every step once, at its first use.

        Args:
            tensors: KerasTensors of the graph, in the order in which they are wanted.

        Returns:
            A list, parallel to `tensors`, of lists of steps in an order in which they can run.
        """
        counted, result = set(), []
        for tensor in tensors:
            new = self.ancestors(tensor) - counted
            counted |= new
            result.append([self.steps[i] for i in sorted(new)])
        return result

    def shapes(self, input_shapes=None):
        """The shape of every tensor, with one row to a batch.

        Args:
            input_shapes: shapes of the inputs. By default as the model has them; where it leaves height or
                width open, `NOMINAL_SIZE` pixels.

        Returns:
            A dict from `id(tensor)` to a shape tuple.
        """
        if input_shapes is None:
            input_shapes = [
                (1, *(NOMINAL_SIZE if size is None else size for size in t.shape[1:])) for t in self.inputs
            ]
        found = {id(t): tuple(shape) for t, shape in zip(self.inputs, input_shapes, strict=True)}
        for step in self.steps:
            found.update(zip((id(t) for t in step.outputs), _output_shapes(step, found), strict=True))
        return found

    def live_after(self):
        """For each step, the tensors that exist once it has run and that are needed later.

        Returns:
            A list, parallel to `steps`, of tuples of KerasTensors. Where a tuple holds a single tensor, the
            rest of the network depends on nothing else: the network can be cut there.
        """
        last_use = {}
        for step in self.steps:
            for t in step.inputs:
                last_use[id(t)] = step.index
        for t in self.outputs:
            last_use[id(t)] = len(self.steps)
        live = {id(t): t for t in self.inputs if id(t) in last_use}
        result = []
        for step in self.steps:
            live.update((id(t), t) for t in step.outputs if id(t) in last_use)
            for t in (*step.inputs, *step.outputs):
                if last_use.get(id(t)) == step.index:
                    live.pop(id(t), None)
            result.append(tuple(live.values()))
        return result


_FREE = (keras.Model, keras.layers.Lambda)  # layers of Keras in which anything may happen


def _output_shapes(step, found):
    """The shapes of the outputs of a step, for the shapes of its inputs in `found`.

    Where one row enters a layer of Keras, one row comes out, and the rest can be read off. Operations such as
    `reshape`, and custom layers, may fold other axes into the first: they are asked.
    """
    operation = step.operation
    plain = isinstance(operation, keras.layers.Layer) and not isinstance(operation, _FREE)
    if plain and type(operation).__module__.partition(".")[0] == "keras":
        one_row = all(found[id(t)] == (1, *t.shape[1:]) for t in step.inputs)
        if one_row and not any(None in t.shape[1:] for t in step.outputs):
            return [(1, *t.shape[1:]) for t in step.outputs]
    values = {id(t): keras.KerasTensor(found[id(t)], dtype=t.dtype, name=t.name) for t in step.inputs}
    args, kwargs = step.node.arguments.fill_in(values)
    shapes = [tuple(t.shape) for t in tree.flatten(operation.compute_output_spec(*args, **kwargs))]
    return _traced(operation, args, kwargs) if any(None in shape for shape in shapes) else shapes


def _traced(operation, args, kwargs):
    """Output shapes of an operation that leaves sizes open though its inputs do not, as `EinsumDense` may."""

    def spec(value):
        return tf.TensorSpec(value.shape, value.dtype) if isinstance(value, keras.KerasTensor) else value

    args, kwargs = tree.map_structure(spec, (args, kwargs))
    made = tf.function(operation).get_concrete_function(*args, **kwargs).structured_outputs
    return [tuple(t.shape) for t in tree.flatten(made)]


def _ordered_nodes(inputs, outputs):
    """The nodes that lead from `inputs` to `outputs`, every node after those it depends on."""
    stop = {id(t) for t in inputs}
    ordered, seen = [], set()
    pending = [(_node_of(t), False) for t in reversed(outputs) if id(t) not in stop]
    while pending:
        node, expanded = pending.pop()
        if expanded:
            ordered.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            pending.append((node, True))
            pending.extend((_node_of(t), False) for t in reversed(node.input_tensors) if id(t) not in stop)
    return [node for node in ordered if not node.is_input]


def _node_of(tensor):
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index]


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
        for node in _ordered_nodes(model.inputs, model.outputs):
            self.calls.setdefault(id(node.operation), []).append(node)
            if is_functional(node.operation) and id(node.operation) not in seen:
                seen.add(id(node.operation))
                self._collect(_functional(node.operation), seen)

    def call(self, model, arguments, call_kwargs, prefix):
        """Calls `model` on the flat list `arguments` of tensors; returns the flat list of its outputs."""
        values = dict(zip((id(t) for t in model.inputs), arguments, strict=True))
        for node in _ordered_nodes(model.inputs, model.outputs):
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


def inner_layers(model):
    """All layers in a model at any depth, those inside of wrappers and of nested models too."""
    return list(model._flatten_layers(include_self=False))


def is_map(tensor):
    """Whether a tensor is a feature map: `(batch, height, width, channels)` or channels first."""
    return len(tensor.shape) == 4


def spatial_size(shape, data_format):
    """`(height, width)` of the shape of a feature map."""
    return tuple(shape[1:3]) if data_format == "channels_last" else tuple(shape[2:4])

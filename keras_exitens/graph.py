"""A functional Keras model as a directed acyclic graph of operation calls.

Everything that attaches, costs or cuts a network asks the same few questions: in which order do the
operations run, which tensors does a tensor depend on, and which tensors are still needed at a given point.
`Graph` answers them.
"""

import dataclasses

import keras
import tensorflow as tf
from keras import tree

from keras_exitens.wrapping import call_arguments, unwrapped

__all__ = [
    "Graph",
    "Step",
    "call_again",
    "inner_layers",
    "is_map",
    "nodes_between",
    "rebuilt",
    "spatial_size",
]

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

    def call(self, values, operation=None):
        """Calls the operation, or another one in its place, with its arguments on other tensors.

        Args:
            values: dict from the ids of the inputs to the tensors in their place.
            operation: callable.
        """
        args, kwargs = self.node.arguments.fill_in(values)
        return (operation or self.operation)(*args, **kwargs)


class Graph:
    """The steps between the inputs and the outputs of a model, in an order in which they can run.

    Args:
        inputs: list of KerasTensors at which the graph begins.
        outputs: list of KerasTensors at which it ends.
    """

    def __init__(self, inputs, outputs):
        self.inputs = list(inputs)
        self.outputs = list(outputs)
        self.steps = [Step(i, node) for i, node in enumerate(nodes_between(self.inputs, self.outputs))]
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


def call_again(steps, values, call=Step.call):
    """Runs steps once more, on other tensors.

    Args:
        steps: list of `Step`s in an order in which they can run.
        values: dict from the id of a tensor to the one in its place, for all that the steps need from before;
            what they make is added.
        call: function from a step and `values` to what takes the place of its outputs.
    """
    for step in steps:
        made = tree.flatten(call(step, values))
        values.update(zip((id(t) for t in step.outputs), made, strict=True))


def rebuilt(graph, inputs, outputs, call, name=None):
    """A functional model of a graph's steps on new inputs, where other operations may take their places.

    Args:
        graph: a `Graph`.
        inputs, outputs: nested structures of tensors of the graph, which those of the model are like.
        call: as of `call_again`.
        name: str, of the model.
    """
    values = {id(t): keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name) for t in graph.inputs}
    call_again(graph.steps, values, call)
    return keras.Model(
        *(tree.map_structure(lambda t: values[id(t)], s) for s in (inputs, outputs)), name=name
    )


def nodes_between(inputs, outputs):
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


def inner_layers(model):
    """All layers in a model at any depth, those inside of wrappers and of nested models too."""
    return list(model._flatten_layers(include_self=False))


def is_map(tensor):
    """Whether a tensor is a feature map: `(batch, height, width, channels)` or channels first."""
    return len(tensor.shape) == 4


def spatial_size(shape, data_format):
    """`(height, width)` of the shape of a feature map."""
    return tuple(shape[1:3]) if data_format == "channels_last" else tuple(shape[2:4])

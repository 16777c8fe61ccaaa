"""A functional Keras model as a directed acyclic graph of operation calls.

Everything that attaches, costs or cuts a network asks the same few questions: in which order do the
operations run, which tensors does a tensor depend on, and which tensors are still needed at a given point.
`Graph` answers them, and remembers the answers: a graph never changes.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import keras
from keras import tree

from keras_exitens._backend import tf
from keras_exitens._graph.wrapping import unwrapped, unwrapped_call
from keras_exitens._keras import OperationCall, call_that_made
from keras_exitens._types import Tensor

__all__ = [
    "NOMINAL_SIZE",
    "Graph",
    "Shape",
    "Shapes",
    "Step",
    "call_again",
    "calls_between",
    "is_map",
    "rebuilt",
    "spatial_size",
]

NOMINAL_SIZE = 224  # pixels assumed where a model takes images of any size

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = dict[int, Shape]  # by the id of a tensor
Values: TypeAlias = dict[int, Tensor]  # by the id of the tensor that they stand for


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One call of one operation: `outputs = operation(inputs)`. A shared layer gives several steps."""

    index: int
    made_by: OperationCall

    @property
    def operation(self) -> keras.Operation:
        """What runs: a layer or another operation, or a model that stands for one (see `wrapping`)."""
        return self.made_by.operation

    @functools.cached_property
    def unwrapped(self) -> keras.Operation:
        """The layer or operation itself, also where a model stands for it."""
        return unwrapped(self.operation)

    @property
    def keywords(self) -> dict[str, Any]:
        """Arguments that the operation itself is called with by name."""
        return unwrapped_call(self.made_by).kwargs

    @property
    def inputs(self) -> list[keras.KerasTensor]:
        return self.made_by.inputs

    @property
    def outputs(self) -> list[keras.KerasTensor]:
        return self.made_by.outputs

    def call(self, values: Values, operation: Callable[..., Any] | None = None) -> Any:
        """Calls the operation, or another one in its place, with its arguments on other tensors.

        Args:
            values: dict from the ids of the inputs to the tensors in their place.
            operation: what to call.
        """
        args, kwargs = self.made_by.fill_in(values)
        return (operation or self.operation)(*args, **kwargs)


class Graph:
    """The steps between the inputs and the outputs of a model, in an order in which they can run.

    Args:
        inputs: list of KerasTensors at which the graph begins.
        outputs: list of KerasTensors at which it ends.
        known: a graph whose answers hold for the tensors of this one too: one that was built upon.
    """

    def __init__(
        self,
        inputs: Iterable[keras.KerasTensor],
        outputs: Iterable[keras.KerasTensor],
        known: "Graph | None" = None,
    ) -> None:
        self.inputs = list(inputs)
        self.outputs = list(outputs)
        self.steps = [Step(i, call) for i, call in enumerate(calls_between(self.inputs, self.outputs))]
        self._producer = {id(t): step for step in self.steps for t in step.outputs}
        self._known = known.nominal_shapes if known is not None else {}

    @classmethod
    def of(cls, model: keras.Model) -> "Graph":
        """The graph of a functional model, from its inputs to all of its outputs."""
        return cls(model.inputs, model.outputs)

    def producer(self, tensor: keras.KerasTensor) -> Step | None:
        """The step that makes `tensor`, or `None` for an input of the graph."""
        return self._producer.get(id(tensor))

    def ancestors(self, *tensors: keras.KerasTensor) -> set[int]:
        """Indices of all steps that have to run to make `tensors`."""
        found: set[int] = set()
        pending = [self.producer(t) for t in tensors]
        while pending:
            step = pending.pop()
            if step is not None and step.index not in found:
                found.add(step.index)
                pending.extend(self.producer(t) for t in step.inputs)
        return found

    def increments(self, tensors: Iterable[keras.KerasTensor]) -> list[list[Step]]:
        """What each of some tensors needs beyond those before it: every step once, at its first use.

        Args:
            tensors: KerasTensors of the graph, in the order in which they are wanted.

        Returns:
            A list, parallel to `tensors`, of lists of steps in an order in which they can run.
        """
        counted: set[int] = set()
        result = []
        for tensor in tensors:
            new = self.ancestors(tensor) - counted
            counted |= new
            result.append([self.steps[i] for i in sorted(new)])
        return result

    @functools.cached_property
    def nominal_shapes(self) -> Shapes:
        """`shapes` of the images that the model takes; where it leaves a size open, `NOMINAL_SIZE` pixels."""
        return self.shapes(
            [(1, *(NOMINAL_SIZE if size is None else size for size in t.shape[1:])) for t in self.inputs]
        )

    def shapes(self, input_shapes: Sequence[Shape]) -> Shapes:
        """The shape of every tensor, for inputs of these shapes, one row to a batch."""
        found = {id(t): tuple(shape) for t, shape in zip(self.inputs, input_shapes, strict=True)}
        known = self._known if all(self._known.get(key) == shape for key, shape in found.items()) else {}
        for step in self.steps:
            keys = [id(t) for t in step.outputs]
            shapes = [known[key] for key in keys] if known.keys() >= {*keys} else _output_shapes(step, found)
            found.update(zip(keys, shapes, strict=True))
        return found

    @functools.cached_property
    def live_after(self) -> list[tuple[keras.KerasTensor, ...]]:
        """For each step, the tensors that exist once it has run and that are needed later.

        Where a tuple holds a single tensor, the rest of the network depends on nothing else: the network can
        be cut there.
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


def _output_shapes(step: Step, found: Shapes) -> list[Shape]:
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
    args, kwargs = step.made_by.fill_in(values)
    shapes = [tuple(t.shape) for t in tree.flatten(operation.compute_output_spec(*args, **kwargs))]
    return _traced(operation, args, kwargs) if any(None in shape for shape in shapes) else shapes


def _traced(operation: keras.Operation, args: Any, kwargs: Any) -> list[Shape]:
    """Output shapes of an operation that leaves sizes open though its inputs do not, as `EinsumDense` may."""

    def spec(value: Any) -> Any:
        if not isinstance(value, keras.KerasTensor):
            return value
        make = keras.ops.zeros if tf is None else tf.TensorSpec
        return make(value.shape, value.dtype)

    args, kwargs = tree.map_structure(spec, (args, kwargs))
    if tf is None:  # nothing is traced: it runs
        return [tuple(t.shape) for t in tree.flatten(operation(*args, **kwargs))]
    made = tf.function(operation).get_concrete_function(*args, **kwargs).structured_outputs
    return [tuple(t.shape) for t in tree.flatten(made)]


def call_again(
    steps: Iterable[Step], values: Values, call: Callable[[Step, Values], Any] = Step.call
) -> None:
    """Runs steps once more, on other tensors.

    Args:
        steps: `Step`s in an order in which they can run.
        values: dict from the id of a tensor to the one in its place, for all that the steps need from before;
            what they make is added.
        call: function from a step and `values` to what takes the place of its outputs.
    """
    for step in steps:
        made = tree.flatten(call(step, values))
        values.update(zip((id(t) for t in step.outputs), made, strict=True))


def rebuilt(
    graph: Graph, inputs: Any, outputs: Any, call: Callable[[Step, Values], Any], name: str | None = None
) -> keras.Model:
    """A functional model of a graph's steps on new inputs, where other operations may take their places.

    Args:
        graph: a `Graph`.
        inputs, outputs: nested structures of tensors of the graph, which those of the model are like.
        call: as of `call_again`.
        name: of the model.
    """
    values = {id(t): keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name) for t in graph.inputs}
    call_again(graph.steps, values, call)
    return keras.Model(
        *(tree.map_structure(lambda t: values[id(t)], s) for s in (inputs, outputs)), name=name
    )


def calls_between(
    inputs: Iterable[keras.KerasTensor], outputs: Sequence[keras.KerasTensor]
) -> list[OperationCall]:
    """The calls that lead from `inputs` to `outputs`, every one after those it depends on."""
    reached = {id(t) for t in inputs}  # tensors that are there already, or on their way
    ordered: list[OperationCall] = []
    pending: list[keras.KerasTensor | OperationCall] = list(reversed(outputs))
    while pending:
        item = pending.pop()
        if isinstance(item, OperationCall):
            ordered.append(item)
        elif id(item) not in reached:
            call = call_that_made(item)
            if call is not None:
                reached.update(id(t) for t in (item, *call.outputs))
                pending.append(call)
                pending.extend(t for t in reversed(call.inputs) if id(t) not in reached)
    return ordered


def is_map(tensor: keras.KerasTensor) -> bool:
    """Whether a tensor is a feature map: `(batch, height, width, channels)` or channels first."""
    return len(tensor.shape) == 4


def spatial_size(shape: Shape, data_format: str) -> Shape:
    """`(height, width)` of the shape of a feature map."""
    return tuple(shape[1:3]) if data_format == "channels_last" else tuple(shape[2:4])

"""One call of one operation, with the shapes of what goes in and comes out: all that counting needs."""

import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import keras
import numpy as np
from keras import layers, tree

from keras_exitens._graph.dag import Shape, Shapes, Step

Entry = TypeVar("Entry")

__all__ = ["Call", "attention_axes", "find"]


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """`outputs = operation(*args, **kwargs)` for one image.

    Attributes:
        operation: a Keras layer or operation.
        inputs: list of shapes of the tensors that enter, in the order of the arguments; masks included.
        outputs: list of shapes.
        args: positional arguments; a shape stands for every tensor, constants included.
        kwargs: keyword arguments, likewise.
    """

    operation: Any
    inputs: list[Shape]
    outputs: list[Shape]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of_step(cls, step: Step, shapes: Shapes) -> "Call":
        """The call that a step of a graph makes; `shapes` as `Graph.shapes` gives them."""

        def shape(value: Any) -> Any:
            if isinstance(value, keras.KerasTensor):
                return _Shape(shapes[id(value)])
            return _Shape(value.shape) if hasattr(value, "shape") else value

        args, kwargs = tree.map_structure(shape, (step.made_by.args, step.made_by.kwargs))
        inputs, outputs = ([tuple(shapes[id(t)]) for t in tensors] for tensors in (step.inputs, step.outputs))
        return cls(step.operation, inputs, outputs, args, kwargs)

    @classmethod
    def of_layer(cls, layer: keras.layers.Layer, shape: Sequence[int]) -> "Call":
        """The call of a layer on one tensor of a known shape."""
        output = tuple(layer.compute_output_shape(tuple(shape)))
        return cls(layer, [tuple(shape)], [output], (_Shape(shape),), {})

    @property
    def output(self) -> Shape:
        """Shape of the (first) output."""
        return self.outputs[0]

    @property
    def kind(self) -> str | None:
        """Name of the class of a layer or operation of Keras, `None` for everybody else's.

        The operations of `keras.ops` have no public classes: they are known by this name.
        """
        kind = type(self.operation)
        return kind.__name__ if kind.__module__.partition(".")[0] in ("keras", "keras_hub") else None

    @property
    def is_layer(self) -> bool:
        return isinstance(self.operation, layers.Layer)

    def argument(self, name: str) -> Any:
        """An argument by its name in the signature of `call`, however it was passed.

        Returns:
            A shape, a list of shapes for a list of tensors, or `None`.
        """
        bound = inspect.signature(self.operation.call).bind(*self.args, **self.kwargs)
        value = bound.arguments.get(name)
        return None if value is None else tree.map_structure(_sizes, value)

    def tensors(self) -> list[Shape]:
        """Shapes of all tensors among the arguments, constants included."""
        leaves = tree.flatten((self.args, self.kwargs))
        return [leaf.sizes for leaf in leaves if isinstance(leaf, _Shape)]

    def arguments(self, tensors: Sequence[Any]) -> Any:
        """`(args, kwargs)` of the call, with `tensors` where the shapes of `tensors()` stand."""
        given = iter(tensors)
        return tree.map_structure(
            lambda leaf: next(given) if isinstance(leaf, _Shape) else leaf, (self.args, self.kwargs)
        )

    def operands(self) -> list[Shape]:
        """Shapes of the operands of a product, constants included, as in `ops.matmul(constant, tensor)`."""
        return [_sizes(value) for value in (*self.args, *self.kwargs.values())]

    def channels(self, shape: Shape) -> int:
        """Size of the channel axis of a map that enters or leaves the layer."""
        return shape[1] if self.operation.data_format == "channels_first" else shape[-1]

    def positions(self, shape: Shape) -> int:
        """Number of positions of a map that enters or leaves the layer."""
        return math.prod(
            shape[2:] if self.operation.data_format == "channels_first" else shape[1:-1], start=shape[0]
        )


class _Shape:
    """A shape that `keras.tree` takes for a leaf."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)


def _sizes(value: Any) -> Shape:
    return value.sizes if isinstance(value, _Shape) else np.shape(value)


def find(call: Call, by_class: Mapping[Any, Entry], by_name: Mapping[str, Entry]) -> Entry | None:
    """The entry for a call in two tables: of layers by their class, of Keras's operations by their name.

    The more specific class has to stand first in `by_class`.
    """
    for kind, entry in by_class.items():
        if isinstance(call.operation, kind):
            return entry
    return None if call.kind is None or call.is_layer else by_name.get(call.kind)


def attention_axes(layer: keras.layers.MultiHeadAttention, rank: int) -> Sequence[int]:
    """The axes that an attention layer attends over: by default all of the query but the first and last.

    Args:
        layer: the layer.
        rank: int, how many axes its query has.
    """
    return layer.get_config().get("attention_axes") or range(1, rank - 1)

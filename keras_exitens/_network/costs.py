"""What a network costs: per layer, per stage, and to leave at each exit."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import keras
from keras import layers

from keras_exitens import _checks as checks
from keras_exitens._graph.counting import count_operations
from keras_exitens._network.exit_network import FINAL, ExitNetwork
from keras_exitens._tables import Report, Rows, aligned

__all__ = ["ExitCost", "LayerCost", "cost"]


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """What one call of one layer costs for one image.

    Attributes:
        name: name of the layer or operation.
        kind: name of its class.
        exit: the exit in whose stage or head it is.
        part: `"stage"` or `"head"`.
        shape: shape of its (first) output, the batch left out.
        multiply_adds: int, of convolutions, matrix products and attention.
        other: int, operations beside these: normalisation, pooling, activations, sums of branches.
        parameters: int; of a layer that is called several times, at its first call only.
    """

    name: str
    kind: str
    exit: str
    part: str
    shape: tuple[int | None, ...]
    multiply_adds: int
    other: int
    parameters: int


@dataclasses.dataclass(frozen=True)
class ExitCost(Report):
    """What each exit of a multi-exit network costs.

    A *stage* is the part of the backbone between one exit and the next; a *head* is what belongs to one
    exit alone. To leave at exit i costs all stages and all heads up to i. The final exit has no head of its
    own: its classifier counts as part of the last stage.

    Args:
        names: exit names in order, `("exit_1", ..., "final")`.
        stages: number per exit, cost of the stage before it.
        heads: number per exit, cost of its head (0 for the final exit).
        unit: what the numbers are: `"multiply-adds"` for one image, or `"seconds"`.
        layers: `LayerCost` of every call of a layer, in the order in which the network runs; not compared.
    """

    names: tuple[str, ...]
    stages: tuple[float, ...]
    heads: tuple[float, ...]
    unit: str = "multiply-adds"
    layers: tuple[LayerCost, ...] = dataclasses.field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.names or not len(self.names) == len(self.stages) == len(self.heads):
            raise checks.error(
                "An ExitCost has as many stages and heads as exits, and at least one.",
                expected="`names`, `stages` and `heads` of one length",
                received=f"{len(self.names)} names, {len(self.stages)} stages, {len(self.heads)} heads",
                fix="give every exit a stage and a head; the head of the final exit costs 0",
            )

    @property
    def cumulative(self) -> tuple[float, ...]:
        """Cost to leave at each exit, all earlier stages and heads included."""
        return tuple(itertools.accumulate(s + h for s, h in zip(self.stages, self.heads, strict=True)))

    def only(self, enabled: Sequence[bool]) -> "ExitCost":
        """The cost when some early exits are switched off: their heads do not run, their stages do.

        Args:
            enabled: sequence of bool, one an exit; the final exit cannot be switched off.

        Returns:
            An `ExitCost` with the same exits, in which the heads of the others cost nothing; its
            `cumulative` is the cost to leave at each exit that is enabled.
        """
        enabled = tuple(map(bool, enabled))
        if len(enabled) != len(self) or not enabled[-1]:
            raise checks.error(
                "`enabled` does not fit the exits.",
                expected=f"{len(self)} flags, for {', '.join(self.names)}, the last one true",
                received=f"enabled={enabled!r}",
                fix="switch off early exits only",
            )
        heads = tuple(h if on else h * 0 for h, on in zip(self.heads, enabled, strict=True))
        off = {name for name, on in zip(self.names, enabled, strict=True) if not on}
        left = tuple(layer for layer in self.layers if layer.part == "stage" or layer.exit not in off)
        return dataclasses.replace(self, heads=heads, layers=left)

    @property
    def backbone(self) -> float:
        """Cost of the network without any early exit."""
        return sum(self.stages)

    @property
    def stage_multiply_adds(self) -> tuple[int, ...]:
        """Multiply-adds of the stage before each exit."""
        return _sums(self.layers, self.names, "stage", "multiply_adds")

    @property
    def head_multiply_adds(self) -> tuple[int, ...]:
        """Multiply-adds of the head of each exit."""
        return _sums(self.layers, self.names, "head", "multiply_adds")

    @property
    def stage_other(self) -> tuple[int, ...]:
        """Operations beside multiply-adds of the stage before each exit."""
        return _sums(self.layers, self.names, "stage", "other")

    @property
    def head_other(self) -> tuple[int, ...]:
        """Operations beside multiply-adds of the head of each exit."""
        return _sums(self.layers, self.names, "head", "other")

    @property
    def stage_parameters(self) -> tuple[int, ...]:
        """Parameters of the stage before each exit."""
        return _sums(self.layers, self.names, "stage", "parameters")

    @property
    def head_parameters(self) -> tuple[int, ...]:
        """Parameters of the head of each exit."""
        return _sums(self.layers, self.names, "head", "parameters")

    @property
    def parameters(self) -> int:
        """Parameters of the whole multi-exit network."""
        return sum(layer.parameters for layer in self.layers)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> float:
        return self.cumulative[index]

    def table(self, by: Literal["exit", "stage", "layer"] = "exit") -> str:
        """The costs as text.

        Args:
            by: `"exit"` (default): a line an exit, the cost to leave there and its share of the cost of the
                network without early exits. `"stage"`: a line for each stage and each head, with the
                operations beside multiply-adds. `"layer"`: a line for each call of a layer.
        """
        checks.one_of("by", by, ("exit", "stage", "layer"))
        return aligned({"exit": self._by_exit, "stage": self._by_stage, "layer": self._by_layer}[by]())

    def _by_exit(self) -> Rows:
        show = _si if self.unit == "multiply-adds" else _seconds
        parameters = map(sum, zip(self.stage_parameters, self.head_parameters, strict=True))
        columns = (self.names, self.stages, self.heads, self.cumulative, parameters)
        return [("exit", "stage", "head", "cumulative", "of network", "parameters")] + [
            (name, show(stage), show(head), show(total), f"{total / self.backbone:.1%}", f"{count:,}")
            for name, stage, head, total, count in zip(*columns, strict=True)
        ]

    def _by_stage(self) -> Rows:
        columns = {
            "stage": (self.stage_multiply_adds, self.stage_other, self.stage_parameters),
            "head": (self.head_multiply_adds, self.head_other, self.head_parameters),
        }
        return [("exit", "part", "multiply-adds", "other operations", "parameters")] + [
            (name, part, *(f"{column[i]:,}" for column in columns[part]))
            for i, name in enumerate(self.names)
            for part in columns
            if part == "stage" or name != FINAL
        ]

    def _by_layer(self) -> Rows:
        counts = ("multiply-adds", "other operations", "parameters")
        rows: list[tuple[str, ...]] = [("layer", "kind", "output", "exit", "part", *counts)]
        for c in self.layers:
            numbers = (f"{n:,}" for n in (c.multiply_adds, c.other, c.parameters))
            rows.append((c.name, c.kind, "×".join(map(str, c.shape)), c.exit, c.part, *numbers))
        return rows


def cost(model: keras.Model) -> ExitCost:
    """Counts what a network computes, and its parameters: per layer, per stage, per head and per exit.

    One multiply-add is one multiplication with its addition: half of what profilers call floating point
    operations. Multiply-adds are those of convolutions, matrix products and attention, as the literature
    counts them (compare with half of the `Conv2D`, `DepthwiseConv2dNative`, `MatMul` and `BatchMatMul`
    operations of TensorFlow's profiler). Beside them stand the *other operations*: one for each number that
    an activation, a bias or a sum of branches makes or that a pooling window reads, 2 for batch
    normalisation; `keras_exitens/_graph/elementwise.py` has the list. Both are for one image, at inference.
    Where the model takes images of any size, 224 × 224 pixels are assumed. Layers of your own are counted in
    the TensorFlow graph that they make; one that has loops, or cannot be traced, counts as zero and is named
    in a warning.

    Args:
        model: the result of `add_exits`, a functional model with a dict of logits, or any functional or
            Sequential model with one output, which counts as a network with the final exit alone.

    Returns:
        An `ExitCost`; `print(cost(model))` shows it as a table.

    Raises:
        ValueError: `model` is neither.

    Example:

    ```python
    model = kx.add_exits(keras.applications.MobileNetV2(weights=None), exits=2)
    costs = kx.cost(model)
    print(costs)
    print(costs.table("layer"))
    ```
    """
    network = ExitNetwork.of(model, plain=True)
    records = tuple(_layer_costs(network))
    stages, heads = (_sums(records, network.names, part, "multiply_adds") for part in ("stage", "head"))
    return ExitCost(network.names, stages, heads, layers=records)


def _layer_costs(network: ExitNetwork) -> Iterator[LayerCost]:
    """The `LayerCost` of each step, by exit."""
    counts, shapes = count_operations(network.graph), network.graph.nominal_shapes
    seen = set()
    for name, (stage, head) in network.increments.items():
        of_head = {step.index for step in head}
        for step in sorted([*stage, *head], key=lambda step: step.index):
            operation = step.operation
            # A shared layer has its parameters once.
            new = isinstance(operation, layers.Layer) and id(operation) not in seen
            seen.add(id(operation))
            yield LayerCost(
                name=operation.name,
                kind=type(operation).__name__,
                exit=name,
                part="head" if step.index in of_head else "stage",
                shape=tuple(shapes[id(step.outputs[0])][1:]),
                multiply_adds=counts[step.index].multiply_adds,
                other=counts[step.index].other,
                parameters=operation.count_params() if new else 0,
            )


def _sums(records: Sequence[LayerCost], names: Sequence[str], part: str, what: str) -> tuple[int, ...]:
    """A number for each exit: the sum over the layers of its stage or its head."""
    sums = dict.fromkeys(names, 0)
    for layer in records:
        if layer.part == part:
            sums[layer.exit] += getattr(layer, what)
    return tuple(sums.values())


def _si(count: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)


def _seconds(value: float) -> str:
    return f"{value * 1e3:.3f} ms"

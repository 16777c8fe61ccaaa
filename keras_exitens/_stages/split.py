"""A multi-exit model as a chain of models, each of which runs from one exit to the next."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import keras

from keras_exitens import _checks as checks
from keras_exitens._graph.dag import Graph, Step, call_again
from keras_exitens._keras import operation_that_made
from keras_exitens._network.exit_network import ExitNetwork
from keras_exitens._types import Tensor

__all__ = ["LOGITS", "Stage", "split", "split_heads"]

Named: TypeAlias = list[tuple[str, keras.KerasTensor]]
LOGITS = "logits"  # the output of a stage that holds the logits of its exit


@dataclasses.dataclass(frozen=True)
class Stage:
    """What has to run between one exit and the next: a function from a dict of tensors to a dict of tensors.

    Attributes:
        exit: str, name of the exit at the end of the stage.
        model: functional `keras.Model` from a dict of tensors to a dict of tensors: `"logits"`, and each
            tensor made here that a later stage needs. Its layers are those of the multi-exit model.
        carried: names of all tensors that later stages need, whether this stage made them or one before it.
    """

    exit: str
    model: keras.Model
    carried: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that this stage takes."""
        return tuple(self.model.input)

    def __call__(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.model({name: values[name] for name in self.inputs}, training=False)


def split(model: keras.Model, exits: Sequence[str] | None = None) -> tuple[Stage, ...]:
    """Cuts a multi-exit model at its exits.

    Each operation runs in the first stage that needs it, so that nothing runs before it has to, and nothing
    twice. A cut may carry several tensors. To run the chain, hand each stage what `carried` lists:

    ```python
    from keras_exitens.stages import handed_on, split

    chain = split(model)
    values = dict.fromkeys(chain[0].inputs, images)
    for stage in chain:
        made = stage(values)
        logits = made["logits"]
        values = handed_on(values, made, stage.carried)
    ```

    Args:
        model: the result of `add_exits`, or a functional model with a dict of logits.
        exits: names of the exits to stop at; by default all. The heads of the others are left out. The final
            exit is always among them.

    Returns:
        A tuple of `Stage`s, first exit first. The weights are shared with `model`.

    Raises:
        ValueError: `model` is not a multi-exit model, or has no such exit.
    """
    network = ExitNetwork.of(model)
    names = network.names
    for name in exits or ():
        checks.one_of("exits", name, names)
    wanted = [name for name in names if exits is None or name in exits or name == names[-1]]
    results = [{LOGITS: network.logits[name]} for name in wanted]
    titles = [f"{model.name}_to_{name}" for name in wanted]
    pieces = _chain(network.graph, network.stages(wanted), results, titles)
    return tuple(Stage(name, piece, carried) for name, (piece, carried) in zip(wanted, pieces, strict=True))


def split_heads(model: keras.Model) -> list[tuple[str, str, keras.Model, tuple[str, ...]]]:
    """Cuts a multi-exit model at its exits, and each exit's own head from the network.

    Args:
        model: as in `split`.

    Returns:
        A list of `(exit, part, model, carried)` in the order in which they run, `part` being `"stage"` or
        `"head"`; `model` and `carried` as in `Stage`. The final exit has no head of its own.
    """
    network = ExitNetwork.of(model)
    labels, parts, results = [], [], []
    for name, (stage, head) in network.increments.items():
        logits = network.logits[name]
        for part, steps in (("stage", stage), ("head", head)):
            if steps:
                labels.append((name, part))
                parts.append(steps)
                results.append({LOGITS: logits} if network.graph.producer(logits) in steps else {})
    titles = [f"{model.name}_{name}_{part}" for name, part in labels]
    pieces = _chain(network.graph, parts, results, titles)
    return [(*label, *piece) for label, piece in zip(labels, pieces, strict=True)]


def _chain(
    graph: Graph,
    parts: Sequence[list[Step]],
    results: Sequence[dict[str, keras.KerasTensor]],
    names: Sequence[str],
) -> list[tuple[keras.Model, tuple[str, ...]]]:
    """Models of consecutive parts of a graph.

    Args:
        graph: a `Graph`.
        parts: lists of steps, disjoint, in an order in which they can run.
        results: dict per part, name -> tensor that it must give besides what later parts need.
        names: str per part, the names of the models.

    Returns:
        A list of `(model, carried)`, as in `Stage`.
    """
    last_use: dict[int, int] = {}  # id of a tensor -> the last part that reads it or has to give it
    for k, steps in enumerate(parts):
        last_use.update((id(t), k) for step in steps for t in step.inputs)
        last_use.update((id(t), k) for t in results[k].values())
    unique = _unique_names(step.operation.name for step in graph.steps)
    known = {id(t): (t.name, t) for t in graph.inputs}  # what there is so far, by id
    pieces = []
    for k, steps in enumerate(parts):
        read = {id(t) for step in steps for t in step.inputs} | {id(t) for t in results[k].values()}
        entering = [known[key] for key in known if key in read]
        made = (t for step in steps for t in step.outputs)
        kept = (t for t in made if last_use.get(id(t), k) > k)
        leaving = [(unique(f"{operation_that_made(t).name}_out"), t) for t in kept]
        known.update((id(t), (name, t)) for name, t in leaving)
        carried = tuple(name for key, (name, _) in known.items() if last_use.get(key, k) > k)
        pieces.append((_piece(entering, steps, [*results[k].items(), *leaving], names[k]), carried))
    return pieces


def _piece(entering: Named, steps: Iterable[Step], leaving: Named, name: str) -> keras.Model:
    """One stage: the operations of `steps`, called again on inputs of its own."""
    inputs = {key: keras.Input(t.shape[1:], dtype=t.dtype, name=key) for key, t in entering}
    values = {id(t): inputs[key] for key, t in entering}
    call_again(steps, values)
    for key, t in leaving:
        if any(values[id(t)] is entered for entered in inputs.values()):
            # What only passes through: before Keras 3.14 a model has to use each of its inputs.
            values[id(t)] = keras.layers.Identity(name=f"{key}_passed")(values[id(t)])
    return keras.Model(inputs, {key: values[id(t)] for key, t in leaving}, name=name)


def _unique_names(taken: Iterable[str]) -> Callable[[str], str]:
    """A function that makes a name unlike all `taken` ones and those it has given."""
    taken = {*taken, LOGITS}

    def unique(base: str) -> str:
        base = base.replace("/", "_")
        names = itertools.chain([base], (f"{base}_{count}" for count in itertools.count(2)))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        return name

    return unique

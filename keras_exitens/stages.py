"""A multi-exit model as a chain of models, each of which runs from one exit to the next."""

import dataclasses
import itertools

import keras

from keras_exitens import checks
from keras_exitens.names import exit_graph, exit_order

__all__ = ["LOGITS", "Stage", "split"]

LOGITS = "logits"  # the output of a stage that holds the logits of its exit


@dataclasses.dataclass(frozen=True)
class Stage:
    """What has to run between one exit and the next.

    Attributes:
        exit: str, name of the exit at the end of the stage.
        model: functional `keras.Model` from a dict of tensors to a dict of tensors: `"logits"`, and each
            tensor made here that a later stage needs. Its layers are those of the multi-exit model.
        carried: names of all tensors that later stages need, whether this stage made them or one before it.
    """

    exit: str
    model: keras.Model
    carried: tuple


def split(model, exits=None):
    """Cuts a multi-exit model at its exits.

    Each operation runs in the first stage that needs it, so that nothing runs before it has to, and nothing
    twice.
    A cut may carry several tensors. To run the chain, hand each stage what `carried` lists:

    ```python
    values = {name: images for name in stages[0].model.input}
    for stage in stages:
        made = stage.model({name: values[name] for name in stage.model.input})
        logits = made["logits"]
        values = {name: made.get(name, values.get(name)) for name in stage.carried}
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
    _, graph, outputs = exit_graph(model)
    names = exit_order(graph, outputs)
    for name in exits or ():
        checks.one_of("exits", name, tuple(names))
    wanted = [name for name in names if exits is None or name in exits or name == names[-1]]
    logits = [outputs[name] for name in wanted]
    parts = graph.increments(logits)

    last_use = {}  # id of a tensor -> the last stage that reads it
    for k, steps in enumerate(parts):
        last_use.update((id(t), k) for step in steps for t in step.inputs)
        last_use[id(logits[k])] = k
    unique = _unique_names(step.operation.name for step in graph.steps)
    known = {id(t): (t.name, t) for t in graph.inputs}  # what there is so far, by id
    stages = []
    for k, steps in enumerate(parts):
        read = {id(t) for step in steps for t in step.inputs} | {id(logits[k])}
        entering = [known[key] for key in known if key in read]
        made = (t for step in steps for t in step.outputs)
        leaving = [(unique(f"{_operation(t).name}_out"), t) for t in made if last_use.get(id(t), k) > k]
        known.update((id(t), (name, t)) for name, t in leaving)
        piece = _piece(entering, steps, [(LOGITS, logits[k]), *leaving], f"{model.name}_to_{wanted[k]}")
        carried = tuple(name for key, (name, _) in known.items() if last_use.get(key, k) > k)
        stages.append(Stage(wanted[k], piece, carried))
    return tuple(stages)


def _piece(entering, steps, leaving, name):
    """One stage: the operations of `steps`, called again on inputs of its own."""
    inputs = {key: keras.Input(t.shape[1:], dtype=t.dtype, name=key) for key, t in entering}
    values = {id(t): inputs[key] for key, t in entering}
    for step in steps:
        args, kwargs = step.node.arguments.fill_in(values)
        made = keras.tree.flatten(step.operation(*args, **kwargs))
        values.update(zip((id(t) for t in step.outputs), made, strict=True))
    return keras.Model(inputs, {key: values[id(t)] for key, t in leaving}, name=name)


def _operation(tensor):
    return tensor._keras_history.operation


def _unique_names(taken):
    """A function that makes a name unlike all `taken` ones and those it has given."""
    taken = {*taken, LOGITS}

    def unique(base):
        base = name = base.replace("/", "_")
        for count in itertools.count(2):
            if name not in taken:
                taken.add(name)
                return name
            name = f"{base}_{count}"

    return unique

"""The exits of a multi-exit model: their names and their order."""

import keras

from keras_exitens import checks
from keras_exitens.flattening import flatten
from keras_exitens.graph import Graph
from keras_exitens.layers import ExitLogits
from keras_exitens.wrapping import is_functional

__all__ = ["FINAL", "check_multi_exit", "exit_graph", "exit_order"]

FINAL = "final"


def exit_graph(model):
    """The flat graph of a multi-exit model, with its structure of inputs and its dict of logits."""
    check_multi_exit(model)
    inputs, outputs, _ = flatten(model)
    return inputs, Graph(keras.tree.flatten(inputs), list(outputs.values())), outputs


def exit_order(graph, outputs):
    """Names of the exits of a multi-exit model, first exit first; of what `exit_graph` gives.

    In a result of `add_exits` they are read from its `ExitLogits` layers. In a hand-built model the exit
    that needs fewer operations comes first, and one called `"final"` last.
    """
    ours = {step.operation.name for step in graph.steps if isinstance(step.operation, ExitLogits)}
    if ours == set(outputs):
        # exit_2 before exit_10
        return sorted(ours, key=lambda name: (name == FINAL, len(name), name))
    depth = {name: len(graph.ancestors(tensor)) for name, tensor in outputs.items()}
    return sorted(depth, key=lambda name: (name == FINAL, depth[name], name))


def check_multi_exit(model):
    """Raises `ValueError` unless `model` is functional and its output is a dict of logits."""
    single = isinstance(model, keras.Sequential)
    output = model.output if is_functional(model) and not single else None
    shapes = [t.shape for t in output.values()] if isinstance(output, dict) else []
    if not shapes or any(len(shape) != 2 or shape != shapes[0] for shape in shapes):
        raise checks.error(
            "This is not a multi-exit model.",
            expected="a functional keras.Model whose output is a dict of logits, each (batch, classes)",
            received=f"{type(model).__name__} with output {output!r}",
            fix="pass its attribute `model`, the network that it trains"
            if isinstance(getattr(model, "model", None), keras.Model)
            else "make one with keras_exitens.add_exits(model), or build keras.Model(inputs, "
            "{'exit_1': logits, 'final': logits})",
        )

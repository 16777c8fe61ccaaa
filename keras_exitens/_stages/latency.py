"""What each exit costs in seconds, measured."""

import statistics
import time

import keras
import numpy as np
from keras import ops

from keras_exitens import _checks as checks
from keras_exitens._graph.dag import NOMINAL_SIZE
from keras_exitens._network.costs import ExitCost, cost
from keras_exitens._network.exit_network import ExitNetwork
from keras_exitens._scores import handed_on
from keras_exitens._stages.compiled import compiled
from keras_exitens._stages.split import split_heads

__all__ = ["measured_cost"]


def measured_cost(model: keras.Model, batch_size: int = 1, repeats: int = 20) -> ExitCost:
    """Times each stage and each head of a multi-exit model on this machine.

    The parts run one after another on random images, compiled, and `repeats` times over, so that a change in
    the load of the machine falls on all of them; the first two rounds do not count. Where the model takes
    images of any size, 224 × 224 pixels are assumed.

    Args:
        model: the result of `add_exits`, or a functional model with a dict of logits.
        batch_size: int, rows to a batch. The time of a row depends on it.
        repeats: int, rounds of which the median is taken.

    Returns:
        An `ExitCost` with `unit="seconds"`: seconds for one row.

    Raises:
        ValueError: `model` is not a multi-exit model; `batch_size` or `repeats` is less than 1.
    """
    checks.number("batch_size", batch_size, low=1)
    checks.number("repeats", repeats, low=1)
    pieces = split_heads(model)
    functions = [compiled(piece) for _, _, piece, _ in pieces]
    images = ExitNetwork.of(model).image
    shape = [batch_size, *(NOMINAL_SIZE if size is None else size for size in images.shape[1:])]
    images_given = ops.cast(np.random.default_rng(0).normal(size=shape), images.dtype)
    times: list[list[float]] = [[] for _ in pieces]
    for _ in range(repeats + 2):
        values = dict.fromkeys(pieces[0][2].input, images_given)
        for (_, _, piece, carried), function, seconds in zip(pieces, functions, times, strict=True):
            given = {name: values[name] for name in piece.input}
            start = time.perf_counter()
            made = function(given)
            for tensor in made.values():
                ops.convert_to_numpy(tensor)  # waits for it
            seconds.append(time.perf_counter() - start)
            values = handed_on(values, made, carried)
    names = ExitNetwork.of(model).names
    medians = {
        (name, part): statistics.median(seconds[2:]) / batch_size
        for (name, part, _, _), seconds in zip(pieces, times, strict=True)
    }
    stages, heads = (tuple(medians.get((name, part), 0.0) for name in names) for part in ("stage", "head"))
    return ExitCost(names, stages, heads, unit="seconds", layers=cost(model).layers)

"""Early exit from the host: runs a compiled stage, keeps the rows that go on, and puts results in order."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_exitens import _scores as scores
from keras_exitens._backend import NAME
from keras_exitens._inputs.images import as_array
from keras_exitens._stages.compiled import compiled
from keras_exitens._stages.split import LOGITS, Stage, split
from keras_exitens._types import Tensor
from keras_exitens.policies import Policy

__all__ = ["CompiledChain", "padded_size", "route"]


class CompiledChain:
    """The stages of a model that end at some of its exits, each one compiled.

    Attributes:
        exits: names of the exits, the final one last.
        stages: pairs of a `Stage` and the function that runs it.
    """

    def __init__(self, model: keras.Model, exits: Sequence[str]) -> None:
        self.exits = tuple(exits)
        self.stages = [(stage, compiled(stage.model)) for stage in split(model, exits)]


def padded_size(rows: int) -> int:
    """How many rows a stage is run on for so many that need it.

    XLA compiles a stage anew for each number of rows. So it sees sizes of three binary digits alone, 1 … 8,
    10, 12, 14, 16, 20 …: four an octave, 24 up to 128 rows, and less than a quarter is padding. PyTorch
    compiles nothing, and gets the rows themselves.
    """
    unit = 1 << max(rows.bit_length() - 3, 0)
    return rows if NAME == "torch" else -(-rows // unit) * unit


def route(
    stages: Sequence[tuple[Stage, Any]],
    policy: Policy,
    indices: Sequence[int],
    images: np.ndarray,
    dtype: str,
    thresholds: Any = None,
) -> dict[str, np.ndarray]:
    """Takes each row of a batch as far through the network as the policy asks for, and no further.

    Stages that no row reaches are not run. A row with a score of NaN, or with a pixel that is not finite,
    goes on to the end; its score is NaN there.

    Args:
        stages: of a `CompiledChain`; one an enabled exit.
        policy: a `Policy` that `for_exits` gave.
        indices: int per stage, the exit it ends at, counted over all exits.
        images: array `(batch, height, width, channels)`, at least one row.
        dtype: of the images as the network takes them.
        thresholds: `(K - 1,)` numbers; by default those of the policy.

    Returns:
        A dict of arrays: `"logits"` float32 `(batch, classes)`, `"exit"` int32 `(batch,)`, the index of the
        exit each row left at, and `"score"` float32 `(batch,)`.
    """
    thresholds = policy.thresholds if thresholds is None else as_array(thresholds)
    rows = len(images)
    finite = _finite_rows(images)
    here = np.arange(rows)  # the rows that came as far as this stage
    values = dict.fromkeys(stages[0][0].inputs, keras.ops.convert_to_tensor(_padded(images), dtype=dtype))
    state: dict[str, Any] = {}
    results = []  # of each stage: which rows left there, and what for them
    for (stage, run), index in zip(stages, indices, strict=True):
        made = run({name: values[name] for name in stage.inputs})
        logits, score, state = policy.observe(
            as_array(made[LOGITS])[: len(here)].astype("float32"), index, state
        )
        logits = as_array(logits).astype("float32", copy=False)
        score = np.where(finite[here], as_array(score).astype("float32", copy=False), np.float32(math.nan))
        results.append((here, logits, index, score))
        if index == indices[-1]:
            break
        on = np.flatnonzero(scores.goes_on(np, score, thresholds[index]))
        if not on.size:
            break
        values = scores.handed_on(values, made, stage.carried)
        if len(on) < len(here):
            values = _taken(values, on)
            state = {key: as_array(value)[on] for key, value in state.items()}
            here = here[on]
    return _in_order(rows, results)


def _in_order(
    rows: int, results: Sequence[tuple[np.ndarray, np.ndarray, int, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The last that was found for each row: each stage saw some of the rows of the one before."""
    logits = np.empty((rows, results[0][1].shape[-1]), "float32")
    exits, score = np.empty(rows, "int32"), np.empty(rows, "float32")
    for here, found, index, sure in results:
        logits[here], exits[here], score[here] = found, index, sure
    return {"logits": logits, "exit": exits, "score": score}


def _finite_rows(images: np.ndarray) -> np.ndarray:
    """Which rows of a batch have no NaN and nothing infinite: bool `(batch,)`."""
    if images.dtype.kind in "iub":
        return np.ones(len(images), bool)
    # One pass: the sum of finite pixels is finite, unless it overflows. Then each pixel is looked at.
    axes = tuple(range(1, images.ndim))
    wide = images if images.dtype == "float64" else images.astype("float32", copy=False)
    with np.errstate(all="ignore"):
        finite = np.isfinite(wide.sum(axis=axes))
    return finite if finite.all() else np.isfinite(wide).all(axis=axes)


def _padded(images: np.ndarray) -> np.ndarray:
    missing = padded_size(len(images)) - len(images)
    if not missing:
        return images
    return np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])


def _taken(values: dict[str, Tensor], on: np.ndarray) -> dict[str, Tensor]:
    """Rows of some tensors, filled up with the first of them to a size that stages are compiled for."""
    index = np.concatenate([on, np.full(padded_size(len(on)) - len(on), on[0])])
    if NAME == "torch":
        import torch

        first = next(iter(values.values()))
        chosen = torch.as_tensor(index, device=first.device)
        return {name: tensor.index_select(0, chosen) for name, tensor in values.items()}
    return {name: keras.ops.take(tensor, index, axis=0) for name, tensor in values.items()}

"""Early exit in one graph: runs a stage, keeps the rows that go on, and puts the finished ones back in
order."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_exitens import _scores as scores
from keras_exitens._stages.split import LOGITS
from keras_exitens.policies import Policy

__all__ = ["finite_rows", "route"]


def route(
    stages: Sequence[Any],
    policy: Policy,
    indices: Sequence[int],
    images: tf.Tensor,
    thresholds: Any = None,
    finite: tf.Tensor | None = None,
) -> dict[str, tf.Tensor]:
    """Takes each row of a batch as far through the network as the policy asks for, and no further.

    Stages that no row reaches are not run, and no stage ever sees a batch without rows. A row with a score of
    NaN, or with a pixel that is not finite, goes on to the end; its score is NaN there.

    Args:
        stages: sequence of `Stage`s, or of callables like them; one an enabled exit.
        policy: a `Policy` that `for_exits` gave.
        indices: int per stage, the exit it ends at, counted over all exits.
        images: float tensor `(batch, height, width, channels)`; `batch` may be 0, and need not be static.
        thresholds: float tensor `(K - 1,)`; by default those of the policy.
        finite: bool tensor `(batch,)`, the rows that can be judged; by default `finite_rows(images)`.

    Returns:
        A dict of tensors: `"logits"` float32 `(batch, classes)`, `"exit"` int32 `(batch,)`, the index of the
        exit each row left at, and `"score"` float32 `(batch,)`.
    """
    thresholds = policy.thresholds if thresholds is None else thresholds
    rows = tf.shape(images)[0]
    finite = finite_rows(images) if finite is None else finite
    images, finite = _at_least_one(images, finite)

    def run(k: int, batch: dict[str, Any]) -> dict[str, tf.Tensor]:
        """The stages from the k-th on, for the rows of `batch`: all that is known of each row."""
        stage, index = stages[k], indices[k]
        made = stage(batch["values"])
        logits, score, state = policy.observe(tf.cast(made[LOGITS], tf.float32), index, batch["state"])
        score = tf.where(batch["finite"], tf.cast(score, tf.float32), math.nan)
        result = {"logits": logits, "exit": tf.fill(tf.shape(score), index), "score": score}
        if k == len(stages) - 1:
            return result
        values = scores.handed_on(batch["values"], made, stage.carried)
        batch = {"values": values, "state": state, "finite": batch["finite"]}
        going_on = tf.where(scores.goes_on(keras.ops, score, thresholds[index]))

        def later() -> dict[str, tf.Tensor]:
            remaining = tf.cond(
                tf.shape(going_on)[0] == tf.shape(score)[0],
                lambda: batch,  # nobody left: nothing to copy
                lambda: tf.nest.map_structure(lambda t: tf.gather(t, going_on[:, 0]), batch),
            )
            found = run(k + 1, remaining)
            return {key: tf.tensor_scatter_nd_update(result[key], going_on, found[key]) for key in result}

        return tf.cond(tf.shape(going_on)[0] > 0, later, lambda: result)

    values = dict.fromkeys(stages[0].inputs, images)
    result = run(0, {"values": values, "state": {}, "finite": finite})
    return {key: value[:rows] for key, value in result.items()}


def finite_rows(images: tf.Tensor) -> tf.Tensor:
    """Which rows of a batch have no NaN and nothing infinite: bool `(batch,)`."""
    if not images.dtype.is_floating:
        return tf.ones(tf.shape(images)[:1], bool)
    return tf.reduce_all(tf.math.is_finite(images), axis=list(range(1, images.shape.rank)))


def _at_least_one(images: tf.Tensor, finite: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The batch, or a row of zeros where there are none: for none, convolutions return wrong shapes."""
    if images.shape[0] is not None and images.shape[0] > 0:
        return images, finite
    # Sizes that are known stay known: TensorFlow fuses less where they are not.
    sizes = zip(images.shape[1:], tf.unstack(tf.shape(images)[1:]), strict=True)
    one_row = [1, *(size if known is None else known for known, size in sizes)]
    return tf.cond(
        tf.shape(images)[0] > 0,
        lambda: (images, finite),
        lambda: (tf.zeros(one_row, images.dtype), tf.ones(1, bool)),
    )

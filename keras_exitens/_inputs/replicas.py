"""One step on several replicas of `tf.distribute`: exact sums, a replica without rows, variables in scope."""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import keras

from keras_exitens import _checks as checks
from keras_exitens._backend import tf
from keras_exitens._types import Tensor

__all__ = [
    "EMPTY_REPLICA",
    "Strategy",
    "all_sum",
    "at_least_one_row",
    "check_scope",
    "check_agreed",
    "count",
    "current",
    "gatherable",
    "is_chief",
    "multi_worker",
    "of_model",
    "of_one",
    "reducible",
]

Strategy: TypeAlias = Any  # a `tf.distribute.Strategy`, or what stands for it on other backends

# What the assertion in the graph says; `guards` knows the error by it.
EMPTY_REPLICA = "A replica got no rows of a training batch, and the network has BatchNormalization."


class _Alone:
    """What stands for a strategy where Keras does not run on TensorFlow: one replica, and no scope."""

    num_replicas_in_sync = 1

    def scope(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def current() -> Strategy:
    """The strategy in whose scope this is called."""
    return _Alone() if tf is None else tf.distribute.get_strategy()


def of_model(model: keras.Model) -> Strategy:
    """The strategy that a model was made under."""
    return _Alone() if tf is None else model.distribute_strategy


def count() -> int:
    """Number of replicas that share a batch."""
    return current().num_replicas_in_sync


def all_sum(value: Tensor) -> Tensor:
    """The sum over all replicas of a scalar of each, known to all of them."""
    if count() == 1:
        return value
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def multi_worker(strategy: Strategy) -> bool:
    """Whether a strategy spans several processes."""
    if tf is None:
        return False
    mirrored = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return mirrored and strategy.num_replicas_in_sync > len(strategy.extended.worker_devices)


def is_chief(strategy: Strategy) -> bool:
    """Whether this process is the one of its job that writes files."""
    resolver = getattr(strategy, "cluster_resolver", None)
    if resolver is None or resolver.task_type in (None, "chief"):
        return True
    return (
        resolver.task_type == "worker"
        and resolver.task_id == 0
        and "chief" not in resolver.cluster_spec().jobs
    )


def check_agreed(what: str, value: int, strategy: Strategy) -> None:
    """Raises `ValueError` where the workers of a job have different values of a whole number."""
    if not multi_worker(strategy):
        return

    @tf.function
    def of_all() -> Tensor:
        return strategy.gather(strategy.run(lambda: tf.constant([value], tf.int64)), axis=0)

    values = sorted(set(of_all().numpy().tolist()))
    if len(values) > 1:
        raise checks.error(
            f"The workers differ in the {what}.",
            expected="one value",
            received=f"values {values}",
            fix="let all workers read from one folder that all of them see",
        )


def reducible(logs: dict[str, Tensor], strategy: Strategy) -> dict[str, Tensor]:
    """Scalars in the form in which Keras takes their mean over replicas.

    Over several processes it reduces their first axis, which scalars do not have (keras-team/keras#20585).
    """
    if not multi_worker(strategy):
        return logs
    return keras.tree.map_structure(lambda value: tf.reshape(value, (1,)), logs)


def gatherable(outputs: Any, strategy: Strategy) -> Any:
    """Outputs in types that workers can exchange: TensorFlow's collectives know no bfloat16.

    The values stay what they are, in float32. On one worker nothing changes.
    """
    if not multi_worker(strategy):
        return outputs

    def widened(tensor: Tensor) -> Tensor:
        return tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor

    return keras.tree.map_structure(widened, outputs)


def at_least_one_row(inputs: Any, *, refuse: bool = False) -> tuple[Any, Callable[[Any], Any]]:
    """Gives a replica without rows one row of zeros to compute on.

    The last batch of an epoch may be too small for all replicas. Layers cannot be run on no rows at all: with
    oneDNN a convolution even gives a wrong shape.

    Args:
        inputs: a tensor `(rows, ...)`, or a structure of them.
        refuse: bool, whether a replica without rows is an error, found while the graph runs.

    Returns:
        The inputs, and a function that takes the added row off outputs `(rows, ...)` again. Where no replica
        can be empty (there is one only, or the shapes are static, as on TPUs) both change nothing.
    """
    first = keras.tree.flatten(inputs)[0]
    if count() == 1 or first.shape[0]:
        return inputs, lambda outputs: outputs
    rows = tf.shape(first)[0]
    if refuse:
        tf.debugging.assert_positive(rows, EMPTY_REPLICA)
    missing = tf.maximum(1 - rows, 0)

    # Not `tf.pad`: the graph optimizer fuses it with a convolution, and then pads no rows (TensorFlow 2.21).
    def pad(tensor: Tensor) -> Tensor:
        row = tf.zeros(tf.concat([[missing], tf.shape(tensor)[1:]], axis=0), tensor.dtype)
        return tf.ensure_shape(tf.concat([tensor, row], axis=0), [None, *tensor.shape[1:]])

    return (
        keras.tree.map_structure(pad, inputs),
        lambda outputs: keras.tree.map_structure(lambda tensor: tensor[:rows], outputs),
    )


def of_one(outputs: Any, rows: int) -> Any:
    """What `predict_on_batch` gives on one replica: Keras lets each compute all rows, and gives all of it."""
    return keras.tree.map_structure(lambda values: values[:rows], outputs)


def check_scope(what: str, variables: Iterable[keras.Variable], strategy: Strategy) -> None:
    """Raises `ValueError` where variables were made under another strategy than the one that trains them."""
    if tf is None:
        return
    foreign = [v.path for v in variables if not strategy.extended.variable_created_in_scope(v.value)]
    if foreign:
        raise checks.error(
            f"The {what} was not made in the scope of the strategy that is to train it.",
            expected="all variables made in one scope",
            received=f"{len(foreign)} variables from outside of {type(strategy).__name__}'s, the first "
            f"{foreign[0]!r}",
            fix="put everything from the network to compile under one `with strategy.scope():`",
        )

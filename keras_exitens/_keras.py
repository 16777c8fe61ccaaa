"""The one place that touches what Keras, and TensorFlow, keep private.

Each touch says why nothing public serves. All were read in the sources of Keras 3.13.0 and 3.15.1, and
of TensorFlow 2.20.0 and 2.21.0; a new version of either is checked against this file. A test fails when
another file touches something private.
"""

import dataclasses
import re
from typing import Any

import keras
from keras import tree

__all__ = [
    "ACTIVITY_IS_A_MEAN",
    "LocalSymbolicBuild",
    "OperationCall",
    "StateKept",
    "activity_loss",
    "averaged_function",
    "callback_state",
    "call_that_made",
    "constants_for_variables",
    "direction",
    "first_local",
    "functional_of",
    "graph_function",
    "inner_layers",
    "is_functional",
    "loss_scale",
    "loss_tracker",
    "operation_that_made",
    "recover",
    "seen_as",
    "set_callback_state",
    "set_direction",
    "single_call",
    "skip_epochs",
    "takes_training",
    "trace_predict_again",
]


# The graph of a functional model: `keras/src/ops/node.py`. Keras offers no public way from a tensor to the
# operation that made it.


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class OperationCall:
    """One call of one operation, as the graph of a functional model records it (Keras's `Node`).

    Attributes:
        operation: the layer or other operation.
        inputs, outputs: lists of KerasTensors, in the order of the arguments and of the results.
        args, kwargs: what the operation was called with.
    """

    operation: keras.Operation
    inputs: list[keras.KerasTensor]
    outputs: list[keras.KerasTensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    _node: Any

    @classmethod
    def _of(cls, node: Any) -> "OperationCall":
        arguments = node.arguments
        return cls(node.operation, node.input_tensors, node.outputs, arguments.args, arguments.kwargs, node)

    def fill_in(self, values: dict[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`(args, kwargs)` with each tensor replaced by `values[id(tensor)]`."""
        return self._node.arguments.fill_in(values)


def call_that_made(tensor: keras.KerasTensor) -> OperationCall | None:
    """The call that made a tensor; `None` for an input."""
    history = tensor._keras_history
    node = history.operation._inbound_nodes[history.node_index]
    return None if node.is_input else OperationCall._of(node)


def operation_that_made(tensor: keras.KerasTensor) -> keras.Operation:
    """The operation that made a tensor: `call_that_made`, without the call; an `InputLayer` for an input."""
    return tensor._keras_history.operation


def single_call(model: keras.Model) -> OperationCall | None:
    """The one call in a functional model of a single operation; `None` for any other model."""
    inside = [op for op in model.operations if not isinstance(op, keras.layers.InputLayer)]
    # Each call of the model adds a node to it, beside those of its own graph.
    if len(inside) != 1 or len(model._nodes) != len(model.inputs) + 1:
        return None
    return call_that_made(model.outputs[0])


def is_functional(operation: Any) -> bool:
    """Whether an operation is a functional or Sequential model without a `call` of its own."""
    if not isinstance(operation, keras.Model):
        return False
    if not isinstance(functional_of(operation), keras.Function):
        return False
    # `Functional` is no public class: it is known by its name. KerasHub and users subclass it.
    own = (keras.Sequential, *(kind for kind in type(operation).__mro__ if kind.__name__ == "Functional"))
    return any(type(operation).call is kind.call for kind in own)


def functional_of(model: keras.Model) -> Any:
    """The functional model that a built Sequential one runs; any other model itself."""
    return model._functional if isinstance(model, keras.Sequential) else model


# Layers: `keras/src/layers/layer.py`.


def inner_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """All layers in a model at any depth. `Model.layers` leaves out those in wrappers and nested models."""
    return list(model._flatten_layers(include_self=False))


def takes_training(operation: keras.Operation) -> bool:
    """Whether an operation is called with `training`. Keras reads it off the signature and keeps it here."""
    return getattr(operation, "_call_has_training_arg", False)


def seen_as(layer: keras.layers.Layer, kind: type[keras.layers.Layer], name: str) -> Any:
    """A built layer as one of another class, with the same variables and settings, in calls of its own."""
    view = object.__new__(kind)
    vars(view).update(vars(layer), name=name, _inbound_nodes=[], _outbound_nodes=[])
    return view


def activity_loss(layer: keras.layers.Layer, outputs: Any) -> Any:
    """What a layer's activity regulariser adds: the mean over the rows, before Keras 3.14.1 the sum."""
    loss = layer.activity_regularizer(outputs)
    if ACTIVITY_IS_A_MEAN:
        loss = loss / keras.ops.cast(keras.ops.shape(outputs)[0], loss.dtype)
    return loss


ACTIVITY_IS_A_MEAN = tuple(int(part) for part in re.findall(r"\d+", keras.version())[:3]) >= (3, 14, 1)


# Metrics: `keras/src/metrics/`.


def direction(metric: keras.metrics.Metric) -> str | None:
    """`"up"` where larger is better, `"down"`, or `None`: what Keras's callbacks read in auto mode."""
    return getattr(metric, "_direction", None)


def set_direction(metric: keras.metrics.Metric, value: str | None) -> None:
    """Tells Keras's callbacks which direction of a metric of our own is the better one."""
    if value is not None:
        metric._direction = value


def averaged_function(metric: keras.metrics.Metric) -> tuple[Any, dict[str, Any]]:
    """What a `MeanMetricWrapper` averages, and its keyword arguments; `(None, {})` for another metric.

    Its config has them serialised, which fails for a function that is not registered.
    """
    return getattr(metric, "_fn", None), getattr(metric, "_fn_kwargs", {})


# The trainer: `keras/src/trainers/trainer.py`, `keras/src/backend/tensorflow/trainer.py`.


def loss_tracker(model: keras.Model) -> keras.metrics.Mean:
    """The metric `loss` of a compiled model. A `train_step` of one's own has to update it, or it stays 0."""
    return model._loss_tracker


def trace_predict_again(model: keras.Model) -> None:
    """Has `predict` trace its graph anew. Keras does so by itself after `compile` alone."""
    model.predict_function = None


def recover(model: keras.Model) -> None:
    """Makes a model whose `fit`, `evaluate` or `predict` failed ready for the next call.

    A graph of TensorFlow whose tracing failed stays half made, and fails again. JAX's trainer takes the
    values out of all variables before the first batch.
    """
    model.train_function = model.test_function = model.predict_function = None
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


_STATE = "trainable_variables", "non_trainable_variables", "optimizer_variables", "metrics_variables"


class StateKept:
    """Has JAX's trainer know the values that it takes out of the variables; before `keras.Model`.

    It knows those of the last batch that succeeded: where the first one fails, there is none, and a trained
    network would be lost.
    """

    def _get_jax_state(self, **wanted: bool) -> tuple[Any, ...]:
        state: tuple[Any, ...] = super()._get_jax_state(**wanted)  # type: ignore[misc]
        if wanted.get("purge_model_variables"):
            self._jax_state = dict(zip(filter(wanted.get, _STATE), state, strict=True))
        return state


class LocalSymbolicBuild:
    """Builds metrics from the batch of one replica; for a subclass of `keras.Model`, before it.

    Keras builds them from the mean of the first batch over all replicas. That fails where replicas have
    different numbers of rows, or where each worker has one replica (keras-team/keras#20585).
    """

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        strategy = self.distribute_strategy  # type: ignore[attr-defined]
        if iterator is not None and strategy.num_replicas_in_sync > 1:
            _, _, batches = next(iter(iterator))
            data_batch, iterator = first_local(strategy, next(batches)), None
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)  # type: ignore[misc]


def first_local(strategy: Any, values: Any) -> Any:
    """From a structure of values of all replicas, those of the first replica of this process."""
    return tree.map_structure(lambda value: strategy.experimental_local_results(value)[0], values)


def skip_epochs(model: keras.Model, number: int) -> None:
    """Has the `fit` that is beginning start at epoch `number`, counted from 0; as `BackupAndRestore` does.

    `fit` alone would train whatever a callback says before the first batch. 0 undoes it: Keras does not.
    """
    model._initial_epoch = number or None


# Callbacks: `keras/src/callbacks/`. Nothing public gives what they carry from batch to batch and on.

_SAVED_AT = ("best", "_batches_seen_since_last_saving", "_last_batch_seen")
_CARRIED: dict[Any, tuple[str, ...]] = {
    keras.callbacks.EarlyStopping: ("best", "wait", "stopped_epoch", "best_weights", "best_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("best", "wait", "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: _SAVED_AT,
    keras.callbacks.SwapEMAWeights: ("_ema_weights_in_model",),
    keras.callbacks.TensorBoard: ("_global_train_batch", "_global_test_batch"),
}
if hasattr(keras.callbacks, "OrbaxCheckpoint"):  # since Keras 3.14
    _CARRIED[keras.callbacks.OrbaxCheckpoint] = (*_SAVED_AT, "_total_batches_seen")


def callback_state(callback: keras.callbacks.Callback) -> dict[str, Any]:
    """What one of Keras's callbacks carries on; nothing for any other callback."""
    names = next((names for kind, names in _CARRIED.items() if isinstance(callback, kind)), ())
    return {name: getattr(callback, name) for name in names}


def set_callback_state(callback: keras.callbacks.Callback, state: dict[str, Any]) -> None:
    """Gives a callback what `callback_state` of another one said."""
    for name, value in state.items():
        setattr(callback, name, value)


# Optimizers: `keras/src/optimizers/loss_scale_optimizer.py`.


def loss_scale(optimizer: keras.optimizers.LossScaleOptimizer) -> Any:
    """The factor that losses are multiplied by now. Keras gives it out multiplied by a loss alone."""
    # The value as it is now: of a variable, Keras gives the variable itself for a tensor.
    return optimizer.dynamic_scale.value if optimizer.built else optimizer.initial_scale


# TensorFlow.


def graph_function(graph: Any, name: str) -> Any:
    """The body of a function that a TensorFlow graph calls: `Graph` lists no functions publicly."""
    return graph._get_function(name)


def constants_for_variables(concrete: Any) -> Any:
    """A concrete function with constants in place of its variables, as TensorFlow's converters make it.

    The public `tf.compat.v1.graph_util` works on sessions alone.
    """
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    return convert_variables_to_constants_v2(concrete)

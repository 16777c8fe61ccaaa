"""The metrics given to `compile`, once for each exit and once for the ensemble."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_exitens import _checks as checks
from keras_exitens._inputs.labels import one_hot
from keras_exitens._keras import averaged_function, direction, set_direction
from keras_exitens._training.losses import is_of_keras
from keras_exitens._types import Tensor
from keras_exitens.objectives import cross_entropy

__all__ = ["ExitMetric", "per_exit"]

# Ranks classes only: logits and probabilities give the same value.
_RANKS = (
    keras.metrics.SparseCategoricalAccuracy,
    keras.metrics.CategoricalAccuracy,
    keras.metrics.SparseTopKCategoricalAccuracy,
    keras.metrics.TopKCategoricalAccuracy,
)


class ExitMetric(keras.metrics.Metric):
    """A metric of one exit, named `"<exit>_<metric>"`, that reads its part of the stacked logits.

    Args:
        metric: the `keras.metrics.Metric` that is fed; owned by this object.
        exit_name: name of the exit, or `"ensemble"`.
        index: position of that exit in the stacked logits `(batch, K + 1, classes)`.
    """

    def __init__(self, metric: keras.metrics.Metric, exit_name: str, index: int) -> None:
        super().__init__(name=f"{exit_name}_{metric.name}", dtype=metric.dtype)
        self.metric = metric
        self.index = index
        set_direction(self, direction(metric))

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> None:
        logits = y_pred[:, self.index]
        y_true, scores = self._feed(y_true, logits)
        self.metric.update_state(y_true, scores, sample_weight=sample_weight)

    def _feed(self, y: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and scores in the form that the metric wants."""
        logits = ops.cast(logits, "float32")
        classes, ids, kind = logits.shape[-1], len(y.shape) == 1, _describe(self.metric)
        binary = False
        if not is_of_keras(_function_of(self.metric)):
            pass  # a metric of the user's own gets the labels as they are
        elif "sparse" in kind or getattr(self.metric, "sparse_y_true", False):
            y = y if ids else ops.argmax(y, axis=-1)
        elif ids and classes == 2 and "categorical" not in kind and "onehot" not in kind:
            y, binary = ops.expand_dims(y, -1), True
        elif ids:
            y = one_hot(y, classes)
        if _on_logits(self.metric):
            return y, logits[:, 1:] - logits[:, :1] if binary else logits
        # A copy: Keras remembers the logits behind a softmax, and would take them for those of a sigmoid.
        scores = tf.identity(ops.softmax(logits))
        return y, scores[:, 1:] if binary else scores

    def result(self) -> Tensor:
        return self.metric.result()

    def reset_state(self) -> None:
        self.metric.reset_state()

    def get_config(self) -> dict[str, Any]:
        return {"metric": keras.saving.serialize_keras_object(self.metric), "index": self.index}


def _function_of(metric: keras.metrics.Metric) -> Any:
    """What a metric averages, or the metric itself: its name says which labels it takes."""
    function, _ = averaged_function(metric)
    function = metric if function is None else function
    if isinstance(getattr(function, "__self__", None), keras.losses.Loss):
        return function.__self__
    return metric if function is cross_entropy else function


def _describe(metric: keras.metrics.Metric) -> str:
    function = _function_of(metric)
    name = getattr(function, "__name__", type(function).__name__)
    return f"{type(metric).__name__} {name}".lower().replace("_", "")


def _on_logits(metric: keras.metrics.Metric) -> bool:
    """Whether a metric reads logits; those that only rank classes give the same on logits, and cheaper."""
    function = _function_of(metric)
    loss = isinstance(function, keras.losses.Loss)
    averaged, keywords = averaged_function(metric)
    settings = function.get_config() if loss else keywords
    return (
        averaged is cross_entropy
        or isinstance(metric, _RANKS)
        or bool(settings.get("from_logits") or getattr(metric, "from_logits", False))
    )


def per_exit(metrics: Any, names: Sequence[str], argument: str) -> list[ExitMetric] | None:
    """One `ExitMetric` for each metric and each name; `None` stays `None`.

    Args:
        metrics: a metric or a list of metrics: names, functions or `keras.metrics.Metric`s.
        names: list of str, in the order of the stacked logits.
        argument: name of the argument of `compile`, for error messages.
    """
    if metrics is None:
        return None
    if isinstance(metrics, dict):
        raise checks.error(
            f"`{argument}` is a dict.",
            expected="a list of metrics: each is measured at every exit and at the ensemble",
            received=f"{argument}={metrics!r}",
            fix=f"pass {argument}=['accuracy']; the log names are exit_1_accuracy, ..., ensemble_accuracy",
        )
    metrics = [_resolve(m) for m in (metrics if isinstance(metrics, list | tuple) else [metrics])]
    return [ExitMetric(_copy(metric), name, i) for i, name in enumerate(names) for metric in metrics]


def _resolve(identifier: Any) -> keras.metrics.Metric:
    if isinstance(identifier, str) and identifier.lower() in ("accuracy", "acc"):
        return keras.metrics.SparseCategoricalAccuracy(name=identifier)
    if isinstance(identifier, str) and identifier.lower() in ("crossentropy", "ce"):
        return _mean_loss(cross_entropy, identifier)
    if isinstance(identifier, keras.losses.Loss):
        # Unreduced: the metric takes the mean over all samples.
        return _mean_loss(identifier.call, identifier.name)
    try:
        metric = keras.metrics.get(identifier)
    except (TypeError, ValueError):
        metric = None
    if metric is None:
        raise checks.error(
            "This is not a metric.",
            expected="the name of a Keras metric, a function (y, probabilities), or a keras.metrics.Metric",
            received=repr(identifier),
            fix="for instance metrics=['accuracy']",
        )
    if not isinstance(metric, keras.metrics.Metric):
        name = (
            identifier
            if isinstance(identifier, str)
            else getattr(metric, "__name__", getattr(metric, "name", "metric"))
        )
        return keras.metrics.MeanMetricWrapper(metric, name=name)
    if isinstance(identifier, str):
        metric.name = identifier
    return metric


def _mean_loss(function: Callable[..., Tensor], name: str) -> keras.metrics.Metric:
    metric = keras.metrics.MeanMetricWrapper(function, name=name)
    set_direction(metric, "down")
    return metric


def _copy(metric: keras.metrics.Metric) -> keras.metrics.Metric:
    try:
        if type(metric) is keras.metrics.MeanMetricWrapper:  # its config would need the function registered
            function, keywords = averaged_function(metric)
            copy = keras.metrics.MeanMetricWrapper(function, dtype=metric.dtype, **keywords)
        else:
            copy = type(metric).from_config(metric.get_config())
    except Exception as cause:
        raise checks.error(
            f"The metric {metric.name!r} cannot be copied for each exit: {cause}",
            expected="a metric whose class has get_config and from_config",
            received=repr(type(metric)),
            fix="implement get_config() so that from_config(metric.get_config()) makes another one",
        ) from cause
    copy.name = metric.name
    set_direction(copy, direction(metric))
    return copy

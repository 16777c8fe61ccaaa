"""The metrics given to `compile`, once for each exit and once for the ensemble."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_exitens import _checks as checks
from keras_exitens._inputs.labels import counted_rows, in_range, one_hot
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
# Of which `sparse_y_true` and `sparse_y_pred` say whether they take class ids or scores.
_IOU = keras.metrics.IoU


class ExitMetric(keras.metrics.Metric):
    """A metric of one exit, named `"<exit>_<metric>"`, that reads its part of the stacked logits.

    Args:
        metric: the `keras.metrics.Metric` that is fed; owned by this object.
        exit_name: name of the exit, or `"ensemble"`.
        index: position of that exit in the stacked logits `(batch, K + 1, classes)`.
        ignored: a class id whose rows weigh nothing, or `None`.
    """

    def __init__(
        self, metric: keras.metrics.Metric, exit_name: str, index: int, ignored: int | None = None
    ) -> None:
        super().__init__(name=f"{exit_name}_{metric.name}", dtype=metric.dtype)
        self.metric = metric
        self.index = index
        self.ignored = ignored
        set_direction(self, direction(metric))

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> None:
        logits = ops.cast(y_pred[:, self.index], "float32")
        y_true, counted = counted_rows(y_true, self.ignored)
        y_true = in_range(y_true, logits.shape[-1])
        if counted is not None:
            weight = 1 if sample_weight is None else ops.reshape(sample_weight, (-1,))
            sample_weight = ops.cast(counted, getattr(weight, "dtype", self.metric.dtype)) * weight
        y_true, scores = fed(self.metric, y_true, logits)
        self.metric.update_state(y_true, scores, sample_weight=sample_weight)

    def result(self) -> Tensor:
        return self.metric.result()

    def reset_state(self) -> None:
        self.metric.reset_state()

    def get_config(self) -> dict[str, Any]:
        return {
            "metric": keras.saving.serialize_keras_object(self.metric),
            "index": self.index,
            "ignored": self.ignored,
        }


def fed(metric: keras.metrics.Metric, y: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and scores in the form that a metric wants.

    A metric of Keras, or one that inherits how it reads labels, gets of many classes what its family is made
    for: class ids or one-hot rows, and the probabilities of all classes. Of two classes with ids it gets what
    a network ending in `Dense(1, "sigmoid")` would give it, columns of ids and of the probability of class 1,
    unless it looks at each class (`_of_each_class`). A metric of the user's own gets the labels as they are.

    Args:
        metric: a `keras.metrics.Metric`.
        y: class ids `(batch,)` or class probabilities `(batch, classes)`.
        logits: float32 `(batch, classes)`.

    Returns:
        `(y_true, y_pred)`: labels, and logits, probabilities or predicted class ids.
    """
    classes, ids, settings = logits.shape[-1], len(y.shape) == 1, _settings(metric)
    on_logits = _on_logits(metric, settings)
    if averaged_function(metric)[0] is cross_entropy:
        return y, logits
    if not _takes_as_keras(metric):
        return y, logits if on_logits else _probabilities(logits)
    if ids and classes == 2 and not _of_each_class(metric, settings):
        column = logits[:, 1:] - logits[:, :1] if on_logits else _probabilities(logits)[:, 1:]
        return ops.expand_dims(y, -1), column
    if _takes_ids(metric):
        y = y if ids else ops.argmax(y, axis=-1)
    elif ids:
        y = one_hot(y, classes)
    if isinstance(metric, _IOU) and metric.sparse_y_pred and not isinstance(metric, keras.metrics.BinaryIoU):
        return y, ops.argmax(logits, axis=-1)
    if on_logits and isinstance(metric, keras.metrics.AUC) and classes == 2:
        # Each class by a sigmoid: its logit against the other one.
        return y, logits - ops.flip(logits, axis=-1)
    return y, logits if on_logits else _probabilities(logits)


def _takes_as_keras(metric: keras.metrics.Metric) -> bool:
    """Whether Keras's own code reads the labels, in a subclass of the user's too."""
    function = _function_of(metric)
    return is_of_keras(type(metric).update_state if function is metric else function)


def _probabilities(logits: Tensor) -> Tensor:
    # A copy: Keras remembers the logits behind a softmax, and would take them for those of a sigmoid.
    return ops.copy(ops.softmax(logits))


def _takes_ids(metric: keras.metrics.Metric) -> bool:
    if isinstance(metric, keras.metrics.BinaryIoU):  # of many classes: it asks each of them, yes or no
        return False
    return metric.sparse_y_true if isinstance(metric, _IOU) else "sparse" in _describe(metric)


def _of_each_class(metric: keras.metrics.Metric, settings: Mapping[str, Any]) -> bool:
    """Whether a metric wants a score a class of two classes, too, not the score of class 1 alone."""
    if isinstance(metric, _IOU):
        return not isinstance(metric, keras.metrics.BinaryIoU)
    if isinstance(metric, keras.metrics.FBetaScore) and settings["threshold"] is None:
        return True  # it takes the class with the larger score
    chosen = any(settings.get(key) is not None for key in ("class_id", "top_k"))
    kind = _describe(metric)
    return chosen or bool(settings.get("multi_label")) or "categorical" in kind


def _function_of(metric: keras.metrics.Metric) -> Any:
    """What a metric averages, or the metric itself: its name says which labels it takes."""
    function, _ = averaged_function(metric)
    owner = getattr(function, "__self__", None)
    if isinstance(owner, keras.losses.Loss):
        return owner
    return metric if function is None else function


def _describe(metric: keras.metrics.Metric) -> str:
    function = _function_of(metric)
    name = getattr(function, "__name__", type(function).__name__)
    return f"{type(metric).__name__} {name}".lower().replace("_", "")


def _settings(metric: keras.metrics.Metric) -> Mapping[str, Any]:
    """The arguments of a metric of Keras, or of the function or loss that it averages."""
    function = _function_of(metric)
    if isinstance(function, keras.losses.Loss):
        return function.get_config()
    averaged, keywords = averaged_function(metric)
    if averaged is not None or not _takes_as_keras(metric):
        return keywords
    return metric.get_config()


def _on_logits(metric: keras.metrics.Metric, settings: Mapping[str, Any]) -> bool:
    """Whether a metric reads logits; those that only rank classes give the same on logits, and cheaper."""
    from_logits = settings.get("from_logits") or getattr(metric, "from_logits", False)
    return isinstance(metric, _RANKS) or bool(from_logits)


def per_exit(
    metrics: Any, names: Sequence[str], argument: str, ignored: int | None = None
) -> list[ExitMetric] | None:
    """One `ExitMetric` for each metric and each name; `None` stays `None`.

    Args:
        metrics: a metric or a list of metrics: names, functions or `keras.metrics.Metric`s.
        names: list of str, in the order of the stacked logits.
        argument: name of the argument of `compile`, for error messages.
        ignored: a class id whose rows weigh nothing, or `None`.
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
    return [ExitMetric(_copy(metric), name, i, ignored) for i, name in enumerate(names) for metric in metrics]


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

"""The metrics given to `compile`, once for each exit and once for the ensemble."""

import keras
from keras import ops

from keras_exitens import checks
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

    def __init__(self, metric, exit_name, index):
        super().__init__(name=f"{exit_name}_{metric.name}", dtype=metric.dtype)
        self.metric = metric
        self.index = index
        # Keras's callbacks read from it whether larger is better.
        self._direction = getattr(metric, "_direction", None)
        self._kind = _describe(metric)

    def update_state(self, y_true, y_pred, sample_weight=None):
        logits = y_pred[:, self.index]
        y_true, scores = self._feed(y_true, logits)
        self.metric.update_state(y_true, scores, sample_weight=sample_weight)

    def _feed(self, y, logits):
        """Labels and scores in the form that the metric wants."""
        ids = len(y.shape) == 1
        if "sparse" in self._kind and not ids:
            y = ops.argmax(y, axis=-1)
        elif "categorical" in self._kind and "sparse" not in self._kind and ids:
            y = ops.one_hot(y, logits.shape[-1])
        if (
            isinstance(self.metric, _RANKS)
            or getattr(self.metric, "from_logits", False)
            or _on_logits(self.metric)
        ):
            return y, logits
        scores = ops.softmax(logits)
        if ids and logits.shape[-1] == 2 and "categorical" not in self._kind:
            return ops.expand_dims(y, -1), scores[:, 1:]  # a metric of binary classification
        return y, scores

    def result(self):
        return self.metric.result()

    def reset_state(self):
        self.metric.reset_state()

    def get_config(self):
        return {"metric": keras.saving.serialize_keras_object(self.metric), "index": self.index}


def _describe(metric):
    """Class and function name of a metric, lower case: what Keras's own metrics say of their labels."""
    function = getattr(metric, "_fn", None)
    return f"{type(metric).__name__} {getattr(function, '__name__', '')}".lower()


def _on_logits(metric):
    return (
        bool(getattr(metric, "_fn_kwargs", {}).get("from_logits"))
        or getattr(metric, "_fn", None) is cross_entropy
    )


def per_exit(metrics, names, argument):
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


def _resolve(identifier):
    if isinstance(identifier, str) and identifier.lower() in ("accuracy", "acc"):
        return keras.metrics.SparseCategoricalAccuracy(name=identifier)
    if isinstance(identifier, str) and identifier.lower() in ("crossentropy", "ce"):
        return keras.metrics.MeanMetricWrapper(cross_entropy, name=identifier)
    metric = keras.metrics.get(identifier)
    if not isinstance(metric, keras.metrics.Metric):
        name = identifier if isinstance(identifier, str) else getattr(metric, "__name__", "metric")
        return keras.metrics.MeanMetricWrapper(metric, name=name)
    if isinstance(identifier, str):
        metric.name = identifier
    return metric


def _copy(metric):
    if (
        isinstance(metric, keras.metrics.MeanMetricWrapper)
        and type(metric) is keras.metrics.MeanMetricWrapper
    ):
        return keras.metrics.MeanMetricWrapper(
            metric._fn, name=metric.name, dtype=metric.dtype, **metric._fn_kwargs
        )
    try:
        copy = type(metric).from_config(metric.get_config())
    except Exception as cause:
        raise checks.error(
            f"The metric {metric.name!r} cannot be copied for each exit: {cause}",
            expected="a metric whose class has get_config and from_config",
            received=repr(type(metric)),
            fix="implement get_config() so that from_config(metric.get_config()) makes another one",
        ) from cause
    copy.name = metric.name
    return copy

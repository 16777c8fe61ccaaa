"""`ExitEnsembleDistiller`: trains a multi-exit network in Keras's own `fit`."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Generic, Self, TypeVar

import keras
import numpy as np
from keras import ops

from keras_exitens import _checks as checks
from keras_exitens._backend import tf
from keras_exitens._inputs import replicas
from keras_exitens._inputs.images import explained_sizes, sized
from keras_exitens._inputs.labels import check_labels, check_weights, standard_labels
from keras_exitens._keras import inner_layers, loss_tracker, recover
from keras_exitens._network.exit_network import ExitNetwork
from keras_exitens._training import arguments
from keras_exitens._training.arguments import ENSEMBLE
from keras_exitens._training.exit_metrics import per_exit
from keras_exitens._training.guards import NonFiniteLoss, explained, resumable
from keras_exitens._training.losses import ignored_class, per_sample
from keras_exitens._training.rows import Rows
from keras_exitens._training.step import Step, prepared
from keras_exitens._types import Data, Path, Tensor
from keras_exitens.objectives import EED, Objective
from keras_exitens.objectives.ensemble import at_least_float32, mean
from keras_exitens.objectives.objective import TERMS

__all__ = ["ExitEnsembleDistiller"]

HALF = "mixed_float16"
COUNTER = "int32" if tf is None else "int64"  # JAX has no int64
T = TypeVar("T")


@keras.saving.register_keras_serializable(package="keras_exitens")
class ExitEnsembleDistiller(Step, keras.Model):
    """Trains a multi-exit network so that its exits teach each other.

    Used as any `keras.Model`: `compile`, `fit`, `evaluate`, `predict`, `save`. Each step runs the network
    once. Calling it, and `predict`, give the dict of logits of the exits, in order, plus `"ensemble"`, their
    mean. The network that is trained is `distiller.model`.

    The loss of a batch is `(1 / rows) sum_b w_b sum_terms term_b + regularisation`, where the terms come from
    the objective, w is `sample_weight` (1 without), and `rows` counts the rows on all replicas: the reduction
    of Keras's `"sum_over_batch_size"`, exact for uneven batches too.

    Logged are `loss`, `classification_loss`, `distillation_loss`, `feature_loss` (means over samples, weights
    of the terms included) and each metric at each exit and at the ensemble: `exit_1_accuracy`, ...,
    `final_accuracy`, `ensemble_accuracy`; with `val_` before each in validation.

    Made, with its network, under `with strategy.scope():` it trains on all replicas of the strategy, with the
    updates and logs of one device; the logs of single batches are means over the replicas. A last batch that
    leaves replicas without rows is trained on too, unless the network has batch normalisation.

    Args:
        model: the result of `add_exits`, or a functional model with a dict of logits `(batch, classes)`. Its
            final exit is the one named `"final"`, or else the one that needs most operations.
        objective: an objective of `keras_exitens.objectives`; default `EED(feature_weight=0)`, which distils
            the outputs of the exits and not their features.
        name: str, name of the distiller.

    Raises:
        ValueError: `model` is not a multi-exit model, or its outputs are not logits; the objective compares
            features and those of the exits have different widths, or it does not fit the number of exits;
            the network was made outside of the scope of the distribution strategy.

    Example:

    ```python
    model = kx.add_exits(backbone)
    distiller = kx.ExitEnsembleDistiller(model)
    distiller.compile(optimizer="sgd", metrics=["accuracy"])
    distiller.fit(images, labels, validation_split=0.1, epochs=2)
    ```

    Reference: Lee & Lee, Students are the Best Teacher: Exit-Ensemble Distillation with Multi-Exits,
    arXiv 2104.00299.
    """

    def __init__(
        self,
        model: keras.Model,
        objective: Objective | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        parsed = ExitNetwork.of(model)
        objective = EED(feature_weight=0) if objective is None else objective
        arguments.check_objective(objective, parsed.names)
        features = arguments.matching_features(parsed, objective)
        parsed.check_logits()
        replicas.check_scope("network", model.variables, replicas.current())
        # Keras wraps the optimizer for loss scaling by the policy of the model that is compiled: this one.
        # Images go on to `model` as they are: it casts them where it wants to.
        super().__init__(name=name, dtype=_policy(model), autocast=False, **kwargs)
        self.model = model
        self.objective = objective
        self._names = parsed.names
        logits = [model.output[name] for name in self._names]
        network = prepared(keras.Model(model.input, (logits, features)))
        # A function, so that Keras does not track (and save) the layers a second time.
        self._forward = lambda x, training: network(x, training=training)
        self._state = {"step": self._scalar("step", 0, COUNTER)}
        for key, value in objective.initial_state().items():
            self._state[key] = self._scalar(key, value, "float32")
        half = self.dtype_policy.name == HALF
        self._ignored: int | None = None
        self._skipped: Any = self._scalar("skipped_steps", 0, COUNTER) if half else None
        self._term_trackers: _Untracked[dict[str, keras.metrics.Mean]] = _Untracked({})
        self.built = True

    def _scalar(self, name: str, value: float, dtype: str) -> keras.Variable:
        return self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(value),
            dtype=dtype,
            trainable=False,
            autocast=False,
            # Every replica computes the same value, from statistics of the global batch.
            aggregation="only_first_replica",
            name=name,
        )

    @property
    def classes(self) -> int:  # type: ignore[override]
        """Number of classes: the width of the logits."""
        return self.model.output[self._names[-1]].shape[-1]

    @property
    def skipped_steps(self) -> int:
        """Number of training steps that changed no weight because a gradient overflowed in float16."""
        return 0 if self._skipped is None else int(ops.convert_to_numpy(self._skipped))

    def call(self, inputs: Tensor, training: bool | None = None, *, with_features: bool = False) -> Any:
        """Logits of all exits and of the ensemble.

        Args:
            inputs: images `(batch, height, width, channels)`.
            training: bool, whether layers run in training mode.
            with_features: bool, whether to give the features as well.

        Returns:
            A dict from exit name to logits `(batch, classes)`, `"ensemble"` last; with `with_features`, a
            pair of that dict and the list of features `(batch, D)`, empty where the objective uses none.
        """
        logits, features = self._forward(sized(inputs, self.model.inputs[0]), training)
        outputs = dict(zip(self._names, logits, strict=True))
        outputs[ENSEMBLE] = mean(at_least_float32(logits))
        return (outputs, features) if with_features else outputs

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer = "rmsprop",
        loss: str | keras.losses.Loss | Callable[[Tensor, Tensor], Tensor] | None = None,
        loss_weights: None = None,
        metrics: list[Any] | None = None,
        weighted_metrics: list[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Configures training.

        Args:
            optimizer: name or instance of a Keras optimizer.
            loss: the classification loss of each exit. `None` (default): cross-entropy from logits, sparse or
                categorical by the rank of the labels. The name of a Keras loss is taken *from logits*. A
                `keras.losses.Loss` must have `from_logits=True` and the default reduction. A function
                `(y, logits)` must give one value per sample. Rows whose label is the `ignore_class` of
                `keras.losses.SparseCategoricalCrossentropy` teach nothing and count nowhere, in no term of
                the loss and in no metric.
            loss_weights: not taken: weights of exits and terms are arguments of the objective.
            metrics: list of metrics, each measured at every exit and at the ensemble. Metrics of
                probabilities get the softmax of the logits; those with `from_logits=True` get logits. Labels
                are converted to class ids or one-hot rows as the metric wants.
            weighted_metrics: the same, weighted by `sample_weight`.
            **kwargs: `run_eagerly`, `steps_per_execution`, `jit_compile`, `auto_scale_loss` of
                `keras.Model.compile`.

        Raises:
            ValueError: the loss wants probabilities or is not per sample; `metrics` is a dict;
                `loss_weights` is given (weights belong to the objective); the optimizer was made outside of
                the strategy's scope; several steps in one execution on several replicas.
        """
        arguments.refuse_loss_weights(loss_weights)
        steps = kwargs.get("steps_per_execution", 1)
        arguments.check_strategy(replicas.of_model(self), optimizer, steps)
        sample_loss, ignored = per_sample(loss, self.classes), ignored_class(loss)
        names = [*self._names, ENSEMBLE]
        with replicas.of_model(self).scope():
            measured = per_exit(metrics, names, "metrics", ignored)
            weighted = per_exit(weighted_metrics, names, "weighted_metrics", ignored)
            super().compile(
                optimizer=optimizer, loss=None, metrics=measured, weighted_metrics=weighted, **kwargs
            )
            self._term_trackers = _Untracked(
                {term: keras.metrics.Mean(name=f"{term}_loss") for term in TERMS}
            )
        if all(metric.variables for metric in [*(measured or []), *(weighted or [])]):
            self._list_metrics(len(names))
        self._sample_loss, self._ignored = sample_loss, ignored
        self._compile_arguments = _Untracked(
            {
                "optimizer": self.optimizer,
                "loss": loss,
                "metrics": metrics,
                "weighted_metrics": weighted_metrics,
                **kwargs,
            }
        )

    def _list_metrics(self, names: int) -> None:
        """Has Keras list the metrics now, not in the first batch: `StepBackup` restores them before it."""
        for metric in super().metrics:
            if not getattr(metric, "built", True):
                ids = keras.KerasTensor((None,), "int32")
                metric.build(ids, keras.KerasTensor((None, names, self.classes)))

    def predict(self, x: Data, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        """Logits of all exits and of the ensemble; see `keras.Model.predict`, whose arguments it takes."""
        with self._guarded():
            return self._in_order(super().predict(x, *args, **kwargs))

    def predict_on_batch(self, x: Data) -> dict[str, np.ndarray]:
        """Logits of one batch; see `keras.Model.predict_on_batch`."""
        with self._guarded():
            found = replicas.of_one(super().predict_on_batch(x), rows=len(keras.tree.flatten(x)[0]))
        return self._in_order(found)

    def _in_order(self, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What `predict` gives, in the order of the exits: JAX sorts the keys of a dict."""
        return {name: outputs[name] for name in (*self._names, ENSEMBLE)}

    def _run(self, x: Tensor, training: bool) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Outputs and features of this replica's rows, of which there may be none."""
        x, own_rows = replicas.at_least_one_row(x, refuse=training and self._uses_batch_statistics())
        return own_rows(self(x, training=training, with_features=True))

    def _advance(self, new_state: dict[str, Tensor]) -> None:
        """Counts a training step, and keeps the state of the objective after it."""
        for key, value in new_state.items():
            self._state[key].assign(value)
        self._state["step"].assign_add(1)

    def _uses_batch_statistics(self) -> bool:
        layers = inner_layers(self.model)
        return any(isinstance(layer, keras.layers.BatchNormalization) and layer.trainable for layer in layers)

    def _loss(
        self, outputs: dict[str, Tensor], features: list[Tensor], y: Tensor, sample_weight: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this replica's part of the batch, such that the sum over replicas is the loss.

        Also counts it in the trackers. Returns the loss and the state after the batch.
        """
        # Before the first sum over replicas: while this one waits there, another one runs the same layers.
        losses = self.losses
        rows = Rows(y, self.classes, self._ignored)
        state = {key: ops.convert_to_tensor(variable) for key, variable in self._state.items()}
        terms, new_state = self.objective(
            [outputs[name] for name in self._names],
            features or None,
            rows.labels,
            state,
            loss=self._sample_loss,
            batch_mean=rows.mean,
        )
        new_state = {key: rows.unless_none(value, state[key]) for key, value in new_state.items()}
        if sample_weight is not None:
            check_weights(sample_weight)
            sample_weight = ops.reshape(ops.cast(sample_weight, "float32"), (-1,))
            terms = {key: value * ops.cast(sample_weight, value.dtype) for key, value in terms.items()}
        # In a float64 network the logits are float32, the features are not.
        dtype = "float64" if any(value.dtype == "float64" for value in terms.values()) else "float32"
        total = rows.checked(sum(ops.cast(value, dtype) for value in terms.values()))
        added = sum((ops.cast(ops.sum(loss), total.dtype) for loss in losses), ops.zeros((), total.dtype))
        loss_tracker(self).update_state(total + added, sample_weight=rows.counted)
        for name, tracker in self._term_trackers.value.items():
            tracker.update_state(terms.get(name, ops.zeros_like(total)), sample_weight=rows.counted)
        # Every replica adds the losses of its layers: those of weights are the same on all of them, those of
        # activities are means over its own rows.
        return rows.part_of_mean(total) + added * ops.cast(rows.share, total.dtype), new_state

    def compute_metrics(
        self, x: Tensor, y: Tensor, y_pred: dict[str, Tensor], sample_weight: Tensor = None
    ) -> dict[str, Tensor]:
        """Updates the metrics of all exits from the dict of logits; see `keras.Model.compute_metrics`."""
        return self._logs(x, standard_labels(y, self.classes), y_pred, sample_weight)

    def _logs(
        self, x: Tensor, y: Tensor, outputs: dict[str, Tensor], sample_weight: Tensor
    ) -> dict[str, Tensor]:
        logits = [outputs[name] for name in (*self._names, ENSEMBLE)]
        stacked = ops.stack(at_least_float32(logits), axis=1)
        logs = super().compute_metrics(x, y, stacked, sample_weight)
        return replicas.reducible(logs, replicas.of_model(self))

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The loss, its terms, and the metrics of all exits."""
        metrics = super().metrics  # of Keras: the loss first
        return [*metrics[:1], *self._term_trackers.value.values(), *metrics[1:]]

    def fit(
        self,
        x: Data = None,
        y: Data = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: list[keras.callbacks.Callback] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains; see `keras.Model.fit`, whose arguments it takes.

        Labels that are arrays, those of the validation data too, are checked first. A loss that is not
        finite stops training.

        Raises:
            ValueError: labels out of range or of the wrong shape.
            FloatingPointError: the loss became NaN or infinite.
        """
        validation = kwargs.get("validation_data")
        if isinstance(validation, list | tuple):
            _, labels, _ = keras.utils.unpack_x_y_sample_weight(tuple(validation))
            check_labels(labels, self.classes, ignored=self._ignored, required=True)
        callbacks = NonFiniteLoss.first_of(callbacks)
        x, kwargs = resumable(x, callbacks, kwargs)
        with self._guarded(y):
            return super().fit(x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs)

    @contextlib.contextmanager
    def _guarded(self, labels: Any = None) -> Iterator[None]:
        """Around a run of steps: labels that are arrays are checked, and errors explained."""
        with explained(labels, self.classes, self._ignored), explained_sizes(self.model.inputs[0]):
            try:
                yield
            except BaseException:
                recover(self)
                raise

    def evaluate(self, x: Data = None, y: Data = None, *args: Any, **kwargs: Any) -> Any:
        """Measures loss and metrics; see `keras.Model.evaluate`, whose arguments it takes."""
        with self._guarded(y):
            return super().evaluate(x, y, *args, **kwargs)

    def train_on_batch(self, x: Data, y: Data = None, *args: Any, **kwargs: Any) -> Any:
        """One training step; see `keras.Model.train_on_batch`. Labels that are arrays are checked first."""
        with self._guarded(y):
            return super().train_on_batch(x, y, *args, **kwargs)

    def test_on_batch(self, x: Data, y: Data = None, *args: Any, **kwargs: Any) -> Any:
        """One evaluation step; see `keras.Model.test_on_batch`. Labels that are arrays are checked first."""
        with self._guarded(y):
            return super().test_on_batch(x, y, *args, **kwargs)

    def save(self, filepath: Path, *args: Any, **kwargs: Any) -> None:
        """Saves network, objective and optimizer to a `.keras` file; see `keras.Model.save`."""
        checks.keras_file(filepath, "distiller")
        super().save(filepath, *args, **kwargs)

    def export(self, filepath: Path, format: str = "tf_saved_model", **kwargs: Any) -> None:
        """Exports the distiller, logits of all exits; see `keras.Model.export`, whose arguments it takes."""
        kwargs.setdefault("input_signature", [self.model.input])
        super().export(filepath, format=format, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "model": keras.saving.serialize_keras_object(self.model),
            "objective": keras.saving.serialize_keras_object(self.objective),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        model = keras.saving.deserialize_keras_object(config.pop("model"))
        objective = keras.saving.deserialize_keras_object(config.pop("objective"))
        return cls(model, objective, **config)

    def get_compile_config(self) -> dict[str, Any] | None:
        if self.compiled:
            return keras.saving.serialize_keras_object(self._compile_arguments.value)
        return None

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)


class _Untracked(Generic[T]):
    """Holds a value that Keras must not track, and so not save or count, as part of the model."""

    def __init__(self, value: T) -> None:
        self.value = value


def _policy(model: keras.Model) -> Any:
    policies = [layer.dtype_policy for layer in model.layers]
    return next((p for p in policies if p.name == HALF), None)

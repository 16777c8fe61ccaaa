"""`ExitHyperModel`: a KerasTuner search over how a network gets its exits, and how they are trained."""

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_exitens import _checks as checks
from keras_exitens import objectives
from keras_exitens._attach.add_exits import add_exits
from keras_exitens._network.costs import cost
from keras_exitens._network.exit_network import exit_names
from keras_exitens._training.distiller import ExitEnsembleDistiller
from keras_exitens._types import Logs

if TYPE_CHECKING:
    import keras_tuner
else:
    keras_tuner = checks.optional_import("keras_tuner", "tuner")

__all__ = ["ExitHyperModel", "tradeoff_area"]

# Name -> objective from its temperature, the weight of its teacher and that of its features. The last entries
# say which of the three it has.
_OBJECTIVES = {
    "eed": (lambda t, w, f: objectives.EED("mse", w, feature_weight=f), ("teacher_weight", "feature_weight")),
    "eed-kl": (
        lambda t, w, f: objectives.EED("kl", w, t, f),
        ("temperature", "teacher_weight", "feature_weight"),
    ),
    "beed": (
        lambda t, w, f: objectives.BEED(temperature=t, feature_weight=f),
        ("temperature", "feature_weight"),
    ),
    "dbt": (lambda t, w, f: objectives.DBT(w, t), ("temperature", "teacher_weight")),
    "byot": (
        lambda t, w, f: objectives.BYOT(w, t, f),
        ("temperature", "teacher_weight", "feature_weight"),
    ),
    "cross-entropy": (lambda t, w, f: objectives.CrossEntropy(), ()),
}
_CHOICES = ("exits", "placement", "head", "objective")
_RANGES = ("temperature", "teacher_weight", "feature_weight", "learning_rate")
_ACCURACIES = ("accuracy", "acc", "sparse_categorical_accuracy", "categorical_accuracy")
_NETWORK = "network"  # not searched: says which backbone the trials are of


class ExitHyperModel(keras_tuner.HyperModel):
    """The search space of multi-exit networks over one backbone; works with every tuner of KerasTuner.

    Each argument is searched where it holds several values, and fixed where it is one value. Parameters that
    an objective does not have are not searched under it. All trials have the dtype policy that is set when
    this object is made, such as `"mixed_bfloat16"`.

    The objective of the tuner is any logged metric, with its direction:
    `keras_tuner.Objective("val_final_accuracy", "max")`; or `keras_tuner.Objective("val_tradeoff", "max")`,
    the area under validation accuracy against cost, see `tradeoff_area`. HParams are written by KerasTuner
    where `search` gets a `TensorBoard` callback.

    Args:
        backbone: function without arguments that gives a new network, as `add_exits` takes it.
        exits: int, or several: numbers of early exits. Defaults to `(1, 2, 3)`.
        placement: `"compute"`, `"stage"`, or both (default).
        head: one or several heads of `add_exits`. Defaults to `("light", "separable", "linear")`.
        objective: one or several of `"eed"` (`EED("mse")`), `"eed-kl"`, `"beed"`, `"dbt"`, `"byot"`,
            `"cross-entropy"`. Defaults to all.
        temperature: number > 0, or (low, high). Defaults to `(1.0, 6.0)`.
        teacher_weight: number in (0, 1], or (low, high): `output_weight` of EED, `weight` of DBT, `alpha` of
            BYOT. Defaults to `(0.1, 0.9)`.
        feature_weight: number > 0, or (low, high). Defaults to `(0.003, 1.0)`.
        learning_rate: number > 0, or (low, high). Defaults to `(0.003, 0.3)`.
        optimizer: function that makes an optimizer from a learning rate. Default: SGD with momentum 0.9.
        **compile_arguments: of `ExitEnsembleDistiller.compile`; `metrics` defaults to `["accuracy"]`, and
            accuracy is measured in any case.

    Raises:
        TypeError: `backbone` is no function without arguments.
        ValueError: an argument is none of the known values or out of range; nothing is left to search.
        ImportError: KerasTuner is not installed.

    Example:

    ```python
    space = kx.tuner.ExitHyperModel(lambda: kx.applications.ResNet18(input_shape=(32, 32, 3), classes=10))
    search = keras_tuner.RandomSearch(space, keras_tuner.Objective("val_tradeoff", "max"), max_trials=20)
    search.search(images, labels, validation_split=0.1, epochs=5)
    (best,) = search.get_best_models(1)  # an ExitEnsembleDistiller
    ```
    """

    def __init__(
        self,
        backbone: Callable[[], keras.Model],
        *,
        exits: int | Sequence[int] = (1, 2, 3),
        placement: str | Sequence[str] = ("compute", "stage"),
        head: str | Sequence[str] = ("light", "separable", "linear"),
        objective: str | Sequence[str] = tuple(_OBJECTIVES),
        temperature: float | tuple[float, float] = (1.0, 6.0),
        teacher_weight: float | tuple[float, float] = (0.1, 0.9),
        feature_weight: float | tuple[float, float] = (0.003, 1.0),
        learning_rate: float | tuple[float, float] = (0.003, 0.3),
        optimizer: Callable[[float], keras.optimizers.Optimizer] | None = None,
        **compile_arguments: Any,
    ) -> None:
        super().__init__()
        _check_backbone(backbone)
        self.policy = keras.config.dtype_policy()
        self.backbone = backbone
        self.optimizer = optimizer or (lambda rate: keras.optimizers.SGD(rate, momentum=0.9))
        metrics = compile_arguments.get("metrics") or []
        metrics = [*metrics] if isinstance(metrics, list | tuple) else [metrics]
        accuracies = [name for name in map(_accuracy_name, metrics) if name]
        self.accuracy = [*accuracies, "accuracy"][0]  # what `val_tradeoff` is made of
        metrics += [] if accuracies else ["accuracy"]
        self.compile_arguments = {**compile_arguments, "metrics": metrics}
        given = {"exits": exits, "placement": placement, "head": head, "objective": objective}
        self.choices = {name: _several(name, value) for name, value in given.items()}
        for name in self.choices["objective"]:
            checks.one_of("objective", name, tuple(_OBJECTIVES))
        bounds = (temperature, teacher_weight, feature_weight, learning_rate)
        self.ranges = {name: _range(name, value) for name, value in zip(_RANGES, bounds, strict=True)}
        used = {"learning_rate"}.union(*(_OBJECTIVES[name][1] for name in self.choices["objective"]))
        searched = [name for name, values in self.choices.items() if len(values) > 1]
        searched += [name for name in used if self.ranges[name][0] < self.ranges[name][1]]
        if not searched:
            raise checks.error(
                "There is nothing to search: every argument has one value.",
                expected="several values of at least one argument",
                received=f"{self.choices}, {self.ranges}",
                fix="for instance learning_rate=(0.003, 0.3); or train that one network, without a tuner",
            )

    def build(self, hp: keras_tuner.HyperParameters) -> ExitEnsembleDistiller:
        """A compiled distiller with the values of `hp`."""
        keras.config.set_dtype_policy(self.policy)  # KerasTuner clears the session before, and so forgets it
        self._check_names(hp)
        choice = {name: self._chosen(hp, name) for name in _CHOICES}
        make, _ = _OBJECTIVES[choice["objective"]]
        values = {name: self._number(hp, name, choice["objective"]) for name in _RANGES[:-1]}
        backbone = self.backbone()
        model = add_exits(backbone, choice["exits"], placement=choice["placement"], head=choice["head"])
        distiller = ExitEnsembleDistiller(model, make(*values.values()))
        images, classes = backbone.input_shape[1:], distiller.classes
        self._check_network(hp, f"{images} to {classes} classes, {backbone.count_params()} weights")
        rate = self._number(hp, "learning_rate")
        distiller.compile(optimizer=self.optimizer(rate), **self.compile_arguments)
        # So that get_best_models finds the state of the optimizer in the checkpoint, too.
        distiller.optimizer.build(distiller.trainable_variables)
        return distiller

    def fit(
        self,
        hp: keras_tuner.HyperParameters,
        model: keras.Model,
        *args: Any,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains one trial; logs `val_tradeoff` beside the metrics of `compile`.

        Raises:
            keras_tuner.errors.FatalValueError: what the tuner searches for is not logged.
        """
        callbacks = list(callbacks or ())
        wanted = [goal for goal in (getattr(c, "objective", None) for c in callbacks) if goal is not None]
        every_epoch = kwargs.get("validation_freq", 1) == 1
        # First: the tuner's own callbacks read what it logs.
        callbacks = [_LogTradeoff(self.accuracy, wanted if every_epoch else ()), *callbacks]
        return model.fit(*args, callbacks=callbacks, **kwargs)

    def _chosen(self, hp: keras_tuner.HyperParameters, name: str) -> Any:
        values = self.choices[name]
        return values[0] if len(values) == 1 else hp.Choice(name, list(values))

    def _number(self, hp: keras_tuner.HyperParameters, name: str, objective: str | None = None) -> float:
        low, high = self.ranges[name]
        owners = [o for o in self.choices["objective"] if name in _OBJECTIVES[o][1]]
        if low == high or (objective is not None and not owners):
            return low
        if objective is None or len(self.choices["objective"]) == 1:
            return hp.Float(name, low, high, sampling="log")
        with hp.conditional_scope("objective", owners):
            value = hp.Float(name, low, high, sampling="log")
        return value if objective in owners else low

    def _check_names(self, hp: keras_tuner.HyperParameters) -> None:
        known = {*_CHOICES, *_RANGES, _NETWORK}
        foreign = [name for name in hp.values if name not in known and not name.startswith("tuner/")]
        if foreign:
            raise _other_project(f"hyperparameters among {sorted(known)}", f"{foreign}")

    def _check_network(self, hp: keras_tuner.HyperParameters, network: str) -> None:
        """Keeps with the trials which network they are of: those of another one say nothing here."""
        found = hp.Fixed(_NETWORK, network)
        if found != network:
            raise _other_project(f"trials of {network}", f"trials of {found}")


def _other_project(expected: str, received: str) -> Exception:
    return checks.error(
        "The folder of the tuner holds the search of another project.",
        expected=expected,
        received=received,
        fix="give the tuner another directory or project_name, or overwrite=True",
        kind=keras_tuner.errors.FatalValueError,
    )


def tradeoff_area(accuracies: Sequence[float], costs: Sequence[float], budget: float) -> float:
    """The area under accuracy against cost, of budgets from nothing to that of the plain network.

    Between two exits lie the mixtures of both, so the curve is straight there; an exit that is worse than one
    before it counts as that one. A budget below the first exit gives no answer, and counts as accuracy 0.

    Args:
        accuracies: accuracy of each exit, in order.
        costs: cost to leave at each exit, cumulative.
        budget: cost of the network without exits.

    Returns:
        float in [0, 1]; more is better. 1 would be a network that is always right at no cost.
    """
    points = np.asarray(costs, "float64") / budget
    heights = np.maximum.accumulate(np.asarray(accuracies, "float64"))
    at = np.unique(np.clip([points[0], *points, 1.0], points[0], max(1.0, points[0])))
    at = at[at <= 1.0]
    if not len(at):
        return 0.0
    reached = np.interp(at, points, heights)
    return float(np.sum(np.diff(at) * (reached[1:] + reached[:-1]) / 2))  # the trapezoidal rule


class _LogTradeoff(keras.callbacks.Callback):
    """Logs `val_tradeoff` after each epoch, and looks whether all is logged that the tuner searches for."""

    def __init__(self, accuracy: str, wanted: Sequence[Any]) -> None:
        super().__init__()
        self.accuracy = accuracy
        self.wanted = wanted

    def on_train_begin(self, logs: Logs = None) -> None:
        network = cost(self.model.model)
        self._costs, self._budget = network.cumulative, network.backbone
        self._names = exit_names(self.model.model)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        logs = {} if logs is None else logs
        measured = [f"val_{name}_{self.accuracy}" for name in self._names]
        if all(name in logs for name in measured):
            logs["val_tradeoff"] = tradeoff_area([logs[name] for name in measured], self._costs, self._budget)
        for goal in self.wanted:
            if not goal.has_value(logs):
                raise checks.error(
                    "What the tuner searches for is not logged.",
                    expected=f"{getattr(goal, 'name', goal)} among the logs of an epoch",
                    received=", ".join(sorted(logs)),
                    fix="name one of these in keras_tuner.Objective"
                    if any(name.startswith("val_") for name in logs)
                    else "pass validation_data to search, or name one of these in keras_tuner.Objective",
                    kind=keras_tuner.errors.FatalValueError,
                )


def _accuracy_name(metric: Any) -> str | None:
    """The name under which a metric logs the accuracy; `None` where it measures something else."""
    if isinstance(metric, str):
        return metric if metric.lower() in _ACCURACIES else None
    ranked = (keras.metrics.SparseCategoricalAccuracy, keras.metrics.CategoricalAccuracy)
    return metric.name if isinstance(metric, ranked) else None


def _check_backbone(backbone: Any) -> None:
    takes = "a function without arguments that gives a new network"
    if not callable(backbone) or isinstance(backbone, keras.Model):
        raise checks.error(
            "`backbone` is not a function.",
            expected=takes,
            received=repr(backbone),
            fix="lambda: keras.models.clone_model(network), or lambda: kx.applications.ResNet18(...)",
            kind=TypeError,
        )
    try:
        inspect.signature(backbone).bind()
    except TypeError as cause:
        raise checks.error(
            "`backbone` takes arguments.",
            expected=takes,
            received=f"a function {inspect.signature(backbone)}",
            fix="leave the hyperparameters to this class, which searches exits and objectives over one "
            "network: lambda: kx.applications.ResNet18(...)",
            kind=TypeError,
        ) from cause
    except ValueError:  # no signature, as of functions written in C
        pass


def _several(name: str, value: Any) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not values:
        raise checks.error(
            f"`{name}` holds no value.",
            expected="one value, or several to search",
            received=f"{name}={value!r}",
            fix="leave it out to search the defaults",
        )
    return values


def _range(name: str, value: Any) -> tuple[float, float]:
    low, high = value if isinstance(value, list | tuple) and len(value) == 2 else (value, value)
    highest = 1 if name == "teacher_weight" else None
    for bound in (low, high):
        checks.number(name, bound, above=0, high=highest)
    checks.number(name, high, low=low)
    return float(low), float(high)

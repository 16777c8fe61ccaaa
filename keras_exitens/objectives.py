"""How the exits of a multi-exit network teach each other.

An objective is a pure function of one batch:

    terms, new_state = objective(logits, features, y, state)

with, for K exits in order (the final one last),

- `logits`: K tensors `(batch, classes)`; `features`: K tensors `(batch, D)`, or `None` where
  `objective.uses_features` is false;
- `y`: labels `(batch,)`, or class probabilities `(batch, classes)`;
- `state`: dict of scalar tensors: `"step"`, the number of training steps so far, and whatever
  `initial_state()` names;
- `terms`: dict from `"classification"`, `"distillation"` and `"feature"` to one loss per sample, `(batch,)`,
  weights included. The loss of the batch is the mean of their sum;
- `new_state`: the state after this batch, without `"step"`.

Weights of terms may be numbers or `keras.optimizers.schedules.LearningRateSchedule`s of the training step.
Below, z are logits, f features, p_T(z) = softmax(z / T), H(q, p) = -sum q log p, and sg stops gradients.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self, TypeAlias

import keras
from keras import ops

from keras_exitens import checks
from keras_exitens.ensemble import at_least_float32, mean, weighted_mean
from keras_exitens.hints import Tensor

__all__ = ["BEED", "BYOT", "DBT", "EED", "CrossEntropy", "Objective", "cross_entropy"]

TERMS = ("classification", "distillation", "feature")

Weight: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule
Tensors: TypeAlias = list[Tensor] | Any  # one an exit; for features `None` where they are not used
State: TypeAlias = Mapping[str, Tensor]
Terms: TypeAlias = dict[str, Tensor]
SampleLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # (y, logits) -> (batch,)


def cross_entropy(y: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy of each sample from logits, `(batch,)`; `y` is class ids or class probabilities."""
    if len(y.shape) == len(logits.shape):
        return ops.categorical_crossentropy(ops.cast(y, logits.dtype), logits, from_logits=True)
    return ops.sparse_categorical_crossentropy(y, logits, from_logits=True)


def softened_cross_entropy(teacher, student, temperature):
    """`H(p_T(teacher), p_T(student))` of each sample, from logits."""
    return -ops.sum(_softened(teacher, temperature) * ops.log_softmax(student / temperature), axis=-1)


def softened_kl(teacher, student, temperature):
    """`KL(p_T(teacher) || p_T(student))` of each sample, from logits."""
    gap = ops.log_softmax(teacher / temperature) - ops.log_softmax(student / temperature)
    return ops.sum(_softened(teacher, temperature) * gap, axis=-1)


def _softened(logits, temperature):
    return ops.softmax(logits / temperature)


def squared_error(teacher, student):
    """Mean over the last axis of the squared difference, per sample."""
    return ops.mean(ops.square(student - teacher), axis=-1)


class Objective:
    """Base class of the objectives. To write one's own: implement `terms`, register it with
    `keras.saving.register_keras_serializable`, and store each argument under its own name (or override
    `get_config`).
    """

    uses_features: bool = False

    def initial_state(self) -> dict[str, float]:
        """Names and first values of the scalars that the objective carries from batch to batch."""
        return {}

    def check(self, exits: int) -> None:
        """Raises `ValueError` where the objective cannot teach a network with that many exits."""

    def terms(self, logits: Tensors, features: Tensors, y: Tensor, state: State, loss: SampleLoss) -> Terms:
        """The terms of one batch.

        Args:
            logits, features, y, state: see the module; logits and features are lists, at least float32.
            loss: function `(y, logits) -> (batch,)`, the classification loss of each sample.

        Returns:
            A dict with any of the keys `"classification"`, `"distillation"`, `"feature"`.
        """
        raise NotImplementedError

    def next_state(
        self, logits: Tensors, state: State, batch_mean: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """The state after a batch; `batch_mean` reduces a `(batch,)` tensor to its mean over all replicas."""
        return {}

    def __call__(
        self,
        logits: Sequence[Tensor],
        features: Sequence[Tensor] | None,
        y: Tensor,
        state: State,
        *,
        loss: SampleLoss = cross_entropy,
        batch_mean: Callable[[Tensor], Tensor] = ops.mean,
    ) -> tuple[Terms, dict[str, Tensor]]:
        logits = at_least_float32(logits)
        features = None if features is None else at_least_float32(features)
        terms = self.terms(logits, features, y, state, loss)
        if not terms or not set(terms) <= set(TERMS):
            raise checks.error(
                f"{type(self).__name__}.terms gives terms that are not known.",
                expected=f"a dict with one or more of the keys {TERMS}",
                received=f"keys {tuple(terms)}",
                fix="rename them; several losses of one kind are added up under one name",
            )
        return terms, self.next_state(logits, state, batch_mean)

    def get_config(self) -> dict[str, Any]:
        return {
            name: keras.saving.serialize_keras_object(value)
            for name, value in vars(self).items()
            if not name.startswith("_")
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})


def _weight(argument, value, high=None):
    """Checks a weight that may be a schedule of the training step."""
    if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        return value
    return _plain(checks.number(argument, value, low=0, high=high))


def _positive(argument, value):
    return _plain(checks.number(argument, value, above=0))


def _plain(number):
    """A number that a config can hold: one of NumPy's becomes one of Python's."""
    return number if isinstance(number, int | float) else float(number)


def _at(weight, state, like):
    """The value of a weight at the current training step, in the dtype of the tensor `like`."""
    if isinstance(weight, keras.optimizers.schedules.LearningRateSchedule):
        return ops.cast(weight(state["step"]), like.dtype)
    return weight


def _off(weight):
    return isinstance(weight, int | float) and weight == 0


@keras.saving.register_keras_serializable(package="keras_exitens")
class EED(Objective):
    """Exit-ensemble distillation: the mean of all exits teaches every exit, the final one too.

    `L = sum_i CE(z_i, y) + L_O + L_F`, with the teachers `z̄ = sg(mean z_i)` and `f̄ = sg(mean f_i)`:

    - `output_loss="mse"`: `L_O = w sum_i mean_c (z_i - z̄)²`,
    - `output_loss="kl"`: `L_O = w T² sum_i H(p_T(z̄), p_T(z_i))`, a cross-entropy as in the authors' program,
    - `L_F = v sum_i mean_d (f_i - f̄)² [f_i > 0 or f̄ > 0]`.

    Args:
        output_loss: `"mse"` (default), `"kl"`, or `None` for no output distillation.
        output_weight: w, a number ≥ 0 or a schedule; default 1 for `"mse"` and 0.1 for `"kl"`.
        temperature: T > 0, used by `"kl"`.
        feature_weight: v, a number ≥ 0 or a schedule; 0 turns feature distillation off.

    Raises:
        ValueError: an argument is out of range.

    Example:

    ```python
    distiller = kx.ExitEnsembleDistiller(model, kx.objectives.EED(output_loss="kl", feature_weight=0))
    ```

    Reference: Lee & Lee, Students are the Best Teacher: Exit-Ensemble Distillation with Multi-Exits,
    arXiv 2104.00299.
    """

    def __init__(
        self,
        output_loss: Literal["mse", "kl"] | None = "mse",
        output_weight: Weight | None = None,
        temperature: float = 3.0,
        feature_weight: Weight = 1.0,
    ) -> None:
        self.output_loss = checks.one_of("output_loss", output_loss, ("mse", "kl", None))
        if output_weight is None:
            output_weight = 0.1 if output_loss == "kl" else 1.0
        self.output_weight = _weight("output_weight", output_weight)
        self.temperature = _positive("temperature", temperature)
        self.feature_weight = _weight("feature_weight", feature_weight)

    @property
    def uses_features(self) -> bool:  # type: ignore[override]
        return not _off(self.feature_weight)

    def terms(self, logits: Tensors, features: Tensors, y: Tensor, state: State, loss: SampleLoss) -> Terms:
        terms = {"classification": sum(loss(y, z) for z in logits)}
        if self.output_loss is not None:
            teacher = ops.stop_gradient(mean(logits))
            weight = _at(self.output_weight, state, logits[0])
            terms["distillation"] = weight * sum(self._output_loss(teacher, z) for z in logits)
        if self.uses_features:
            teacher = ops.stop_gradient(mean(features))
            weight = _at(self.feature_weight, state, logits[0])
            terms["feature"] = weight * sum(_active_squared_error(teacher, f) for f in features)
        return terms

    def _output_loss(self, teacher, student):
        if self.output_loss == "mse":
            return squared_error(teacher, student)
        return self.temperature**2 * softened_cross_entropy(teacher, student, self.temperature)


def _active_squared_error(teacher, student):
    active = ops.logical_or(student > 0, teacher > 0)
    return ops.mean(ops.where(active, ops.square(student - teacher), 0.0), axis=-1)


@keras.saving.register_keras_serializable(package="keras_exitens")
class BEED(Objective):
    """Balanced exit-ensemble distillation: later exits weigh more in the teacher, and learn less from it.

    With teacher weights `b_i = β^(i-1) / sum_j β^(j-1)` for logits and features, and `k_i = K - i`:

    `L = sum_i (2 - α^k_i) CE(z_i, y) + α^k_i T² KL(p_T(z̄) || p_T(z_i)) + v mean_d (f_i - f̄)²`.

    Args:
        alpha: α ≥ 1; `α^(K-1)` must stay below 2, or the first exit would be taught to be wrong.
        beta: β > 0.
        temperature: T > 0.
        feature_weight: v, a number ≥ 0 or a schedule.

    Raises:
        ValueError: an argument is out of range; α too large for the network (when the distiller is made).

    Reference: Lee & Lee, Rethinking Online Knowledge Distillation with Multi-Exits, ACCV 2022. Deviation:
    the authors' program compares unpooled maps, this one pooled features.
    """

    def __init__(
        self, alpha: float = 1.15, beta: float = 1.6, temperature: float = 3.0, feature_weight: Weight = 0.1
    ) -> None:
        self.alpha = _plain(checks.number("alpha", alpha, low=1))
        self.beta = _positive("beta", beta)
        self.temperature = _positive("temperature", temperature)
        self.feature_weight = _weight("feature_weight", feature_weight)

    @property
    def uses_features(self) -> bool:  # type: ignore[override]
        return not _off(self.feature_weight)

    def check(self, exits: int) -> None:
        if self.alpha ** (exits - 1) >= 2:
            largest = 2 ** (1 / (exits - 1))
            raise checks.error(
                "`alpha` is too large for this many exits: the first one would be taught to be wrong.",
                expected=f"alpha ** (exits - 1) < 2, so alpha < {largest:.6g} for {exits} exits",
                received=f"alpha={self.alpha}, {self.alpha} ** {exits - 1} = {self.alpha ** (exits - 1):.4g}",
                fix=f"pass alpha={int(largest * 1000 - 1e-9) / 1000}, or use fewer exits",
            )

    def terms(self, logits: Tensors, features: Tensors, y: Tensor, state: State, loss: SampleLoss) -> Terms:
        exits = len(logits)
        self.check(exits)
        total = sum(self.beta**i for i in range(exits))
        shares = [self.beta**i / total for i in range(exits)]
        mixing = [self.alpha ** (exits - 1 - i) for i in range(exits)]
        teacher = ops.stop_gradient(weighted_mean(logits, shares))
        terms = {
            "classification": sum((2 - a) * loss(y, z) for a, z in zip(mixing, logits, strict=True)),
            "distillation": self.temperature**2
            * sum(a * softened_kl(teacher, z, self.temperature) for a, z in zip(mixing, logits, strict=True)),
        }
        if self.uses_features:
            teacher = ops.stop_gradient(weighted_mean(features, shares))
            terms["feature"] = _at(self.feature_weight, state, logits[0]) * sum(
                squared_error(teacher, f) for f in features
            )
        return terms


def _check_students(objective, exits):
    if exits < 2:
        raise checks.error(
            f"{type(objective).__name__} has nobody to teach: the final exit is the only one.",
            expected="at least one early exit",
            received="a network with the final exit alone",
            fix="attach exits: add_exits(model, exits=1) or more",
        )


@keras.saving.register_keras_serializable(package="keras_exitens")
class DBT(Objective):
    """Distillation-based training: the final exit teaches the early ones.

    `L = (1-C) CE(z_K, y) + sum_{i<K} (1-C) CE(z_i, y) + C T² H(sg p_T(z_K), p_T(z_i))`.

    Args:
        weight: C in [0, 1], or a schedule.
        temperature: T > 0; `"annealed"`: T starts at 1 and is multiplied by 1.05 after each batch in which
            the mean of `max p_T(z_K)` exceeds 0.5. The annealed T is a weight of the distiller: saved, and
            the same on all replicas.

    Raises:
        ValueError: an argument is out of range.

    Reference: Phuong & Lampert, Distillation-Based Training for Multi-Exit Architectures, ICCV 2019.
    Deviation: the authors' global scale of 10/K is left out.
    """

    _START, _FACTOR, _CONFIDENCE = 1.0, 1.05, 0.5

    def __init__(self, weight: Weight = 0.5, temperature: float | Literal["annealed"] = 4.0) -> None:
        self.weight = _weight("weight", weight, high=1)
        annealed = isinstance(temperature, str) and temperature == "annealed"
        self.temperature = temperature if annealed else _positive("temperature", temperature)

    def initial_state(self) -> dict[str, float]:
        return {"temperature": self._START} if self.temperature == "annealed" else {}

    def check(self, exits: int) -> None:
        _check_students(self, exits)

    def _temperature(self, state, like):
        if self.temperature == "annealed":
            return ops.cast(state["temperature"], like.dtype)
        return self.temperature

    def terms(self, logits: Tensors, features: Tensors, y: Tensor, state: State, loss: SampleLoss) -> Terms:
        *students, final = logits
        weight = _at(self.weight, state, final)
        temperature = self._temperature(state, final)
        teacher = ops.stop_gradient(final)
        soft = sum(softened_cross_entropy(teacher, z, temperature) for z in students)
        return {
            "classification": (1 - weight) * sum(loss(y, z) for z in logits),
            "distillation": weight * temperature**2 * soft,
        }

    def next_state(
        self, logits: Tensors, state: State, batch_mean: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        if self.temperature != "annealed":
            return {}
        temperature = state["temperature"]
        confidence = batch_mean(ops.max(_softened(logits[-1], self._temperature(state, logits[-1])), axis=-1))
        return {
            "temperature": ops.where(confidence > self._CONFIDENCE, temperature * self._FACTOR, temperature)
        }


@keras.saving.register_keras_serializable(package="keras_exitens")
class BYOT(Objective):
    """Be your own teacher: the final exit teaches the early ones, by logits and by features.

    `L = CE(z_K, y) + sum_{i<K} (1-α) CE(z_i, y) + α τ H(sg p_T(z_K), p_T(z_i)) + λ ‖f_i - sg f_K‖²`, the norm
    summed over features.

    Args:
        alpha: α in [0, 1], or a schedule.
        temperature: T > 0.
        feature_weight: λ, a number ≥ 0 or a schedule.
        t_squared: τ = T² if true, else τ = 1 (default).

    Raises:
        ValueError: an argument is out of range.

    Reference: Zhang et al., Be Your Own Teacher, ICCV 2019. Deviations from the authors' code: the feature
    term is a squared norm of pooled features of one width (theirs is an unsquared norm of adapted maps), and
    the teacher's logits carry no gradient in either term.
    """

    def __init__(
        self,
        alpha: Weight = 0.3,
        temperature: float = 3.0,
        feature_weight: Weight = 0.03,
        t_squared: bool = False,
    ) -> None:
        self.alpha = _weight("alpha", alpha, high=1)
        self.temperature = _positive("temperature", temperature)
        self.feature_weight = _weight("feature_weight", feature_weight)
        self.t_squared = checks.one_of("t_squared", t_squared, (False, True))

    @property
    def uses_features(self) -> bool:  # type: ignore[override]
        return not _off(self.feature_weight)

    def check(self, exits: int) -> None:
        _check_students(self, exits)

    def terms(self, logits: Tensors, features: Tensors, y: Tensor, state: State, loss: SampleLoss) -> Terms:
        *students, final = logits
        alpha = _at(self.alpha, state, final)
        scale = self.temperature**2 if self.t_squared else 1.0
        teacher = ops.stop_gradient(final)
        soft = sum(softened_cross_entropy(teacher, z, self.temperature) for z in students)
        terms = {
            "classification": loss(y, final) + (1 - alpha) * sum(loss(y, z) for z in students),
            "distillation": alpha * scale * soft,
        }
        if self.uses_features:
            teacher = ops.stop_gradient(features[-1])
            terms["feature"] = _at(self.feature_weight, state, logits[0]) * sum(
                ops.sum(ops.square(f - teacher), axis=-1) for f in features[:-1]
            )
        return terms


@keras.saving.register_keras_serializable(package="keras_exitens")
class CrossEntropy(Objective):
    """Deep supervision: `L = sum_i w_i CE(z_i, y)`. The baseline, without any distillation.

    Args:
        weights: K numbers ≥ 0 or schedules, one per exit, final exit last; default 1 each.

    Raises:
        ValueError: a weight is negative, or their number is not that of the exits.
    """

    def __init__(self, weights: Sequence[Weight] | None = None) -> None:
        if weights is not None and not isinstance(weights, list | tuple):
            raise checks.error(
                "`weights` is not a list.",
                expected="None, or one number or schedule for each exit",
                received=f"weights={weights!r}",
                fix=f"pass weights=[{weights!r}, ...], the final exit's last",
            )
        self.weights = None if weights is None else [_weight("weights", w) for w in weights]

    def check(self, exits: int) -> None:
        if self.weights is not None and len(self.weights) != exits:
            raise checks.error(
                "The number of weights is not the number of exits.",
                expected=f"{exits} weights, the final exit's last",
                received=f"{len(self.weights)} weights: {self.weights}",
                fix=f"pass {exits} weights, or weights=None for 1 each",
            )

    def terms(self, logits: Tensors, features: Tensors, y: Tensor, state: State, loss: SampleLoss) -> Terms:
        self.check(len(logits))
        weights = (
            [1.0] * len(logits) if self.weights is None else [_at(w, state, logits[0]) for w in self.weights]
        )
        return {"classification": sum(w * loss(y, z) for w, z in zip(weights, logits, strict=True))}

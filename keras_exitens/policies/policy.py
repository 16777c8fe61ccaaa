"""The base of all policies: thresholds for the scores of the exits, and what they decide."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import keras
import numpy as np

from keras_exitens import _checks as checks
from keras_exitens import _scores as scores
from keras_exitens._types import Tensor
from keras_exitens.policies.calibration import Calibration

__all__ = ["Policy", "array_module"]

ROUNDING = 1e-4  # scores and the thresholds between them may be above the greatest score by so much


class Policy:
    """Base class: a row leaves at the first exit whose score reaches the threshold of that exit.

    The final exit takes whoever is left. To make a policy of one's own, subclass, override `score`, and
    register the class with `keras.saving.register_keras_serializable()`:

    ```python
    @keras.saving.register_keras_serializable("my_package")
    class Energy(kx.policies.Policy):
        def score(self, logits):
            return keras.ops.logsumexp(logits, axis=-1)
    ```

    Args:
        thresholds: what the score has to reach at each early exit: a list of K − 1 floats in the order of the
            exits, or one float for all. `float("-inf")` lets every finite row leave, `float("inf")` none.
        temperatures: what the logits of each exit are divided by before they are scored: a list of K positive
            floats, the final exit's last, or one for all. The logits that come out are not divided.
        enabled: which early exits are used at all: a list of K − 1 bools, or one bool for all. A disabled
            exit is neither computed nor costed, and is left out of the ensemble and of the patience count.
        ensemble: bool. Whether the mean of the logits of the enabled exits so far is scored, and comes out,
            in place of the logits of the exit alone. The temperature of an exit divides the mean that ends
            there.

    Attributes:
        calibration: `None`, or the `Calibration` that says what `calibrate` found out about the policy, saved
            with it. Policies that decide the same are equal, whatever they carry here.

    Raises:
        ValueError: a threshold is NaN, a temperature is not positive and finite, the lists do not belong to
            the same number of exits.
    """

    _calibration: Calibration | None = None
    _highest = math.inf  # no score is above it

    def __init__(
        self,
        thresholds: float | Sequence[float] | np.ndarray,
        temperatures: float | Sequence[float] | np.ndarray = 1.0,
        *,
        enabled: bool | Sequence[bool] | np.ndarray = True,
        ensemble: bool = False,
    ) -> None:
        self.thresholds = _each("thresholds", thresholds, self._threshold)
        self.temperatures = _each("temperatures", temperatures, _temperature)
        self.enabled = _each("enabled", enabled, _flag)
        self.ensemble = _flag("ensemble", ensemble)
        self._check_lengths(None)

    @property
    def calibration(self) -> Calibration | None:
        return self._calibration

    @calibration.setter
    def calibration(self, found: Calibration | dict[str, Any] | None) -> None:
        # Policies that were saved before this was a class hold a dict.
        self._calibration = Calibration.from_dict(found) if isinstance(found, dict) else found

    def score(self, logits: Tensor) -> Tensor:
        """How sure the classifier is of each row. Override it in a policy of your own.

        Args:
            logits: float `(rows, classes)`, already divided by the temperature; a NumPy array or a tensor.

        Returns:
            Float `(rows,)`, greater for surer rows; NaN where the row must go on to the end.
        """
        raise NotImplementedError(f"{type(self).__name__} must override score(logits).")

    def for_exits(self, exits: int) -> Self:
        """The same policy with its settings written out for a network.

        Args:
            exits: int, K, the number of exits with the final one.

        Returns:
            A policy whose `thresholds` and `enabled` are tuples of K − 1 and whose `temperatures` of K
            values.

        Raises:
            ValueError: the settings are for another number of exits.
        """
        self._check_lengths(exits)
        lengths = {"thresholds": exits - 1, "enabled": exits - 1, "temperatures": exits}
        settings = {
            name: getattr(self, name)
            if isinstance(getattr(self, name), tuple)
            else (getattr(self, name),) * n
            for name, n in lengths.items()
        }
        return type(self).from_config({**self.get_config(), **settings})

    def enabled_exits(self, exits: int) -> tuple[int, ...]:
        """Indices of the exits that are used, the final one (`exits - 1`) included, as a tuple of int."""
        flags = (*self.for_exits(exits).enabled, True)
        return tuple(i for i, flag in enumerate(flags) if flag)

    def observe(
        self, logits: Tensor, index: int, state: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Scores the rows that have come to one exit. Only for a policy that `for_exits` gave.

        Args:
            logits: float `(rows, classes)`, the logits of that exit.
            index: int, which exit, 0 for the first; an enabled one.
            state: what the call at the enabled exit before gave, for the same rows; `None` at the first.

        Returns:
            `(logits, score, state)`: the logits that come out for a row that leaves here, the score
            `(rows,)`, and a dict of arrays with one entry a row, to be passed on.
        """
        count = sum(self.enabled[:index]) + 1 if self.ensemble else None
        return scores.observe(self._scored, logits, self.temperatures[index], count, state)

    def _scored(self, logits: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.score(logits), {}

    def simulate(self, logits: Tensor) -> dict[str, Tensor]:
        """What early exit by this policy gives, from the logits of all exits.

        Args:
            logits: float `(K, N, classes)`, NumPy array or tensor; those of disabled exits are not looked at.

        Returns:
            A dict as `EarlyExit` gives it: `"logits"` `(N, classes)`, `"exit"` `(N,)` int32, `"score"`
            `(N,)`.
        """
        xp = array_module(logits)
        exits = logits.shape[0]
        policy = self.for_exits(exits)
        state: dict[str, Tensor] | None = None
        result: Any = None
        for index in self.enabled_exits(exits):
            values, score, state = policy.observe(logits[index], index, state)
            here = {"logits": values, "exit": xp.full_like(score, index, dtype="int32"), "score": score}
            if result is None:
                result, left = here, xp.zeros_like(score, dtype="bool")
            else:
                result = {
                    key: xp.where(left[:, None] if key == "logits" else left, result[key], here[key])
                    for key in here
                }
            if index < exits - 1:
                going_on = scores.goes_on(xp, score, policy.thresholds[index])
                left = xp.logical_or(left, xp.logical_not(going_on))
        return result

    def decide(self, logits: Tensor) -> Tensor:
        """The exit each row takes.

        Args:
            logits: float `(K, N, classes)`, NumPy array or tensor.

        Returns:
            `(N,)` int32, 0 for the first exit.
        """
        return self.simulate(logits)["exit"]

    def get_config(self) -> dict[str, Any]:
        names = ("thresholds", "temperatures", "enabled", "ensemble")
        values = ((name, getattr(self, name)) for name in names)
        config = {name: list(v) if isinstance(v, tuple) else v for name, v in values}
        return config if self.calibration is None else {**config, "calibration": self.calibration.to_dict()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        settings = {name: value for name, value in config.items() if name != "calibration"}
        policy = cls(**settings)
        policy.calibration = config.get("calibration")
        return policy

    def _settings(self) -> dict[str, Any]:
        return {name: value for name, value in self.get_config().items() if name != "calibration"}

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._settings() == other._settings()

    def __hash__(self) -> int:
        return hash((type(self), self.thresholds, self.temperatures, self.enabled, self.ensemble))

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self._settings().items())
        return f"{type(self).__name__}({settings})"

    def _threshold(self, name: str, value: Any) -> float:
        if isinstance(value, float | np.floating) and np.isinf(value):
            return float(value)
        value = float(checks.number(name, value))
        if value > self._highest + ROUNDING:
            checks.warn(
                f"No image will leave at a threshold of {value:g}: scores of {type(self).__name__} are at "
                f"most {self._highest:g}. Pass, for instance, 0.9; inf says that none is to leave."
            )
        return value

    def _check_lengths(self, exits: int | None) -> None:
        """Raises unless all lists belong to `exits` exits; to one and the same number, where it is `None`."""
        given = {
            name: len(value) + (name != "temperatures")
            for name in ("thresholds", "temperatures", "enabled")
            if isinstance(value := getattr(self, name), tuple)
        }
        if set(given.values()) - {exits if exits is not None else next(iter(given.values()), None)}:
            lengths = ", ".join(f"{name} for {n} exits" for name, n in given.items())
            raise checks.error(
                "The settings of the policy do not belong to this number of exits.",
                expected="for K exits, K - 1 thresholds, K - 1 enabled flags and K temperatures"
                + (f"; here K = {exits}" if exits is not None else ""),
                received=lengths,
                fix="pass one value for all exits, or lists of these lengths",
            )


def array_module(array: Tensor) -> Any:
    """NumPy for an array of NumPy, `keras.ops` for a tensor."""
    return np if isinstance(array, np.ndarray) else keras.ops


def _each(name: str, value: Any, check: Callable[[str, Any], Any]) -> Any:
    """A setting for all exits, or a tuple of one for each."""
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(check(name, v) for v in value)
    return check(name, value)


def _temperature(name: str, value: Any) -> float:
    return float(checks.number(name, value, above=0))


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise checks.error(
        f"`{name}` is not a truth value.",
        expected="True or False",
        received=f"{name}={value!r}",
        fix=f"pass {name}=True or {name}=False",
    )

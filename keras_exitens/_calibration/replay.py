"""What a policy would have done: scores, hits and costs of recorded images, for every set of exits."""

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np

from keras_exitens import _checks as checks
from keras_exitens._calibration.records import ExitRecords
from keras_exitens._calibration.threshold_search import Subset, evaluate, exits_of
from keras_exitens._network.costs import ExitCost
from keras_exitens.policies import Policy

__all__ = ["Replay", "Spending", "run"]

_EARLY_EXITS = 12  # 4,096 sets of exits
_ROWS = 4096  # scored at once


class Spending:
    """What it costs to leave at each exit, given which exits are used.

    Args:
        cost: an `ExitCost`, or a sequence of K cumulative costs, which are then the same whichever exits are
            used.
        records: the `ExitRecords` it has to fit.

    Attributes:
        full: float, the cost of the network without early exits: what fractions are fractions of.
        unit: str.

    Raises:
        ValueError: the cost is for another number of exits, or decreases.
    """

    def __init__(self, cost: ExitCost | Sequence[float], records: ExitRecords) -> None:
        self._cost = cost
        by_exit = cost if isinstance(cost, ExitCost) else None
        values = np.asarray(by_exit.cumulative if by_exit else cost)
        names = by_exit.names if by_exit else records.names
        rising = (
            values.ndim == 1
            and values.dtype.kind in "iuf"
            and np.isfinite(values).all()
            and (np.diff([0, *values]) >= 0).all()
        )
        if not rising or len(values) != records.exits or tuple(names) != records.names or not values[-1] > 0:
            raise checks.error(
                "The costs do not belong to these records.",
                expected=f"cumulative costs of {', '.join(records.names)}, finite and not decreasing",
                received=f"{', '.join(map(str, names))}: {by_exit.cumulative}" if by_exit else repr(cost),
                fix="pass keras_exitens.cost(model) of the model that was given to collect",
            )
        self._values = values.astype("float64")
        self.full = float(by_exit.backbone if by_exit else values[-1])
        self.unit = by_exit.unit if by_exit else ""

    def at(self, exits: Sequence[int]) -> np.ndarray:
        """Costs to leave at each of the exits used, `(m + 1,)`.

        Args:
            exits: indices of the exits used, the final one last.
        """
        if not isinstance(self._cost, ExitCost):
            return self._values[list(exits)]
        enabled = [i in exits for i in range(len(self._values))]
        return np.array(self._cost.only(enabled).cumulative, "float64")[list(exits)]


class Replay:
    """Runs a kind of policy over records.

    Args:
        kind: a subclass of `Policy`.
        records: `ExitRecords`.
        spending: `Spending`.
        temperatures: float, or K floats.
        ensemble: bool.

    Attributes:
        full: bool `(N,)`, where the full model is right: the final exit alone, also with `ensemble`, since
            with all early exits disabled the ensemble is the final exit.
    """

    def __init__(
        self,
        kind: type[Policy],
        records: ExitRecords,
        spending: Spending,
        temperatures: float | list[float] = 1.0,
        ensemble: bool = False,
    ) -> None:
        self.kind, self.records, self.spending = kind, records, spending
        self._settings: dict[str, Any] = {"temperatures": temperatures, "ensemble": ensemble}
        self._rows: slice | np.ndarray = slice(None)
        self.full = records.logits[-1].argmax(axis=1) == records.labels
        # Otherwise the scores of an exit are the same whichever others are used.
        self._depends = ensemble or kind._scored is not Policy._scored
        self._known: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def only(self, rows: np.ndarray) -> Self:
        """The same for some of the images, an index array. The logits are not copied."""
        part = copy.copy(self)
        part._rows, part.full = rows, self.full[rows]
        return part

    def __len__(self) -> int:
        """Number of images."""
        return len(self.full)

    def policy(self, exits: Sequence[int] | None = None, thresholds: Iterable[float] = ()) -> Policy:
        """The policy that uses these exits (default: the final one alone) with these thresholds."""
        early = self.records.exits - 1
        chosen = dict(zip(exits or (), thresholds, strict=False))
        return self.kind(
            thresholds=[chosen.get(i, np.inf) for i in range(early)],
            enabled=[i in chosen for i in range(early)],
            **self._settings,
        ).for_exits(self.records.exits)

    def subsets(self) -> Iterator[Subset]:
        """A `Subset` for every set of exits, fewest exits first; gains are 1 for a right answer, else 0.

        Raises:
            ValueError: more than twelve early exits.
        """
        early = self.records.exits - 1
        if early > _EARLY_EXITS:
            raise checks.error(
                "There are too many exits to try all sets of them.",
                expected=f"at most {_EARLY_EXITS} early exits",
                received=f"{early}",
                fix="take exits off the network with keras_exitens.add_exits(backbone, exits=[...])",
            )
        for size in range(early + 1):
            for used in itertools.combinations(range(early), size):
                yield self.subset(used)

    def subset(self, used: tuple[int, ...]) -> Subset:
        """The `Subset` of early exits `used`, a tuple of indices."""
        exits = (*used, self.records.exits - 1)
        policy = self.policy(exits, [0.0] * len(used))
        state: dict[str, np.ndarray] | None = None
        seen = []
        for index in exits:
            if self._depends or index not in self._known:
                right, score, state = self._observe(policy, index, state)
                self._known[index] = right, score
            seen.append(self._known[index])
        scores = np.array([score[self._rows] for _, score in seen[:-1]]).reshape(len(used), len(self))
        gains = np.array([right[self._rows] for right, _ in seen], "float64")
        return Subset(exits, scores, gains, self.spending.at(exits))

    def measure(self, exits: Sequence[int], thresholds: Sequence[float]) -> dict[str, Any]:
        """What a policy does to these images.

        Args:
            exits: indices of the exits used, the final one last.
            thresholds: one for each but the last.

        Returns:
            A dict: `images` (how many), `full_accuracy`, `accuracy`, `accuracy_drop`, `cost` (fraction of the
            full cost), `shares` (of the images, for all K exits).
        """
        subset = self.subset(tuple(exits[:-1]))
        sums = evaluate(subset, thresholds)
        shares = np.zeros(self.records.exits)
        taken = exits_of(subset.scores, thresholds)
        shares[list(exits)] = np.bincount(taken, minlength=len(exits)) / len(self)
        full, accuracy = float(self.full.mean()), sums.gain / len(self)
        return {
            "images": len(self),
            "full_accuracy": full,
            "accuracy": accuracy,
            "accuracy_drop": full - accuracy,
            "cost": sums.cost / len(self) / self.spending.full,
            "shares": tuple(shares.tolist()),
        }

    def _observe(
        self, policy: Policy, index: int, state: dict[str, np.ndarray] | None
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Whether each row is right at an exit, its score, and the state; a few rows at a time."""
        parts = []
        for start in range(0, len(self.records), _ROWS):
            rows = slice(start, start + _ROWS)
            before = None if state is None else {key: value[rows] for key, value in state.items()}
            logits, score, after = policy.observe(self.records.logits[index, rows], index, before)
            right = np.asarray(logits).argmax(axis=1) == self.records.labels[rows]
            parts.append((right, _one_a_row(np.asarray(score), right, policy), after))
        right, score, states = zip(*parts, strict=True)
        after = {key: np.concatenate([state[key] for state in states]) for key in states[0]}
        return np.concatenate(right), np.concatenate(score), after


def run(policy: Policy, records: ExitRecords) -> dict[str, np.ndarray]:
    """What a policy gives for all images, a few at a time: a dict as of `Policy.simulate`, without logits.

    Returns:
        A dict: `"exit"` `(N,)` int, `"score"` `(N,)`, `"label"` `(N,)` int, the class predicted.
    """
    parts = []
    for start in range(0, len(records), _ROWS):
        part = policy.simulate(np.asarray(records.logits[:, start : start + _ROWS]))
        parts.append((part["exit"], part["score"], np.asarray(part["logits"]).argmax(axis=1)))
    columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    return dict(zip(("exit", "score", "label"), columns, strict=True))


def _one_a_row(score: np.ndarray, right: np.ndarray, policy: Policy) -> np.ndarray:
    if score.shape != right.shape:
        raise checks.error(
            f"{type(policy).__name__}.score does not give one number a row.",
            expected=f"shape {right.shape}",
            received=f"shape {score.shape}",
            fix="reduce over the classes, axis=-1",
        )
    return score

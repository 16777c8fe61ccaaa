"""`Monitor`: whether the images that come still look, to the exits, like those the thresholds were set on.

No labels are needed. Of each image it reads where it left and with which score, and ranks it by difficulty
among all images before it: those that left earlier and surer are easier. As long as nothing changes, such
ranks are independent and uniform. Money is bet against that; who bets on a fair game gets rich only by
chance, so that the wealth reaches `1 / alpha` at any time with a probability of at most `alpha`.

Reference: Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World, 2005, section 7.1 (conformal
test martingales); Ville's inequality.
"""

import dataclasses
import json
import math
import os
import pathlib
import typing
from collections.abc import Sequence

import numpy as np

from .. import _checks as checks

__all__ = ["DriftReport", "Monitor"]

# Scores are told apart up to such steps, which do not depend on the images: else ranks were not uniform. They
# are fine where scores of sure networks lie, next to 1; whole numbers are the counts of `Patience`.
_EDGES = np.array(
    [
        *(i / 32 for i in range(1, 24)),
        *(1 - 10 ** (-i / 8) for i in range(5, 49)),
        *(i + 0.5 for i in range(1, 64)),
    ]
)
_PER_EXIT = len(_EDGES) + 2  # the last: no score, as for an image with NaN
_BINS = 10  # of ranks, what bets are made on
_RESTART = 200  # rows; a new bettor begins so often, so that a change after a year is seen as soon
_BETTORS = 64  # that are remembered: the newest, and of the older ones the richest
_NEWEST = 16


@dataclasses.dataclass(frozen=True)
class DriftReport:
    """What a `Monitor` says.

    Attributes:
        rows: int, how many images it has seen.
        alarm_row: int, the image at which the evidence reached `1 / alpha`; `None` as long as it has not.
        changed_row: int, from which image on the rows speak most against the reference: where a change began,
            to `Monitor.step` images or so; `None` while nothing speaks against it.
        evidence: float, the wealth of who bets against "nothing has changed" and began with 1.
        alpha: float, the false-alarm rate over the whole run.
        exit_names: names of the exits.
        expected: share of the reference that left at each exit.
        seen: share of the images since `changed_row`, or of all, that left at each exit.
    """

    rows: int
    alarm_row: int | None
    changed_row: int | None
    evidence: float
    alpha: float
    exit_names: tuple[str, ...]
    expected: tuple[float, ...]
    seen: tuple[float, ...]

    @property
    def alarm(self) -> bool:
        """Whether the evidence has reached its limit at any time: an alarm stays."""
        return self.alarm_row is not None

    def __str__(self) -> str:
        state = f"changed, about since image {self.changed_row:,}" if self.alarm else "no change seen"
        lines = [
            f"{self.rows:,} images: {state} (evidence {self.evidence:.3g}, alarm at {1 / self.alpha:g})",
            *(
                f"  {name}: {seen:.1%} left here, {expected:.1%} of the reference"
                for name, expected, seen in zip(self.exit_names, self.expected, self.seen, strict=True)
            ),
        ]
        return "\n".join(lines)


class Monitor:
    """Watches the outputs of a multi-exit network for change. See the module.

    Args:
        reference: dict of the outputs for the images of the reference, which `update` takes too.
        exit_names: names of all exits.
        alpha: float in (0, 1), the probability of a false alarm over the whole run, however long.
        seed: int. Ties between scores are broken at random, reproducibly.

    Attributes:
        step: int, how finely the beginning of a change is told, in images.

    Raises:
        ValueError: outputs of another form, no rows, exits that there are not, an `alpha` out of range.
    """

    step = _RESTART

    def __init__(
        self,
        reference: typing.Mapping[str, typing.Any],
        exit_names: Sequence[str],
        alpha: float = 0.01,
        seed: int = 0,
    ) -> None:
        found = _bins(reference, len(exit_names))
        if not len(found):
            raise checks.error(
                "There is nothing to compare with.",
                expected="at least one image; a thousand tell much more",
                received="no rows",
                fix="pass the records that the policy was calibrated on",
            )
        self._set(np.bincount(found, minlength=_PER_EXIT * len(exit_names)), exit_names, alpha, seed)

    def _set(self, reference: np.ndarray, exit_names: Sequence[str], alpha: float, seed: int) -> None:
        self._reference = reference  # how many images there are of each difficulty
        self.exit_names = tuple(exit_names)
        self.alpha = float(checks.number("alpha", alpha, above=0, below=1))
        self.seed = checks.whole("seed", seed, low=0)
        self.reset()

    def reset(self) -> None:
        """Forgets all images but the reference: after a new model or an alarm that was seen to."""
        self._counts = self._reference.copy()  # of all images so far
        self._total = int(self._counts.sum())
        self._random = np.random.default_rng(self.seed)
        self._rows = 0
        self._alarm: int | None = None
        self._began = np.zeros(0, int)  # a bettor each: at which row
        self._wealth = np.zeros(0)  # its logarithm, the share that it was given left in it
        self._ranks = np.zeros((0, _BINS))  # what it has seen
        self._cash = 0.0  # logarithm of what no bettor has yet
        self._left = np.zeros((0, len(self.exit_names)), int)  # exits since it began

    def update(self, outputs: typing.Mapping[str, typing.Any]) -> DriftReport:
        """Takes the outputs of some images, in the order in which they came.

        Args:
            outputs: what `predict` gave: `"exit"` `(rows,)` and `"score"` `(rows,)`; the rest is not read.

        Returns:
            A `DriftReport`.

        Raises:
            ValueError: outputs of another form, or exits that the network does not have; none is taken then.
        """
        for found in _bins(outputs, len(self.exit_names)):
            self._bet(int(found))
        return self.report()

    def report(self) -> DriftReport:
        """What there is to say so far."""
        best = int(self._wealth.argmax()) if len(self._wealth) else None
        evidence = self._evidence()
        against = best is not None and evidence > 0
        by_exit = self._reference.reshape(len(self.exit_names), -1).sum(1)
        everything = (self._counts - self._reference).reshape(len(self.exit_names), -1).sum(1)
        seen = self._left[best] if against else everything
        return DriftReport(
            rows=self._rows,
            alarm_row=self._alarm,
            changed_row=int(self._began[best]) if against else None,
            evidence=float(math.exp(min(evidence, 700.0))),
            alpha=self.alpha,
            exit_names=self.exit_names,
            expected=_shares(by_exit),
            seen=_shares(seen),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the reference, for `load`; what was seen since is left out."""
        kept = {
            "made_by": "keras_exitens",
            "drift": 1,
            "exit_names": self.exit_names,
            "alpha": self.alpha,
            "seed": self.seed,
            "reference": self._reference.tolist(),
        }
        pathlib.Path(path).write_text(json.dumps(kept) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Monitor":
        """Reads what `save` wrote.

        Raises:
            ValueError: the file is no such thing.
        """
        try:
            kept = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
            if kept["drift"] != 1:
                raise ValueError(f"version {kept['drift']!r}")
            reference = np.array(kept["reference"], int)
            if reference.shape != (_PER_EXIT * len(kept["exit_names"]),) or not (reference >= 0).all():
                raise ValueError("the reference does not fit the exits")
            monitor = object.__new__(Monitor)
            monitor._set(reference, kept["exit_names"], kept["alpha"], kept["seed"])
        except (OSError, ValueError, TypeError, KeyError) as cause:
            raise checks.error(
                f"{str(path)!r} holds no reference of a drift monitor.",
                expected="a file that DriftMonitor.save wrote",
                received=f"{type(cause).__name__}: {cause}",
                fix="DriftMonitor(records, policy).save(path)",
            ) from cause
        return monitor

    def _bet(self, found: int) -> None:
        if self._rows % _RESTART == 0:
            self._begin()
        self._counts[found] += 1
        # The rank among all so far, this one included, in (0, 1): uniform and independent of those before.
        easier = int(self._counts[:found].sum())
        self._total += 1
        share = (easier + self._random.random() * self._counts[found]) / self._total
        rank = min(int(_BINS * share), _BINS - 1)
        # Each bettor bets by the frequencies that it has seen, none of them 0.
        self._wealth += np.log(_BINS * (self._ranks[:, rank] + 1) / (self._ranks.sum(1) + _BINS))
        self._ranks[:, rank] += 1
        self._left[:, found // _PER_EXIT] += 1
        self._rows += 1
        if self._alarm is None and self._evidence() >= math.log(1 / self.alpha):
            self._alarm = self._rows

    def _begin(self) -> None:
        """A new bettor with its share of the money: `1 / (k (k + 1))` for the k-th; all shares sum to 1."""
        k = self._rows // _RESTART + 1
        keep = np.arange(len(self._began))
        if len(keep) >= _BETTORS:
            # Whoever is forgotten loses its money: that makes alarms rarer, never more frequent.
            older = self._wealth[:-_NEWEST]
            keep = np.delete(keep, int(older.argmin()))
        self._began = np.append(self._began[keep], self._rows)
        self._wealth = np.append(self._wealth[keep], -math.log(k * (k + 1)))
        self._ranks = np.vstack([self._ranks[keep], np.zeros((1, _BINS))])
        self._left = np.vstack([self._left[keep], np.zeros((1, len(self.exit_names)), int)])
        self._cash = -math.log(k + 1)

    def _evidence(self) -> float:
        """Logarithm of the wealth of all together."""
        every = np.append(self._wealth, self._cash)
        top = every.max()
        return float(top + math.log(np.exp(every - top).sum()))


def _bins(outputs: typing.Mapping[str, typing.Any], exit_count: int) -> np.ndarray:
    """Each row by its difficulty: 0 for the surest of those that left first."""
    try:
        exits, scores = np.asarray(outputs["exit"]), np.asarray(outputs["score"])
        fits = exits.ndim == 1 and exits.shape == scores.shape and exits.dtype.kind in "iu"
        fits = fits and scores.dtype.kind in "fiu"
        fits = fits and bool(((exits >= 0) & (exits < exit_count)).all())
        received = f"exit {exits.dtype} {exits.shape}, score {scores.dtype} {scores.shape}"
    except (KeyError, TypeError, IndexError) as cause:
        fits, received = False, f"{type(cause).__name__}: {cause}"
    if not fits:
        raise checks.error(
            "These are not the outputs of this network.",
            expected=f"'exit', integers (rows,) below {exit_count}, and 'score', floats (rows,)",
            received=received,
            fix="monitor.update(early.predict(images))",
        )
    within = len(_EDGES) - np.searchsorted(_EDGES, scores)
    return exits * _PER_EXIT + np.where(np.isnan(scores), _PER_EXIT - 1, within)


def _shares(counts: np.ndarray) -> tuple[float, ...]:
    return tuple(float(c) for c in counts / max(int(counts.sum()), 1))

"""`tradeoff`: accuracy against cost, in tables, pictures and a page."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_exitens import _checks as checks
from keras_exitens import policies
from keras_exitens._calibration.records import ExitRecords
from keras_exitens._calibration.replay import Replay, Spending, run
from keras_exitens._calibration.threshold_search import Found, front, grid_size, merge
from keras_exitens._network.costs import ExitCost
from keras_exitens._reports import figures, pages
from keras_exitens._reports.statistics import ExitStatistics, of_exits
from keras_exitens._tables import Report, aligned
from keras_exitens._types import Path

__all__ = ["Outcome", "Point", "Tradeoff", "tradeoff"]

_POINTS = 60
_ROWS = 12  # of the curve, in a table
_MARKED_DROP = 0.01


@dataclasses.dataclass(frozen=True)
class Point(Report):
    """What one policy trades accuracy for cost at.

    Attributes:
        cost: float, mean, as a fraction of the network without early exits.
        accuracy: float.
        accuracy_drop: float, how much less accurate than the final exit alone.
        shares: float per exit, share of the images that leave there.
        policy: the policy.
    """

    cost: float
    accuracy: float
    accuracy_drop: float
    shares: tuple[float, ...]
    policy: policies.Policy

    def table(self) -> str:
        """One line."""
        shares = ", ".join(f"{share:.1%}" for share in self.shares)
        return f"{self.accuracy:.2%} at {self.cost:.1%} of the cost, shares of the exits {shares}"


@dataclasses.dataclass(frozen=True)
class Outcome(Point):
    """What one policy does, image by image.

    Attributes: those of `Point`, and
        exit: int `(N,)`, the index of the exit that each image leaves at.
        score: float `(N,)`, what the policy saw there.
        right: bool `(N,)`, whether the image is classified right there.
    """

    exit: np.ndarray = dataclasses.field(repr=False)
    score: np.ndarray = dataclasses.field(repr=False)
    right: np.ndarray = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Tradeoff(Report):
    """Accuracy against cost for a family of policies, and what the exits are like.

    Attributes:
        points: list of `Point`, cheapest first.
        chosen: `Outcome` of the policy that tables and pictures mark.
        exits: list of `ExitStatistics`.
        exit_costs: what it costs if all images leave at one exit and no other early exit is used.
        full_accuracy: of the final exit.
        ensemble_accuracy: of the mean of the logits of all exits.
        images: int, how many these figures are of.
    """

    points: list[Point]
    chosen: Outcome
    exits: list[ExitStatistics]
    exit_costs: tuple[float, ...]
    full_accuracy: float
    ensemble_accuracy: float
    images: int

    def frame(self) -> Any:
        """The points of the curve as a pandas `DataFrame`, one row each."""
        pandas = checks.optional_import("pandas", "plots")
        names = [exit.name for exit in self.exits]
        return pandas.DataFrame(
            {
                **{key: getattr(point, key) for key in ("cost", "accuracy", "accuracy_drop")},
                **{f"share_{name}": share for name, share in zip(names, point.shares, strict=True)},
                "policy": point.policy,
            }
            for point in self.points
        )

    def tables(self) -> dict[str, list[list[str]]]:
        """Titles and rows of text: pairs of a title and a list of rows, the heading first."""
        return {
            f"Exits, {self.images:,} images (full model {self.full_accuracy:.1%}, mean of all exits "
            f"{self.ensemble_accuracy:.1%})": self._exit_rows(),
            "Policies: mean cost, accuracy, share of the images that leaves at each exit": self._point_rows(),
        }

    def table(self) -> str:
        """The exits, and a dozen policies of the curve with the chosen one, as text."""
        return "\n\n".join(f"{title}\n{aligned(rows)}" for title, rows in self.tables().items())

    def plot(self) -> Any:
        """The curve, where the images leave, and reliability diagrams: a matplotlib `Figure`."""
        return figures.tradeoff_figure(self)

    def to_html(
        self, path: Path, images: np.ndarray | None = None, title: str = "Accuracy against cost"
    ) -> None:
        """Writes one page that needs no other file.

        Args:
            path: of the page.
            images: array `(N, height, width[, channels])`, the images in the order of the records: the page
                shows those that leave first and last.
            title: str.

        Raises:
            ValueError: another number of images than of records.
        """
        pages.write(path, title, self, images)

    def _exit_rows(self) -> list[list[str]]:
        heading = "exit|cost|accuracy|exits so far|right here, wrong at end|same as end"
        rows = [[*heading.split("|"), "calibration error", "AUROC", "leave here", "of these right"]]
        for i, (exit, cost) in enumerate(zip(self.exits, self.exit_costs, strict=True)):
            left = self.chosen.exit == i
            here = f"{self.chosen.right[left].mean():.1%}" if left.any() else "-"
            shares = (exit.accuracy, exit.ensemble_accuracy, exit.overthinking, exit.agreement)
            rows.append(
                [
                    exit.name,
                    f"{cost:.1%}",
                    *(f"{share:.1%}" for share in shares),
                    f"{exit.calibration_error:.3f}",
                    f"{exit.auroc:.3f}",
                    f"{left.mean():.1%}",
                    here,
                ]
            )
        return rows

    def _point_rows(self) -> list[list[str]]:
        places = np.unique(np.linspace(0, len(self.points) - 1, _ROWS).round().astype(int))
        shown = sorted([*(self.points[i] for i in places), self.chosen], key=lambda point: point.cost)
        rows = [["", "cost", "accuracy", "drop", *(exit.name for exit in self.exits)]]
        for point in shown:
            numbers = (point.cost, point.accuracy, point.accuracy_drop, *point.shares)
            mark = "chosen" if point is self.chosen else ""
            rows.append([mark, *(f"{number:.1%}" for number in numbers)])
        return rows


def tradeoff(
    records: ExitRecords,
    cost: ExitCost | Sequence[float],
    policy: str | type[policies.Policy] = "max_probability",
    *,
    chosen_on: ExitRecords | None = None,
    chosen: policies.Policy | None = None,
    ensemble: bool = False,
    levels: int | None = None,
) -> Tradeoff:
    """Measures what a family of policies trades accuracy for cost at.

    The policies are those that the search of `calibrate` finds best for all budgets at once. Chosen and
    measured on the same images they look a little better than they are: pass the calibration records as
    `chosen_on` and the test records as `records` for an honest curve.

    Args:
        records: `ExitRecords` of the images to measure on.
        cost: an `ExitCost`, or a sequence of K cumulative costs.
        policy: name or class of the policies, as in `calibrate`.
        chosen_on: `ExitRecords` on which the thresholds are chosen; default `records`.
        chosen: a policy to mark, such as the result of `calibrate`; by default the cheapest of the curve that
            loses at most 0.01 of accuracy where it was chosen.
        ensemble: bool, as in `calibrate`.
        levels: int, thresholds tried at each early exit; by default as many as `calibrate` starts from, which
            is 158 at each of three. Fewer are faster.

    Returns:
        A `Tradeoff`: `.table()`, `.frame()`, `.plot()`, `.to_html(path)`.

    Raises:
        ValueError: costs, or a policy, for another number of exits; records of other exits; `levels` less
            than 2.

    Example:

    ```python
    curve = kx.tradeoff(test_records, kx.cost(model), chosen_on=calibration_records, chosen=policy)
    print(curve.table())
    curve.plot().savefig("tradeoff.png")
    curve.to_html("tradeoff.html", images=test_images)
    ```
    """
    chosen_on = records if chosen_on is None else chosen_on
    if chosen_on.names != records.names or chosen_on.classes != records.classes:
        raise checks.error(
            "The two sets of records are not of one network.",
            expected=f"exits {records.names} and {records.classes} classes",
            received=f"chosen_on with exits {chosen_on.names} and {chosen_on.classes} classes",
            fix="collect both with the same model",
        )
    kind, spending = policies.get(policy), Spending(cost, records)
    searched = Replay(kind, chosen_on, spending, ensemble=ensemble)
    size = grid_size(records.exits) if levels is None else checks.number("levels", levels, low=2)
    path = merge(found for subset in searched.subsets() for found in front(subset, size))[::-1]
    measured = Replay(kind, records, spending, ensemble=ensemble)
    places = np.unique(np.linspace(0, len(path) - 1, _POINTS).round().astype(int))
    points = [_point(measured, path[place]) for place in places]
    if chosen is None:
        floor = searched.full.sum() - _MARKED_DROP * len(chosen_on)
        cheapest = next(found for found in path if found.gain >= floor)
        chosen = measured.policy(cheapest.exits, cheapest.thresholds)
    chosen = chosen.for_exits(records.exits)
    mean = sum(records.logits) / records.exits
    early = range(records.exits - 1)
    return Tradeoff(
        points,
        _ran(chosen, records, spending),
        of_exits(records, chosen.temperatures),
        (*(float(spending.at((i, records.exits - 1))[0] / spending.full) for i in early), 1.0),
        float(measured.full.mean()),
        float((mean.argmax(axis=1) == records.labels).mean()),
        len(records),
    )


def _point(replay: Replay, found: Found) -> Point:
    measured = replay.measure(found.exits, found.thresholds)
    kept = {key: measured[key] for key in ("cost", "accuracy", "accuracy_drop", "shares")}
    return Point(**kept, policy=replay.policy(found.exits, found.thresholds))


def _ran(policy: policies.Policy, records: ExitRecords, spending: Spending) -> Outcome:
    """What a policy of any kind does to these records, image by image."""
    found = run(policy, records)
    used = policy.enabled_exits(records.exits)
    costs = dict(zip(used, spending.at(used), strict=True))
    right = found["label"] == records.labels
    full = (records.logits[-1].argmax(axis=1) == records.labels).mean()
    return Outcome(
        cost=float(np.mean([costs[i] for i in found["exit"]]) / spending.full),
        accuracy=float(right.mean()),
        accuracy_drop=float(full - right.mean()),
        shares=tuple((np.bincount(found["exit"], minlength=records.exits) / len(records)).tolist()),
        policy=policy,
        exit=found["exit"],
        score=found["score"],
        right=right,
    )

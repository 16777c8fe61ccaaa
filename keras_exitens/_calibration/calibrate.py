"""`calibrate`: from records and costs to a policy. It never sees a model."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from keras_exitens import _checks as checks
from keras_exitens import policies
from keras_exitens._calibration.certificates import fixed_sequence, hoeffding_bentkus, least_rows
from keras_exitens._calibration.records import ExitRecords
from keras_exitens._calibration.replay import Replay, Spending
from keras_exitens._calibration.schedules import geometric
from keras_exitens._calibration.temperatures import fit_temperature
from keras_exitens._calibration.threshold_search import (
    Found,
    Goal,
    Subset,
    evaluate,
    front,
    grid_size,
    merge,
    search,
)
from keras_exitens._network.costs import ExitCost

__all__ = ["calibrate"]

_TEMPERATURE_PART = 0.2
_TESTS = 32  # at most, on the way to the certified policy


def calibrate(
    records: ExitRecords,
    cost: ExitCost | Sequence[float],
    *,
    max_accuracy_drop: float | None = None,
    cost_budget: float | None = None,
    policy: str | type[policies.Policy] = "max_probability",
    temperature: bool = False,
    confidence: float | None = None,
    schedule: Literal["geometric"] | None = None,
    ensemble: bool = False,
    seed: int = 0,
) -> policies.Policy:
    """Chooses the thresholds of all exits together, and which exits to use at all.

    Either the cheapest policy that loses at most `max_accuracy_drop`, or the most accurate one that costs
    at most `cost_budget`. All sets of exits are tried, and for each all combinations of a grid of at most
    4,000,000; then each threshold in turn is moved to the best place between two neighbouring scores, until
    none moves.

    Calibrate on images that trained nothing and chose nothing, and measure the result on others still: what
    `policy.calibration` says of the images it was chosen on is a little too good.

    Args:
        records: `ExitRecords` of the calibration images.
        cost: an `ExitCost`, or a sequence of K cumulative costs. With a sequence, to disable an exit saves
            nothing.
        max_accuracy_drop: float in [0, 1): how much less accurate than the full model. The full model is the
            final exit alone, with `ensemble=True` too.
        cost_budget: float in (0, 1]: mean cost an image, as a fraction of the network without early exits
            (with a sequence: of its last number).
        policy: `"max_probability"`, `"entropy"`, `"margin"`, `"patience"`, or a subclass of
            `policies.Policy`.
        temperature: bool. Whether the logits of each exit get a temperature, fitted to a fifth of the records
            that then serves nothing else. With `ensemble=True` it is fitted to the mean of all exits so far.
        confidence: float in (0, 1), such as 0.95, or `None`. Only with `max_accuracy_drop`: with this
            probability over the draw of the calibration images, the expected drop in accuracy on new images
            is at most `max_accuracy_drop`. See below.
        schedule: `None`, or `"geometric"`: shares of images per exit by a geometric rule, all exits
            used, in place of the search; for comparison.
        ensemble: bool. Whether the policy scores, and gives out, the mean of the logits of the exits so far.
        seed: int, of the cut of the records into parts.

    Returns:
        A policy. Its `calibration`, a `policies.Calibration`, says what it does to these images: `accuracy`,
        `cost` (fraction), `shares` (of images, per exit), whether the budget is met, and with `confidence`
        what the certificate says.

    Raises:
        ValueError: not exactly one of the two budgets, an argument out of range, costs for another
            number of exits, too few records to cut into parts.

    A budget that cannot be met gives a warning, the policy that comes nearest to it, and `budget_met` false.

    With `confidence`, a path of policies, cautious to bold, comes from the search on one half of the records.
    The other half, which chose nothing, tests them in that order, for the risk above, which the drop in
    accuracy cannot exceed; the last one before the first failure is returned. Where none passes, that is
    the policy that uses no early exit, with a warning. Assumed are images drawn independently from the
    distribution of the new ones, the same network, and the same policy, unchanged; nothing is said of any
    single class, nor of images of another kind. Reference: Angelopoulos et al., Learn then Test,
    arXiv 2110.01052.

    Example:

    ```python
    records = kx.collect(model, splits.calibration)
    policy = kx.calibrate(records, kx.cost(model), max_accuracy_drop=0.01)
    print(policy.calibration)
    ```
    """
    _check(records, max_accuracy_drop, cost_budget, confidence, schedule, temperature, ensemble)
    kind = policies.get(policy)
    spending = Spending(cost, records)
    order = np.random.default_rng(seed).permutation(len(records))
    temperatures: float | list[float] = 1.0
    if temperature:
        part = round(_TEMPERATURE_PART * len(records))
        temperatures = _temperatures(records, order[:part], ensemble)
        order = order[part:]
    replay = Replay(kind, records, spending, temperatures, ensemble)
    if confidence is None or max_accuracy_drop is None:
        measured = replay.only(order)
        found, verdict = _search(measured, _goal(measured, max_accuracy_drop, cost_budget), schedule)
    else:
        half = len(order) // 2
        measured = replay.only(order[half:])
        path = _path(replay.only(order[:half]), max_accuracy_drop)
        found, verdict = _certify(measured, path, max_accuracy_drop, 1 - confidence)
    chosen = measured.policy(found.exits, found.thresholds)
    chosen.calibration = policies.Calibration(
        max_accuracy_drop=max_accuracy_drop,
        cost_budget=cost_budget,
        confidence=confidence,
        schedule=schedule,
        seed=seed,
        **verdict,
        **measured.measure(found.exits, found.thresholds),
    )
    if not chosen.calibration.budget_met:
        _warn(chosen.calibration)
    return chosen


def _check(
    records: ExitRecords,
    max_accuracy_drop: float | None,
    cost_budget: float | None,
    confidence: float | None,
    schedule: str | None,
    temperature: bool,
    ensemble: bool,
) -> None:
    if not isinstance(records, ExitRecords):
        raise checks.error(
            "These are not records.",
            expected="ExitRecords, as keras_exitens.collect(model, data) gives them",
            received=repr(type(records)),
            fix="records = kx.collect(model, data), or kx.ExitRecords(logits, labels)",
        )
    if (max_accuracy_drop is None) == (cost_budget is None):
        raise checks.error(
            "Exactly one budget is needed.",
            expected="max_accuracy_drop or cost_budget",
            received=f"max_accuracy_drop={max_accuracy_drop!r}, cost_budget={cost_budget!r}",
            fix="calibrate(records, cost, max_accuracy_drop=0.01)",
        )
    if max_accuracy_drop is not None:
        checks.number("max_accuracy_drop", max_accuracy_drop, low=0, below=1)
    else:
        checks.number("cost_budget", cost_budget, above=0, high=1)
    checks.one_of("schedule", schedule, (None, "geometric"))
    checks.one_of("temperature", temperature, (False, True))
    checks.one_of("ensemble", ensemble, (False, True))
    if confidence is not None:
        checks.number("confidence", confidence, above=0, below=1)
        if not max_accuracy_drop or schedule is not None:
            raise checks.error(
                "`confidence` does not go with these arguments.",
                expected="max_accuracy_drop above 0, and no schedule",
                received=f"max_accuracy_drop={max_accuracy_drop!r}, cost_budget={cost_budget!r}, "
                f"schedule={schedule!r}",
                fix="leave `confidence` out, or pass max_accuracy_drop alone",
            )
    _check_rows(len(records), temperature, confidence)


def _check_rows(rows: int, temperature: bool, confidence: float | None) -> None:
    """Raises `ValueError` where the records are too few for the parts that are made of them."""
    least = (1 + bool(temperature) + (confidence is not None)) * (5 if temperature else 1)
    if rows < least:
        raise checks.error(
            "There are too few records to cut into parts.",
            expected=f"at least {least} images",
            received=f"{rows}",
            fix="collect more images, or leave `temperature` and `confidence` out",
        )


def _temperatures(records: ExitRecords, rows: np.ndarray, ensemble: bool) -> list[float]:
    """One temperature an exit; of the mean of the logits so far with `ensemble`."""
    result, total = [], 0.0
    for count, logits in enumerate(records.logits, 1):
        total = total + logits[rows] if ensemble else logits[rows]
        result.append(fit_temperature(total / count if ensemble else total, records.labels[rows]))
    return result


def _search(replay: Replay, goal: Goal, schedule: str | None) -> tuple[Found, dict[str, Any]]:
    """The best policy for a goal, and whether it keeps the budget."""
    exits = replay.records.exits
    if schedule is None:
        found = search(replay.subsets(), grid_size(exits), goal)
    else:
        found = geometric(replay.subset(tuple(range(exits - 1))), goal)
    return found, {"budget_met": bool(goal.met(found.gain, found.cost))}


def _goal(replay: Replay, max_accuracy_drop: float | None, cost_budget: float | None) -> Goal:
    rows = len(replay)
    if cost_budget is not None:
        return Goal(ceiling=cost_budget * replay.spending.full * rows)
    return Goal(floor=float(replay.full.sum() - (max_accuracy_drop or 0) * rows))


def _risk(replay: Replay, subset: Subset) -> Subset:
    """The same subset with the gain −1 where the full model is right and the exit wrong, else 0."""
    return Subset(
        subset.exits, subset.scores, -(replay.full & (subset.gains == 0)).astype(float), subset.costs
    )


def _path(replay: Replay, level: float) -> list[Found]:
    """Policies that lose nothing first, then more and more for less and less cost, up to the level."""
    size = grid_size(replay.records.exits)
    fronts = [front(_risk(replay, subset), size) for subset in replay.subsets()]
    path = merge(found for choices in fronts for found in choices)
    path = [found for found in path if -found.gain <= level * len(replay)]
    places = np.unique(np.linspace(0, len(path) - 1, _TESTS).round().astype(int))
    return [path[place] for place in places]


def _certify(replay: Replay, path: list[Found], level: float, error: float) -> tuple[Found, dict[str, Any]]:
    """Tests a path of policies on these records: the last one that passes, and what is to be said."""
    rows = len(replay)
    trials = [_trial(replay, found) for found in path]
    p_values = [hoeffding_bentkus(losses, rows, level) for _, losses in trials]
    passed = fixed_sequence(p_values, error)
    if not passed:
        nothing = evaluate(replay.subset(()), ())
        return nothing, {"budget_met": False, "certified": False, "tests": len(path), "risk": 0.0}
    found, losses = trials[passed - 1]
    return found, {
        "budget_met": True,
        "certified": True,
        "p_value": p_values[passed - 1],
        "tests": min(passed + 1, len(path)),
        "risk": losses / rows,
    }


def _trial(replay: Replay, found: Found) -> tuple[Found, int]:
    """The thresholds of a policy found on other records, on these: what it does, how often it loses."""
    subset = replay.subset(found.exits[:-1])
    risk = evaluate(_risk(replay, subset), found.thresholds)
    return evaluate(subset, found.thresholds), round(-risk.gain)


def _warn(found: policies.Calibration) -> None:
    if found.confidence is not None:
        level = found.max_accuracy_drop or 0.0
        checks.warn(
            f"No policy with early exits could be certified to lose at most {level:.2%} with confidence "
            f"{found.confidence:.0%}: the policy returned uses none. {found.images} images were tested; "
            f"{least_rows(level, 1 - found.confidence)} are needed even where none of them is lost. Collect "
            "more images, or allow more."
        )
    elif found.cost_budget is not None:
        checks.warn(
            f"A budget of {found.cost_budget:.1%} of the full cost cannot be met: the policy returned costs "
            f"{found.cost:.1%}. Allow more, or put an earlier exit into the network."
        )
    else:
        checks.warn(
            f"No policy of this schedule loses at most {found.max_accuracy_drop:.2%} of accuracy: the one "
            f"returned loses {found.accuracy_drop:.2%}. Leave `schedule` out."
        )

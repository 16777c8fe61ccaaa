"""`calibrate`: from records and costs to a policy. It never sees a model."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from keras_exitens import checks, policies
from keras_exitens.certificates import fixed_sequence, hoeffding_bentkus, least_rows
from keras_exitens.costs import ExitCost
from keras_exitens.records import ExitRecords
from keras_exitens.replay import Replay, Spending
from keras_exitens.schedules import geometric
from keras_exitens.temperatures import fit_temperature
from keras_exitens.threshold_search import Goal, Subset, evaluate, front, grid_size, merge, search

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
        A policy. Its `calibration` is a dict: `budget_met` (bool), `accuracy`, `full_accuracy`,
        `accuracy_drop`, `cost` (fraction), `shares` (of images, per exit), `images` (how many these figures
        are of), the arguments, and with `confidence` also `certified`, `p_value`, `tests`, `risk` (the
        share of images on which the full model is right and the policy wrong).

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
    print(policy.calibration["cost"], policy.calibration["shares"])
    ```
    """
    _check(records, max_accuracy_drop, cost_budget, confidence, schedule, temperature, ensemble)
    kind = policies.get(policy)
    spending = Spending(cost, records)
    order = np.random.default_rng(seed).permutation(len(records))
    temperatures = 1.0
    if temperature:
        part = round(_TEMPERATURE_PART * len(records))
        temperatures = _temperatures(records, order[:part], ensemble)
        order = order[part:]
    replay = Replay(kind, records, spending, temperatures, ensemble)
    report = {
        "max_accuracy_drop": max_accuracy_drop,
        "cost_budget": cost_budget,
        "confidence": confidence,
        "schedule": schedule,
        "seed": seed,
    }
    if confidence is None:
        measured = replay.only(order)
        goal = _goal(measured, max_accuracy_drop, cost_budget)
        if schedule is None:
            found = search(measured.subsets(), grid_size(records.exits), goal)
        else:
            found = geometric(measured.subset(tuple(range(records.exits - 1))), goal)
        report["budget_met"] = bool(goal.met(found.gain, found.cost))
    else:
        half = len(order) // 2
        measured = replay.only(order[half:])
        path = _path(replay.only(order[:half]), max_accuracy_drop)
        found, certificate = _certify(measured, path, max_accuracy_drop, 1 - confidence)
        report.update(certificate, budget_met=certificate["certified"])
    chosen = measured.policy(found.exits, found.thresholds)
    chosen.calibration = {**report, **measured.measure(found.exits, found.thresholds)}
    if not report["budget_met"]:
        _warn(chosen.calibration)
    return chosen


def _check(records, max_accuracy_drop, cost_budget, confidence, schedule, temperature, ensemble):
    if not isinstance(records, ExitRecords):
        raise checks.error(
            "These are not records.",
            expected="ExitRecords, as keras_exitens.collect(model, data) gives them",
            received=repr(type(records)),
            fix="collect first, or build ExitRecords(logits, labels)",
        )
    if (max_accuracy_drop is None) == (cost_budget is None):
        raise checks.error(
            "Exactly one budget is wanted.",
            expected="max_accuracy_drop or cost_budget",
            received=f"max_accuracy_drop={max_accuracy_drop!r}, cost_budget={cost_budget!r}",
            fix="for instance calibrate(records, cost, max_accuracy_drop=0.01)",
        )
    if max_accuracy_drop is not None:
        checks.number("max_accuracy_drop", max_accuracy_drop, low=0, below=1)
    else:
        checks.number("cost_budget", cost_budget, above=0, high=1)
    checks.one_of("schedule", schedule, (None, "geometric"))
    checks.one_of("temperature", temperature, (False, True))
    checks.one_of("ensemble", ensemble, (False, True))
    parts = 1 + bool(temperature)
    if confidence is not None:
        checks.number("confidence", confidence, above=0, below=1)
        parts += 1
        if not max_accuracy_drop or schedule is not None:
            raise checks.error(
                "`confidence` does not go with these arguments.",
                expected="max_accuracy_drop above 0, and no schedule",
                received=f"max_accuracy_drop={max_accuracy_drop!r}, cost_budget={cost_budget!r}, "
                f"schedule={schedule!r}",
                fix="leave `confidence` out, or pass max_accuracy_drop alone",
            )
    least = 5 if temperature else 1
    if len(records) < parts * least:
        raise checks.error(
            "There are too few records to cut into parts.",
            expected=f"at least {parts * least} images",
            received=f"{len(records)}",
            fix="collect more images, or leave `temperature` and `confidence` out",
        )


def _temperatures(records, rows, ensemble):
    """One temperature an exit; of the mean of the logits so far with `ensemble`."""
    result, total = [], 0.0
    for count, logits in enumerate(records.logits, 1):
        total = total + logits[rows] if ensemble else logits[rows]
        result.append(fit_temperature(total / count if ensemble else total, records.labels[rows]))
    return result


def _goal(replay, max_accuracy_drop, cost_budget):
    rows = len(replay)
    if cost_budget is not None:
        return Goal(ceiling=cost_budget * replay.spending.full * rows)
    return Goal(floor=float(replay.full.sum() - max_accuracy_drop * rows))


def _risk(replay, subset):
    """The same subset with the gain −1 where the full model is right and the exit wrong, else 0."""
    return Subset(
        subset.exits, subset.scores, -(replay.full & (subset.gains == 0)).astype(float), subset.costs
    )


def _path(replay, level):
    """Policies that lose nothing first, then more and more for less and less cost, up to the level."""
    size = grid_size(replay.records.exits)
    fronts = [front(_risk(replay, subset), size) for subset in replay.subsets()]
    path = merge(found for choices in fronts for found in choices)
    path = [found for found in path if -found.gain <= level * len(replay)]
    places = np.unique(np.linspace(0, len(path) - 1, _TESTS).round().astype(int))
    return [path[place] for place in places]


def _certify(replay, path, level, error):
    """Tests a path of policies on these records: the last one that passes, and what is to be said."""
    rows = len(replay)
    trials = [_trial(replay, found) for found in path]
    p_values = [hoeffding_bentkus(losses, rows, level) for _, losses in trials]
    passed = fixed_sequence(p_values, error)
    if not passed:
        nothing = evaluate(replay.subset(()), ())
        return nothing, {"certified": False, "p_value": None, "tests": len(path), "risk": 0.0}
    found, losses = trials[passed - 1]
    return found, {
        "certified": True,
        "p_value": p_values[passed - 1],
        "tests": min(passed + 1, len(path)),
        "risk": losses / rows,
    }


def _trial(replay, found):
    """The thresholds of a policy found on other records, on these: what it does, how often it loses."""
    subset = replay.subset(found.exits[:-1])
    risk = evaluate(_risk(replay, subset), found.thresholds)
    return evaluate(subset, found.thresholds), round(-risk.gain)


def _warn(report):
    if report["confidence"] is not None:
        level, error = report["max_accuracy_drop"], 1 - report["confidence"]
        checks.warn(
            f"No policy with early exits could be certified to lose at most {level:.2%} with confidence "
            f"{report['confidence']:.0%}: the policy returned uses none. {report['images']} images were "
            f"tested; {least_rows(level, error)} are needed even where none of them is lost. Collect "
            "more images, or allow more."
        )
    elif report["cost_budget"] is not None:
        checks.warn(
            f"A budget of {report['cost_budget']:.1%} of the full cost cannot be met: the policy returned "
            f"costs {report['cost']:.1%}. Allow more, or put an earlier exit into the network."
        )
    else:
        checks.warn(
            f"No policy of this schedule loses at most {report['max_accuracy_drop']:.2%} of accuracy: the "
            f"one returned loses {report['accuracy_drop']:.2%}. Leave `schedule` out."
        )

"""The search for thresholds, over matrices of scores and of what each exit gains and costs.

Exit i of m early ones and a last one; row n leaves at the first exit whose score `s_in` reaches the threshold
`t_i`. To go on from exit i to the next changes what is gained by `v_{i+1,n} - v_in`, so that the sum over all
rows is a sum of cumulative joint histograms of the scores,

`sum_n v_{exit(n), n} = sum_n v_1n + sum_i sum_{n: s_1n < t_1, ..., s_in < t_i} (v_{i+1,n} - v_in)`,

known for every combination of the thresholds of a grid after one pass over the rows. No choice at one exit is
made before the choices at the others.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from keras_exitens import _scores as scoring

__all__ = [
    "Found",
    "Goal",
    "Subset",
    "candidates",
    "evaluate",
    "exits_of",
    "front",
    "grid_size",
    "merge",
    "refine",
    "search",
]

_COMBINATIONS = 4_000_000  # of thresholds, looked at for one set of exits
_REFINED = 64  # sets of exits whose best thresholds are refined


@dataclasses.dataclass(frozen=True)
class Subset:
    """What is known of N rows when only some exits are used.

    Attributes:
        exits: indices of the exits used, the final one last; m + 1 of them.
        scores: `(m, N)`, NaN for a row that must go on.
        gains: `(m + 1, N)` float, what is gained where a row leaves at each exit, such as 1 if it is right.
        costs: `(m + 1,)` float, what it costs to leave there.
    """

    exits: tuple[int, ...]
    scores: np.ndarray
    gains: np.ndarray
    costs: np.ndarray


@dataclasses.dataclass(frozen=True)
class Found:
    """A choice of thresholds: the sums over all rows that it gains and costs."""

    gain: float
    cost: float
    exits: tuple[int, ...]
    thresholds: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Goal:
    """What is wanted of the sums: the least cost that gains `floor`, or the most gain that costs `ceiling`.

    Exactly one is given. Where it cannot be had, what comes nearest to it is best.
    """

    floor: float | None = None
    ceiling: float | None = None

    def met(self, gain: Any, cost: Any) -> Any:
        """Whether the bound is kept, up to rounding."""
        if self.ceiling is not None:
            return cost <= self.ceiling * (1 + 1e-12)
        floor = self.floor or 0.0
        return gain >= floor - 1e-9 * max(1.0, abs(floor))

    def rank(self, gain: Any, cost: Any) -> tuple[Any, Any, Any]:
        """Three keys, the first one the weightiest; greater is better."""
        met = self.met(gain, cost)
        saved = -np.asarray(cost)
        if self.floor is not None:
            return met, np.where(met, saved, gain), np.where(met, gain, saved)
        return met, np.where(met, gain, saved), np.where(met, saved, gain)

    def best(self, gain: np.ndarray, cost: np.ndarray) -> int:
        """Index of the best of several; the last one of equals."""
        return int(np.lexsort(self.rank(gain, cost)[::-1])[-1])

    def better(self, a: Found, b: Found) -> bool:
        """Whether the `Found` a is truly better than b."""
        return [*map(float, self.rank(a.gain, a.cost))] > [*map(float, self.rank(b.gain, b.cost))]


def candidates(scores: np.ndarray) -> np.ndarray:
    """All thresholds that tell the rows apart: midway between neighbouring distinct scores.

    Neighbours that float32 cannot tell from a number between them count as one score: in the graph the
    comparison is in float32, where the score of a row may differ from NumPy's in the last bit.

    Args:
        scores: `(N,)`.

    Returns:
        Ascending float array, from `-inf` (every row leaves) to `inf` (no row does).
    """
    distinct = np.unique(scores[np.isfinite(scores)]).astype("float64")
    middle = (distinct[:-1] + distinct[1:]) / 2
    rounded = middle.astype("float32")
    apart = (rounded > distinct[:-1].astype("float32")) & (rounded < distinct[1:].astype("float32"))
    return np.concatenate([[-np.inf], middle[apart], [np.inf]])


def grid_size(exits: int) -> int:
    """Thresholds for each early exit of a network with `exits` exits in all."""
    return max(2, int(_COMBINATIONS ** (1 / max(1, exits - 1))))


def grid(scores: np.ndarray, size: int) -> np.ndarray:
    """At most `size` of the candidates: both ends, and between them those at even quantiles of the rows."""
    every = candidates(scores)
    if len(every) <= size:
        return every
    ordered = np.sort(scores[np.isfinite(scores)])
    quantiles = ordered[np.arange(1, size - 1) * len(ordered) // (size - 1)]
    chosen = np.searchsorted(every, quantiles)
    return every[np.unique([0, *chosen, len(every) - 1])]


def exits_of(scores: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """The exit each row takes, as an index 0 … m among the exits used.

    Args:
        scores: `(m, N)`.
        thresholds: m numbers.

    Returns:
        `(N,)` int.
    """
    leaves = [~scoring.goes_on(np, score, t) for score, t in zip(scores, thresholds, strict=True)]
    return np.argmax([*leaves, np.ones(scores.shape[1], bool)], axis=0)


def evaluate(subset: Subset, thresholds: Sequence[float]) -> Found:
    """The sums over all rows for given thresholds, as a `Found`."""
    taken = exits_of(subset.scores, thresholds)
    gain = subset.gains[taken, np.arange(len(taken))].sum()
    return Found(float(gain), float(subset.costs[taken].sum()), subset.exits, tuple(map(float, thresholds)))


def totals(subset: Subset, grids: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What every combination of thresholds gains and costs.

    Args:
        subset: a `Subset`.
        grids: m ascending arrays of thresholds, of lengths `G_1 … G_m`.

    Returns:
        `(gain, cost)`: two arrays `(G_1, …, G_m)`, sums over all rows.
    """
    gain = np.asarray(subset.gains[0].sum())
    cost = np.asarray(subset.costs[0] * subset.scores.shape[1])
    index = np.zeros(subset.scores.shape[1], np.int64)
    shape: tuple[int, ...] = ()
    for i, levels in enumerate(grids):
        # One bin more for rows that leave at every threshold of the grid.
        index = index * (len(levels) + 1) + _goes_on_from(levels, subset.scores[i])
        shape += (len(levels) + 1,)
        step = subset.gains[i + 1] - subset.gains[i]
        gain = gain[..., None] + _going_on(index, shape, step)
        cost = cost[..., None] + _going_on(index, shape, None) * (subset.costs[i + 1] - subset.costs[i])
    return gain, cost


def _goes_on_from(levels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The index of the first of the ascending thresholds that `goes_on` holds for; 0 for NaN."""
    return np.where(np.isnan(scores), 0, np.searchsorted(levels, scores, side="right"))


def _going_on(index: np.ndarray, shape: tuple[int, ...], weights: np.ndarray | None) -> np.ndarray:
    """Sums of the weights of the rows that go on past all exits so far, for all thresholds `(G_1, …)`."""
    result = np.bincount(index, weights, minlength=int(np.prod(shape))).reshape(shape)
    result = result[(slice(-1),) * len(shape)].astype("float64")
    for axis in range(len(shape)):
        np.cumsum(result, axis=axis, out=result)
    return result


def front(subset: Subset, size: int) -> list[Found]:
    """The least cost for each total gain that some combination of the grid reaches.

    Args:
        subset: a `Subset` with whole gains.
        size: int, thresholds in the grid of each exit.

    Returns:
        List of `Found`, most gain first, each with the least cost for its gain and cheaper than all before.
    """
    grids = [grid(scores, size) for scores in subset.scores]
    gain, cost = (array.ravel() for array in totals(subset, grids))
    whole = np.rint(gain).astype(np.int64)
    loss = whole.max() - whole
    least = np.full(loss.max() + 1, np.inf)
    np.minimum.at(least, loss, cost)
    cheapest = np.minimum.accumulate(least)
    wanted = np.isfinite(least) & (least == cheapest)
    wanted[1:] &= least[1:] < cheapest[:-1]
    cells = np.flatnonzero(wanted[loss] & (cost == least[loss]))
    # Of thresholds that do the same on these rows the greatest: on other rows they let fewer leave.
    place = np.zeros(len(least), np.int64)
    place[loss[cells]] = cells
    chosen = place[wanted]
    shape = tuple(map(len, grids))
    where = np.unravel_index(chosen, shape) if shape else ()
    thresholds = np.array([levels[w] for levels, w in zip(grids, where, strict=True)]).reshape(
        -1, len(chosen)
    )
    return [
        Found(float(whole[cell]), float(cost[cell]), subset.exits, tuple(map(float, of_cell)))
        for cell, of_cell in zip(chosen, thresholds.T, strict=True)
    ]


def merge(choices: Iterable[Found]) -> list[Found]:
    """The `Found`s that no other beats in both gain and cost, most gain first."""
    result: list[Found] = []
    for found in sorted(choices, key=lambda f: (-f.gain, f.cost)):
        if not result or found.cost < result[-1].cost:
            result.append(found)
    return result


def refine(subset: Subset, found: Found, goal: Goal) -> Found:
    """Moves one threshold after the other to the best of all candidates, until none moves. Never worse.

    Args:
        subset: the `Subset` that `found` belongs to.
        found: a `Found`.
        goal: a `Goal`.
    """
    levels = [candidates(scores) for scores in subset.scores]
    first_above = [_goes_on_from(t, s) for t, s in zip(levels, subset.scores, strict=True)]
    rows = np.arange(subset.scores.shape[1])
    moved = True
    while moved:
        moved = False
        for i, every in enumerate(levels):
            thresholds = list(found.thresholds)
            thresholds[i] = np.inf
            beyond = exits_of(subset.scores, thresholds)  # where each row leaves if it does not leave at i
            come = beyond > i
            gain, cost = subset.gains[beyond, rows], subset.costs[beyond]
            index, shape = first_above[i][come], (len(every) + 1,)
            here_gain, here_cost = subset.gains[i, come], subset.costs[i]
            gains = gain[~come].sum() + here_gain.sum() + _going_on(index, shape, gain[come] - here_gain)
            costs = (
                cost[~come].sum() + here_cost * len(index) + _going_on(index, shape, cost[come] - here_cost)
            )
            place = goal.best(gains, costs)
            thresholds[i] = float(every[place])
            other = Found(float(gains[place]), float(costs[place]), found.exits, tuple(thresholds))
            if goal.better(other, found):
                found, moved = other, True
    return found


def search(subsets: Iterable[Subset], size: int, goal: Goal) -> Found:
    """The best thresholds for the best set of exits: all combinations of a grid, then `refine`.

    Args:
        subsets: iterable of `Subset`; of equally good ones the first is chosen.
        size: int, thresholds in the grid of each exit.
        goal: a `Goal`.

    Returns:
        A `Found`.
    """
    firsts: list[tuple[Subset, Found]] = []
    for subset in subsets:
        choices = front(subset, size)
        place = goal.best(np.array([f.gain for f in choices]), np.array([f.cost for f in choices]))
        firsts.append((subset, choices[place]))
    gains, costs = (np.array(sums) for sums in zip(*((f.gain, f.cost) for _, f in firsts), strict=True))
    # A stable sort, best first: of equally good sets of exits the first stays the first.
    order = np.lexsort([-key.astype(float) for key in goal.rank(gains, costs)[::-1]])
    best = [firsts[place] for place in order[:_REFINED]]
    refined = [refine(subset, found, goal) for subset, found in best]
    return functools.reduce(lambda best, found: found if goal.better(found, best) else best, refined)

"""The joint search against trying every combination, one row after the other."""

import itertools
import math

import numpy as np
import pytest

from keras_exitens._calibration import threshold_search
from keras_exitens._calibration.schedules import geometric
from keras_exitens._calibration.threshold_search import Found, Goal, Subset


def random_case(rng, early, rows, kind):
    """Scores, gains and costs of m early exits; `kind` is how nasty they are."""
    scores = rng.uniform(size=(early, rows)).astype("float32")
    right = rng.uniform(size=(early + 1, rows)) < np.linspace(0.5, 0.9, early + 1)[:, None]
    if kind == "ties":
        scores = np.round(scores, 1)
    elif kind == "saturated":
        scores = np.where(scores > 0.5, np.float32(1), scores)
    elif kind == "constant":
        scores[0] = 0.25
    elif kind == "nan":
        scores[rng.uniform(size=scores.shape) < 0.3] = np.nan
    elif kind == "misleading":  # the surer, the wronger, and the final exit is the worst
        right = np.concatenate([scores < 0.6, rng.uniform(size=(1, rows)) < 0.1])
    costs = np.sort(rng.integers(1, 50, early + 1)).astype(float)
    return Subset((*range(early), early), scores, right.astype(float), costs)


def by_hand(subset, thresholds):
    """What a row at a time gains and costs in all."""
    gain = cost = 0.0
    for row in range(subset.scores.shape[1]):
        exit = next((i for i, t in enumerate(thresholds) if subset.scores[i, row] >= t), len(thresholds))
        gain += subset.gains[exit, row]
        cost += subset.costs[exit]
    return gain, cost


def every_combination(subset, size):
    grids = [threshold_search.grid(scores, size) for scores in subset.scores]
    return [(*by_hand(subset, t), t) for t in itertools.product(*grids)]


KINDS = ("plain", "ties", "saturated", "constant", "nan", "misleading")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("early, rows, size", [(1, 40, 99), (2, 25, 12), (3, 15, 5)])
def test_front_equals_brute_force(kind, early, rows, size):
    for seed in range(3):
        subset = random_case(np.random.default_rng(seed), early, rows, kind)
        tried = every_combination(subset, size)
        wanted, cheapest = {}, math.inf
        for gain in sorted({g for g, _, _ in tried}, reverse=True):
            least = min(cost for g, cost, _ in tried if g == gain)
            if least < cheapest:
                wanted[gain] = cheapest = least
        found = threshold_search.front(subset, size)
        assert {f.gain: f.cost for f in found} == wanted
        for f in found:
            assert by_hand(subset, f.thresholds) == (f.gain, f.cost)
            assert threshold_search.evaluate(subset, f.thresholds) == f


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("early", [1, 2, 3])
def test_search_equals_brute_force_over_all_thresholds_and_sets_of_exits(kind, early):
    whole = random_case(np.random.default_rng(7), early, 9, kind)
    subsets = []
    for count in range(early + 1):
        for used in itertools.combinations(range(early), count):
            exits = (*used, early)
            subsets.append(
                Subset(exits, whole.scores[list(used)], whole.gains[list(exits)], whole.costs[list(exits)])
            )
    tried = [(g, c) for subset in subsets for g, c, _ in every_combination(subset, 99)]
    full = whole.gains[-1].sum()
    for floor in (full, full - 1, full - 3, 99):
        found = threshold_search.search(subsets, 99, Goal(floor=floor))
        reached = [(c, -g) for g, c in tried if g >= floor]
        wanted = min(reached) if reached else min((-g, c) for g, c in tried)[::-1]
        assert (found.cost, -found.gain) == wanted
        assert Goal(floor=floor).met(found.gain, found.cost) == bool(reached)
    for ceiling in (whole.costs[-1] * 9, whole.costs.mean() * 9, whole.costs[0] * 9, 0.5):
        found = threshold_search.search(subsets, 99, Goal(ceiling=ceiling))
        reached = [(-g, c) for g, c in tried if c <= ceiling]
        wanted = min(reached) if reached else min((c, -g) for g, c in tried)[::-1]
        assert (-found.gain, found.cost) == wanted


def greedy(subset, floor):
    """One exit after the other takes all the accuracy that is left to lose."""
    thresholds = [math.inf] * len(subset.scores)
    for i, scores in enumerate(subset.scores):
        for t in threshold_search.candidates(scores):
            trial = [*thresholds[:i], t, *thresholds[i + 1 :]]
            if by_hand(subset, trial)[0] >= floor:
                thresholds = trial
                break
    return by_hand(subset, thresholds)


def test_search_beats_a_greedy_one_that_lets_the_first_exit_spend_everything():
    # One error may be made. At exit 1 it lets one row leave; at exit 2 all: only the surest is wrong there.
    first = [0.9] + [0.1] * 9
    second = [0.8, 0.9] + [0.8] * 8
    right = [[0] * 10, [1, 0] + [1] * 8, [1] * 10]
    subset = Subset(
        (0, 1, 2),
        np.array([first, second], "float32"),
        np.array(right, float),
        np.array([4.0, 5.0, 10.0]),
    )
    assert greedy(subset, floor=9) == (9, 1 * 4 + 9 * 10)
    found = threshold_search.search([subset], 99, Goal(floor=9))
    assert (found.gain, found.cost) == (9, 10 * 5) == by_hand(subset, found.thresholds)


def test_refinement_is_never_worse_and_reaches_what_a_coarse_grid_misses():
    better = 0
    for seed in range(10):
        subset = random_case(np.random.default_rng(seed), 2, 300, "plain")
        for goal in (Goal(floor=subset.gains[-1].sum() - 15), Goal(ceiling=subset.costs[-1] * 200)):
            choices = threshold_search.front(subset, 5)
            start = choices[
                goal.best(np.array([f.gain for f in choices]), np.array([f.cost for f in choices]))
            ]
            end = threshold_search.refine(subset, start, goal)
            assert not goal.better(start, end)
            assert by_hand(subset, end.thresholds) == pytest.approx((end.gain, end.cost), abs=1e-9)
            better += goal.better(end, start)
    assert better > 5


def test_candidates_are_midway_and_tell_neighbours_apart_in_float32():
    next_one = np.nextafter(np.float32(0.5), np.float32(1))
    scores = np.array([0.25, 0.5, next_one, 0.75, np.nan, 0.25], "float32")
    found = threshold_search.candidates(scores)
    np.testing.assert_array_equal(found, [-np.inf, 0.375, (float(next_one) + 0.75) / 2, np.inf])
    np.testing.assert_array_equal(threshold_search.candidates(np.full(3, np.nan)), [-np.inf, np.inf])


def test_grid_has_both_ends_and_even_quantiles():
    scores = np.arange(1000, dtype="float32")
    found = threshold_search.grid(scores, 12)
    assert len(found) == 12 and found[0] == -np.inf and found[-1] == np.inf
    share = (scores[:, None] >= found[1:-1]).mean(axis=0)
    np.testing.assert_allclose(share, 1 - np.arange(1, 11) / 11, atol=0.002)
    assert threshold_search.grid_size(2) == 4_000_000
    assert all(threshold_search.grid_size(k) ** (k - 1) <= 4_000_000 for k in range(2, 20))


def test_merge_keeps_what_nothing_beats():
    def found(gain, cost):
        return Found(gain, cost, (0,), ())

    choices = [found(3, 5), found(4, 5), found(4, 6), found(2, 1), found(1, 1), found(3, 4)]
    assert [(f.gain, f.cost) for f in threshold_search.merge(choices)] == [(4, 5), (3, 4), (2, 1)]


def test_geometric_shares():
    rng = np.random.default_rng(0)
    subset = random_case(rng, 3, 4000, "plain")
    for target in (15.0, 25.0):
        costs = np.array([10.0, 20.0, 30.0, 40.0])
        subset = Subset(subset.exits, subset.scores, subset.gains, costs)
        found = geometric(subset, Goal(ceiling=target * 4000))
        shares = np.bincount(threshold_search.exits_of(subset.scores, found.thresholds), minlength=4) / 4000
        ratios = shares[1:] / shares[:-1]
        np.testing.assert_allclose(ratios, ratios[0], rtol=0.02)
        assert 0.97 * target < found.cost / 4000 <= target

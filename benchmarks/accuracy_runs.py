"""The runs of accuracy.py that the report tells of, and what is compared in them."""

import collections
import itertools
import math
import typing

import numpy as np
from accuracy import chosen_rate
from accuracy_lines import BASE, FINAL, early_mean, end_of, test
from accuracy_presets import (
    FASHION,
    FINALISTS,
    MAIN,
    OVERFIT,
    PAPER,
    PLAIN,
    SEARCH_SEED,
    SMALL,
    WENT_ON,
    WIDER,
)
from accuracy_statistics import paired

# The fields of the settings of a run that is told in a section; the others have tables of their own.
STANDARD = {"dataset", "network", "width", "exits", "method", "seed", "rate", *MAIN}
TAIL = 5  # epochs at the end whose spread is told
ENSEMBLE = "ensemble"


class Section(typing.NamedTuple):
    """One data set of the report, and what is trained on it."""

    dataset: str
    title: str
    networks: tuple
    methods: tuple
    recipe: dict = MAIN

    def point(self, network, method):
        return self.dataset, network, method, self.recipe["train_size"], self.recipe["epochs"]

    def without(self, *methods):
        return [method for method in self.methods if method not in methods]

    @property
    def ensemble_taught(self):
        """The methods whose teacher is the ensemble."""
        return self.without(PLAIN, BASE, "dbt", "byot")


GLYPHS = Section("glyphs", "94 characters in unseen typefaces", tuple(SMALL), (*PAPER, *FINALISTS))
OVERFITTED = Section(
    "cifar100",
    "CIFAR-100, where networks over-fit",
    tuple(WIDER),
    tuple(dict.fromkeys((*PAPER, *WENT_ON))),
    OVERFIT,
)
SECTIONS = OVERFITTED, GLYPHS, Section("fashion_mnist", "Fashion-MNIST", *FASHION)


def reported(lines):
    """The runs that count: those of the reported seeds at the learning rate that the search chose.

    Args:
        lines: dict from key to line.

    Returns:
        A dict from `(dataset, network, method, train_size, epochs)` to a dict from seed to line. Runs by
        another recipe than `MAIN` or `OVERFIT` are left out, as are those that diverged.
    """
    found = collections.defaultdict(dict)
    for line in lines.values():
        s = line["settings"]
        if s["seed"] == SEARCH_SEED or line["diverged"]:
            continue
        overfit = s["dataset"] == OVERFITTED.dataset
        recipe, shapes = (OVERFIT, WIDER) if overfit else (MAIN, SMALL)
        free = () if overfit else ("train_size", "epochs")
        if s.keys() != STANDARD or any(s[field] != recipe[field] for field in recipe if field not in free):
            continue
        if s["network"] not in shapes or s["width"] != shapes[s["network"]][0]:
            continue
        if not overfit and s["rate"] != chosen_rate(s, lines):
            continue
        found[point(s)][s["seed"]] = line
    return dict(found)


def point(settings):
    return tuple(settings[field] for field in ("dataset", "network", "method", "train_size", "epochs"))


def names_of(network):
    """What of a network has an accuracy."""
    _, exits = {**SMALL, **WIDER}[network]
    return [*(f"exit_{i}" for i in range(1, exits + 1)), FINAL, ENSEMBLE]


def has_runs(runs, section):
    """Whether there is any run of a section."""
    return any(runs_of(runs, section, n, m) for n in section.networks for m in section.methods)


def begun(section, runs):
    """The section with those networks and methods that have any run."""
    networks = [n for n in section.networks if any(runs_of(runs, section, n, m) for m in section.methods)]
    methods = [m for m in section.methods if any(runs_of(runs, section, n, m) for n in networks)]
    return section._replace(networks=tuple(networks), methods=tuple(methods))


def runs_of(runs, section, network, method):
    """The runs of one cell of a main table, a dict from seed to line."""
    return runs.get(section.point(network, method), {})


def differences(runs, first, second, value):
    """`value(line)` of the first point minus that of the second, for every seed that both have."""
    one, other = runs.get(first, {}), runs.get(second, {})
    return [value(one[seed]) - value(other[seed]) for seed in sorted(one.keys() & other.keys())]


EITHER = {"final": test, "early exits": early_mean}


def ensemble_gain(line):
    return test(line, ENSEMBLE) - test(line)


def tail_spread(line):
    """Standard deviation of the validation accuracy of the final exit over the last epochs, in points."""
    return 100 * float(np.std(line["validation"][FINAL][-TAIL:], ddof=1))


def epochs_to(line, accuracy):
    """The first epoch whose final exit has that validation accuracy (a fraction), or infinity."""
    reached = (i for i, value in enumerate(line["validation"][FINAL], 1) if value >= accuracy)
    return next(reached, math.inf)


def over_networks(values, networks):
    """`Paired` of `values(network)` for each network, and `"all"` values together."""
    found = {network: list(values(network)) for network in networks}
    found["all"] = list(itertools.chain(*found.values()))
    return {network: paired(pairs) for network, pairs in found.items()}


def comparison(runs, section, method, base, value):
    """Paired differences of a method against another one: for each network, and `"all"` pairs together."""

    def of_one(network):
        points = (section.point(network, m) for m in (method, base))
        return differences(runs, *points, value)

    return over_networks(of_one, section.networks)


def beside_plain(runs, section, network, method):
    """For each seed that a method shares with the plain network: both lines, and where the plain one ends."""
    plain, lines = (runs_of(runs, section, network, m) for m in (PLAIN, method))
    return [(plain[s], lines[s], end_of(plain[s])) for s in sorted(plain.keys() & lines.keys())]


def faster(runs, section, method):
    """Epochs by which a method is sooner than plain where plain ends; never counts as one after the last."""

    def gains(network):
        for plain, line, goal in beside_plain(runs, section, network, method):
            last = len(plain["validation"][FINAL])
            yield min(epochs_to(plain, goal), last) - min(epochs_to(line, goal), last + 1)

    return over_networks(gains, section.networks)


def ensemble_gains(runs, section, method):
    """How much the mean of all exits beats the final exit."""
    return over_networks(
        lambda network: map(ensemble_gain, runs_of(runs, section, network, method).values()), section.networks
    )

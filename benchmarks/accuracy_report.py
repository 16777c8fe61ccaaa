"""Tables, pictures and statements from the runs of accuracy.py.

    python benchmarks/accuracy_report.py            # writes docs/accuracy.md and its pictures
    python benchmarks/accuracy_report.py --print    # only shows it

Works on whatever is there, and says what is missing. Every statement follows from the numbers by a rule that
is given with it; nothing is written by hand.
"""

import argparse
import collections
import functools
import itertools
import math
import pathlib
import textwrap
import typing

import numpy as np
from accuracy import RESULTS, chosen_rate, count_done
from accuracy_choice import choice
from accuracy_lines import BASE, FINAL, early_mean, end_of, test
from accuracy_presets import (
    FASHION,
    FINALISTS,
    JUDGED,
    MAIN,
    OVERFIT,
    PAPER,
    PLAIN,
    PRESETS,
    RATES,
    REMEDIES,
    SCREENED,
    SCREENED_ON,
    SEARCH,
    SEARCH_SEED,
    SEARCHED_ON,
    SEEDS,
    SIZES,
    SMALL,
    WIDER,
    preset,
)
from accuracy_results import Results
from accuracy_statistics import holm, paired
from accuracy_text import difference, p_value, plus_minus, signed, table

DOCUMENT = pathlib.Path(__file__).parent.parent / "docs" / "accuracy.md"
# The fields of the settings of a run that is told in a section; the others have tables of their own.
STANDARD = {"dataset", "network", "width", "exits", "method", "seed", "rate", *MAIN}
TAIL = 5  # epochs at the end whose spread is told
ENSEMBLE = "ensemble"
# Matplotlib's ten, then the light ones beside them in its "tab20".
HUES = [*(f"C{i}" for i in range(10)), "#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94"]
COLOURS = dict(zip(dict.fromkeys((*PAPER, *FINALISTS, *JUDGED)), HUES, strict=False))


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
OVERFITTED = Section("cifar100", "CIFAR-100, where networks over-fit", tuple(WIDER), JUDGED, OVERFIT)
SECTIONS = OVERFITTED, GLYPHS, Section("fashion_mnist", "Fashion-MNIST", *FASHION)


# Reading


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


# Text


def accuracy_tables(runs, section):
    """Test accuracy at each exit, one table for each network."""
    for network in section.networks:
        names = [*(f"exit_{i}" for i in range(1, SMALL[network][1] + 1)), FINAL, ENSEMBLE]
        rows = []
        for method in section.methods:
            seeds = runs_of(runs, section, network, method)
            if not seeds:
                rows.append([method, "missing", *[""] * (len(names) + 3)])
                continue
            lines = list(seeds.values())
            cells = [
                plus_minus([test(line, name) for line in lines]) if name in lines[0]["test"]["last"] else ""
                for name in names
            ]
            if method == PLAIN:
                cells[-1] = ""
            best = plus_minus([test(line, epoch="best") for line in lines])
            training = f"{100 * np.mean([line['training'][FINAL][-1] for line in lines]):.1f}"
            rows.append([method, len(lines), *cells, best, training, f"{lines[0]['settings']['rate']:g}"])
        if any(row[1] != "missing" for row in rows):
            yield f"\n**{network}**\n\n" + table(
                ["method", "seeds", *names, "final, best epoch", "training", "rate"], rows
            )


def runs_of(runs, section, network, method):
    """The runs of one cell of a main table, a dict from seed to line."""
    return runs.get(section.point(network, method), {})


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


def method_table(section, methods, compared):
    """A row for each method that has runs, of `compared(method)`, which `over_networks` gives."""
    columns = [*section.networks, "all"]
    rows = []
    for method in methods:
        found = compared(method)
        if found["all"]:
            rows.append([method, *(signed(found[column]) for column in columns)])
    return table(["method", *columns], rows) if rows else "No pairs yet.\n"


def comparison_table(runs, section, base, value, methods):
    return method_table(section, methods, lambda method: comparison(runs, section, method, base, value))


def beside_plain(runs, section, network, method):
    """For each seed that a method shares with the plain network: both lines, and where the plain one ends."""
    plain, lines = (runs_of(runs, section, network, m) for m in (PLAIN, method))
    return [(plain[s], lines[s], end_of(plain[s])) for s in sorted(plain.keys() & lines.keys())]


def convergence_table(runs, section):
    """Epochs until the final exit has the accuracy at which the plain network of the same seed ends."""
    rows = []
    for method in section.methods:
        found = [
            [epochs_to(line, goal) for _, line, goal in beside_plain(runs, section, network, method)]
            for network in section.networks
        ]
        if any(found):
            rows.append([method, *map(_epochs, found), _epochs([*itertools.chain(*found)])])
    return table(["method", *section.networks, "all"], rows) if rows else "No pairs yet.\n"


def faster(runs, section, method):
    """Epochs by which a method is sooner than plain where plain ends; never counts as one after the last."""

    def gains(network):
        for plain, line, goal in beside_plain(runs, section, network, method):
            last = len(plain["validation"][FINAL])
            yield min(epochs_to(plain, goal), last) - min(epochs_to(line, goal), last + 1)

    return over_networks(gains, section.networks)


def _epochs(epochs):
    if not epochs:
        return "–"
    middle = float(np.median(epochs))
    never = sum(map(math.isinf, epochs))
    told = "not in half of the runs" if math.isinf(middle) else f"{middle:g}"
    return told + (f" ({never} of {len(epochs)} never)" if never else "")


def stability_table(runs, section):
    """Spread over the last epochs, and over the seeds."""
    rows = []
    for method in section.methods:
        tails, squares, freedom = [], 0.0, 0
        for network in section.networks:
            lines = list(runs_of(runs, section, network, method).values())
            tails += [tail_spread(line) for line in lines]
            if len(lines) > 1:
                finals = [test(line) for line in lines]
                squares += float(np.var(finals, ddof=1)) * (len(finals) - 1)
                freedom += len(finals) - 1
        if tails:
            seeds = f"{math.sqrt(squares / freedom):.2f}" if freedom else "–"
            rows.append([method, len(tails), plus_minus(tails, 2), seeds])
    return table(["method", "runs", f"over the last {TAIL} epochs", "over seeds"], rows)


def ensemble_gains(runs, section, method):
    """How much the mean of all exits beats the final exit."""
    return over_networks(
        lambda network: map(ensemble_gain, runs_of(runs, section, network, method).values()), section.networks
    )


def ensemble_table(runs, section):
    return method_table(section, section.without(PLAIN), lambda m: ensemble_gains(runs, section, m))


def teacher_table(runs, section):
    """How much better than the final exit the teacher is on validation images, as the training goes on."""
    last = section.recipe["epochs"]
    marks = [1, 2, 3, 5, *range(10, last + 1, max(5, last // 6))]
    rows = []
    for method, network in itertools.product(section.ensemble_taught, section.networks):
        if lines := runs_of(runs, section, network, method).values():
            curves = [
                np.subtract(*(line["validation"][name] for name in (ENSEMBLE, FINAL))) for line in lines
            ]
            rows.append(
                [method, network, *(f"{100 * np.mean([c[e - 1] for c in curves]):+.1f}" for e in marks)]
            )
    return (
        table(["method", "network", *(f"epoch {epoch}" for epoch in marks)], rows)
        if rows
        else "No runs yet.\n"
    )


def sizes_table(runs, dataset="glyphs", network="ResNet10"):
    methods = (BASE, "eed-kl", "eed-mse")
    asked = [(method, PLAIN, "final", test) for method in methods]
    asked += [(method, BASE, what, value) for what, value in EITHER.items() for method in methods[1:]]
    rows = []
    for size, epochs in SIZES:
        points = {method: (dataset, network, method, size, epochs) for method in (PLAIN, *methods)}
        cells = [f"{size:,}", epochs]
        for found in (runs.get(point, {}).values() for point in points.values()):
            cells.append(plus_minus([test(line) for line in found]) if found else "–")
        for method, base, _, value in asked:
            cells.append(signed(paired(differences(runs, points[method], points[base], value)), p=False))
        rows.append(cells)
    header = ["images", "epochs", PLAIN, *methods, *(f"{m} − {base}, {what}" for m, base, what, _ in asked)]
    return table(header, rows)


def screened(settings):
    """Whether a run took part in the choice of the finalists."""
    return settings["network"] in SCREENED_ON and settings["seed"] in SEEDS[:SCREENED]


def only(runs, wanted):
    """The runs for whose settings `wanted` holds."""
    return {
        point: {seed: line for seed, line in seeds.items() if wanted(line["settings"])}
        for point, seeds in runs.items()
    }


def remedies_table(runs):
    """Each candidate on the screening networks: what validation says, which chooses, and what test says."""
    section = GLYPHS._replace(networks=SCREENED_ON)
    runs = only(runs, screened)
    rows = []
    for method in ("cross-entropy", "eed-mse", "eed-kl", *REMEDIES):
        validation = comparison(runs, section, method, PLAIN, lambda line: 100 * end_of(line))["all"]
        if validation is None:
            continue
        tested = comparison(runs, section, method, PLAIN, test)
        cells = [
            validation,
            *(tested[network] for network in section.networks),
            comparison(runs, section, method, "eed-mse" if "mse" in method else "eed-kl", test)["all"],
            comparison(runs, section, method, BASE, early_mean)["all"],
            ensemble_gains(runs, section, method)["all"],
        ]
        own = method in ("eed-mse", "eed-kl", BASE)
        told = ["" if own and i == 3 else signed(cell, p=False) for i, cell in enumerate(cells)]
        rows.append((validation.mean, [method, validation.count, *told]))
    header = ["method", "pairs", "**validation**, final − plain"]
    header += [f"test, final − plain, {network}" for network in section.networks]
    header += ["test, final − its own form of EED", f"test, early exits − {BASE}", "test, ensemble − final"]
    ranked = [row for _, row in sorted(rows, key=lambda row: -row[0])]
    return table(header, ranked) if ranked else "No runs yet.\n"


def finalists_table(runs, section=GLYPHS):
    """The finalists in the main table: all pairs, and those alone that took no part in the choice."""
    questions = {
        "final exit − plain": (PLAIN, test),
        f"final exit − {BASE}": (BASE, test),
        "final exit − eed-kl": ("eed-kl", test),
        f"early exits − {BASE}": (BASE, early_mean),
        "early exits − eed-kl": ("eed-kl", early_mean),
    }
    fresh = only(runs, lambda settings: not screened(settings))
    rows, unseen_pairs = [], []
    for method, (question, (base, value)) in itertools.product(FINALISTS, questions.items()):
        found, unseen = (comparison(r, section, method, base, value)["all"] for r in (runs, fresh))
        if found:
            unseen_pairs.append(unseen)
            rows.append(
                [method, question, signed(found), found.count, signed(unseen), unseen.count if unseen else 0]
            )
    corrected = holm([unseen.p if unseen else 1.0 for unseen in unseen_pairs])
    proved = set()
    for row, unseen, p in zip(rows, unseen_pairs, corrected, strict=True):
        row.append(f"{p:.3f}")
        if p < 0.05 and unseen.mean > 0:
            proved.add(row[0])
    header = [
        "method",
        "difference",
        "all pairs",
        "pairs",
        "pairs not screened",
        "pairs",
        "Holm's p of these",
    ]
    if not rows:
        return "None was chosen yet.\n"
    return f"{FINALISTS_INTRODUCTION}: {', '.join(sorted(proved)) or 'none has'}.\n\n{table(header, rows)}"


# Claims


def judged(pooled):
    """What the differences of all networks together say of a claim that they are above 0."""
    if pooled is None:
        return "not measured yet"
    said = {1: "**held**", -1: "**the opposite**", 0: "not shown"}[pooled.verdict]
    return f"{said}: {difference(pooled)}, {p_value(pooled.p)}, {pooled.count} pairs"


def claims(runs, section):
    """The claims, each with a function from a method to the differences that have to be above 0."""

    def above(base, value=test):
        return lambda method: comparison(runs, section, method, base, value)

    rivals = [m for m in ("dbt", "byot", "eed-mse", "eed-kl") if m in section.methods]
    return {
        "the network itself, its exits taken off, is better than the plain one": above(PLAIN),
        f"the final exit is better than with {BASE} exits": above(BASE),
        f"the early exits are better than with {BASE} exits (mean)": above(BASE, early_mean),
        f"the ensemble is better than that of {BASE} exits": above(BASE, lambda x: test(x, ENSEMBLE)),
        **{f"the final exit is better than with {m}": above(m) for m in rivals},
        "the ensemble is better than the final exit, and so can teach it": lambda method: ensemble_gains(
            runs, section, method
        ),
        "it is sooner where the plain network ends (epochs)": lambda method: faster(runs, section, method),
        f"it is steadier than the plain network over the last {TAIL} epochs": above(
            PLAIN, lambda line: -tail_spread(line)
        ),
    }


def claims_table(runs, section):
    methods = section.ensemble_taught
    rows = [
        [claim, *("–" if claim.endswith(f" {m}") else judged(found(m)["all"]) for m in methods)]
        for claim, found in claims(runs, section).items()
    ]
    return table(["claim", *methods], rows)


def missing(lines):
    """What of each preset is not there yet."""
    for name in PRESETS:
        if name in ("smoke", "paper"):
            continue
        jobs = preset(name)
        done = count_done(jobs, lines)
        state = "." if done == len(jobs) else ": **unfinished**."
        yield f"- `python benchmarks/accuracy.py --preset {name}`: {done} of {len(jobs)} runs{state}"
    wrong = [line["settings"] for line in lines.values() if line["diverged"]]
    if wrong:
        counts = collections.Counter((s["method"], s["rate"]) for s in wrong)
        told = ", ".join(f"{method} at rate {rate:g} ({n})" for (method, rate), n in sorted(counts.items()))
        yield f"- Runs whose loss became infinite or NaN: {told}."


def edges(runs):
    """How often the smallest, the middle and the largest learning rate of a search was chosen."""
    chosen = (
        next(iter(seeds.values()))["settings"]
        for point, seeds in runs.items()
        if point[0] != OVERFITTED.dataset
    )
    counts = collections.Counter(RATES[SEARCHED_ON[s["network"]]].index(s["rate"]) for s in chosen)
    return ", ".join(f"{which} {counts[i]}" for i, which in enumerate(("smallest", "middle", "largest")))


# Pictures


def _any_runs(runs, section):
    return any(runs_of(runs, section, n, m) for n in section.networks for m in section.methods)


def _begun(section, runs):
    """The section with those networks and methods that have any run."""
    networks = [n for n in section.networks if any(runs_of(runs, section, n, m) for m in section.methods)]
    methods = [m for m in section.methods if any(runs_of(runs, section, n, m) for n in networks)]
    return section._replace(networks=tuple(networks), methods=tuple(methods))


def pictures(runs, folder):
    """Writes the pictures; returns their names with what they show."""
    import matplotlib

    matplotlib.use("Agg")
    made = []
    for section in SECTIONS:
        if _any_runs(runs, section):
            section = _begun(section, runs) if section is OVERFITTED else section
            made.append(
                (_gains_picture(runs, section, folder), f"{section.title}: gain over {BASE} at each exit")
            )
            made.append(
                (_curves_picture(runs, section, folder), f"{section.title}: validation accuracy by epoch")
            )
    if any(p[0] == GLYPHS.dataset and (p[3], p[4]) != (MAIN["train_size"], MAIN["epochs"]) for p in runs):
        made.append(
            (
                _sizes_picture(runs, folder),
                "gain of the final exit over plain, by epochs and by training images",
            )
        )
    return made


def _axes(columns, width=3.4, height=3.4):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1,
        columns,
        figsize=(max(7.5, width * columns), height),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    return figure, axes[0]


def _save(figure, folder, name):
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / name, dpi=110)
    plt.close(figure)
    return name


def _gains_picture(runs, section, folder):
    figure, axes = _axes(len(section.networks))
    methods = section.without(PLAIN, BASE)
    for axis, network in zip(axes, section.networks, strict=True):
        names = [*(f"exit_{i}" for i in range(1, SMALL[network][1] + 1)), FINAL, ENSEMBLE]
        axis.axhline(0, color="0.6", linewidth=0.8)
        for offset, method in zip(np.linspace(-0.25, 0.25, len(methods)), methods, strict=True):
            mine, base = (section.point(network, m) for m in (method, BASE))
            found = [paired(differences(runs, mine, base, lambda line, n=n: test(line, n))) for n in names]
            if all(found):
                axis.errorbar(
                    np.arange(len(names)) + offset,
                    [f.mean for f in found],
                    [0 if math.isnan(f.half) else f.half for f in found],
                    fmt="o",
                    markersize=3,
                    capsize=2,
                    linewidth=1,
                    color=COLOURS[method],
                    label=method,
                )
        axis.set_xticks(range(len(names)), names, rotation=30)
        axis.set_title(network)
    axes[0].set_ylabel(f"test accuracy − {BASE}, points")
    _legend(axes)
    return _save(figure, folder, f"accuracy_gain_{section.dataset}.png")


def _legend(axes):
    """One legend under all axes: inside it would hide points."""
    found = {}
    for axis in axes:
        found.update(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    if found:
        figure = axes[0].figure
        columns = min(len(found), max(1, int(figure.get_figwidth() / 1.2)))
        figure.legend(found.values(), found, loc="outside lower center", ncols=columns, fontsize=8)


def _curves_picture(runs, section, folder):
    figure, axes = _axes(len(section.networks))
    for axis, network in zip(axes, section.networks, strict=True):
        for method in section.methods:
            lines = list(runs_of(runs, section, network, method).values())
            if lines:
                curve = 100 * np.mean([line["validation"][FINAL] for line in lines], axis=0)
                axis.plot(range(1, len(curve) + 1), curve, linewidth=1, color=COLOURS[method], label=method)
        axis.set_title(network)
        axis.set_xlabel("epoch")
    axes[0].set_ylabel("final exit, validation accuracy, %")
    _legend(axes)
    return _save(figure, folder, f"accuracy_curves_{section.dataset}.png")


def _sizes_picture(runs, folder, dataset="glyphs", network="ResNet10"):
    figure, axes = _axes(2, width=4.2)
    by_epochs = [p for p in SIZES if p[0] == MAIN["train_size"]]
    by_size = sorted({max((q for q in SIZES if q[0] == p[0]), key=lambda q: q[1]) for p in SIZES})
    panels = (
        (axes[0], by_epochs, 1, f"epochs, of {MAIN['train_size']:,} training images"),
        (axes[1], by_size, 0, f"training images, {' / '.join(str(epochs) for _, epochs in by_size)} epochs"),
    )
    for axis, points, index, label in panels:
        axis.axhline(0, color="0.6", linewidth=0.8)
        for shift, method in zip((0.97, 1, 1.03), (BASE, "eed-kl", "eed-mse"), strict=True):
            known = []
            for size_epochs in points:
                mine, plain = ((dataset, network, m, *size_epochs) for m in (method, PLAIN))
                if found := paired(differences(runs, mine, plain, test)):
                    half = 0 if math.isnan(found.half) else found.half
                    known.append((shift * size_epochs[index], found.mean, half))
            if known:
                axis.errorbar(
                    *zip(*known, strict=True), marker="o", capsize=2, color=COLOURS[method], label=method
                )
        axis.set_xscale("log")
        ticks = [size_epochs[index] for size_epochs in points]
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel(label)
    axes[0].set_yscale("symlog", linthresh=1)  # a short training costs ten points, a long one none
    axes[0].set_ylabel(f"final exit − {PLAIN}, points")
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[1].legend(fontsize=7)
    return _save(figure, folder, "accuracy_sizes.png")


# All of it

TITLE = """\
# Accuracy: what the exits gain

Made by `python benchmarks/accuracy_report.py` from the lines of `benchmarks/results/accuracy.jsonl`: each is
one training by `benchmarks/accuracy.py`, on one core. All of them can be run again, one by one too: `python
benchmarks/accuracy.py --preset overfit --data-dir FOLDER --networks ResNet10 --methods eed-kl --seeds 1
--results again.jsonl`. The paper's own setting (full-size networks, all of CIFAR-100, 200 epochs) needs a
GPU: `python benchmarks/gpu/study.py`, which trains several seeds side by side by Keras on JAX, or `--preset
paper` on TensorFlow.
"""
INTRODUCTION = """\
**Under-fitted**: {recipe}.

**Over-fitted**: {overfit}.

Accuracies are of test images, in percent, after the last epoch; "best epoch" is the epoch whose final exit
was best on the validation images. ± is the half-width of the 95% t-interval over seeds. Differences are
paired: the same seed means the same first weights and images. p is of the exact sign-flip test: with 5
pairs it cannot be below 2/32 = 0.063, with the 20 pairs of all networks together it can. ▲ and ▼ mark
differences whose interval leaves out 0, and whose p, where there are at least six pairs, is below 0.05.
Many comparisons are shown, so about one in twenty of them would be marked by chance alone. The intervals
tell of seeds (first weights, order, training images) on these networks, not of other networks or data sets.

The learning rates to choose from were moved once, when the first searches had their best at an edge of what
they tried. A search sees validation images alone. Seed 0 is left out: its test accuracy had been looked at
while the recipes were made.
"""

CHOSEN = f"""
{" and ".join(FINALISTS)} are not of the papers. They were chosen among {len(REMEDIES)} candidates on six of
these pairs; what remains when that is corrected for stands under [the finalists](#the-finalists).
"""
REMEDIES_INTRODUCTION = """\
Small changes of EED and BEED, each meant to take away one reason why the final exit does not gain
(`benchmarks/accuracy_methods.py` has the formulas), on the network where `eed-kl` gained and the one where it
lost, 3 seeds each, with a search of its learning rate as every method had. The best by validation images go
into the main table, where half of the networks and two of the seeds had no part in the choice.
"""
FINALISTS_INTRODUCTION = """\
The pairs not screened are the networks and seeds that had no part in the choice; Holm's p takes into account
that all these questions are asked of them. A candidate becomes an objective of the library if one of its
gains has such a p below 0.05"""


def _filled(text):
    """The text with its paragraphs wrapped anew."""
    fill = functools.partial(textwrap.fill, width=110, break_on_hyphens=False, break_long_words=False)
    return "\n\n".join(map(fill, text.split("\n\n")))


def report(lines, folder=None):
    """The report as Markdown; with a folder, its pictures are written there."""
    runs = reported(lines)
    tried = "; ".join(f"{', '.join(map(str, rates))} on {network}" for network, rates in RATES.items())
    recipe = (
        f"{MAIN['train_size']:,} training images, {MAIN['epochs']} epochs, batches of {MAIN['batch']}, SGD "
        f"with momentum 0.9, L2 of {MAIN['l2']:g} and a cosine decay from the best of three rates "
        f"({tried}) for each method and data set, by its validation after "
        f"{SEARCH['epochs']} epochs of {SEARCH['train_size']:,} images; exits at each resolution, with the "
        "paper's convolutional heads"
    )
    overfit = (
        f"{OVERFIT['train_size']:,} training images of CIFAR-100, {OVERFIT['epochs']} epochs, batches of "
        f"{OVERFIT['batch']}, the same optimizer, a learning rate of 0.1 without a search, in the paper's "
        f"steps; {' and '.join(WIDER)} of a quarter of their width"
    )
    parts = [_filled(TITLE), *choice(lines), "\n## How it was measured\n"]
    parts += [
        _filled(INTRODUCTION.format(recipe=recipe, overfit=overfit)),
        "\nWhat there is:\n",
        *missing(lines),
    ]
    parts.append(f"- Of the three learning rates, number of table rows that chose which: {edges(runs)}.")
    for section in SECTIONS:
        if section is OVERFITTED:  # not yet finished: its tables have what there is
            section = _begun(section, runs)
        parts.append(f"\n## {section.title}\n")
        if not _any_runs(runs, section):
            parts.append("No runs yet.")
            continue
        taught = section.without(PLAIN, BASE)
        parts += [
            "### Which claims held\n",
            claims_table(runs, section),
            CHOSEN if section == GLYPHS else "",
            "\n### Test accuracy\n",
            *accuracy_tables(runs, section),
            f"\n### Final exit against {BASE} exits, points\n",
            comparison_table(runs, section, BASE, test, section.without(BASE)),
            "\n### Final exit against the plain network, points\n",
            comparison_table(runs, section, PLAIN, test, section.without(PLAIN)),
            f"\n### Mean of the early exits against {BASE} exits, points\n",
            comparison_table(runs, section, BASE, early_mean, taught),
            f"\n### Ensemble against the ensemble of {BASE} exits, points\n",
            comparison_table(runs, section, BASE, lambda x: test(x, ENSEMBLE), taught),
            "\n### Ensemble minus final exit, points\n",
            ensemble_table(runs, section),
            "\n### Ensemble minus final exit on validation images, by epoch, points (means over seeds)\n",
            teacher_table(runs, section),
            "\n### Epochs until the final exit is where the plain network of the same seed ends (median)\n",
            convergence_table(runs, section),
            "\n### Spread of the final exit, points (standard deviation)\n",
            stability_table(runs, section),
        ]
    parts += ["\n## More epochs, more images (ResNet10, characters)\n", sizes_table(runs)]
    parts += [
        "\n## Candidates for better objectives (characters)\n",
        REMEDIES_INTRODUCTION,
        remedies_table(runs),
    ]
    parts += ["\n### The finalists\n", finalists_table(runs)]
    if folder is not None:
        made = pictures(runs, folder)
        if made:
            parts.append("\n## Pictures\n")
            parts += [f"![{shows}]({folder.name}/{name})\n" for name, shows in made]
    text = "\n".join(parts)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.rstrip() + "\n"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--output", type=pathlib.Path, default=DOCUMENT)
    parser.add_argument("--print", action="store_true", help="show the report, write nothing")
    args = parser.parse_args(arguments)
    lines = Results(args.results, "claims").read()
    if args.print:
        print(report(lines))
        return
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(report(lines, args.output.parent / "pictures"))


if __name__ == "__main__":
    main()

"""Tables, pictures and statements from the runs of accuracy.py.

    python benchmarks/accuracy_report.py            # writes docs/accuracy.md and its pictures
    python benchmarks/accuracy_report.py --print    # only shows it

Works on whatever is there, and says what is missing. Every statement follows from the numbers by a rule that
is given with it; nothing is written by hand.
"""

import argparse
import collections
import itertools
import math
import pathlib
import textwrap

import numpy as np
from accuracy import (
    LAST,
    MAIN,
    PAPER,
    PLAIN,
    RATES,
    REMEDIES,
    RESULTS,
    SEARCH,
    SEARCH_SEED,
    SEARCHED_ON,
    SIZES,
    SMALL,
    chosen_rate,
    count_done,
    preset,
)
from accuracy_results import Results
from accuracy_statistics import holm, interval, paired

DOCUMENT = pathlib.Path(__file__).parent.parent / "docs" / "accuracy.md"
BASE = "cross-entropy"
TAIL = 5  # epochs at the end whose spread is told
FINAL, ENSEMBLE = "final", "ensemble"
COLOURS = {method: f"C{i}" for i, method in enumerate(PAPER)}


# Reading


def reported(lines):
    """The runs that count: those of the reported seeds at the learning rate that the search chose.

    Args:
        lines: dict from key to line.

    Returns:
        A dict from `(dataset, network, method, train_size, epochs)` to a dict from seed to line. Runs by
        another recipe than `MAIN` are left out, as are those that diverged: see `diverged`.
    """
    found = collections.defaultdict(dict)
    for line in lines.values():
        s = line["settings"]
        if s["seed"] == SEARCH_SEED or line["diverged"]:
            continue
        if any(s[field] != MAIN[field] for field in MAIN if field not in ("train_size", "epochs")):
            continue
        if s["network"] not in SMALL or s["rate"] != chosen_rate(s, lines):
            continue
        found[point(s)][s["seed"]] = line
    return dict(found)


def point(settings):
    return tuple(settings[field] for field in ("dataset", "network", "method", "train_size", "epochs"))


def main_point(dataset, network, method):
    return dataset, network, method, MAIN["train_size"], MAIN["epochs"]


def test(line, exit_name=FINAL, epoch="last"):
    """Test accuracy of a run in percent; the ensemble of a network without exits is its only exit."""
    return 100 * line["test"][epoch][exit_name]


def differences(runs, first, second, value):
    """`value(line)` of the first point minus that of the second, for every seed that both have."""
    one, other = runs.get(first, {}), runs.get(second, {})
    return [value(one[seed]) - value(other[seed]) for seed in sorted(one.keys() & other.keys())]


def early_mean(line):
    """Mean test accuracy of the early exits in percent."""
    return float(np.mean([test(line, name) for name in line["exits"][:-1]]))


def ensemble_gain(line):
    return test(line, ENSEMBLE) - test(line)


def tail_spread(line):
    """Standard deviation of the validation accuracy of the final exit over the last epochs, in points."""
    return 100 * float(np.std(line["validation"][FINAL][-TAIL:], ddof=1))


def epochs_to(line, accuracy):
    """The first epoch whose final exit has that validation accuracy (a fraction), or infinity."""
    reached = (i for i, value in enumerate(line["validation"][FINAL], 1) if value >= accuracy)
    return next(reached, math.inf)


def end_of(line):
    return float(np.mean(line["validation"][FINAL][-LAST:]))


# Text


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def plus_minus(values, digits=1):
    mean, half = interval(values)
    return f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def p_value(p):
    return f"p {p:.3f}" if p >= 0.001 else "p < 0.001"


def signed(found, digits=2):
    if found is None:
        return "–"
    half = "" if math.isnan(found.half) else f" ± {found.half:.{digits}f}"
    mark = {1: " ▲", -1: " ▼", 0: ""}[found.verdict]
    return f"{found.mean:+.{digits}f}{half} ({p_value(found.p)}){mark}"


def accuracy_tables(runs, dataset):
    """Test accuracy at each exit, one table for each network."""
    for network, (_, exits) in SMALL.items():
        names = [*(f"exit_{i}" for i in range(1, exits + 1)), FINAL, ENSEMBLE]
        rows = []
        for method in PAPER:
            seeds = runs.get(main_point(dataset, network, method))
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


QUANTITIES = {
    "final exit": (test, None),
    "early exits, mean": (early_mean, BASE),
    "ensemble": (lambda line: test(line, ENSEMBLE), BASE),
}


def runs_of(runs, dataset, network, method):
    """The runs of one cell of the main table, a dict from seed to line."""
    return runs.get(main_point(dataset, network, method), {})


def over_networks(values, networks=SMALL):
    """`Paired` of `values(network)` for each network, and `"all"` values together."""
    found = {network: list(values(network)) for network in networks}
    found["all"] = list(itertools.chain(*found.values()))
    return {network: paired(pairs) for network, pairs in found.items()}


def comparison(runs, dataset, method, base, value, networks=SMALL):
    """Paired differences of a method against another one: for each network, and `"all"` pairs together."""
    return over_networks(
        lambda network: differences(
            runs, main_point(dataset, network, method), main_point(dataset, network, base), value
        ),
        networks,
    )


def comparison_table(runs, dataset, base, value, methods, networks=SMALL):
    columns = [*networks, "all"]
    rows = []
    for method in methods:
        found = comparison(runs, dataset, method, base, value, networks)
        if any(found.values()):
            rows.append([method, *(signed(found[column]) for column in columns)])
    return table(["method", *columns], rows) if rows else "No pairs yet.\n"


def convergence_table(runs, dataset):
    """Epochs until the final exit has the accuracy at which the plain network of the same seed ends."""
    rows = []
    for method in PAPER:
        cells, every = [], []
        for network in SMALL:
            plain = runs_of(runs, dataset, network, PLAIN)
            lines = runs_of(runs, dataset, network, method)
            epochs = [epochs_to(lines[s], end_of(plain[s])) for s in sorted(plain.keys() & lines.keys())]
            every += epochs
            cells.append(_epochs(epochs))
        if every:
            rows.append([method, *cells, _epochs(every)])
    return table(["method", *SMALL, "all"], rows) if rows else "No pairs yet.\n"


def _epochs(epochs):
    if not epochs:
        return "–"
    middle = float(np.median(epochs))
    never = sum(map(math.isinf, epochs))
    told = "not in half of the runs" if math.isinf(middle) else f"{middle:g}"
    return told + (f" ({never} of {len(epochs)} never)" if never else "")


def stability_table(runs, dataset):
    """Spread over the last epochs, and over the seeds."""
    rows = []
    for method in PAPER:
        tails, squares, freedom = [], 0.0, 0
        for network in SMALL:
            lines = list(runs_of(runs, dataset, network, method).values())
            tails += [tail_spread(line) for line in lines]
            if len(lines) > 1:
                finals = [test(line) for line in lines]
                squares += float(np.var(finals, ddof=1)) * (len(finals) - 1)
                freedom += len(finals) - 1
        if tails:
            seeds = f"{math.sqrt(squares / freedom):.2f}" if freedom else "–"
            rows.append([method, len(tails), plus_minus(tails, 2), seeds])
    return table(["method", "runs", f"over the last {TAIL} epochs", "over seeds"], rows)


def ensemble_gains(runs, dataset, method):
    return over_networks(lambda network: map(ensemble_gain, runs_of(runs, dataset, network, method).values()))


def ensemble_table(runs, dataset):
    """How much the mean of all exits beats the final exit."""
    rows = []
    for method in PAPER[1:]:
        found = ensemble_gains(runs, dataset, method)
        if found["all"]:
            rows.append([method, *(signed(found[column]) for column in (*SMALL, "all"))])
    return table(["method", *SMALL, "all"], rows) if rows else "No runs yet.\n"


def sizes_table(runs, dataset="glyphs", network="ResNet10"):
    rows = []
    for size, epochs in SIZES:
        cells = [f"{size:,}", epochs]
        for method in ("plain", "cross-entropy", "eed-kl", "eed-mse"):
            lines = runs.get((dataset, network, method, size, epochs), {}).values()
            cells.append(plus_minus([test(line) for line in lines]) if lines else "–")
        for method in ("eed-kl", "eed-mse"):
            for value in (test, early_mean):
                first, second = ((dataset, network, m, size, epochs) for m in (method, BASE))
                cells.append(signed(paired(differences(runs, first, second, value))))
        rows.append(cells)
    header = ["images", "epochs", "plain", "cross-entropy", "eed-kl", "eed-mse"]
    header += [
        f"{method} − {BASE}, {what}" for method in ("eed-kl", "eed-mse") for what in ("final", "early exits")
    ]
    return table(header, rows)


def remedies_table(runs, dataset, network="ResNet10"):
    """Each candidate against cross-entropy exits and the better of the two forms of EED, with Holm's p."""
    rows, p_values = [], []
    for method in ("eed-mse", "eed-kl", *REMEDIES):
        mine = main_point(dataset, network, method)
        if mine not in runs:
            continue
        lines = list(runs[mine].values())
        base = main_point(dataset, network, BASE)
        parent = main_point(dataset, network, "eed-mse" if "mse" in method else "eed-kl")
        found = paired(differences(runs, mine, base, test))
        p_values.append(found.p if found else 1.0)
        rows.append(
            [
                method,
                len(lines),
                plus_minus([test(line) for line in lines]),
                signed(found),
                signed(paired(differences(runs, mine, base, early_mean))),
                "" if mine == parent else signed(paired(differences(runs, mine, parent, test))),
                signed(paired([ensemble_gain(line) for line in lines])),
            ]
        )
    for row, p in zip(rows, holm(p_values), strict=True):
        row.append(f"{p:.3f}")
    header = ["method", "seeds", "final exit", f"final − {BASE}", f"early exits − {BASE}"]
    header += ["final − its own form of EED", "ensemble − final", f"Holm's p, final − {BASE}"]
    return table(header, rows) if rows else "No runs yet.\n"


# Claims


def judged(pooled):
    """What the differences of all networks together say of a claim that they are above 0."""
    if pooled is None:
        return "not measured yet"
    said = {1: "**held**", -1: "**the opposite**", 0: "not shown"}[pooled.verdict]
    half = "" if math.isnan(pooled.half) else f" ± {pooled.half:.2f}"
    return f"{said}: {pooled.mean:+.2f}{half}, {p_value(pooled.p)}, {pooled.count} pairs"


def claims(runs, dataset):
    """The claims, each with a function from a method to the differences that have to be above 0."""

    def above(base, value=test):
        return lambda method: comparison(runs, dataset, method, base, value)

    return {
        "the network itself, its exits taken off, is better than the plain one": above(PLAIN),
        f"the final exit is better than with {BASE} exits": above(BASE),
        f"the early exits are better than with {BASE} exits (mean)": above(BASE, early_mean),
        f"the ensemble is better than that of {BASE} exits": above(BASE, lambda x: test(x, ENSEMBLE)),
        "the final exit is better than with dbt": above("dbt"),
        "the final exit is better than with byot": above("byot"),
        "the final exit is better than with eed-mse": above("eed-mse"),
        "the final exit is better than with eed-kl": above("eed-kl"),
        "the ensemble is better than the final exit, and so can teach it": lambda method: ensemble_gains(
            runs, dataset, method
        ),
        "it is sooner where the plain network ends (epochs)": lambda method: faster(runs, dataset, method),
        f"it is steadier than the plain network over the last {TAIL} epochs": above(
            PLAIN, lambda line: -tail_spread(line)
        ),
    }


def claims_table(runs, dataset, methods=("eed-mse", "eed-kl", "beed")):
    rows = [
        [claim, *("–" if claim.endswith(f" {m}") else judged(found(m)["all"]) for m in methods)]
        for claim, found in claims(runs, dataset).items()
    ]
    return table(["claim", *methods], rows)


def faster(runs, dataset, method):
    """Epochs by which a method is sooner than plain where plain ends; never counts as one after the last."""

    def gains(network):
        plain = runs_of(runs, dataset, network, PLAIN)
        lines = runs_of(runs, dataset, network, method)
        for seed in sorted(plain.keys() & lines.keys()):
            goal = end_of(plain[seed])
            last = len(plain[seed]["validation"][FINAL])
            yield min(epochs_to(plain[seed], goal), last) - min(epochs_to(lines[seed], goal), last + 1)

    return over_networks(gains)


def missing(lines):
    """What of each preset is not there yet."""
    for name in ("main", "sizes", "remedies"):
        for dataset in ("glyphs", "fashion_mnist") if name == "main" else ("glyphs",):
            jobs = preset(name, [dataset])
            done = count_done(jobs, lines)
            command = f"`python benchmarks/accuracy.py --preset {name} --dataset {dataset}`"
            yield f"- {command}: {done} of {len(jobs)} runs" + (
                "." if done == len(jobs) else ": **unfinished**."
            )
    wrong = [line["settings"] for line in lines.values() if line["diverged"]]
    if wrong:
        counts = collections.Counter((s["method"], s["rate"]) for s in wrong)
        told = ", ".join(f"{method} at rate {rate:g} ({n})" for (method, rate), n in sorted(counts.items()))
        yield f"- Runs whose loss became infinite or NaN: {told}."


def edges(runs):
    """How often the smallest, the middle and the largest learning rate of a search was chosen."""
    chosen = (next(iter(seeds.values()))["settings"] for seeds in runs.values())
    counts = collections.Counter(RATES[SEARCHED_ON[s["network"]]].index(s["rate"]) for s in chosen)
    return ", ".join(f"{which} {counts[i]}" for i, which in enumerate(("smallest", "middle", "largest")))


# Pictures


def pictures(runs, folder):
    """Writes the pictures; returns their names with what they show."""
    import matplotlib

    matplotlib.use("Agg")
    made = []
    for dataset in ("glyphs", "fashion_mnist"):
        if any(p[0] == dataset and p[3:] == (MAIN["train_size"], MAIN["epochs"]) for p in runs):
            made.append((_gains_picture(runs, dataset, folder), f"{dataset}: gain over {BASE} at each exit"))
            made.append((_curves_picture(runs, dataset, folder), f"{dataset}: validation accuracy by epoch"))
    if any((p[3], p[4]) != (MAIN["train_size"], MAIN["epochs"]) for p in runs):
        made.append((_sizes_picture(runs, folder), "gain by training images and epochs"))
    return made


def _axes(columns, width=3.4, height=3.0):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, columns, figsize=(width * columns, height), sharey=True, squeeze=False, layout="constrained"
    )
    return figure, axes[0]


def _save(figure, folder, name):
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / name, dpi=110)
    plt.close(figure)
    return name


def _gains_picture(runs, dataset, folder):
    figure, axes = _axes(len(SMALL))
    methods = [m for m in PAPER if m not in (PLAIN, BASE)]
    for axis, (network, (_, exits)) in zip(axes, SMALL.items(), strict=True):
        names = [*(f"exit_{i}" for i in range(1, exits + 1)), FINAL, ENSEMBLE]
        axis.axhline(0, color="0.6", linewidth=0.8)
        for offset, method in zip(np.linspace(-0.25, 0.25, len(methods)), methods, strict=True):
            mine, base = (main_point(dataset, network, m) for m in (method, BASE))
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
    return _save(figure, folder, f"accuracy_gain_{dataset}.png")


def _legend(axes):
    for axis in axes:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=6)
            return


def _curves_picture(runs, dataset, folder):
    figure, axes = _axes(len(SMALL))
    for axis, network in zip(axes, SMALL, strict=True):
        for method in PAPER:
            lines = list(runs_of(runs, dataset, network, method).values())
            if lines:
                curve = 100 * np.mean([line["validation"][FINAL] for line in lines], axis=0)
                axis.plot(range(1, len(curve) + 1), curve, linewidth=1, color=COLOURS[method], label=method)
        axis.set_title(network)
        axis.set_xlabel("epoch")
    axes[0].set_ylabel("final exit, validation accuracy, %")
    _legend(axes)
    return _save(figure, folder, f"accuracy_curves_{dataset}.png")


def _sizes_picture(runs, folder, dataset="glyphs", network="ResNet10"):
    figure, axes = _axes(2, width=4.2)
    by_epochs = [p for p in SIZES if p[0] == MAIN["train_size"]]
    by_size = sorted({max((q for q in SIZES if q[0] == p[0]), key=lambda q: q[1]) for p in SIZES})
    labelled = (
        (axes[0], by_epochs, 1, f"epochs ({MAIN['train_size']:,} images)"),
        (axes[1], by_size, 0, "training images (longest training of each)"),
    )
    for axis, points, index, label in labelled:
        axis.axhline(0, color="0.6", linewidth=0.8)
        for method, (what, value) in itertools.product(
            ("eed-kl", "eed-mse"), (("final", test), ("early exits", early_mean))
        ):
            known = []
            for size_epochs in points:
                mine, base = ((dataset, network, m, *size_epochs) for m in (method, BASE))
                if found := paired(differences(runs, mine, base, value)):
                    known.append(
                        (size_epochs[index], found.mean, 0 if math.isnan(found.half) else found.half)
                    )
            if known:
                axis.errorbar(*zip(*known, strict=True), marker="o", capsize=2, label=f"{method}, {what}")
        axis.set_xscale("log")
        axis.set_xlabel(label)
    axes[0].set_ylabel(f"test accuracy − {BASE}, points")
    _legend(axes)
    return _save(figure, folder, "accuracy_sizes.png")


# All of it

INTRODUCTION = """\
# Accuracy: what the exits gain

Made by `python benchmarks/accuracy_report.py` from `benchmarks/results/accuracy.jsonl`, every line of which
is one training by `benchmarks/accuracy.py`. Small networks on small images, so that it can be run again on
one core: {recipe}. The paper's own setting (full-size networks, CIFAR-100, 200 epochs) is `python
benchmarks/accuracy.py --preset paper --dataset cifar100`, on a GPU.

Accuracies are of test images, in percent, after the last epoch; "best epoch" is the epoch whose final exit
was best on the validation images. ± is the half-width of the 95% t-interval over seeds. Differences are
paired: the same seed means the same first weights and images. p is of the exact sign-flip test: with 5
pairs it cannot be below 2/32 = 0.063, with the 20 pairs of all networks together it can. ▲ and ▼ mark
differences whose interval leaves out 0, and whose p, where there are at least six pairs, is below 0.05.
Many comparisons are shown, so about one in twenty of them would be marked by chance alone. The intervals
tell of seeds (first weights, order, training images) on these networks, not of other networks or data sets.

The learning rates to choose from were moved once, when the first searches had their best at an edge of what
they tried. A search sees validation images alone. Seed 0 is left out: its test accuracy had been looked at
while the recipe was made.
"""


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
    introduction = (
        textwrap.fill(paragraph, 110, break_on_hyphens=False, break_long_words=False)
        for paragraph in INTRODUCTION.format(recipe=recipe).split("\n\n")
    )
    parts = ["\n\n".join(introduction), "\n## What there is\n", *missing(lines)]
    parts.append(f"- Of the three learning rates, number of table rows that chose which: {edges(runs)}.")
    for dataset in ("glyphs", "fashion_mnist"):
        if not any(p[0] == dataset for p in runs):
            parts.append(f"\n## {dataset}\n\nNo runs yet.")
            continue
        title = {"glyphs": "94 characters in unseen typefaces", "fashion_mnist": "Fashion-MNIST"}[dataset]
        parts += [
            f"\n## {title}\n\n### Which claims held\n",
            claims_table(runs, dataset),
            "\n### Test accuracy\n",
            *accuracy_tables(runs, dataset),
            f"\n### Final exit against {BASE} exits, points\n",
            comparison_table(runs, dataset, BASE, test, [m for m in PAPER if m != BASE]),
            "\n### Final exit against the plain network, points\n",
            comparison_table(runs, dataset, PLAIN, test, PAPER[1:]),
            f"\n### Mean of the early exits against {BASE} exits, points\n",
            comparison_table(runs, dataset, BASE, early_mean, PAPER[2:]),
            f"\n### Ensemble against the ensemble of {BASE} exits, points\n",
            comparison_table(runs, dataset, BASE, lambda x: test(x, ENSEMBLE), PAPER[2:]),
            "\n### Ensemble minus final exit, points\n",
            ensemble_table(runs, dataset),
            "\n### Epochs until the final exit is where the plain network of the same seed ends (median)\n",
            convergence_table(runs, dataset),
            "\n### Spread of the final exit, points (standard deviation)\n",
            stability_table(runs, dataset),
        ]
    parts += ["\n## More epochs, more images (ResNet10, characters)\n", sizes_table(runs)]
    parts += [
        "\n## Candidates for better objectives (ResNet10, characters)\n",
        remedies_table(runs, "glyphs"),
    ]
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

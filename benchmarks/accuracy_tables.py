"""The tables and claims of the accuracy report, in Markdown."""

import itertools
import math

import numpy as np
from accuracy_lines import BASE, FINAL, early_mean, end_of, test
from accuracy_presets import FINALISTS, PLAIN, REMEDIES, SCREENED, SCREENED_ON, SEEDS, SIZES
from accuracy_runs import (
    EITHER,
    ENSEMBLE,
    GLYPHS,
    TAIL,
    beside_plain,
    comparison,
    differences,
    ensemble_gains,
    epochs_to,
    faster,
    names_of,
    runs_of,
    tail_spread,
)
from accuracy_statistics import holm, paired
from accuracy_text import difference, p_value, plus_minus, signed, table


def accuracy_tables(runs, section):
    """Test accuracy at each exit, one table for each network."""
    for network in section.networks:
        names = names_of(network)
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


FINALISTS_INTRODUCTION = """\
The pairs not screened are the networks and seeds that had no part in the choice; Holm's p takes into account
that all these questions are asked of them. A candidate becomes an objective of the library if one of its
gains has such a p below 0.05"""


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


# All of a data set


def section_tables(runs, section):
    """A section's tables with their headings, a list of Markdown texts."""
    taught = section.without(PLAIN, BASE)
    return [
        "\n### Test accuracy\n",
        *accuracy_tables(runs, section),
        f"\n### Final exit against {BASE} exits, points\n",
        comparison_table(runs, section, BASE, test, section.without(BASE)),
        "\n### Final exit against the plain network, points\n",
        comparison_table(runs, section, PLAIN, test, section.without(PLAIN)),
        f"\n### Mean of the early exits against {BASE} exits, points\n",
        comparison_table(runs, section, BASE, early_mean, taught),
        f"\n### Ensemble against the ensemble of {BASE} exits, points\n",
        comparison_table(runs, section, BASE, lambda line: test(line, ENSEMBLE), taught),
        "\n### Ensemble minus final exit, points\n",
        ensemble_table(runs, section),
        "\n### Ensemble minus final exit on validation images, by epoch, points (means over seeds)\n",
        teacher_table(runs, section),
        "\n### Epochs until the final exit is where the plain network of the same seed ends (median)\n",
        convergence_table(runs, section),
        "\n### Spread of the final exit, points (standard deviation)\n",
        stability_table(runs, section),
    ]

"""What to choose, for the accuracy report: objectives in both regimes, half cost, what to train first."""

import collections
import itertools
import textwrap

import numpy as np
from accuracy import resolved
from accuracy_lines import BASE, FINAL, end_of, test
from accuracy_presets import (
    BUDGETS,
    CHOSEN_BY,
    CHOSEN_ON,
    DEFAULT,
    FIRST,
    HALF,
    JUDGED,
    LIGHT,
    OVERFIT,
    PLAIN,
    REMEDIES,
    RIVALS,
    SCREENED,
    SCREENED_ON,
    SEARCH_SEED,
    SEEDS,
    WENT_ON,
    WIDER,
    WIDTHS,
    preset,
)
from accuracy_results import key_of
from accuracy_statistics import paired
from accuracy_text import plus_minus, signed, table
from heads import NETWORKS, objective_of

__all__ = ["choice", "regret_table"]

# What a preset varies beyond network, method and seed.
VARIED = {"narrow": ("width",), "heads": ("head", "begin"), "first": ("then",)}


def runs_of(lines, name, **only):
    """The runs of a preset that are done, `{(network, method, …): {seed: line}}`.

    What the preset varies beyond these, `VARIED`, stands behind the method.
    """
    found = collections.defaultdict(dict)
    for job in preset(name, **only):
        settings = resolved(job, lines)
        line = settings and lines.get(key_of(settings))
        if line and not line["diverged"] and settings["seed"] != SEARCH_SEED:
            varied = (settings.get(field) for field in VARIED.get(name, ()))
            found[(settings["network"], settings["method"], *varied)][settings["seed"]] = line
    return dict(found)


def seen(runs):
    """What chooses among objectives: a function from a line to the accuracy of the final exit, in percent.

    It is of the validation images that were not looked at during training where all of the runs have that,
    and else of those that were, the mean over the last epochs: all are judged on the same images.
    """
    if all("screening" in line for seeds in runs.values() for line in seeds.values()):
        return lambda line: 100 * line["screening"][FINAL]
    return lambda line: 100 * end_of(line)


# The objectives in all regimes


def with_light(lines, heads_lines):
    """`{name: runs}` of the regimes with the default head."""
    over = of_methods(over_fitted(lines), ())
    over |= runs_of(lines, "half", networks=WIDER, methods=WENT_ON, seeds=SEEDS)
    return {"short": short(heads_lines), "over-fitted": over}


def with_conv(lines):
    """`{name: runs}` of the regimes with the paper's head."""
    under = runs_of(lines, "main", methods=[PLAIN, *WENT_ON])
    return {"under-fitted": under, "over-fitted": over_fitted(lines)}


def short(lines):
    """The runs of heads.py that trained the default head with its network, as those of accuracy.py."""
    found = collections.defaultdict(dict)
    for line in lines.values():
        settings = line["settings"]
        head, (full, *_) = settings["head"], NETWORKS[settings["network"]]
        if settings["part"] == "frozen" or settings["width"] != full or head not in (PLAIN, "light"):
            continue
        method = PLAIN if head == PLAIN else objective_of(settings)
        parts = {part: line["heads"][head][part]["exits"] for part in ("validation", "test")}
        names = [*(f"exit_{i}" for i in range(1, len(parts["test"]))), FINAL]
        screening, tested = (dict(zip(names, parts[part], strict=True)) for part in ("validation", "test"))
        case = f"{settings['network']}, {settings['dataset']}"
        found[case, method][settings["seed"]] = {"screening": screening, "test": {"last": tested}}
    return dict(found)


def over_fitted(lines):
    """All that there is of any objective in the over-fitted regime, with the paper's heads."""
    return runs_of(lines, "overfit", networks=WIDER, methods=JUDGED, seeds=SEEDS)


def screened(lines):
    """`{name: runs}` of both, on what all the candidates were tried on."""
    methods = [PLAIN, BASE, "eed-mse", "eed-kl", *REMEDIES]
    seeds = SEEDS[:SCREENED]
    under = runs_of(lines, "remedies", networks=list(SCREENED_ON), methods=methods, seeds=seeds)
    under |= runs_of(lines, "second", networks=list(SCREENED_ON), seeds=seeds)
    under |= runs_of(lines, "main", networks=list(SCREENED_ON), methods=["dbt", "byot", "beed"], seeds=seeds)
    return {"under-fitted": under, "over-fitted": over_fitted(lines)}


def of_methods(runs, methods):
    """The runs of some methods, and the plain network's."""
    return {key: seeds for key, seeds in runs.items() if key[1] in (PLAIN, *methods)}


def common(runs):
    """The networks and seeds that every method has which has any run: a study that was stopped stays fair."""
    every = collections.defaultdict(set)
    for (network, method), seeds in runs.items():
        every[method] |= {(network, seed) for seed in seeds}
    return sorted(set.intersection(*every.values())) if every else []


def against(runs, method, other, value):
    """`Paired` of two methods, over what is common to all; `None` where one has no runs."""
    if not {method, other} <= {name for _, name in runs}:
        return None
    pairs = ((runs[network, method][seed], runs[network, other][seed]) for network, seed in common(runs))
    return paired([value(mine) - value(theirs) for mine, theirs in pairs])


def regret_table(found, methods=(*JUDGED, *REMEDIES)):
    """The objectives, least regret first: how far each stays behind the best one, on validation images.

    Args:
        found: dict from the name of a regime to its runs.
        methods: names; they are compared on the networks and seeds that all of them have.
    """
    found = {regime: of_methods(runs, methods) for regime, runs in found.items()}
    gains = {
        method: {regime: against(runs, method, PLAIN, seen(runs)) for regime, runs in found.items()}
        for method in dict.fromkeys(methods)
        if method != PLAIN
    }
    gains = {method: each for method, each in gains.items() if all(each.values())}
    if not gains:
        return "No objective has been run in all regimes yet.\n"
    best = {regime: max(each[regime].mean for each in gains.values()) for regime in found}
    rows = []
    for method, each in gains.items():
        regret = {regime: best[regime] - each[regime].mean for regime in found}
        tested = [against(runs, method, PLAIN, test) for runs in found.values()]
        cells = [signed(gain, p=False) for gain in (*each.values(), *tested)]
        pairs = ", ".join(str(gain.count) for gain in each.values())
        rows.append((max(regret.values()), [method, pairs, f"{max(regret.values()):.2f}", *cells]))
    header = ["objective", "pairs", "**most regret**", *(f"validation, {regime}" for regime in found)]
    header += [f"test, {regime}" for regime in found]
    return table(header, [row for _, row in sorted(rows, key=lambda row: row[0])])


def answer(found, default):
    """An objective beside the best objective, and beside the plain network: a sentence on each regime."""
    best, gained = [], []
    for regime, every in found.items():
        alone = of_methods(every, [default])
        if gain := against(alone, default, PLAIN, test):
            gained.append(f"{regime} {signed(gain, p=False)} ({gain.count} pairs)")
            best.append(f"{regime}, {_best(of_methods(every, WENT_ON), default)}")
    if not gained:
        return ""
    texts = (
        f"**`{default}` beside the plain network, points of the final exit on test images with the 95% "
        f"interval:** {'; '.join(gained)}.",
        f"**Beside the best objective, on validation images:** {'; '.join(best)}.",
    )
    return "\n".join(textwrap.fill(text, 110, break_on_hyphens=False) + "\n" for text in texts)


def _best(runs, default):
    """Which objective is best on validation images, and by how much ahead of `default`."""
    value = seen(runs)
    gains = {method: against(runs, method, PLAIN, value) for method in WENT_ON}
    best = max((method for method in gains if gains[method]), key=lambda method: gains[method].mean)
    if best == default:
        return "no other is ahead of it"
    return f"`{best}` is {signed(against(runs, best, default, value), p=False)} ahead of it"


def fresh_table(runs):
    """The default less the others on what had no part in its choice, from runs with the default head."""
    runs = {
        (network, method): {
            seed: line for seed, line in seeds.items() if network not in CHOSEN_ON or seed not in CHOSEN_BY
        }
        for (network, method), seeds in of_methods(runs, HALF).items()
    }
    value, rows = seen(runs), []
    others = (PLAIN, *RIVALS)
    for network in (*(name for name in WIDER if (name, DEFAULT) in runs), None):
        those = {key: seeds for key, seeds in runs.items() if network in (key[0], None)}
        found = [against(those, DEFAULT, other, of) for other in others for of in (value, test)]
        if found[0]:
            cells = [signed(gain, p=network is None) for gain in found]
            rows.append([network or "all", found[0].count, *cells])
    header = ["network", "pairs"]
    header += [f"less `{other}`, {part}" for other in others for part in ("validation", "test")]
    return table(header, rows) if rows else "No runs yet.\n"


# Early exit at half the cost; and what to train first


def _cells(lines):
    """Seeds, right at each exit, and at each budget."""
    lines = list(lines.values())
    exits = " / ".join(f"{np.mean([test(line, name) for line in lines]):.1f}" for name in lines[0]["exits"])
    budgets = []
    for budget in BUDGETS:
        values = [
            100 * line["early_exit"][str(budget)]["accuracy"]
            for line in lines
            if str(budget) in line.get("early_exit", {})
        ]
        budgets.append(plus_minus(values) if values else "–")
    return [len(lines), exits, *budgets]


_COLUMNS = ["seeds", "right at each exit", *(f"early exit at {budget:.0%}" for budget in BUDGETS)]


def by_head(lines):
    """The runs in the over-fitted regime with early exits: `{(network, method, head): {seed: line}}`."""
    found, every = {}, {"networks": WIDER, "methods": HALF, "seeds": SEEDS}
    for (network, method, head, begin), seeds in runs_of(lines, "heads", **every).items():
        found[network, method, f"{head}, classifiers of {begin}" if begin else head] = seeds
    for head, name in (("conv", "overfit"), ("light", "half")):
        found |= {(*key, head): seeds for key, seeds in runs_of(lines, name, **every).items()}
    return found


def _cost(found):
    """Multiply-adds of an image that goes through all of it."""
    return next(iter(found.values()))["multiply_adds"][-1]


def half_table(lines):
    """Early exit with each head, the cheapest first, below plain networks that cost as much."""
    full, heads = over_fitted(lines), by_head(lines)
    narrow = runs_of(lines, "narrow", networks=WIDER, seeds=SEEDS)
    rows = []
    for network in WIDER:
        whole = full.get((network, PLAIN))
        if not whole:
            continue
        cost = _cost(whole)
        rows.append([network, "none", "plain", "100%", *_cells(whole), ""])
        for width in sorted(WIDTHS, reverse=True):
            if smaller := narrow.get((network, PLAIN, width)):
                rows.append(
                    [network, "none", "plain, smaller", f"{_cost(smaller) / cost:.0%}", *_cells(smaller), ""]
                )
        of_network = [(key, found) for key, found in heads.items() if key[0] == network]
        for (_, method, head), found in sorted(of_network, key=lambda item: _cost(item[1])):
            gain = paired([test(found[seed]) - test(whole[seed]) for seed in found if seed in whole])
            told = signed(gain, p=False) if gain else "–"
            rows.append([network, f"`{head}`", method, f"{_cost(found) / cost:.0%}", *_cells(found), told])
    header = ["network", "head", "trained by", "cost of all of it", *_COLUMNS, "final over plain"]
    return table(header, rows) if rows else "No runs yet.\n"


def early_answer(lines):
    """Early exit with the default head, the default objective less each of the others: a sentence."""
    runs = {key[:2]: found for key, found in by_head(lines).items() if key[2] == LIGHT["head"]}
    told = []
    for other, budget in itertools.product(RIVALS, map(str, BUDGETS)):
        gains = [
            100 * (mine[seed]["early_exit"][budget]["accuracy"] - line["early_exit"][budget]["accuracy"])
            for (network, method), mine in runs.items()
            if method == DEFAULT
            for seed, line in runs.get((network, other), {}).items()
            if budget in line.get("early_exit", {}) and seed in mine
        ]
        if gains:
            gain = paired(gains)
            told.append(f"{float(budget):.0%} less `{other}` {signed(gain, p=False)} ({gain.count} pairs)")
    said = f"**Early exit with the default head, `{DEFAULT}` less the others, points:** {'; '.join(told)}."
    return textwrap.fill(said, 110, break_on_hyphens=False) + "\n" if told else ""


def first_table(lines):
    """The network first and then its exits, beside all together from scratch, at as many epochs in all."""
    after = runs_of(lines, "first", networks=WIDER, methods=HALF)
    scratch = {key[:2]: seeds for key, seeds in by_head(lines).items() if key[2] == LIGHT["head"]}
    epochs, first = OVERFIT["epochs"], FIRST["first"]
    rows = []
    for network in WIDER:
        ways = {}
        for (name, method), found in scratch.items():
            if name == network and any(key[:2] == (network, method) for key in after):
                ways[f"{epochs} epochs together", method] = found
        for (name, method, then), found in sorted(after.items()):
            if name == network:
                way = f"{first} alone, {epochs - first} {'together' if then == 'joint' else 'exits alone'}"
                ways[way, method] = found
        if ways:
            seeds = set.intersection(*(set(found) for found in ways.values()))  # of all, to be fair
            rows += [
                [network, *way, *_cells({seed: found[seed] for seed in seeds})]
                for way, found in ways.items()
                if seeds
            ]
    return table(["network", "epochs", "objective", *_COLUMNS], rows) if rows else "No runs yet.\n"


INTRODUCTION = """\
An objective has to be good in short trainings and in long ones. All figures are points of the final exit over
the plain network's of the same seed, over the networks and seeds that all objectives of a table have. Regret
is how far an objective stays behind the best one of a regime, on validation images; "most" is the larger of
both. Test images are for reading alone. `eed-kl` is `EED()`, which compares features too; `eed-kl-output` is
`EED(feature_weight=0)`. `benchmarks/accuracy_methods.py` has the formulas of those that are not in the
library.
"""
DEFAULTS = """\
What `add_exits(model)` and `ExitEnsembleDistiller(model)` do: `light` and `eed-kl-output`. **Short**: 6
epochs of 10,000 images of CIFAR-100 or 6,000 of Fashion-MNIST, ResNet10 and VGG11 of a quarter of their width
(`benchmarks/heads.py --part joint`). **Over-fitted**: CIFAR-100, 50 images a class, {epochs} epochs, the
paper's rate and schedule; {regime}.
"""
CONV = """\
For a network that gives its exits back: `conv` and `eed-kl`. **Over-fitted** as above; **under-fitted**: 94
characters, 3,000 images, 20 epochs, four networks; training and validation accuracy are alike at the end.
"""


def regime(runs):
    """How far training and test accuracy of the plain networks are apart, in words."""
    plain = [line for (_, method), seeds in runs.items() if method == PLAIN for line in seeds.values()]
    if not plain:
        return "no run yet"
    training = np.mean([100 * line["training"][FINAL][-1] for line in plain])
    return (
        f"the plain networks end at {training:.0f}% of the training images, augmented, and "
        f"{np.mean([test(line) for line in plain]):.0f}% of the test images"
    )


def choice(lines, heads_lines):
    """The sections, a list of Markdown texts."""
    light, conv = with_light(lines, heads_lines), with_conv(lines)
    told = DEFAULTS.format(epochs=OVERFIT["epochs"], regime=regime(conv["over-fitted"]))
    introduction, told, paper = (
        textwrap.fill(text, 110, break_on_hyphens=False) + "\n" for text in (INTRODUCTION, told, CONV)
    )
    return [
        "\n## What to choose\n",
        introduction,
        "### With the default head\n",
        told,
        answer(light, DEFAULT),
        regret_table(light, WENT_ON),
        "\nSeeds and networks that had no part in the choice of the default: it less each of the others.\n"
        "'All' is of the networks and seeds that all of them have.\n",
        fresh_table(light["over-fitted"]),
        "\n### With the paper's head\n",
        paper,
        answer(conv, "eed-kl"),
        regret_table(conv, WENT_ON),
        "\n### All that was tried\n",
        "A first look, with the paper's head: the networks and seeds that all of these have.\n",
        regret_table(screened(lines)),
        "\n### The head, and early exit at half of the cost\n",
        "Trained in the over-fitted regime. Thresholds spend at most that share of the network's\n"
        "multiply-adds on the calibration images; accuracy is of test images. `light` is the default head,\n"
        "`light_quarter` the same with a quarter of its gradient handed back to the network;\n"
        "[heads](heads.md) says what the others are.\n",
        early_answer(lines),
        half_table(lines),
        "\n### The network first, or all together?\n",
        "The same images, seeds, head (`light`) and number of epochs in all. Each part begins with a rate\n"
        "of 0.1.\n",
        first_table(lines),
    ]

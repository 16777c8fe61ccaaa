"""What benchmarks/accuracy.py runs: the settings of every run, by preset."""

import itertools
import json
import typing

from accuracy_results import key_of

# Learning rates that are tried, and where. In so few steps residual networks need ten times the rate of VGG.
RATES = {"VGG11": (0.006, 0.02, 0.06), "ResNet10": (0.06, 0.2, 0.6)}
SEARCHED_ON = {"VGG11": "VGG11", **dict.fromkeys(("ResNet10", "ResNeXt14", "WideResNet10_2"), "ResNet10")}
SEARCH_SEED = 1000  # for the learning rate; no test image is read with it
SEARCH = {"train_size": 3000, "epochs": 10}  # in place of those of the run whose learning rate is searched
SEEDS = (1, 2, 3, 4, 5)  # seed 0 was looked at while the recipe was made

PLAIN, DEFAULT = "plain", "eed-kl-output"  # the second: what ExitEnsembleDistiller(model) does
PAPER = (PLAIN, "cross-entropy", "dbt", "byot", "eed-mse", "eed-kl", "beed")
REMEDIES = (
    *("eed-mse-ramp", "eed-kl-ramp", "eed-mse-output", "eed-kl-output", "eed-mse-quarter"),
    *("eed-kl-beta", "eed-kl-running", "eed-kl-better", "eed-kl-early", "beed-soft"),
)
# The remedies whose final exit was best on the validation images of the preset "remedies".
FINALISTS = ("eed-kl-early", "eed-kl-better")
# A second round of candidates, which look for one objective that is good in both regimes.
SECOND = (
    "eed-kl-strong",
    "eed-kl-itself",
    "eed-kl-sure",
    "eed-kl-right",
    "eed-kl-held",
    "eed-mse-scaled",
    "eed-kl-gap",
    "eed-mse-gap",
)
# Small enough for one core: name to width factor and number of exits (one at each resolution but the last).
SMALL = {"VGG11": (0.125, 3), "ResNet10": (0.125, 3), "ResNeXt14": (0.125, 3), "WideResNet10_2": (0.25, 2)}
FULL = {"VGG16": (1.0, 3), "ResNet18": (1.0, 3), "ResNeXt50": (1.0, 3), "WideResNet28_10": (1.0, 2)}
EVERY = {**SMALL, **FULL}
MAIN = {"train_size": 3000, "epochs": 20, "batch": 32, "schedule": "cosine", "l2": 5e-4, "augment": "auto"}
# Where remedies are tried: EED("kl") gains on the first and loses on the second. And for how many seeds.
SCREENED_ON, SCREENED = ("ResNet10", "WideResNet10_2"), 3
# The smaller table on Fashion-MNIST.
FASHION = ("VGG11", "ResNet10"), (PLAIN, "cross-entropy", "eed-kl", "eed-kl-early")
# The regime of the paper, small: 50 images a class, and epochs until they are known by heart. One rate, the
# paper's, and its schedule; widths at which a run takes minutes on one core.
OVERFIT = {"train_size": 5000, "epochs": 60, "batch": 64, "schedule": "steps", "l2": 5e-4, "augment": "auto"}
WIDER = {
    **dict.fromkeys(("ResNet10", "VGG11", "ResNet18", "ResNeXt14"), (0.25, 3)),
    "WideResNet10_2": (0.5, 2),
}
# The default was chosen on these with the first seeds; other networks and seeds had no part in that.
CHOSEN_ON, CHOSEN_BY = ("ResNet10", "VGG11"), SEEDS[:3]
FAMILIES = "ResNeXt14", "WideResNet10_2"
# There, all that teaches by an ensemble, in the order in which it is to be known: tried with one seed. Those
# of least regret, and what people ask for, went on.
JUDGED = (*PAPER, "eed-kl-output", *FINALISTS, *SECOND)
WENT_ON = ("cross-entropy", "eed-mse", "eed-kl", DEFAULT, "eed-kl-early", "eed-kl-itself")
# Early exit at these shares of the multiply-adds, by these objectives; plain networks of about these shares.
BUDGETS, HALF = (0.3, 0.5), ("cross-entropy", "eed-kl", DEFAULT)
RIVALS = HALF[:-1]  # of the default
WIDTHS = (0.1369, 0.1768)  # 0.25 √0.3 and 0.25 √0.5
LIGHT = {"head": "light"}
# The network alone first, for half of the epochs, and then its exits; at this rate.
FIRST, FIRST_RATE = {"epochs": 30, "first": 30, **LIGHT}, 0.1
THEN = ("joint", "frozen")
# Heads that are trained with their network; some are in head_candidates.py.
HEADS = ("separable", "mixed_hidden", "mixed", "mixed_wide", "light_hidden", "light_32", "light_quarter")
# The last begins by saying nothing: with weights of 0 in the classifiers of the exits.
TRAINED_HEADS = (*({"head": head} for head in HEADS), {"head": "light_hidden", "begin": "zeros"})
# Training images and epochs of the sweep over sizes.
SIZES = ((1000, 60), (3000, 7), (3000, 20), (3000, 60), (9000, 7), (9000, 20))


class Preset(typing.NamedTuple):
    """The runs of a table: every recipe, data set, network and method, for each seed."""

    recipes: list  # dicts, the settings beyond the other fields
    methods: tuple
    networks: tuple
    datasets: tuple = ("glyphs",)
    seeds: tuple = SEEDS
    rates: tuple | None = None  # learning rates to choose from, in place of RATES; a single one is taken
    shapes: dict = EVERY  # of all networks that can be asked for


def _on_cifar100(recipes, methods, networks=("ResNet10",), seeds=SEEDS[:3]):
    """A preset in the over-fitted regime."""
    every = [{**OVERFIT, **recipe} for recipe in recipes]
    return Preset(every, methods, networks, ("cifar100",), seeds, (0.1,), WIDER)


PRESETS = {
    "main": Preset([MAIN], PAPER, tuple(SMALL)),
    "sizes": Preset(
        [{**MAIN, "train_size": size, "epochs": epochs} for size, epochs in SIZES],
        (PLAIN, "cross-entropy", "eed-kl", "eed-mse"),
        ("ResNet10",),
        seeds=SEEDS[:3],
    ),
    "remedies": Preset(
        [MAIN],
        (PLAIN, "cross-entropy", "eed-mse", "eed-kl", *REMEDIES),
        SCREENED_ON,
        seeds=SEEDS[:SCREENED],
    ),
    "finalists": Preset([MAIN], FINALISTS, tuple(SMALL)),
    "fashion": Preset([MAIN], FASHION[1], FASHION[0], ("fashion_mnist",), SEEDS[:3]),
    "second": Preset([MAIN], SECOND, SCREENED_ON, seeds=SEEDS[:SCREENED]),
    "overfit": _on_cifar100([{}], (PLAIN, *WENT_ON), CHOSEN_ON),
    "overfit-first-look": _on_cifar100([{}], JUDGED, seeds=SEEDS[:1]),
    "overfit-again": _on_cifar100([{}], (PLAIN, "cross-entropy", "eed-kl"), CHOSEN_ON, SEEDS[3:]),
    "half": _on_cifar100([LIGHT], HALF, CHOSEN_ON, SEEDS),
    "families": _on_cifar100([{}, LIGHT], (PLAIN, *HALF), FAMILIES, SEEDS[:2]),
    "deeper": _on_cifar100([LIGHT], (PLAIN, DEFAULT), ("ResNet18",), SEEDS[:1]),
    "heads": _on_cifar100(TRAINED_HEADS, ("eed-kl",), seeds=SEEDS[:1]),
    "narrow": _on_cifar100([{"width": width} for width in WIDTHS], (PLAIN,), CHOSEN_ON),
    "first": _on_cifar100([{**FIRST, "then": then} for then in THEN], (DEFAULT,)),
    "smoke": Preset(
        [{**MAIN, "train_size": 500, "epochs": 2, "batch": 100}],
        (PLAIN, "cross-entropy", "eed-kl"),
        ("ResNet10",),
        ("digits",),
        SEEDS[:1],
        (0.06,),
        {"ResNet10": (0.0625, 2)},
    ),
    "paper": Preset(
        [{**MAIN, "train_size": None, "epochs": 200, "batch": 128, "schedule": "steps"}],
        PAPER,
        tuple(FULL),
        ("cifar100",),
        rates=(0.1,),
    ),
}


def settings_for(dataset, network, shape, method, seed, rate, recipe):
    """The settings of one run; `rate=None` is the rate that the search found."""
    width, exits = shape
    if method == PLAIN:
        exits, recipe = 0, {field: value for field, value in recipe.items() if field != "head"}
    return {
        "dataset": dataset,
        "network": network,
        "width": width,
        "exits": exits,
        "method": method,
        "seed": seed,
        "rate": rate,
        **recipe,
    }


def seed_major(datasets, networks, methods, recipes, seeds, rates):
    """Settings of the search for each learning rate, then of all methods for one seed, for the next, …"""
    points = list(itertools.product(recipes, datasets, networks.items(), methods))
    searched = {}
    for recipe, dataset, (network, shape), method in points if rates is None or len(rates) > 1 else ():
        for settings in searches(settings_for(dataset, network, shape, method, None, None, recipe), rates):
            searched[key_of(settings)] = settings
    yield from searched.values()
    for seed in seeds:
        for recipe, dataset, (network, shape), method in points:
            rate = rates[0] if rates and len(rates) == 1 else None
            yield settings_for(dataset, network, shape, method, seed, rate, recipe)


def searches(settings, rates=None):
    """The runs whose validation chooses the learning rate of a run."""
    network = SEARCHED_ON.get(settings["network"], settings["network"])
    width, exits = EVERY[network]
    where = {"network": network, "width": width, "exits": 0 if settings["method"] == PLAIN else exits}
    tried = rates or RATES[network]
    return [{**settings, **SEARCH, **where, "rate": rate, "seed": SEARCH_SEED} for rate in tried]


def preset(name, datasets=None, networks=None, methods=None, seeds=None, rates=None, **recipe):
    """The runs of a preset, a list of settings in the order in which they are to be done.

    Args:
        name: a key of `PRESETS`.
        datasets, networks, methods: names, in place of those of the preset.
        seeds: ints, in place of `SEEDS`.
        rates: learning rates to choose from, in place of `RATES`; a single one is taken without a search.
        **recipe: entries of `MAIN`, in place of those of the preset.

    Raises:
        SystemExit: if the preset knows no shape for a network.
    """
    chosen = PRESETS[name]
    if unknown := [network for network in networks or () if network not in chosen.shapes]:
        known = ", ".join(chosen.shapes)
        raise SystemExit(f"Preset {name} has no network {', '.join(unknown)}; there are {known}.")
    wanted = {key: value for key, value in recipe.items() if value is not None}
    recipes = list({json.dumps({**r, **wanted}): {**r, **wanted} for r in chosen.recipes}.values())
    networks = chosen.networks if networks is None else networks
    runs = seed_major(
        datasets or chosen.datasets,
        {network: chosen.shapes[network] for network in networks},
        chosen.methods if methods is None else methods,
        recipes,
        chosen.seeds if seeds is None else seeds,
        rates or chosen.rates,
    )
    return list({json.dumps(settings): settings for settings in runs}.values())  # plain has no head: once

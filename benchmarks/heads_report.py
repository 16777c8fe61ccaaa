"""The page of heads, docs/heads.md, and its charts, from benchmarks/results/heads.jsonl.

python benchmarks/heads_report.py          # writes the page and the charts
python benchmarks/heads_report.py --show   # prints the page, and writes nothing
"""

import argparse
import collections
import pathlib
import textwrap

import matplotlib.figure
import numpy as np
from accuracy_results import Results
from accuracy_statistics import interval
from heads import JOINT, OBJECTIVES

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results" / "heads.jsonl"
DOCS = HERE.parent / "docs"
# In the order of the tables: the default head by other objectives, then all heads by one.
TRAINED = (*(f"light, {objective}" for objective in OBJECTIVES), *JOINT)
STYLES = dict(zip(TRAINED, ("o-C0", "d-C3", "o:C0", "v-.C4", "s--C1", "^:C2"), strict=True))
BUDGETS = ("0.3", "0.4", "0.6")
LIMIT = 0.05  # what all early exits together may cost, as a share of the network
# In the order of the tables: those of the library first.
HEADS = ("light", "linear", "separable", "bottleneck", "conv")
TRIED = {
    "mlp": "pooling, then a hidden layer: D units, batch normalisation, ReLU",
    "shrink": "strided depthwise convolutions, pooling, the hidden layer",
    "mixed": "strided depthwise convolutions, one 1×1 convolution to a quarter of the last map's width",
    "mixed_wide": "the same, to the full width",
    "mixed_hidden": "`mixed`, then the hidden layer; this was the default before",
    "mixed_reuse": "`mixed_hidden` that also sees what the exit before it says (ZTW, arXiv 2106.05409)",
    "light_hidden": "`light`, then the hidden layer",
    "light_32": "`light` with at least 32 channels in place of 64",
}
NAMES = {"fashion_mnist": "Fashion-MNIST", "cifar100": "CIFAR-100"}

PAGE = """# Heads: accuracy for their cost

A head is worth what early exit gains with it: its exit has to be right often, and cheap. Every multiply-add
of a head is spent on each image that reaches it. This page is made by `python benchmarks/heads_report.py`
from the {runs} runs of `python benchmarks/heads.py` that are done, on one core each; in each table,
"seeds" is how many there are so far.

**The default, `"light"`**, shrinks the map of the exit to the size of the network's last map by strided
depthwise 3×3 convolutions. A 1×1 convolution to twice the width follows each but the first, which stands on
the largest map, as long as it has at most w²/8 weights, w the last map's width; else it is narrower, down to
64 channels. All have batch normalisation and a ReLU. Pooling follows, and a Dense layer to D units.

## What was chosen, and on what

The heads that cost at most {limit:.0%} of each network here, all exits together, come first; among them, the
best accuracy on the **validation** images, mean of the budgets 30, 40 and 60% over networks, data sets and
seeds (left out where no head can keep the budget). Heads are compared on frozen networks, where all see the
same features:

{choice}

The default is the second, because of networks that are **trained with** their exits: in
[the over-fitted regime](accuracy.md#the-head-and-early-exit-at-half-of-the-cost) the runs whose head has a
hidden layer behind the pooling end about a point lower at the final exit, all heads and seeds together.

## Frozen networks

A plain network is trained; many heads at once stand on it, each behind a stop-gradient, so that none has an
influence on the network or on another head. Two groups of heads stand on networks that were trained alike:
`mixed_wide`, `light_hidden`, `light` and `light_32`, and the others. "Cost" is that of all early exits
together, in percent of the network. "At 30%" is the test accuracy of early exit by thresholds that spend at
most 30% of the network's multiply-adds on the calibration images; a dash where the first exit alone costs
more. Means over seeds, in percent.

{frozen}

{pairs}

## Trained with their exits, beside smaller plain networks

A network for each head, trained with its exits by `EED()`, and with the default head by other objectives too:
`eed-kl-output` is what the distiller takes by default, `EED(feature_weight=0)`. The plain network at three
widths is trained alike. The chart shows early exit, and the plain networks, which one could run in place of
it.

![Accuracy against cost, for four heads, three objectives and plain networks](images/heads.png)

{joint}

{widths}

What training with exits does to the final exit in these few epochs, points beside the plain network of the
same width, paired by seed, with the 95% interval:

{finals}

In so short a training exits cost the final exit most where it is furthest from its end (CIFAR-100 here: the
plain networks are right on a fifth of the images). Much of that is the comparison of features, which is off
by default.

{features}

Trained for 60 epochs with the paper's heads, comparing features makes the final exit better: see
[accuracy](accuracy.md). For a network that is trained already, the frozen way above costs the final exit
nothing.

## Where this ends

`"separable"` is more accurate than the default at small budgets on these networks, and dearer: three of
them cost 6% of ResNet10 here and 10.7% of ResNet50. Take it where its cost is small in your network:
`print(kx.cost(model))`. Plain networks of smaller width are strong where a network under-fits: a look at
the chart tells where early exit is ahead of them and where it is not.

Small networks, few images, {epochs} epochs: these networks under-fit. Multiply-adds are not time: see
[figures](figures.md#how-much-time-does-leaving-early-save). Learning rates were not searched for each head.
Costs of the heads in networks of usual size are in [the table of placements](placement.md).
"""


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def grouped(lines, part):
    """`{(dataset, network): {name: [its entry of each seed]}}`, each entry with the cost of the backbone.

    The name is that of the head, with the objective behind it if it is not `EED()`, or else the width.
    """
    found = collections.defaultdict(lambda: collections.defaultdict(list))
    for line in lines:
        settings = line["settings"]
        if settings["part"] == part:
            for head, entry in line["heads"].items():
                taught = f"{head}, {settings['objective']}" if "objective" in settings else head
                name = taught if part != "plain" else settings["width"]
                entry = {**entry, "backbone": line["backbone"], "seed": settings["seed"]}
                found[settings["dataset"], settings["network"]][name].append(entry)
    return found


def head_share(entry):
    return entry["cumulative"][-1] / entry["backbone"] - 1


def at(entries, part, budget):
    """Mean accuracy within a budget, in percent; `None` where the first exit costs more."""
    values = [entry[part]["budgets"].get(budget, [None])[0] for entry in entries]
    return None if None in values else 100 * float(np.mean(values))


def cell(value):
    return "–" if value is None else f"{value:.1f}"


def exits(entries):
    return " / ".join(f"{100 * v:.1f}" for v in np.mean([e["test"]["exits"] for e in entries], axis=0))


def rows_of(found, heads):
    for (dataset, network), by_head in found.items():
        for head in heads:
            if head in by_head:
                entries = by_head[head]
                yield [
                    f"{network}, {NAMES.get(dataset, dataset)}",
                    f"`{head}`",
                    len(entries),
                    f"{100 * np.mean([head_share(e) for e in entries]):.1f}",
                    exits(entries),
                    *(cell(at(entries, "test", budget)) for budget in BUDGETS),
                ]


HEADER = ["network", "head", "seeds", "cost", "right at each exit", *(f"at {float(b):.0%}" for b in BUDGETS)]


def gaps(entries, by_width):
    """The final exit less that of the plain network of the full width, in points, by seed: a list."""
    full = {e["seed"]: e["test"]["exits"][-1] for e in by_width[max(by_width)]} if by_width else {}
    return [100 * (e["test"]["exits"][-1] - full[e["seed"]]) for e in entries if e["seed"] in full]


def finals(joint, plain):
    """The final exit less the plain network of the same width, by head, paired by seed."""
    for case, by_head in joint.items():
        line = [f"{case[1]}, {NAMES.get(case[0], case[0])}"]
        for head in TRAINED:
            found = gaps(by_head.get(head, []), plain.get(case, {}))
            mean, half = interval(found) if len(found) > 1 else (None, None)
            line.append("–" if mean is None else f"{mean:+.1f} ± {half:.1f} ({len(found)})")
        yield line


def features_cost(joint, plain, dataset="cifar100"):
    """What the default head costs the final exit of each network with features compared, and without."""
    told = []
    for case, by_head in joint.items():
        values = [gaps(by_head.get(name, []), plain.get(case, {})) for name in ("light", TRAINED[0])]
        if case[0] == dataset and all(values):
            by_eed, without = map(np.mean, values)
            told.append(f"{case[1]} {by_eed:+.1f} points by `EED()` and {without:+.1f} without")
    said = f"The final exit with the default head, on {NAMES[dataset]}: {'; '.join(told) or 'not run yet'}."
    return textwrap.fill(said, 110, break_on_hyphens=False)


def choice(frozen):
    """The heads in the order of their validation accuracy; those that are too dear, or too dear to start."""
    rows = []
    # What no head can do, such as 30% where the first exit stands later, says nothing of heads.
    reached = [
        (case, budget)
        for case, by_head in frozen.items()
        for budget in BUDGETS
        if any(at(entries, "validation", budget) is not None for entries in by_head.values())
    ]
    for head in (*HEADS, *TRIED):
        share = max(head_share(entry) for by_head in frozen.values() for entry in by_head[head])
        values = [at(frozen[case][head], "validation", budget) for case, budget in reached]
        mean = None if None in values else float(np.mean(values))
        rows.append((share <= LIMIT, mean or 0.0, head, share, mean))
    rows.sort(reverse=True)
    return table(
        ["head", "dearest cost", f"within {LIMIT:.0%}", "validation accuracy, mean", "what it is"],
        [
            [
                f"`{head}`",
                f"{share:.1%}",
                "yes" if within else "no",
                cell(mean),
                f"not in the library: {TRIED[head]}" if head in TRIED else "in the library",
            ]
            for within, _, head, share, mean in rows
        ],
    )


def pairs(frozen):
    """`light` less every other head at equal budget, paired by network, data set and seed."""
    rows = []
    for head in (*HEADS[1:], *TRIED):
        line = [f"`{head}`"]
        for budget in BUDGETS:
            gaps = [
                100 * (a["test"]["budgets"][budget][0] - b["test"]["budgets"][budget][0])
                for by_head in frozen.values()
                for a, b in zip(by_head["light"], by_head[head], strict=True)
                if budget in a["test"]["budgets"] and budget in b["test"]["budgets"]
            ]
            mean, half = interval(gaps) if gaps else (None, None)
            line.append("–" if mean is None else f"{mean:+.1f} ± {half:.1f} ({len(gaps)})")
        rows.append(line)
    return (
        "`light` less each other head, points of test accuracy at equal budget, with the 95% t-interval\n"
        "over pairs of the same network, data set and seed (their number in brackets):\n\n"
        + table(["less", *(f"at {float(b):.0%}" for b in BUDGETS)], rows)
    )


def plain_rows(plain):
    for (dataset, network), by_width in plain.items():
        widest = max(by_width)
        for width in sorted(by_width):
            entries = by_width[width]
            mean, half = interval([100 * e["test"]["exits"][-1] for e in entries])
            share = entries[0]["backbone"] / by_width[widest][0]["backbone"]
            right = f"{mean:.1f}" if len(entries) == 1 else f"{mean:.1f} ± {half:.1f}"
            name = f"{network}, {NAMES.get(dataset, dataset)}"
            yield [name, f"{width:g}", len(entries), f"{share:.0%}", right]


def curve(entries, backbone):
    """Mean `(cost in percent, accuracy in percent)` at each budget that all seeds can keep."""
    budgets = set.intersection(*(set(e["test"]["budgets"]) for e in entries))
    points = [
        np.mean([e["test"]["budgets"][b] for e in entries], axis=0) * (100, 100 / backbone)
        for b in sorted(budgets, key=float)
    ]
    return [(cost, accuracy) for accuracy, cost in points]


def draw_case(axis, joint, plain, case):
    widest = max(plain[case])
    backbone = plain[case][widest][0]["backbone"]
    for head, style in STYLES.items():
        if head in joint[case]:
            cost, accuracy = zip(*curve(joint[case][head], backbone), strict=True)
            axis.plot(cost, accuracy, style, label=f"early exit, {head}", markersize=4)
    widths = sorted(plain[case])
    cost = [100 * plain[case][w][0]["backbone"] / backbone for w in widths]
    accuracy = [100 * np.mean([e["test"]["exits"][-1] for e in plain[case][w]]) for w in widths]
    axis.plot(cost, accuracy, "kD-", label="plain networks, by width", markersize=5)
    dataset, network = case
    axis.set(
        title=f"{network}, {NAMES.get(dataset, dataset)}",
        xlabel="multiply-adds of an image, % of the plain network",
        ylabel="test images right, %",
        xlim=(0, 105),
    )
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize=8)


def charts(joint, plain):
    """Early exit with each head beside the plain networks, a panel for each network and data set."""
    cases = [case for case in joint if case in plain]
    figure = matplotlib.figure.Figure(figsize=(5.2 * len(cases), 4), layout="constrained")
    for axis, case in zip(figure.subplots(1, len(cases), squeeze=False)[0], cases, strict=True):
        draw_case(axis, joint, plain, case)
    figure.savefig(DOCS / "images" / "heads.png", dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--show", action="store_true", help="print the page and write nothing")
    args = parser.parse_args()
    lines = sorted(Results(args.results, HERE).read().values(), key=lambda line: line["settings"]["seed"])
    frozen, joint, plain = (grouped(lines, part) for part in ("frozen", "joint", "plain"))
    page = PAGE.format(
        runs=len(lines),
        epochs=lines[0]["settings"]["epochs"],
        limit=LIMIT,
        choice=choice(frozen),
        frozen=table(HEADER, rows_of(frozen, (*HEADS, *TRIED))),
        pairs=pairs(frozen),
        joint=table(HEADER, rows_of(joint, TRAINED)),
        features=features_cost(joint, plain),
        finals=table(["network", *(f"`{name}`" for name in TRAINED)], finals(joint, plain)),
        widths=table(["network", "width", "seeds", "cost", "right, 95% interval"], plain_rows(plain)),
    )
    if args.show:
        print(page)
    else:
        (DOCS / "heads.md").write_text(page)
        charts(joint, plain)


if __name__ == "__main__":
    main()

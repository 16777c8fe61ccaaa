"""The pictures of the accuracy report."""

import math

import numpy as np
from accuracy_lines import BASE, FINAL, test
from accuracy_presets import FINALISTS, MAIN, PAPER, PLAIN, SIZES, WENT_ON
from accuracy_runs import GLYPHS, OVERFITTED, SECTIONS, begun, differences, has_runs, names_of, runs_of
from accuracy_statistics import paired

METHODS = dict.fromkeys((*PAPER, *FINALISTS, *WENT_ON))
COLOURS = {method: f"C{i}" for i, method in enumerate(METHODS)}  # no more than ten


def pictures(runs, folder):
    """Writes the pictures; returns their names with what they show."""
    import matplotlib

    matplotlib.use("Agg")
    made = []
    for section in SECTIONS:
        if has_runs(runs, section):
            section = begun(section, runs) if section is OVERFITTED else section
            made.append(
                (
                    _gains_picture(runs, section, folder),
                    f"{section.title}: gain over {BASE} at each exit; no bar: fewer than three pairs",
                )
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
    """Fewer than three pairs have no bar: their interval would set the scale, and say nothing."""
    methods = section.without(PLAIN, BASE)
    networks = [n for n in section.networks if any(runs_of(runs, section, n, method) for method in methods)]
    figure, axes = _axes(max(1, len(networks)))
    for axis, network in zip(axes, networks, strict=False):
        names = names_of(network)
        axis.axhline(0, color="0.6", linewidth=0.8)
        for offset, method in zip(np.linspace(-0.25, 0.25, len(methods)), methods, strict=True):
            mine, base = (section.point(network, m) for m in (method, BASE))
            found = [paired(differences(runs, mine, base, lambda line, n=n: test(line, n))) for n in names]
            if all(found):
                axis.errorbar(
                    np.arange(len(names)) + offset,
                    [f.mean for f in found],
                    [f.half if f.count > 2 else 0 for f in found],
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

"""Pictures of a trade-off: readable in black and white, drawn without pyplot's global state."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_exitens import _checks as checks
from keras_exitens._reports.statistics import ExitStatistics

if TYPE_CHECKING:
    from keras_exitens._reports.tradeoff import Tradeoff

__all__ = ["image_grid", "pixels", "tradeoff_figure"]

_DIAGRAMS = 6  # reliability diagrams in a row


def _figure(width: float, height: float) -> Any:
    module = checks.optional_import("matplotlib.figure", "plots")
    return module.Figure(figsize=(width, height), layout="constrained")


def pixels(figure: Any) -> np.ndarray:
    """A matplotlib `Figure` as drawn: a uint8 array `(height, width, 4)`, red, green, blue and alpha."""
    canvas = checks.optional_import("matplotlib.backends.backend_agg", "plots").FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def tradeoff_figure(tradeoff: "Tradeoff") -> Any:
    """Curve, shares of the chosen policy, and a reliability diagram an exit.

    Args:
        tradeoff: a `Tradeoff`.

    Returns:
        A matplotlib `Figure`.
    """
    exits = len(tradeoff.exits)
    columns = min(exits, _DIAGRAMS)
    rows = -(-exits // columns)
    figure = _figure(11, 4.2 + 2.6 * rows)
    top, bottom = figure.subfigures(2, 1, height_ratios=[4.2, 2.6 * rows])
    curve, shares = top.subplots(1, 2, width_ratios=[3, 2])
    _draw_curve(curve, tradeoff)
    _draw_shares(shares, tradeoff)
    diagrams = bottom.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axis, exit in zip(diagrams, tradeoff.exits, strict=False):
        _draw_reliability(axis, exit)
    for axis in diagrams[exits:]:
        axis.set_axis_off()
    for axis in diagrams[::columns]:
        axis.set_ylabel("accuracy, %")
    return figure


def _draw_curve(axis: Any, tradeoff: "Tradeoff") -> None:
    cost = [100 * point.cost for point in tradeoff.points]
    accuracy = [100 * point.accuracy for point in tradeoff.points]
    axis.plot(cost, accuracy, "k-", lw=1.5, label="policies, thresholds searched together")
    exits = [(100 * c, 100 * e.accuracy) for c, e in zip(tradeoff.exit_costs, tradeoff.exits, strict=True)]
    axis.plot(*zip(*exits, strict=True), "s", color="0.5", mec="k", label="all images at one exit")
    for place, exit in zip(exits, tradeoff.exits, strict=True):
        axis.annotate(exit.name, place, (0, -14), textcoords="offset points", fontsize=8, ha="center")
    axis.axhline(100 * tradeoff.full_accuracy, color="0.4", ls=":", lw=1, label="full network")
    axis.plot(
        100 * tradeoff.chosen.cost,
        100 * tradeoff.chosen.accuracy,
        "*",
        ms=15,
        color="C1",
        mec="k",
        label=f"chosen: {tradeoff.chosen.accuracy:.1%} at {tradeoff.chosen.cost:.1%} of the cost",
    )
    axis.set(
        title=f"Accuracy against cost, {tradeoff.images:,} images",
        xlabel="mean cost of an image, % of the network without early exits",
        ylabel="accuracy, %",
    )
    axis.margins(0.08)
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize=8)


def _draw_shares(axis: Any, tradeoff: "Tradeoff") -> None:
    places = np.arange(len(tradeoff.exits))
    chosen = tradeoff.chosen
    right = np.array([(chosen.right & (chosen.exit == i)).mean() for i in places])
    wrong = np.array(chosen.shares) - right
    axis.bar(places, 100 * right, color="0.75", edgecolor="k", label="right")
    axis.bar(places, 100 * wrong, bottom=100 * right, color="w", edgecolor="k", hatch="xxx", label="wrong")
    for place, share in zip(places, chosen.shares, strict=True):
        axis.annotate(f"{share:.0%}", (place, 100 * share), (0, 2), textcoords="offset points", ha="center")
    axis.set_xticks(places, [exit.name for exit in tradeoff.exits], rotation=30 if len(places) > 5 else 0)
    axis.set(title="Where images leave, chosen policy", xlabel="exit", ylabel="share of the images, %")
    axis.margins(y=0.12)
    axis.legend(fontsize=8)


def _draw_reliability(axis: Any, exit: ExitStatistics) -> None:
    counts, accuracy, _ = exit.bins
    width = 100 / len(counts)
    middles = width * (np.arange(len(counts)) + 0.5)
    axis.bar(middles, 100 * np.nan_to_num(accuracy), width, color="0.75", edgecolor="k", lw=0.6)
    axis.plot([0, 100], [0, 100], "k--", lw=1)
    axis.set(xlim=(0, 100), ylim=(0, 100), xlabel="probability, %")
    axis.set_title(f"{exit.name}: calibration error {exit.calibration_error:.3f}", fontsize=9)


def image_grid(images: Sequence[np.ndarray], captions: Sequence[str], columns: int = 12) -> Any:
    """Small pictures with a line of text under each.

    Args:
        images: `(n, height, width[, channels])` of any range; each is stretched to its own least and greatest
            value.
        captions: n str.
        columns: int.

    Returns:
        A matplotlib `Figure`.
    """
    rows = -(-len(images) // columns)
    figure = _figure(0.95 * columns, 1.25 * rows)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        axis = figure.add_subplot(rows, columns, i + 1)
        image = np.asarray(image, "float32")
        low, high = image.min(), image.max()
        image = (image - low) / (high - low if high > low else 1)
        axis.imshow(image.squeeze(), cmap="gray", interpolation="nearest")
        axis.set_title(caption, y=-0.22, fontsize=7)
        axis.set_axis_off()
    return figure

"""Early exit in a minute: the plain network, the same network with exits, and what leaving early saves.

Trains three networks on the handwritten digits that come with scikit-learn (nothing is downloaded): a plain
one, a plain one of half the width, and the first with three exits. Prints what each gets right, what it costs
and how long an image takes, and draws the chart of accuracy against cost, beside the images that were easy
and hard at each exit.

    python examples/quickstart.py
    python examples/quickstart.py --data fashion_mnist --train-limit 6000 --epochs 6
"""

import argparse
import contextlib
import functools
import os
import pathlib
import sys
import time


@contextlib.contextmanager
def quiet():
    """Drops what TensorFlow writes past Python, of missing GPUs for instance, while it starts."""
    kept = os.dup(2)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
with quiet():
    import keras
    import matplotlib.figure
    import numpy as np

    import keras_exitens as kx

    keras.ops.zeros(1)

DROP = 0.01  # of accuracy, that early exit may cost on the calibration images
SHOWN = 4  # images at each end of each exit


def train(title, splits, args, *, width, exits):
    """The distiller of a trained network. Without exits it is the plain one: the same code trains both."""
    keras.utils.set_random_seed(args.seed)
    backbone = kx.applications.ResNet18(
        input_shape=splits.input_shape, classes=splits.classes, width=width, name="resnet18"
    )
    model = kx.add_exits(backbone, exits)
    objective = (
        None if exits else kx.objectives.CrossEntropy()
    )  # None: the default, exits that teach each other
    distiller = kx.ExitEnsembleDistiller(model, objective)
    schedule = keras.optimizers.schedules.CosineDecay(0.05, args.epochs * splits.steps_per_epoch)
    distiller.compile(keras.optimizers.SGD(schedule, momentum=0.9), metrics=["accuracy"])
    start = time.perf_counter()
    show = functools.partial(progress, title, args.epochs)
    distiller.fit(
        **splits.fit_arguments(args.epochs),
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=show)],
        verbose=0,
    )
    print(f"{title}: {model.count_params():,} parameters, trained in {time.perf_counter() - start:.0f} s")
    return distiller


def progress(title, epochs, epoch, logs):
    """One line that is written over, or a line an epoch where the output is no terminal."""
    end = "\r" if sys.stdout.isatty() else "\n"
    accuracy = 100 * logs["val_final_accuracy"]
    line = f"{title}: epoch {epoch + 1}/{epochs}, {accuracy:.1f}% of the validation images right"
    print(line.ljust(90), end=end, flush=True)


def interval(accuracy, rows):
    """Wilson's 95% interval of a share, as text."""
    z = 1.96
    middle = (accuracy + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * np.sqrt(accuracy * (1 - accuracy) / rows + z**2 / (4 * rows**2))
    return f"{accuracy:6.1%} ({middle - half:.1%} to {middle + half:.1%})"


def table(results, rows):
    """A line for each of `results`: name, share right of `rows` images, share of the cost, seconds."""
    lines = [("", "right, 95% interval", "multiply-adds", "time of an image")]
    for name, right, cost, seconds in results:
        lines.append(
            (name, interval(right, rows), f"{cost:.1%}", "" if seconds is None else f"{1e3 * seconds:.2f} ms")
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def draw(curve, plain, smaller, records, found, images, path):
    """The chart, and beside it the test images by where they left."""
    names = records.names
    figure = matplotlib.figure.Figure(figsize=(13, 5.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.15])
    axis = left.subplots()
    points = sorted((100 * point.cost, 100 * point.accuracy) for point in curve.points)
    axis.plot(*zip(*points, strict=True), "C0-", label="early exit")
    axis.plot(100 * curve.chosen.cost, 100 * curve.chosen.accuracy, "C0*", markersize=14, label="chosen")
    for (cost, accuracy), mark, label in (
        (plain, "ks", "plain network"),
        (smaller, "k^", "plain, half width"),
    ):
        axis.plot(100 * cost, 100 * accuracy, mark, label=label)
    axis.set(xlabel="multiply-adds, % of the plain network", ylabel="test images right, %", xlim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    axes = right.subplots(len(names), 2 * SHOWN, squeeze=False)
    right.suptitle(f"{SHOWN} images the exits were surest of, and {SHOWN} they were least sure of")
    for row, (cells, name) in enumerate(zip(axes, names, strict=True)):
        here = np.flatnonzero(found["exit"] == row)
        order = here[np.argsort(-found["score"][here], kind="stable")]
        ends = order if len(order) <= 2 * SHOWN else np.concatenate([order[:SHOWN], order[-SHOWN:]])
        for cell in cells:
            cell.set_axis_off()
        cells[0].set_title(f"{name}: {len(here) / len(images):.0%} of the images", loc="left", fontsize=9)
        for cell, i in zip(cells, ends, strict=False):
            image = images[i] - images[i].min()
            cell.imshow((image / max(image.max(), 1e-9)).squeeze(), cmap="gray")
            said, label = found["logits"][i].argmax(), records.labels[i]
            if said != label:
                wrong = {"color": "C3", "fontsize": 8, "ha": "center", "va": "top"}
                cell.text(0.5, -0.1, f"{said}, not {label}", transform=cell.transAxes, **wrong)
    figure.savefig(path, dpi=120)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="digits", help="name of a data set (default: digits)")
    parser.add_argument("--data-dir", help="folder of the data set")
    parser.add_argument("--train-limit", type=int, help="train on so many images only")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--exits", type=int, default=3)
    parser.add_argument("--width", type=float, default=0.25, help="width factor of the ResNet18")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/quickstart"))
    return parser.parse_args()


def main():
    args = parse()
    splits = kx.data.load(
        args.data,
        batch_size=64,
        calibration=0.3,  # of few images: a budget of 1% needs some hundreds
        train_limit=args.train_limit,
        data_dir=args.data_dir,
        seed=args.seed,
    )
    args.folder.mkdir(parents=True, exist_ok=True)
    sizes = ", ".join(f"{count:,} {part}" for part, count in splits.sizes.items())
    print(f"{args.data}: {sizes} images, {splits.classes} classes")
    plain = train("plain network", splits, args, width=args.width, exits=0)
    smaller = train("plain network, half as wide", splits, args, width=args.width / 2, exits=0)
    model = train("network with exits", splits, args, width=args.width, exits=args.exits).model

    # Thresholds from the calibration images, which trained nothing; figures from the test images.
    cost = kx.cost(model)
    records = kx.collect(model, splits.calibration, verbose=0)
    policy = kx.calibrate(records, cost, max_accuracy_drop=DROP)
    early = kx.EarlyExit(model, policy)
    measured = early.benchmark(splits.test)

    plain_right, smaller_right = (
        network.evaluate(splits.test, verbose=0, return_dict=True)["final_accuracy"]
        for network in (plain, smaller)
    )
    smaller_cost = kx.cost(smaller.model).backbone / cost.backbone
    tested = kx.collect(model, splits.test, verbose=0)
    rows = len(tested)
    print(f"\nOn the {rows:,} test images:\n")
    results = [
        ("plain network", plain_right, 1.0, measured.full_seconds),
        ("with exits, all to the end", measured.full_accuracy, cost.cumulative[-1] / cost.backbone, None),
        (
            f"early exit, {DROP:.0%} budget",
            measured.accuracy,
            measured.multiply_adds / cost.backbone,
            measured.seconds,
        ),
        ("plain, half the width", smaller_right, smaller_cost, None),
    ]
    print(table(results, rows))
    print(f"\n{measured.table()}")
    images = np.concatenate([x for x, _ in splits.test])
    batches = [early.predict_on_batch(x) for x, _ in splits.test]
    found = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    path = args.folder / "early_exit.png"
    curve = kx.tradeoff(tested, cost, chosen_on=records, chosen=policy)
    draw(curve, (1, plain_right), (smaller_cost, smaller_right), tested, found, images, path)
    print(f"\nThe chart, and the images by where they left: {path}")
    print(
        "What this does not show: one run on few images cannot tell accuracies apart where the intervals\n"
        "overlap. Whether training with exits makes the network itself better: see docs/accuracy.md."
    )


if __name__ == "__main__":
    main()

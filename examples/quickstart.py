"""A plain CNN, the same CNN with exits, and the same with exits that teach each other.

Trains all three on the handwritten digits that come with scikit-learn, in under three minutes on two cores,
and prints one table; then lets easy images leave the last one early. Nothing is downloaded.

    python examples/quickstart.py
    python examples/quickstart.py --data fashion_mnist --train-limit 4000 --epochs 10
"""

import argparse
import functools
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib
import numpy as np

import keras_exitens as kx

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import matplotlib.ticker

PLAIN, CROSS_ENTROPY, EED = "plain network", "exits, cross-entropy", "exits, EED"


def build(splits, width):
    return kx.applications.ResNet18(
        input_shape=splits.input_shape, classes=splits.classes, width=width, name="resnet18"
    )


def train(method, splits, args, folder):
    """Trains one network. Returns its `History`, its test logits by exit, the network and the time."""
    keras.utils.set_random_seed(args.seed)
    # Without early exits the same trainer trains the plain network: all three differ in nothing else.
    model = kx.add_exits(build(splits, args.width), 0 if method == PLAIN else args.exits)
    objective = kx.objectives.EED() if method == EED else kx.objectives.CrossEntropy()
    distiller = kx.ExitEnsembleDistiller(model, objective)
    schedule = keras.optimizers.schedules.CosineDecay(0.05, args.epochs * splits.steps_per_epoch)
    distiller.compile(keras.optimizers.SGD(schedule, momentum=0.9), metrics=["accuracy"])
    print(f"\n{method}: {model.count_params():,} parameters")
    start = time.perf_counter()
    history = distiller.fit(
        **splits.fit_arguments(args.epochs),
        callbacks=[
            keras.callbacks.TensorBoard(folder / "tensorboard" / method.replace(", ", "-").replace(" ", "_")),
            keras.callbacks.LambdaCallback(on_epoch_end=functools.partial(report, args.epochs)),
        ],
        verbose=0,
    )
    seconds = time.perf_counter() - start
    logits = distiller.predict(splits.test, verbose=0)
    if method == PLAIN:
        del logits["ensemble"]  # of one exit
    return history, logits, model, seconds


def report(epochs, epoch, logs):
    accuracy = {
        k.removeprefix("val_").removesuffix("_accuracy"): 100 * v
        for k, v in logs.items()
        if k.startswith("val_") and k.endswith("_accuracy")
    }
    cells = "  ".join(f"{name} {value:.1f}" for name, value in accuracy.items())
    print(
        f"  epoch {epoch + 1:2}/{epochs}  loss {logs['loss']:.3f}  validation accuracy: {cells}", flush=True
    )


def accuracies(logits, labels):
    return {name: np.mean(z.argmax(-1) == labels) for name, z in logits.items()}


def table(results, labels):
    """One row a method: test accuracy in percent of each exit and of the ensemble, parameters, seconds."""
    exits = list(results[EED][1])
    lines = [" " * 22 + "".join(f"{name:>10}" for name in exits) + f"{'parameters':>13}{'seconds':>9}"]
    for method, (_, logits, model, seconds) in results.items():
        scores = accuracies(logits, labels)
        cells = "".join(f"{100 * scores[name]:10.1f}" if name in scores else f"{'-':>10}" for name in exits)
        lines.append(f"{method:22}{cells}{model.count_params():13,}{seconds:9.0f}")
    return "\n".join(lines)


def verdict(results, labels):
    """Says of each pair of methods whether these test images tell their final exits apart."""
    lines = []
    right = {method: logits["final"].argmax(-1) == labels for method, (_, logits, *_) in results.items()}
    for a, b in [(EED, PLAIN), (EED, CROSS_ENTROPY), (CROSS_ENTROPY, PLAIN)]:
        gap = right[a].astype(float) - right[b]
        mean, half = 100 * gap.mean(), 196 * gap.std(ddof=1) / np.sqrt(len(gap))
        told = "they differ on these images" if abs(mean) > half else "this run does not separate them"
        lines.append(f"  {a} - {b}: {mean:+.1f} ± {half:.1f} points: {told}")
    return "\n".join(lines)


def early_exit(model, splits):
    """What is left to compute when easy images leave early: calibrated on one part, run on the test part."""
    records = kx.collect(model, splits.calibration, verbose=0)
    policy = kx.calibrate(records, kx.cost(model), max_accuracy_drop=0.01)
    found = kx.EarlyExit(model, policy).benchmark(splits.test)
    share = found.multiply_adds / found.full_multiply_adds
    return (
        f"{share:.0%} of the multiply-adds at {found.accuracy:.1%} accuracy (all: {found.full_accuracy:.1%})"
    )


def draw(results, path):
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for (method, (history, *_)), style in zip(results.items(), ("k:", "C0--", "C1-"), strict=True):
        final = history.history["val_final_accuracy"]
        epochs = range(1, len(final) + 1)
        axes[0].plot(epochs, 100 * np.array(final), style, label=method)
        if method != PLAIN:
            first = 100 * np.array(history.history["val_exit_1_accuracy"])
            axes[1].plot(epochs, first, style, label=f"{method}: exit 1")
    best = results[EED][0].history["val_ensemble_accuracy"]
    axes[1].plot(range(1, len(best) + 1), 100 * np.array(best), "C2-.", label=f"{EED}: ensemble")
    for axis, title in zip(axes, ("final exit", "first exit and ensemble"), strict=True):
        axis.set(title=title, xlabel="epoch", ylabel="validation accuracy, %")
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="digits", help="name of a data set (default: digits)")
    parser.add_argument("--train-limit", type=int, help="train on so many images only")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--exits", type=int, default=3)
    parser.add_argument("--width", type=float, default=0.25, help="width factor of the ResNet18")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/quickstart"))
    args = parser.parse_args()

    splits = kx.data.load(args.data, batch_size=64, train_limit=args.train_limit, seed=args.seed)
    args.folder.mkdir(parents=True, exist_ok=True)
    sizes = ", ".join(f"{count:,} {part}" for part, count in splits.sizes.items())
    print(f"{args.data}: {sizes} images, {splits.classes} classes")
    results = {m: train(m, splits, args, args.folder) for m in (PLAIN, CROSS_ENTROPY, EED)}

    labels = np.concatenate([y for _, y in splits.test])
    model = results[EED][2]
    print(f"\nWhat each exit costs, multiply-adds an image:\n{kx.cost(model)}")
    print(f"\nTest accuracy in percent, {len(labels):,} images:\n{table(results, labels)}")
    print(f"\nFinal exits, difference of test accuracy with its 95% interval:\n{verdict(results, labels)}")
    print(f"\n{EED}, easy images leave early: {early_exit(model, splits)}")
    draw(results, args.folder / "curves.png")
    print(f"\nLearning curves: {args.folder / 'curves.png'}")
    print(f"TensorBoard: tensorboard --logdir {args.folder / 'tensorboard'}")


if __name__ == "__main__":
    main()

"""Time and memory of a training step with many classes, beside stock Keras on the same network.

A small network with one early exit, class ids as labels, batch 32. Beside each other, in turns in one
process: stock Keras with sparse cross-entropy at both exits; this library with its own cross-entropy, with
`CategoricalCrossentropy(label_smoothing=0.1)`, which wants one-hot labels, and with the metric
`TopKCategoricalAccuracy`, which wants them too, once an exit and for the ensemble; and stock Keras with that
metric, given one-hot labels. Figures are medians over rounds of six steps; the first round does not count.
The memory is the growth of the peak over three epochs of one case, in a process of its own.

    python benchmarks/many_classes.py
    python benchmarks/many_classes.py --classes 100 21841 --rounds 9
"""

import argparse
import functools
import os
import pathlib
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from measuring import in_turns, keeper, ratio

import keras_exitens as kx

RESULTS = pathlib.Path(__file__).parent / "results" / "many_classes.json"
BATCH, STEPS = 32, 6
L = keras.losses
CASES = {
    "cross-entropy": {},
    "label smoothing": {"loss": L.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)},
    "top 5": {"metrics": [keras.metrics.TopKCategoricalAccuracy(5)]},
}


def network(classes):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3))
    for filters in (8, 16):
        x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = keras.layers.MaxPooling2D()(x)
    backbone = keras.Model(inputs, keras.layers.Dense(classes)(keras.layers.GlobalAveragePooling2D()(x)))
    return kx.add_exits(backbone, 1, head="linear")


def data(classes):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCH * STEPS, 8, 8, 3)).astype("float32")
    return images, rng.integers(0, classes, BATCH * STEPS).astype("int32")


def ours(classes, case):
    distiller = kx.ExitEnsembleDistiller(network(classes), kx.objectives.CrossEntropy())
    distiller.compile(keras.optimizers.SGD(0.01), **CASES[case])
    batches = tf.data.Dataset.from_tensor_slices(data(classes)).batch(BATCH).cache()
    return lambda: distiller.fit(batches, verbose=0)


def stock(classes, one_hot=False):
    model = network(classes)
    kind = L.CategoricalCrossentropy if one_hot else L.SparseCategoricalCrossentropy
    top = {name: [keras.metrics.TopKCategoricalAccuracy(5)] for name in model.output}
    loss = {name: kind(from_logits=True) for name in model.output}
    model.compile(keras.optimizers.SGD(0.01), loss=loss, metrics=top if one_hot else None)

    def labels(images, y):
        y = tf.one_hot(y, classes) if one_hot else y
        return images, dict.fromkeys(model.output, y)

    batches = tf.data.Dataset.from_tensor_slices(data(classes)).batch(BATCH).cache().map(labels)
    return lambda: model.fit(batches, verbose=0)


def step(classes, rounds):
    fits = {case: ours(classes, case) for case in CASES}
    fits |= {"stock": stock(classes), "stock, top 5 of one-hot": stock(classes, one_hot=True)}

    def seconds(fit):
        start = time.perf_counter()
        fit()
        return (time.perf_counter() - start) / STEPS

    times = in_turns({name: functools.partial(seconds, fit) for name, fit in fits.items()}, rounds)
    report = {"milliseconds": {name: statistics.median(t) * 1e3 for name, t in times.items()}}
    for case in CASES:
        below = "stock, top 5 of one-hot" if case == "top 5" else "stock"
        report[f"{case} / {below}"] = ratio(times[case], times[below])
    return report


def memory(classes):
    """MiB by which the peak grows in the second and third run, by case; each in a process of its own."""
    grown = {}
    for case in CASES:
        command = [sys.executable, __file__, "--peak", case, "--classes", str(classes)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        grown[case] = float(done.stdout.split()[-1])
    return {"MiB": grown}


def peak(case, classes):
    fit = ours(classes, case)
    before = high_water()
    for _ in range(3):
        fit()
    return (high_water() - before) / 1024


def high_water():
    """The peak of this process in KiB: `ru_maxrss` begins at that of the process that started it."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[100, 1_000, 10_000, 21_841])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="measure what is in the results already")
    parser.add_argument("--peak", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(peak(args.peak, args.classes[0]))
        return
    _, measure = keeper(args.results, args.again, rounds=args.rounds, batch=BATCH)
    for classes in args.classes:
        measure(f"{classes:,} classes", functools.partial(step, classes, args.rounds))
    for classes in args.classes:
        measure(f"memory, {classes:,} classes", functools.partial(memory, classes))


if __name__ == "__main__":
    main()

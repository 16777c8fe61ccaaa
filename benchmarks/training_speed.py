"""What a distiller step costs beside a stock Keras multi-output step.

Both train the same multi-exit graph, with the same heads, on the same images with cross-entropy at each exit
and accuracy at each exit: once through `keras.Model.fit` with a loss per output, once through
`ExitEnsembleDistiller`. The two take turns in one process; warm-up is excluded; the figure is the median of
the ratios of neighbouring runs. Peak memory and import time come from processes of their own, in turns too.

    python benchmarks/training_speed.py
    python benchmarks/training_speed.py --network resnet --batch 128 --rounds 15 --json result.json
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

STOCK, OURS, EED = "stock Keras", "distiller, CrossEntropy", "distiller, EED"


def multi_exit_network(kind, exits):
    import keras_exitens as kx
    from keras_exitens import applications

    if kind == "resnet":
        backbone = applications.ResNet18(classes=10, width=0.25)
    elif kind == "vgg":
        backbone = applications.VGG11(classes=10, width=0.25)
    else:
        backbone = applications.WideResNet(16, 1, classes=10)
    return kx.add_exits(backbone, exits)


def make_trainer(name, model):
    """A compiled Keras model that trains the graph of `model`."""
    import keras

    import keras_exitens as kx

    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    if name == STOCK:
        names = kx.exit_names(model)
        trainer = keras.Model(model.input, model.output)
        trainer.compile(
            optimizer,
            loss={n: keras.losses.SparseCategoricalCrossentropy(from_logits=True) for n in names},
            metrics={n: ["accuracy"] for n in names},
        )
        return trainer
    objective = kx.objectives.EED() if name == EED else kx.objectives.CrossEntropy()
    trainer = kx.ExitEnsembleDistiller(model, objective)
    trainer.compile(optimizer, metrics=["accuracy"])
    return trainer


def data_for(name, model, batch, steps):
    """A data set of `steps` batches, kept in memory."""
    import numpy as np
    import tensorflow as tf

    import keras_exitens as kx

    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, *model.input_shape[1:])).astype("float32")
    labels = rng.integers(0, 10, batch)
    if name == STOCK:
        labels = dict.fromkeys(kx.exit_names(model), labels)
    return tf.data.Dataset.from_tensors((images, labels)).repeat(steps)


def time_steps(args):
    """Milliseconds a step for each trainer, in interleaved rounds."""
    model = multi_exit_network(args.network, args.exits)
    names = [STOCK, OURS, EED]
    trainers = {name: make_trainer(name, model) for name in names}
    data = {name: data_for(name, model, args.batch, args.steps) for name in names}
    for name in names:
        trainers[name].fit(data[name], shuffle=False, verbose=0)
    times = {name: [] for name in names}
    for i in range(args.rounds):
        for name in names if i % 2 == 0 else names[::-1]:
            start = time.perf_counter()
            trainers[name].fit(data[name], shuffle=False, verbose=0)
            times[name].append((time.perf_counter() - start) / args.steps * 1e3)
    return times


def peak_memory(name, args):
    """Peak resident memory in MiB of a process that trains with one trainer."""
    model = multi_exit_network(args.network, args.exits)
    make_trainer(name, model).fit(
        data_for(name, model, args.batch, args.steps), epochs=3, shuffle=False, verbose=0
    )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_python(code):
    return subprocess.run([sys.executable, *code], capture_output=True, text=True, check=True).stdout


def import_seconds(statement):
    start = time.perf_counter()
    run_python(["-c", statement])
    return time.perf_counter() - start


def ratio(numbers, base):
    ratios = sorted(a / b for a, b in zip(numbers, base, strict=True))
    return {"median": statistics.median(ratios), "low": ratios[0], "high": ratios[-1]}


def show(title, unit, columns):
    base = next(iter(columns.values()))
    print(f"\n{title}")
    result = {}
    for name, numbers in columns.items():
        against = ratio(numbers, base)
        result[name] = {"median": statistics.median(numbers), "ratio": against, "unit": unit}
        print(
            f"  {name:26} {statistics.median(numbers):9.2f} {unit:4}"
            f"  ratio {against['median']:.3f}  ({against['low']:.3f} to {against['high']:.3f})"
        )
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--network", choices=("resnet", "vgg", "wide"), default="resnet")
    parser.add_argument("--exits", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="steps in one timed run")
    parser.add_argument("--rounds", type=int, default=9, help="timed runs of each trainer")
    parser.add_argument(
        "--processes", type=int, default=3, help="processes for memory and import time; 0: neither"
    )
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--peak-memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_memory_of:
        print(peak_memory(args.peak_memory_of, args))
        return

    print(f"{platform.machine()}, {os.cpu_count()} cores")
    print(f"{args.network}, {args.exits} exits, batch {args.batch}")
    # The processes first: a child's peak memory is never below that of the parent it was started from.
    memory = {STOCK: [], OURS: []}
    imports = {"import keras": [], "import keras, keras_exitens": []}
    common = [__file__, "--network", args.network, "--exits", str(args.exits), "--batch", str(args.batch)]
    for _ in range(args.processes):
        for name, numbers in memory.items():
            numbers.append(float(run_python([*common, "--peak-memory-of", name]).split()[-1]))
        for statement, numbers in imports.items():
            numbers.append(import_seconds(statement))
    report = {}
    if args.processes:
        report["memory"] = show("peak memory of a training process", "MiB", memory)
        report["import"] = show("import, whole process", "s", imports)
    report["steps"] = show("one training step", "ms", time_steps(args))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()

"""Whether half precision costs accuracy: `examples/train.py` in float32, mixed_bfloat16 and mixed_float16.

Each seed trains all three from the same weights on the same batches, on part of Fashion-MNIST; accuracies are
those of the last epoch on all test images. Given are mean and standard deviation over the seeds of each
precision, and of the differences from float32 of the same seed, with a 95% interval (Student's t). A run that
was broken off goes on from its JSON file. float16 is slow on CPUs: several times the time of float32.

    python benchmarks/precision_accuracy.py
    python benchmarks/precision_accuracy.py --train-limit 20000 --epochs 8 --json mine.json
"""

import argparse
import math
import os
import pathlib
import statistics
import sys
import time

from kept import keep, stored

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

HERE = pathlib.Path(__file__).parent
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
# Student's t, two sides of 95%, by degrees of freedom.
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--train-limit", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--json", type=pathlib.Path, default=HERE / "results" / "precision_accuracy.json")
    return parser.parse_args(arguments)


def settings(args):
    """The flags of examples/train.py."""
    flags = {"data": args.data, "train-limit": args.train_limit, "epochs": args.epochs, "width": args.width}
    return [text for name, value in flags.items() for text in (f"--{name}", str(value))]


def train(args, precision, seed):
    """Trains one network; returns its test accuracies, its skipped steps and the seconds of `fit`."""
    import keras

    sys.path.insert(0, str(HERE.parent / "examples"))
    import train as recipe

    import keras_exitens as kx

    run = recipe.parse([*settings(args), "--precision", precision, "--seed", str(seed)])
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(precision)
    splits = kx.data.load(run.data, run.batch, train_limit=run.train_limit, seed=seed)
    distiller = recipe.make_distiller(run, splits)
    arguments = splits.fit_arguments(run.epochs)
    del arguments["validation_data"]
    start = time.perf_counter()
    distiller.fit(**arguments, verbose=0)
    seconds = time.perf_counter() - start
    logs = distiller.evaluate(splits.test, verbose=0, return_dict=True)
    accuracy = {k.removesuffix("_accuracy"): v for k, v in logs.items() if k.endswith("_accuracy")}
    result = {"accuracy": accuracy, "skipped_steps": distiller.skipped_steps, "seconds": seconds}
    keras.backend.clear_session()
    return result


def spread(values):
    return f"{100 * statistics.mean(values):.2f} ± {100 * statistics.stdev(values):.2f}"


def report(runs):
    """Prints what was found, of the seeds that all precisions have."""
    seeds = sorted(s for s in runs["float32"] if all(s in runs[p] for p in PRECISIONS))
    if len(seeds) < 2:
        return
    exits = sorted(runs["float32"][seeds[0]]["accuracy"], key=lambda name: (name == "ensemble", name))
    print(f"test accuracy in percent, mean ± standard deviation over {len(seeds)} seeds")
    print(f"{'':16}" + "".join(f"{name:>18}" for name in exits) + f"{'steps skipped':>16}")
    for precision in PRECISIONS:
        cells = [spread([runs[precision][s]["accuracy"][name] for s in seeds]) for name in exits]
        skipped = sum(runs[precision][s]["skipped_steps"] for s in seeds) / len(seeds)
        print(f"{precision:16}" + "".join(f"{cell:>18}" for cell in cells) + f"{skipped:>16.1f}")
    half = T95.get(len(seeds) - 1, 2.0) / math.sqrt(len(seeds))
    for precision in PRECISIONS[1:]:
        cells = []
        for name in exits:
            accuracies = ([runs[p][s]["accuracy"][name] for s in seeds] for p in (precision, "float32"))
            gains = [a - b for a, b in zip(*accuracies, strict=True)]
            cells.append(f"{100 * statistics.mean(gains):+.2f} ± {100 * half * statistics.stdev(gains):.2f}")
        print(f"{precision + ' −':16}" + "".join(f"{cell:>18}" for cell in cells) + "  (95% interval)")


def main():
    args = parse()
    empty = {"settings": settings(args), "runs": {precision: {} for precision in PRECISIONS}}
    for seed in args.seeds:
        for precision in args.precisions:
            if str(seed) in stored(args.json, empty)["runs"][precision]:
                continue
            result = train(args, precision, seed)
            # Again: other processes may have trained other seeds meanwhile.
            found = stored(args.json, empty)
            found["runs"][precision][str(seed)] = result
            keep(args.json, found)
            print(f"{precision}, seed {seed}: {result}", flush=True)
    report(stored(args.json, empty)["runs"])


if __name__ == "__main__":
    main()

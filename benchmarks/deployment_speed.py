"""What early exit by exported stages costs beside the stages alone, in LiteRT, ONNX Runtime and TensorFlow.

The weights are random; classifiers are scaled, and thresholds set, so that of the images 40 % leave at the
first exit, 30 % at the second, 20 % at the third and 10 % at the end. For each runtime three things take
turns in one process: early exit; each stage alone at the number of rows that reach it, whose times add up to
the ideal; and every stage for every image. The figures are medians over the rounds of ratios within a round.

    python benchmarks/deployment_speed.py --json benchmarks/results/deployment_speed.json \\
        --picture benchmarks/results/deployment_speed.png
    python benchmarks/deployment_speed.py --network ResNet18 --size 32 --images 16 --batches 1 8 --rounds 3
"""

import argparse
import json
import math
import os
import pathlib
import platform
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import keras_exitens as kx
from keras_exitens import freezing, runtime, scores

SHARES = (0.4, 0.3, 0.2, 0.1)
ENGINES = ("tensorflow", "litert", "onnx")


def build(args):
    """A multi-exit network, images, and a policy by which known shares of them leave at each exit."""
    keras.utils.set_random_seed(0)
    shape = (args.size, args.size, 3)
    if hasattr(kx.applications, args.network):
        backbone = getattr(kx.applications, args.network)(input_shape=shape, classes=100, width=args.width)
    else:
        backbone = getattr(keras.applications, args.network)(weights=None, input_shape=shape, classes=100)
    model = kx.add_exits(backbone, exits=len(SHARES) - 1)
    rng = np.random.default_rng(0)
    contrast = rng.uniform(0.1, 3, (args.images, 1, 1, 1))
    images = (rng.normal(size=(args.images, *shape)) * contrast).astype("float32")
    names = kx.exit_names(model)
    for name, logits in model.predict(images, batch_size=16, verbose=0).items():
        classifier = model.get_layer(name).classifier
        kernel, bias = classifier.get_weights()
        scale = 2 / logits.std(axis=0)
        classifier.set_weights([kernel * scale, (bias - logits.mean(axis=0)) * scale])
    outputs = model.predict(images, batch_size=16, verbose=0)
    exits, thresholds = np.full(args.images, len(names) - 1), []
    here = np.arange(args.images)
    for k, name in enumerate(names[:-1]):
        score = scores.max_probability(np, outputs[name][here])
        order = np.argsort(-score)
        leaving = round(SHARES[k] * args.images)
        thresholds.append(float(score[order[leaving - 1 : leaving + 1]].mean()))
        exits[here[order[:leaving]]] = k
        here = np.sort(here[order[leaving:]])
    # Neighbours leave at different exits, so that batches are alike.
    rank = np.empty(args.images)
    for k in range(len(names)):
        rows = np.flatnonzero(exits == k)
        rank[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    order = np.argsort(rank, kind="stable")
    return (
        kx.EarlyExit(model, kx.policies.MaxProbability(thresholds), optimize=True),
        images[order],
        exits[order],
    )


class Engine:
    """One runtime: early exit and single stages as functions of arrays.

    Args:
        name: one of `ENGINES`.
        early: the `EarlyExit`.
        folder: where to put the export.
        threads: int.
    """

    def __init__(self, name, early, folder, threads):
        early.export(folder / name, "tf_saved_model" if name == "tensorflow" else name)
        if name == "tensorflow":
            loaded = tf.saved_model.load(folder / name)
            call = loaded.signatures["with_thresholds"]
            own = tf.constant(early.policy.thresholds)
            never = tf.fill([len(early.policy.thresholds)], math.inf)
            self._loaded = loaded
            self.tensor = tf.constant
            self._predict = lambda x, all: call(images=x, thresholds=never if all else own)
            names = [early.exit_names[i] for i in early.policy.enabled_exits(len(early.exit_names))]
            frozen = freezing.Chain(early.model, names).current()
            self.stages = [tf.function(stage, autograph=False, reduce_retracing=True) for stage in frozen]
            self.links = [(stage.inputs, stage.carried) for stage in frozen]
        else:
            network = runtime.load(folder / name, threads)
            self.tensor = np.asarray
            self._predict = lambda x, all: network.predict(x, len(x), math.inf if all else None)
            self.stages = [stage.run for stage in network.stages]
            self.links = [(stage.inputs, stage.carried) for stage in network.stages]

    def predict(self, images, all=False):
        """Early exit; with `all`, every stage for every image."""
        found = self._predict(self.tensor(images), all)
        return {key: np.asarray(value) for key, value in found.items()}

    def stage_inputs(self, images, exits):
        """What each stage is given for one batch, as dicts; without stages that nobody reaches."""
        values, given = dict.fromkeys(self.links[0][0], images), []
        for k, (inputs, carried) in enumerate(self.links):
            given.append({name: self.tensor(values[name]) for name in inputs})
            made = self.stages[k](given[-1])
            values = {name: np.asarray(made[name] if name in made else values[name]) for name in carried}
            going_on = exits > k
            if not going_on.any():
                break
            values = {name: value[going_on] for name, value in values.items()}
            exits = exits[going_on]
        return given


def seconds(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    if isinstance(result, dict):
        for value in result.values():
            np.asarray(value)
    return time.perf_counter() - start


def measure(engines, images, exits, batch, rounds):
    """Times of each engine: early exit, ideal and all stages, in seconds for all images, a list a round."""
    batches = [slice(i, i + batch) for i in range(0, len(images), batch)]
    given = {name: [e.stage_inputs(images[b], exits[b]) for b in batches] for name, e in engines.items()}
    times = {name: {"early": [], "ideal": [], "all": []} for name in engines}
    for round_ in range(rounds + 1):
        for name in list(engines)[:: 1 if round_ % 2 else -1]:
            engine, total = engines[name], {"early": 0.0, "ideal": 0.0, "all": 0.0}
            for b, stages in zip(batches, given[name], strict=True):
                total["early"] += seconds(engine.predict, images[b])
                total["ideal"] += sum(seconds(run, x) for run, x in zip(engine.stages, stages, strict=False))
                total["all"] += seconds(engine.predict, images[b], True)
            if round_:  # the first is warm-up
                for kind, value in total.items():
                    times[name][kind].append(value)
    return times


def summarise(times, count):
    """Medians and ranges of the ratios within a round, and images a second."""

    def ratio(above, below):
        values = sorted(a / b for a, b in zip(times[above], times[below], strict=True))
        return {"median": statistics.median(values), "low": values[0], "high": values[-1]}

    return {
        "of_ideal": ratio("ideal", "early"),
        "speedup": ratio("all", "early"),
        "images_per_second": {kind: count / statistics.median(values) for kind, values in times.items()},
    }


def draw(report, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    batches = list(report["results"])
    for k, engine in enumerate(report["engines"]):
        results = [report["results"][b][engine] for b in batches]
        place = np.arange(len(batches)) + (k - (len(report["engines"]) - 1) / 2) * 0.27
        rates = [r["images_per_second"] for r in results]
        bars = axes[0].bar(place, [r["early"] for r in rates], 0.25, label=engine)
        axes[0].bar(place, [r["all"] for r in rates], 0.25, color="black", alpha=0.35)
        middle = np.array([r["of_ideal"]["median"] for r in results])
        low, high = (np.array([r["of_ideal"][key] for r in results]) for key in ("low", "high"))
        axes[1].errorbar(
            place, middle, [middle - low, high - middle], fmt="o", capsize=3, color=bars[0].get_facecolor()
        )
    axes[0].set(ylabel="images a second", title="early exit (dark: every stage for every image)")
    axes[1].set(ylabel="part of the ideal speed", title="ideal: the stages alone, added up")
    axes[1].axhline(0.95, color="grey", linewidth=0.8)
    axes[0].legend(frameon=False)
    for axis in axes:
        axis.set_xticks(range(len(batches)), [f"batch {b}" for b in batches])
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--network", default="ResNet50", help="of keras.applications or keras_exitens.applications"
    )
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--width", type=float, default=1.0, help="for networks of keras_exitens.applications")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--picture", help="file for the picture")
    args = parser.parse_args()

    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    early, images, exits = build(args)
    report = {
        "command": {key: value for key, value in vars(args).items() if key not in ("json", "picture")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "engines": list(args.engines),
        "shares": (np.bincount(exits) / len(exits)).tolist(),
        "results": {},
    }
    print(f"{report['machine']}, {args.threads} threads; {args.network} at {args.size}")
    print("images by exit: " + ", ".join(f"{share:.0%}" for share in report["shares"]))
    print(
        f"{'batch':>6} {'runtime':12}{'of the ideal':>26}{'images/s':>10}{'all stages':>12}{'speed-up':>10}"
    )
    with tempfile.TemporaryDirectory() as folder:
        engines = {name: Engine(name, early, pathlib.Path(folder), args.threads) for name in args.engines}
        for name, engine in engines.items():
            found = np.concatenate(
                [engine.predict(images[i : i + 16])["exit"] for i in range(0, len(images), 16)]
            )
            if not np.array_equal(found, exits):
                raise SystemExit(f"{name}: {np.sum(found != exits)} images leave elsewhere than they should")
        for batch in args.batches:
            times = measure(engines, images, exits, batch, args.rounds)
            here = {name: summarise(times[name], len(images)) for name in engines}
            report["results"][str(batch)] = here
            for name, result in here.items():
                ideal, rates = result["of_ideal"], result["images_per_second"]
                print(
                    f"{batch:6} {name:12}{ideal['median']:10.3f} ({ideal['low']:.3f} to {ideal['high']:.3f})"
                    f"{rates['early']:10.1f}{rates['all']:12.1f}{result['speedup']['median']:9.2f}x"
                )
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    if args.picture:
        draw(report, args.picture)


if __name__ == "__main__":
    main()

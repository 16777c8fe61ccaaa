"""What early exit by exported stages costs beside the stages alone, in LiteRT, ONNX Runtime and TensorFlow.

ResNet50 at 224 × 224 with three early exits, random weights; classifiers are scaled, and thresholds set, so
that of the images 40 % leave at the first exit, 30 % at the second, 20 % at the third and 10 % at the end.
For each batch size one run, in which all runtimes take turns in one process, and in each three things:
early exit; each stage alone at the number of rows that reach it, whose times add up to the ideal; and every
stage for every image. Figures are medians over the rounds, ratios are taken within a round, and the first
round does not count.

    python benchmarks/deployment_speed.py
    python benchmarks/deployment_speed.py --batches 1 --rounds 25 --again
    python benchmarks/deployment_speed.py --network ResNet18 --size 32 --folder runs/small \\
        --results runs/small/speed.json

The exports are made once, in `--folder`. The figures of a batch size are written to the results at once, and
found there the next time; `--again` measures anew.
"""

import argparse
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from inference_speed import normalised, ratio
from leaving import SHARES, leaving

import keras_exitens as kx
from keras_exitens import runtime
from keras_exitens._stages import freezing

RESULTS = pathlib.Path(__file__).parent / "results" / "deployment_speed.json"
IMAGES = 64
ENGINES = ("tensorflow", "litert", "onnx")


def build(args):
    """A multi-exit network, images, and a policy by which known shares of them leave at each exit."""
    keras.utils.set_random_seed(0)
    shape = (args.size, args.size, 3)
    # Of networks that both have, Keras's: ours are made for images of 32 pixels.
    if hasattr(keras.applications, args.network):
        backbone = getattr(keras.applications, args.network)(weights=None, input_shape=shape, classes=100)
    else:
        backbone = getattr(kx.applications, args.network)(input_shape=shape, classes=100, width=args.width)
    model = normalised(kx.add_exits(backbone, exits=len(SHARES) - 1))
    rng = np.random.default_rng(0)
    contrast = rng.uniform(0.1, 3, (IMAGES, 1, 1, 1))
    images = (rng.normal(size=(IMAGES, *shape)) * contrast).astype("float32")
    names = kx.exit_names(model)
    for name, logits in model.predict(images, batch_size=16, verbose=0).items():
        classifier = model.get_layer(name).classifier
        kernel, bias = classifier.get_weights()
        scale = 2 / logits.std(axis=0)
        classifier.set_weights([kernel * scale, (bias - logits.mean(axis=0)) * scale])
    outputs = model.predict(images, batch_size=16, verbose=0)
    logits = np.stack([outputs[name] for name in names])
    policy = kx.policies.MaxProbability(leaving(logits)[0])
    exits = policy.decide(logits)
    # Neighbours leave at different exits, so that batches are alike.
    rank = np.empty(IMAGES)
    for k in range(len(names)):
        rows = np.flatnonzero(exits == k)
        rank[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    order = np.argsort(rank, kind="stable")
    return (
        kx.EarlyExit(model, policy, optimize=True),
        images[order],
        exits[order],
    )


def prepared(args):
    """The images, where they leave, and the early exit, whose exports stand in the folder."""
    network = f"{args.network} {args.size} {args.width}"
    data = args.folder / "images.npz"
    if not data.exists() or str(np.load(data)["network"]) != network:
        print("building and exporting ...", flush=True)
        early, images, exits = build(args)
        for name in ENGINES:
            early.export(args.folder / name, "tf_saved_model" if name == "tensorflow" else name)
        early.save(args.folder / "early.keras")
        np.savez(data, network=network, images=images, exits=exits)
    with np.load(data) as found:
        return keras.models.load_model(args.folder / "early.keras"), found["images"], found["exits"]


class Engine:
    """One runtime: early exit and single stages as functions of arrays.

    Args:
        name: one of `ENGINES`.
        early: the `EarlyExit`.
        folder: where the export is.
        threads: int.
    """

    def __init__(self, name, early, folder, threads):
        if name == "tensorflow":
            loaded = tf.saved_model.load(folder)
            call = loaded.signatures["with_thresholds"]
            own = tf.constant(early.policy.thresholds)
            never = tf.fill([len(early.policy.thresholds)], math.inf)
            self._loaded = loaded
            self.tensor = tf.constant
            self._predict = lambda x, all: call(images=x, thresholds=never if all else own)
            chain = freezing.Chain(early.model, early.exit_names)
            frozen = chain.current()
            self.stages = [compiled(*pair) for pair in zip(frozen, chain.live, strict=True)]
            self.links = [(stage.inputs, stage.carried) for stage in frozen]
        else:
            network = runtime.load(folder, threads)
            self.tensor = np.asarray
            self._predict = lambda x, all: network.predict(x, len(x), math.inf if all else None)
            self.stages = [stage.run for stage in network.stages]
            self.links = [(stage.inputs, stage.carried) for stage in network.stages]

    def predict(self, images, all=False):
        """Early exit; with `all`, every stage for every image."""
        found = self._predict(self.tensor(images), all)
        return {key: np.asarray(value) for key, value in found.items()}

    def calls(self, images, exits):
        """Functions for one batch: early exit, all stages, and each stage for the rows that reach it."""
        given_images = self.tensor(images)
        made = {
            "early exit": lambda: self._predict(given_images, False),
            "all stages": lambda: self._predict(given_images, True),
        }
        values = dict.fromkeys(self.links[0][0], images)
        for k, (inputs, carried) in enumerate(self.links):
            given = {name: self.tensor(values[name]) for name in inputs}
            made[f"stage {k + 1}"] = lambda run=self.stages[k], given=given: run(given)
            results = self.stages[k](given)
            values = {
                name: np.asarray(results[name] if name in results else values[name]) for name in carried
            }
            going_on = exits > k
            if not going_on.any():
                break
            values = {name: value[going_on] for name, value in values.items()}
            exits = exits[going_on]
        return made


def compiled(stage, live):
    """A stage with constants as a function, for any number of rows."""
    signature = {name: tf.TensorSpec((None, *t.shape[1:]), t.dtype) for name, t in live.model.input.items()}
    return tf.function(stage, input_signature=[signature], autograph=False)


def seconds(function):
    start = time.perf_counter()
    for value in function().values():
        np.asarray(value)  # waits for it
    return time.perf_counter() - start


def measure(engines, batches, rounds):
    """Seconds of each engine for all batches, `{engine: {kind: [a figure a round]}}`."""
    calls = {name: [engine.calls(*batch) for batch in batches] for name, engine in engines.items()}
    times = {name: {"early exit": [], "ideal": [], "all stages": []} for name in engines}
    for round_ in range(rounds + 1):
        turn = round_ % len(engines)
        for name in [*engines][turn:] + [*engines][:turn]:
            total = dict.fromkeys(times[name], 0.0)
            for made in calls[name]:
                kinds = list(made)
                turn_inside = round_ % len(kinds)
                for kind in kinds[turn_inside:] + kinds[:turn_inside]:
                    total[kind if kind in total else "ideal"] += seconds(made[kind])
            if round_:
                for kind, value in total.items():
                    times[name][kind].append(value)
    return times


def summarise(times, count):
    return {
        "ideal / early exit": ratio(times["ideal"], times["early exit"]),
        "all stages / early exit": ratio(times["all stages"], times["early exit"]),
        "images a second": {kind: count / statistics.median(values) for kind, values in times.items()},
    }


def chosen(images, exits, batch, most):
    """Batches for one round: at most `most`, ten of a single image."""
    count = 10 if batch == 1 else max(1, min(len(images) // batch, most))
    parts = [slice(i * batch, (i + 1) * batch) for i in range(count)]
    return [(images[part], exits[part]) for part in parts]


def draw(figures, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    cases = sorted(figures, key=lambda key: int(key.split()[-1]))
    for k, engine in enumerate(ENGINES):
        results = [figures[case][engine] for case in cases]
        place = np.arange(len(cases)) + (k - (len(ENGINES) - 1) / 2) * 0.27
        rates = [r["images a second"] for r in results]
        bars = axes[0].bar(place, [r["early exit"] for r in rates], 0.25, label=engine)
        axes[0].bar(place, [r["all stages"] for r in rates], 0.25, color="black", alpha=0.35)
        middle, low, high = (
            np.array([r["ideal / early exit"][key] for r in results])
            for key in ("median", "least", "greatest")
        )
        axes[1].errorbar(
            place, middle, [middle - low, high - middle], fmt="o", capsize=3, color=bars[0].get_facecolor()
        )
    axes[0].set(ylabel="images a second", title="early exit (dark: every stage for every image)")
    axes[1].set(ylabel="ideal time / time of early exit", title="ideal: the stages alone, added up")
    axes[1].axhline(0.95, color="grey", linewidth=0.8, linestyle="--")
    axes[0].legend(frameon=False)
    for axis in axes:
        axis.set_xticks(range(len(cases)), cases)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--network", default="ResNet50", help="of keras.applications or keras_exitens.applications"
    )
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--width", type=float, default=1.0, help="for networks of keras_exitens.applications")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--parts", type=int, default=2, help="at most so many batches a round, if not single")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="of single images three times as many")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/deployment_speed"))
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="measure what is in the results already")
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)

    figures = json.loads(args.results.read_text()) if args.results.exists() else {}
    wanted = [batch for batch in args.batches if args.again or f"batch {batch}" not in figures]
    if wanted:
        args.folder.mkdir(parents=True, exist_ok=True)
        early, images, exits = prepared(args)
        engines = {name: Engine(name, early, args.folder / name, args.threads) for name in ENGINES}
        for name, engine in engines.items():
            found = np.concatenate([engine.predict(images[i : i + 16])["exit"] for i in range(0, IMAGES, 16)])
            if not np.array_equal(found, exits):
                raise SystemExit(f"{name}: {np.sum(found != exits)} images leave elsewhere than they should")
    for batch in wanted:
        print(f"batch {batch} ...", flush=True)
        batches = chosen(images, exits, batch, args.parts)
        rounds = args.rounds * (3 if batch == 1 else 1)
        times = measure(engines, batches, rounds)
        count = sum(len(part) for _, part in batches)
        left = np.bincount(np.concatenate([part for _, part in batches]), minlength=len(SHARES))
        report = {name: summarise(times[name], count) for name in ENGINES}
        figures[f"batch {batch}"] = {
            **report,
            "network": f"{args.network} {args.size}",
            "images by exit": left.tolist(),
            "batches a round": len(batches),
            "rounds": rounds,
            "threads": args.threads,
            "versions": {
                package: importlib.metadata.version(package)
                for package in ("tensorflow", "ai-edge-litert", "onnxruntime")
            },
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "date": time.strftime("%Y-%m-%d"),
        }
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
        for name, result in report.items():
            ideal, rates = result["ideal / early exit"], result["images a second"]
            print(
                f"{name:12} of the ideal {ideal['median']:.3f} ({ideal['least']:.3f} to "
                f"{ideal['greatest']:.3f}), {rates['early exit']:.1f} images/s, all stages "
                f"{rates['all stages']:.1f}, {result['all stages / early exit']['median']:.2f} times as fast",
                flush=True,
            )
    draw(figures, args.results.with_suffix(".png"))
    print(f"picture: {args.results.with_suffix('.png')}")


if __name__ == "__main__":
    main()

"""What a training step of the distiller costs, beside other ways to train the same network.

All that is compared takes turns in one run, on the same images kept in memory, with two threads on each
side; the first round does not count. Figures are medians over the rounds, with the least and the greatest. A
step of ours, and of stock Keras, is a step of `fit`: what `fit` does between epochs counts too.

- `keras`: beside a stock Keras model with a loss for each output.
- `torch`: beside the same network, loss and update in PyTorch (`torch_worker.py`); `--torch` names a Python
  that has it. Float32, and bfloat16: `mixed_bfloat16` here, autocast there. First it is made sure that both
  sides compute the same: from the same weights in float32, the losses of three steps and the update of
  all weights in the first.
- `exits`: the step with 2, 3, … exits, each added to those before. What an added exit adds to the time
  (forward and backward pass and update of its head and classifier, its part of the loss, its metrics) beside
  what it adds to the multiply-adds.
- `processes`: peak memory of a training process, and import time, each in processes of their own.

    python benchmarks/training_speed.py
    python benchmarks/training_speed.py --parts keras --network vgg --width 0.25 --batches 128
    python benchmarks/training_speed.py --parts torch --torch torch-env/bin/python

Each figure is written to the results at once, and found there the next time; `--again` measures anew.
"""

import argparse
import functools
import itertools
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from measuring import Worker, in_turns, keeper, ratio

import keras_exitens as kx
from keras_exitens._keras import inner_layers
from keras_exitens._network.exit_logits import ExitLogits

RESULTS = pathlib.Path(__file__).parent / "results" / "training_speed.json"
CLASSES = 100
# The blocks of ResNet18 after which exits leave, in the order in which they are added.
ADDED = (3, 6, 1, 5, 2, 7)
STOCK, OURS, EED = "stock Keras", "distiller, CrossEntropy", "distiller, EED"
# Limits for what PyTorch and the distiller make of the same weights in float32: the losses before the first
# three updates, relative; the norm of the difference of the first updates beside that of the update.
SAME_LOSS, SAME_UPDATE = 1e-5, 1e-4


def blocks(exits):
    return sorted(ADDED[:exits])


def network(kind, width, exits, head="bottleneck", precision="float32"):
    """A multi-exit network; of ResNet18 with its exits after `blocks(exits)`."""
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(0)
    make = {
        "resnet": kx.applications.ResNet18,
        "vgg": kx.applications.VGG11,
        "wide": functools.partial(kx.applications.WideResNet, 16, 4),
    }[kind]
    backbone = make(classes=CLASSES, width=width)
    if kind == "resnet":
        exits = [f"stage{(b - 1) // 2 + 1}_block{(b - 1) % 2 + 1}_out" for b in blocks(exits)]
    model = kx.add_exits(backbone, exits, head=head)
    keras.config.set_dtype_policy("float32")
    return model


def trainer(model, kind=EED, rate=0.01):
    """A compiled Keras model that trains `model`."""
    optimizer = keras.optimizers.SGD(rate, momentum=0.9)
    if kind == STOCK:
        names = kx.exit_names(model)
        made = keras.Model(model.input, model.output)
        made.compile(
            optimizer,
            loss={n: keras.losses.SparseCategoricalCrossentropy(from_logits=True) for n in names},
            metrics={n: ["accuracy"] for n in names},
        )
        return made
    objective = kx.objectives.EED("mse") if kind == EED else kx.objectives.CrossEntropy()
    made = kx.ExitEnsembleDistiller(model, objective)
    made.compile(optimizer, metrics=["accuracy"])
    return made


def steps_of(model, batch, steps):
    """A function that trains a model for some steps and returns the seconds a step."""
    distiller = isinstance(model, kx.ExitEnsembleDistiller)
    network = model.model if distiller else model
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, *network.input_shape[1:])).astype("float32")
    labels = rng.integers(0, CLASSES, batch)
    if not distiller:
        labels = dict.fromkeys(kx.exit_names(network), labels)
    # With autotuning, the end of an epoch waits for a thread of tf.data that sleeps 10, 20, 40, … ms
    # (TensorFlow 2.21): whoever trains, a run would take 630, 1,270 or 2,550 ms.
    options = tf.data.Options()
    options.autotune.enabled = False
    data = tf.data.Dataset.from_tensors((images, labels)).repeat(steps).with_options(options)

    def run():
        start = time.perf_counter()
        model.fit(data, shuffle=False, verbose=0)
        return (time.perf_counter() - start) / steps

    return run


def milliseconds(times):
    """Of each: on a machine that others use, the least is what the work itself takes."""
    return {
        name: {
            "median": statistics.median(seconds) * 1e3,
            "least": min(seconds) * 1e3,
            "rounds": [round(t * 1e3, 1) for t in seconds],
        }
        for name, seconds in times.items()
    }


def ratios(above, below):
    """Of the runs of each round, and of the least times of all rounds."""
    return {**ratio(above, below), "of the least": min(above) / min(below)}


def beside_keras(make, batch, steps, rounds):
    report = {}
    for precision in ("float32", "mixed_bfloat16"):
        model = make(precision=precision)
        runs = {kind: steps_of(trainer(model, kind), batch, steps) for kind in (STOCK, OURS, EED)}
        times = in_turns(runs, rounds)
        report[precision] = {
            "milliseconds": milliseconds(times),
            **{f"{STOCK} / {kind}": ratios(times[STOCK], times[kind]) for kind in (OURS, EED)},
        }
    return report


def weights_of(model):
    """The weights by `layer/weight`, a name that does not depend on what a layer is in."""
    return {
        f"{layer.name}/{v.name}": v
        for layer in inner_layers(model)
        for v in layer.trainable_variables
        if not isinstance(layer, ExitLogits)
    }


def same(ask, settings, batch=8, rate=0.01):
    """Raises unless PyTorch and the distiller make the same update from the same weights."""
    model = network("resnet", settings["width"], len(settings["exits"]), settings["head_kind"])
    variables = weights_of(model)
    rng = np.random.default_rng(1)
    # No weight at a value that hides what it does. Offsets by which most numbers are positive: otherwise some
    # of millions of rectifiers change sides by rounding, and the gradient by as much as 1%, PyTorch's too
    # between float32 and float64.
    for name, variable in variables.items():
        if name.endswith("gamma"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif name.endswith("beta"):
            variable.assign(rng.uniform(1.5, 2.5, variable.shape))
        elif name.endswith("bias"):
            variable.assign(rng.normal(0, 0.1, variable.shape))
    before = {name: v.numpy() for name, v in variables.items()}
    images = rng.normal(size=(batch, *model.input_shape[1:])).astype("float32")
    labels = rng.integers(0, CLASSES, batch)
    with tempfile.TemporaryDirectory() as folder:
        files = {"given": f"{folder}/given.npz", "made": f"{folder}/made.npz"}
        np.savez(files["given"], images=images, labels=labels, **before)
        theirs = ask(do="check", network=settings, **files, steps=3, rate=rate)
        after = dict(np.load(files["made"]))
    data = tf.data.Dataset.from_tensors((images, labels))
    distiller = trainer(model, rate=rate)
    ours = distiller.fit(data, shuffle=False, verbose=0).history["loss"]
    changes = {name: v.numpy() - before[name] for name, v in variables.items()}
    gaps = {name: after[name] - v.numpy() for name, v in variables.items()}
    ours = ours + distiller.fit(data, epochs=2, shuffle=False, verbose=0).history["loss"]

    def norm(parts):
        return float(np.sqrt(sum(np.square(part).sum(dtype="float64") for part in parts.values())))

    report = {
        "losses": ours,
        "losses of PyTorch": theirs,
        "difference of the losses, relative": max(abs(a / b - 1) for a, b in zip(ours, theirs, strict=True)),
        "difference of the updates / update": norm(gaps) / norm(changes),
        "weights compared": sum(v.size for v in before.values()),
        "limits": [SAME_LOSS, SAME_UPDATE],
    }
    if set(after) != set(variables) or not (
        report["difference of the losses, relative"] <= SAME_LOSS
        and report["difference of the updates / update"] <= SAME_UPDATE
    ):
        raise SystemExit(f"The two sides do not compute the same: {report}")
    return report


def beside_torch(ask, settings, batch, steps, rounds, compiled):
    calls = {}
    for policy, precision in (("float32", "float32"), ("mixed_bfloat16", "bfloat16")):
        model = network("resnet", settings["width"], len(settings["exits"]), settings["head_kind"], policy)
        calls[precision] = steps_of(trainer(model), batch, steps)
        question = {"network": settings, "batch": batch, "precision": precision, "steps": steps}
        calls[f"PyTorch {precision}"] = functools.partial(ask, do="time", **question)
        if compiled:
            name = f"PyTorch {precision}, torch.compile"
            calls[name] = functools.partial(ask, do="time", compiled=True, **question)
    times = in_turns(calls, rounds)
    report = {"milliseconds": milliseconds(times), "steps": steps}
    for name in [name for name in times if name.startswith("PyTorch")]:
        mine = name.split(",")[0].removeprefix("PyTorch ")
        report[f"{name} / {mine}"] = ratios(times[name], times[mine])
    report["float32 / bfloat16"] = ratios(times["float32"], times["bfloat16"])
    report["PyTorch float32 / PyTorch bfloat16"] = ratios(times["PyTorch float32"], times["PyTorch bfloat16"])
    return report


def increments(times, work, other):
    """What each added exit, and all of them, add to the time and to the counted operations of a step.

    Args:
        times: `{number of exits: seconds of each round}`, numbers in order.
        work, other: `{number of exits: multiply-adds}`, and operations beside these.
    """
    report, counts = {}, list(times)
    for few, more in [*itertools.pairwise(counts), (counts[0], counts[-1])]:
        added = sorted(set(blocks(more)) - set(blocks(few)))
        share = work[more] / work[few] - 1
        longer = [b - a for a, b in zip(times[few], times[more], strict=True)]
        report[f"{few} to {more}, after block {', '.join(map(str, added))}"] = {
            "added multiply-adds / multiply-adds": share,
            "added other operations / other operations": other[more] / other[few] - 1,
            "added time / time": ratio(longer, times[few]),
            "added time / its multiply-adds at the speed of the rest": ratio(
                longer, [seconds * share for seconds in times[few]]
            ),
            "step time / that by multiply-adds": ratio(
                times[more], [seconds * (1 + share) for seconds in times[few]]
            ),
        }
    return report


def added_exits(width, head, counts, batch, steps, rounds):
    models = {n: network("resnet", width, n, head) for n in counts}
    costs = {n: kx.cost(model) for n, model in models.items()}
    work = {n: c.cumulative[-1] for n, c in costs.items()}
    other = {n: sum(c.stage_other) + sum(c.head_other) for n, c in costs.items()}
    times = in_turns({n: steps_of(trainer(m), batch, steps) for n, m in models.items()}, rounds)
    counted = {"multiply-adds": work, "other operations": other, "steps": steps}
    return {"milliseconds": milliseconds(times), **counted, **increments(times, work, other)}


def run_python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stdout


def peak_memory(kind, args):
    """Peak resident memory in MiB of a process that trains with one trainer."""
    made = trainer(network(args.network, args.width, args.exits[0]), kind)
    steps_of(made, args.batches[0], 3 * args.steps)()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def import_seconds(statement):
    start = time.perf_counter()
    run_python("-c", statement)
    return time.perf_counter() - start


def processes(args, exits, batch):
    settings = ["--network", args.network, "--width", str(args.width), "--steps", str(args.steps)]
    settings += ["--exits", str(exits), "--batches", str(batch)]
    calls = {
        kind: lambda kind=kind: float(run_python(__file__, *settings, "--peak-memory-of", kind).split()[-1])
        for kind in (STOCK, OURS)
    }
    memory = in_turns(calls, args.processes, warm=False)
    statements = ("import keras", "import keras, keras_exitens")
    imports = in_turns(
        {s: functools.partial(import_seconds, s) for s in statements}, args.processes, warm=False
    )
    return {
        "peak MiB": {kind: statistics.median(numbers) for kind, numbers in memory.items()},
        f"memory, {OURS} / {STOCK}": ratio(memory[OURS], memory[STOCK]),
        "import, seconds": {s: statistics.median(numbers) for s, numbers in imports.items()},
        "rounds": args.processes,
    }


def torch_panel(axes, figures):
    cases = {}  # (batch, kind) -> [(exits, ratio)]
    for key, value in figures.items():
        _, _, exits, _, batch = key.rsplit(" ", 4)
        for kind in ("PyTorch float32 / float32", "PyTorch bfloat16 / bfloat16"):
            cases.setdefault((int(batch), kind), []).append((int(exits), value[kind]))
    for (batch, kind), points in sorted(cases.items()):
        exits, found = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        middle = np.array([r["median"] for r in found])
        low, high = middle - [r["least"] for r in found], [r["greatest"] for r in found] - middle
        style = {"fmt": "o-" if batch == 32 else "s--", "color": "C0" if "bfloat16" not in kind else "C1"}
        label = f"{kind.split(' / ')[1]}, batch {batch}"
        axes.errorbar(exits, middle, [low, high], capsize=3, label=label, **style)
    axes.axhline(1, linewidth=1, color="0.5", label="as fast as PyTorch")
    axes.set_xlabel("early exits")
    axes.set_ylabel("time of PyTorch / time of the distiller")
    axes.set_title("One training step, ResNet18", loc="left")
    axes.legend(fontsize="small")


def exits_panel(axes, figures):
    top = 0
    for mark, (key, value) in zip("os^D", figures.items(), strict=False):
        points = [v for v in value.values() if isinstance(v, dict) and "added time / time" in v]
        at = np.array([100 * v["added multiply-adds / multiply-adds"] for v in points])
        took = [v["added time / time"] for v in points]
        middle = np.array([100 * t["median"] for t in took])
        spread = [middle - [100 * t["least"] for t in took], [100 * t["greatest"] for t in took] - middle]
        axes.errorbar(at, middle, spread, fmt=mark, capsize=3, label=f"head {key.split(' head ')[1]}")
        top = max(top, *at, *middle)
    axes.plot([0, top], [0, top], linewidth=1, color="0.5", label="time by multiply-adds")
    axes.set_xlabel("multiply-adds that exits add, percent")
    axes.set_ylabel("time that they add, percent")
    axes.set_title("One exit more, and four; ResNet18", loc="left")
    axes.legend(fontsize="small")


def picture(figures, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    beside = {k: v for k, v in figures.items() if k.startswith("torch ") and "compiled" not in k}
    added = {k: v for k, v in figures.items() if k.startswith("exits ")}
    panels = [(draw, found) for draw, found in ((torch_panel, beside), (exits_panel, added)) if found]
    if not panels:
        return
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(5.5 * len(panels), 4.2), layout="constrained", squeeze=False
    )
    for one, (draw, found) in zip(axes[0], panels, strict=True):
        draw(one, found)
    figure.savefig(path, dpi=120)
    print(f"picture: {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parts = ("keras", "torch", "exits", "processes")
    parser.add_argument("--parts", nargs="+", choices=parts, default=[p for p in parts if p != "torch"])
    parser.add_argument("--network", choices=("resnet", "vgg", "wide"), default="resnet")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--exits", type=int, nargs="+", default=[3], help="numbers of early exits")
    parser.add_argument("--heads", nargs="+", choices=("bottleneck", "conv"), default=["bottleneck"])
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--steps", type=int, default=4, help="steps in one timed run; from batch 128 half")
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each side")
    parser.add_argument("--processes", type=int, default=3, help="processes of each kind")
    parser.add_argument("--torch", help="a Python with torch")
    parser.add_argument("--compile", action="store_true", help="torch.compile beside eager PyTorch")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="measure what is in the results already")
    parser.add_argument("--peak-memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(2)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    if args.peak_memory_of:
        print(peak_memory(args.peak_memory_of, args))
        return
    if "torch" in args.parts and not args.torch:
        parser.error("the part torch needs --torch, a Python that has torch")

    figures, measure = keeper(args.results, args.again, rounds=args.rounds)
    stem = f"{args.network} width {args.width:g}"
    head = args.heads[0]

    def steps(batch):
        return args.steps if batch < 128 else max(args.steps // 2, 1)

    for exits, batch in itertools.product(args.exits, args.batches):
        if "processes" in args.parts:
            # A child's peak memory is never below that of the parent it was started from: before the rest.
            key = f"processes {stem} exits {exits} batch {batch}"
            measure(key, functools.partial(processes, args, exits, batch))
    for exits, batch in itertools.product(args.exits, args.batches) if "keras" in args.parts else ():
        make = functools.partial(network, args.network, args.width, exits, head)
        key = f"keras {stem} exits {exits} batch {batch}"
        measure(key, functools.partial(beside_keras, make, batch, steps(batch), args.rounds))
    if "torch" in args.parts:
        with Worker(args.torch, pathlib.Path(__file__).with_name("torch_worker.py")) as worker:
            about = worker.ask(do="about")
            for exits, batch in itertools.product(args.exits, args.batches):
                settings = {
                    "width": args.width,
                    "classes": CLASSES,
                    "exits": blocks(exits),
                    "head_kind": head,
                }
                measure(f"same {stem} exits {exits}", functools.partial(same, worker.ask, settings))
                case = functools.partial(beside_torch, worker.ask, settings, batch, steps(batch))
                compiled = " compiled" if args.compile else ""
                measure(
                    f"torch{compiled} {stem} exits {exits} batch {batch}",
                    lambda case=case: {**case(args.rounds, args.compile), **about},
                )
    for head, batch in itertools.product(args.heads, args.batches) if "exits" in args.parts else ():
        case = functools.partial(added_exits, args.width, head, args.exits, batch, steps(batch), args.rounds)
        if args.network == "resnet" and len(args.exits) > 1:
            measure(f"exits {args.exits} {stem} batch {batch} head {head}", case)
    picture(figures, args.results.with_suffix(".png"))


if __name__ == "__main__":
    main()

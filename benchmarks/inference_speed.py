"""Time of early exit beside the ideal, and beside other ways to run the same network.

ResNet50 at 224 × 224 with three early exits at their `placement="compute"` cuts, random weights, with
normalisations that do something, as in a trained network: where their offsets are 0, as when they are new,
TensorFlow leaves the additions out of folded convolutions, and then fuses no rectifier into them. Who leaves
where is set by thresholds between the scores of the images, so that the shares are those asked for. All that
is compared runs in one process, in turns; figures are medians over the rounds, with the least and the
greatest, and the first round does not count.

- `plain`: how many times as fast as the plain network, with the default exits; batch 32 with these shares,
  and one image that leaves at exit 1. For ResNet50 and MobileNetV2.
- `routing`: the ideal time is the sum over the stages of a stage's own time at the number of rows that reach
  it. Beside it: its time at the full batch times the share of rows, and the multiply-adds alone.
- `single`: batch 1 by `predict_on_batch`, as users call it: every exit disabled beside the plain network,
  leaving at exit 1 beside stage 1, with `optimize=True` and without. `large`: the same for networks of 17 and
  34 million weights whose first exit comes early.
- `optimize`: constants and folded normalisation beside the plain Keras graph, nobody leaving; bfloat16 too.
- `earlyon`: the same network, weights, exits and shares in earlyon (PyTorch); `--torch` names a Python that
  has it. Split into the kernels (full network beside full network) and the routing.
- `memory`: peak memory of `predict` for few and for many images, each in a process of its own.

    python benchmarks/inference_speed.py
    python benchmarks/inference_speed.py --parts routing --batches 16 --rounds 9
    python benchmarks/inference_speed.py --parts earlyon --torch torch-env/bin/python

Each figure is written to the results at once, and found there the next time; `--again` measures anew.
"""

import argparse
import functools
import itertools
import json
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
from leaving import leaving
from measuring import in_turns, keeper, ratio

import keras_exitens as kx
from keras_exitens.stages import split

RESULTS = pathlib.Path(__file__).parent / "results" / "inference_speed.json"
SHARES = {"40/30/20/10": (40, 30, 20, 10), "25/25/25/25": (25, 25, 25, 25), "70/15/10/5": (70, 15, 10, 5)}
SIZE = 224


@functools.cache
def network(precision="float32", name="ResNet50"):
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(0)
    backbone = getattr(keras.applications, name)(weights=None, input_shape=(SIZE, SIZE, 3))
    keras.config.set_dtype_policy("float32")
    return normalised(kx.add_exits(backbone, exits=3))


def normalised(model):
    """Gives the normalisations random scales and offsets, and the statistics of random images."""
    rng = np.random.default_rng(0)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.gamma.assign(rng.uniform(0.5, 1.5, norm.gamma.shape))
        norm.beta.assign(rng.normal(0, 0.2, norm.beta.shape))
        norm.momentum = 0.0
    model(rng.normal(size=(8, *model.inputs[0].shape[1:])).astype("float32"), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model


def images(rows, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=(rows, SIZE, SIZE, 3)).astype("float32"))


def stacked(model, x):
    logits = model.predict(x, batch_size=16, verbose=0)
    return np.stack([logits[name] for name in kx.exit_names(model)])


def compiled(function, dtype="float32"):
    signature = [tf.TensorSpec((None, SIZE, SIZE, 3), dtype)]
    return tf.function(function, input_signature=signature, autograph=False)


def stage_calls(model, x, counts):
    """One compiled call a stage, at the number of rows that reach it and at all rows: `(reached, all)`."""
    reached, full = [], []
    rows = x.shape[0]
    for calls, sizes in ((reached, [rows - sum(counts[:k]) for k in range(len(counts))]), (full, [rows] * 4)):
        values = {}
        for stage, size in zip(split(model), sizes, strict=True):
            values = values or dict.fromkeys(stage.inputs, x)
            given = {name: values[name][:size] for name in stage.inputs}
            run = tf.function(stage, autograph=False)
            made = run(given)
            calls.append(lambda run=run, given=given: run(given)["logits"])
            values = {name: made[name] if name in made else given[name] for name in stage.carried}
    return reached, full


def routing(model, batch, shares, rounds):
    x = images(batch)
    thresholds, counts = leaving(stacked(model, x), SHARES[shares])
    early = kx.EarlyExit(model, kx.policies.MaxProbability(thresholds))
    routed = compiled(early.route)
    found = np.bincount(routed(x)["exit"], minlength=4).tolist()
    reached, full = stage_calls(model, x, counts)
    calls = {"routed": lambda: routed(x), "network": lambda: whole(x)}
    whole = compiled(lambda images: model(images, training=False)["final"])
    calls.update({f"reached {k}": call for k, call in enumerate(reached)})
    calls.update({f"full {k}": call for k, call in enumerate(full)})
    times = in_turns(calls, rounds)
    left = np.array([sum(counts[k:]) / batch for k in range(4)])
    reached_times, full_times = (
        np.array([times[f"{kind} {k}"] for k in range(4)]) for kind in ("reached", "full")
    )
    costs = kx.cost(model)
    work = [(s + h) * share for s, h, share in zip(costs.stages, costs.heads, left, strict=True)]
    return {
        "counts asked for": counts,
        "counts": found,
        "seconds": statistics.median(times["routed"]),
        "seconds of the network": statistics.median(times["network"]),
        "ideal / routed": ratio(reached_times.sum(axis=0), times["routed"]),
        "full batch × share / routed": ratio(left @ full_times, times["routed"]),
        "multiply-adds × time of the network / routed": ratio(
            [t * sum(work) / costs.backbone for t in times["network"]], times["routed"]
        ),
    }


def beside_plain(name, shares, rounds, batch=32):
    """The plain network and early exit, compiled, on the same images."""
    model = network(name=name)
    plain = compiled(functools.partial(kx.strip_exits(model, activation=None), training=False))
    x, one = images(batch), images(1)
    thresholds, counts = leaving(stacked(model, x), SHARES[shares])
    policies = {
        "shares": kx.policies.MaxProbability(thresholds),
        "exit 1": kx.policies.MaxProbability(float("-inf")),
    }
    calls = {"plain, shares": lambda: plain(x), "plain, exit 1": lambda: plain(one)}
    for (kind, policy), flag in itertools.product(policies.items(), (False, True)):
        route, given = (
            compiled(kx.EarlyExit(model, policy, optimize=flag).route),
            x if kind == "shares" else one,
        )
        found = np.bincount(route(given)["exit"], minlength=4).tolist()
        assert found == (counts if kind == "shares" else [1, 0, 0, 0]), found
        calls[f"{kind}{', optimized' * flag}"] = lambda route=route, given=given: route(given)
    times, costs = in_turns(calls, rounds), kx.cost(model)
    work = float(np.dot(counts, costs.cumulative)) / batch
    report = {
        "milliseconds": {name: statistics.median(t) * 1e3 for name, t in times.items()},
        "counts": counts,
        "heads, share of the multiply-adds": sum(costs.head_multiply_adds[:-1]) / costs.backbone,
        "plain / early exit, multiply-adds": costs.backbone / work,
        "plain / early exit, multiply-adds, were heads free": costs.backbone
        * batch
        / float(np.dot(counts, np.cumsum(costs.stage_multiply_adds))),
    }
    for kind, mode in itertools.product(policies, ("", ", optimized")):
        report[f"plain / early exit, {kind}{mode}"] = ratio(times[f"plain, {kind}"], times[kind + mode])
    return report


def single(model, rounds):
    """What users call, `predict_on_batch` and the model itself, on one image."""
    x = np.asarray(images(1))
    never, first = kx.policies.MaxProbability(0.5, enabled=False), kx.policies.MaxProbability(float("-inf"))
    plain = kx.strip_exits(model, activation=None)
    stage = split(model)[0]
    given = dict.fromkeys(stage.inputs, x)
    calls = {
        "plain": lambda: plain.predict_on_batch(x),
        "stage 1": lambda: stage.model.predict_on_batch(given)["logits"],
        "plain, called": lambda: np.asarray(plain(x, training=False)),
    }
    called = kx.EarlyExit(model, never)
    calls["never, called"] = lambda: called(x)["logits"].numpy()
    for name, policy in (("never", never), ("exit 1", first)):
        for mode, flag in (("", False), (", optimized", True)):
            early = kx.EarlyExit(model, policy, optimize=flag)
            calls[name + mode] = lambda early=early: early.predict_on_batch(x)["logits"]
    times = in_turns(timed(calls), rounds)
    return {
        "milliseconds": {name: statistics.median(t) * 1e3 for name, t in times.items()},
        "every exit disabled / plain network": ratio(times["never"], times["plain"]),
        "every exit disabled, optimized / plain network": ratio(times["never, optimized"], times["plain"]),
        "leaving at exit 1 / stage 1": ratio(times["exit 1"], times["stage 1"]),
        "leaving at exit 1, optimized / not": ratio(times["exit 1, optimized"], times["exit 1"]),
        "called, every exit disabled / plain network": ratio(times["never, called"], times["plain, called"]),
    }


def timed(calls):
    """The calls, each of which gives its own seconds: they return arrays."""

    def seconds(call):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return {name: functools.partial(seconds, call) for name, call in calls.items()}


def large(width, rounds):
    """A small stage before exit 1, and a dense layer of `width` units, millions of weights, after it."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((16, 16, 16))
    x = layers.MaxPooling2D()(layers.Conv2D(16, 3, padding="same", activation="relu")(inputs))
    x = layers.Conv2D(64, 3, padding="same", activation="relu")(x)
    x = layers.Dense(width, activation="relu")(layers.Flatten()(x))
    backbone = keras.Model(inputs, layers.Dense(3)(x))
    model = kx.add_exits(backbone, 1, head="linear", placement="stage")
    image = np.random.default_rng(0).normal(size=(1, 16, 16, 16)).astype("float32")
    policies = {"exit 1": 0.0, "the end": float("inf")}
    calls = {}
    for name, threshold in policies.items():
        for mode, flag in (("", False), (", optimized", True)):
            early = kx.EarlyExit(model, kx.policies.MaxProbability(threshold), optimize=flag)
            calls[name + mode] = lambda early=early: early.predict_on_batch(image)
    times = in_turns(timed(calls), rounds)
    report = {"weights": model.count_params()}
    report["milliseconds"] = {name: statistics.median(t) * 1e3 for name, t in times.items()}
    for name in policies:
        report[f"{name}, optimized / not"] = ratio(times[f"{name}, optimized"], times[name])
    return report


def optimize(batch, rounds):
    models = {name: network(name) for name in ("float32", "mixed_bfloat16")}
    x = images(batch)
    calls = {}
    for precision, model in models.items():
        plain = kx.strip_exits(model, activation=None)
        policy = kx.policies.MaxProbability(0.5, enabled=False)
        graph = compiled(lambda images, plain=plain: plain(images, training=False))
        optimized = compiled(kx.EarlyExit(model, policy, optimize=True).route)
        calls[f"{precision} plain"] = lambda graph=graph: graph(x)
        calls[f"{precision} optimized"] = lambda optimized=optimized: optimized(x)
    times = in_turns(calls, rounds)
    report = {"milliseconds": {name: statistics.median(t) * 1e3 for name, t in times.items()}}
    for precision in models:
        report[f"{precision} plain / optimized"] = ratio(
            times[f"{precision} plain"], times[f"{precision} optimized"]
        )
    report["float32 plain / mixed_bfloat16 optimized"] = ratio(
        times["float32 plain"], times["mixed_bfloat16 optimized"]
    )
    return report


def as_in_earlyon():
    """ResNet50 with the exits and the heads that earlyon gives it."""
    keras.utils.set_random_seed(0)
    backbone = keras.applications.ResNet50(
        weights=None, input_shape=(SIZE, SIZE, 3), classifier_activation=None
    )
    outputs = {}
    for i, name in enumerate(("conv2_block3_out", "conv3_block4_out", "conv4_block6_out"), 1):
        x = keras.layers.GlobalAveragePooling2D()(backbone.get_layer(name).output)
        outputs[f"exit_{i}"] = keras.layers.Dense(1000)(keras.layers.Dense(256, activation="relu")(x))
    return normalised(keras.Model(backbone.input, {**outputs, "final": backbone.output}))


def earlyon(python, batch, rounds):
    """In turns with a process that runs the same network in PyTorch, two threads on each side."""
    model = as_in_earlyon()
    x = images(batch)
    if batch == 1:  # ten images, one after another
        cases = [
            [float("inf")] * exit + [float("-inf")] * (3 - exit) for exit in (0, 0, 0, 0, 1, 1, 1, 2, 2, 3)
        ]
    else:
        cases = [leaving(stacked(model, x), SHARES["40/30/20/10"])[0]]
    calls = {}
    for name, flag in (("", False), (" optimized", True)):
        early = kx.EarlyExit(model, kx.policies.MaxProbability(0.5), optimize=flag)
        routed = tf.function(early.route, autograph=False)
        never = compiled(
            kx.EarlyExit(model, kx.policies.MaxProbability(0.5, enabled=False), optimize=flag).route
        )
        calls[f"routed{name}"] = lambda routed=routed: [routed(x, tf.constant(case)) for case in cases]
        calls[f"full{name}"] = lambda never=never: never(x)

    worker = pathlib.Path(__file__).with_name("earlyon_worker.py")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([python, str(worker)], **pipes) as process:

        def ask(what):
            process.stdin.write(f"{what} {batch}\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        about = ask("about")
        times = {name: [] for name in (*calls, "earlyon routed", "earlyon full")}
        for number in range(rounds + 1):
            one = in_turns(calls, 1, warm=number == 0)
            one |= {f"earlyon {name}": [ask(name)] for name in ("routed", "full")}
            if number:
                for name, (seconds,) in one.items():
                    times[name].append(seconds / (len(cases) if name.startswith("routed") else 1))
        process.stdin.close()
    report = {"packages": about, "milliseconds": {n: statistics.median(t) * 1e3 for n, t in times.items()}}
    for name in ("", " optimized"):
        report[f"throughput{name} / earlyon"] = ratio(times["earlyon routed"], times[f"routed{name}"])
        report[f"of it kernels{name}"] = ratio(times["earlyon full"], times[f"full{name}"])
        report[f"of it routing{name}"] = ratio(
            [a / b for a, b in zip(times["earlyon routed"], times["earlyon full"], strict=True)],
            [a / b for a, b in zip(times[f"routed{name}"], times[f"full{name}"], strict=True)],
        )
    return report


def memory(rows):
    """Peak memory of `predict` over `rows` small images, in a process of its own; mebibytes."""
    code = f"""
import resource, numpy as np, tensorflow as tf, keras_exitens as kx
model = kx.add_exits(kx.applications.ResNet18(input_shape=(32, 32, 3), classes=10, width=0.25))
early = kx.EarlyExit(model, kx.policies.MaxProbability(0.12))
data = tf.data.Dataset.range({rows}).map(lambda i: tf.random.stateless_normal((32, 32, 3), [0, i])).batch(100)
early.predict(data, verbose=0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def picture(figures, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = {key: value for key, value in figures.items() if key.startswith("routing")}
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    kinds = ("ideal / routed", "full batch × share / routed", "multiply-adds × time of the network / routed")
    for i, (kind, mark) in enumerate(zip(kinds, "osx", strict=True)):
        at = np.arange(len(cases)) + 0.2 * (i - 1)
        middle = np.array([case[kind]["median"] for case in cases.values()])
        low = middle - [case[kind]["least"] for case in cases.values()]
        high = [case[kind]["greatest"] for case in cases.values()] - middle
        axes.errorbar(at, middle, [low, high], fmt=mark, color=str(0.3 * i), capsize=3, label=kind)
    axes.axhline(0.95, linestyle="--", color="0.5", linewidth=1)
    axes.set_xticks(
        range(len(cases)), [key.removeprefix("routing ").replace(" shares ", "\n") for key in cases]
    )
    axes.set_xlabel("batch, and percent of the images that leave at each exit")
    axes.set_ylabel("expected time / time of early exit")
    axes.set_title("ResNet50, 224 × 224, three early exits: how near to the ideal")
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parts = ("plain", "routing", "single", "large", "optimize", "earlyon", "memory")
    parser.add_argument("--parts", nargs="+", choices=parts, default=[p for p in parts if p != "earlyon"])
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--earlyon-batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--shares", nargs="+", choices=SHARES, default=["40/30/20/10"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--torch", help="a Python with torch and earlyon")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="measure what is in the results already")
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(2)
    tf.config.threading.set_inter_op_parallelism_threads(2)

    figures, measure = keeper(args.results, args.again, rounds=args.rounds)

    for name in ("ResNet50", "MobileNetV2") if "plain" in args.parts else ():
        case = functools.partial(beside_plain, name, args.shares[0], args.rounds)
        measure(f"plain {name} shares {args.shares[0]}", case)
    if "single" in args.parts:
        measure("single", lambda: single(network(), 5 * args.rounds))
    for width in (4096, 8192) if "large" in args.parts else ():
        measure(f"large {width}", functools.partial(large, width, 5 * args.rounds))
    for batch in (1, 16) if "optimize" in args.parts else ():
        rounds = args.rounds * (5 if batch == 1 else 1)
        measure(f"optimize {batch}", functools.partial(optimize, batch, rounds))
    for batch, shares in itertools.product(args.batches, args.shares) if "routing" in args.parts else ():
        case = functools.partial(routing, network(), batch, shares, args.rounds)
        measure(f"routing {batch} shares {shares}", case)
    for batch in args.earlyon_batches if "earlyon" in args.parts else ():
        measure(f"earlyon {batch}", functools.partial(earlyon, args.torch, batch, args.rounds))
    if "memory" in args.parts:
        measure("memory", lambda: {f"{rows:,} images, MiB": memory(rows) for rows in (2_000, 20_000)})
    if any(key.startswith("routing") for key in figures):
        picture(figures, args.results.with_suffix(".png"))
        print(f"picture: {args.results.with_suffix('.png')}")


if __name__ == "__main__":
    main()

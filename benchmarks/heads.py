"""Which head pays? Accuracy of every head against its cost, and of smaller plain networks beside it.

    python benchmarks/heads.py --data-dir FOLDER               # what is not done yet; hours on one core
    python benchmarks/heads.py --data-dir FOLDER --part frozen # one part: frozen, joint or plain
    python benchmarks/heads.py --data-dir FOLDER --list        # what would run, and what is done
    python benchmarks/heads.py --smoke                         # a minute, on the digits of scikit-learn
    python benchmarks/heads_report.py                          # the tables and the chart of docs/heads.md

FOLDER holds CIFAR-100 as its authors publish it: `data.load("cifar100", data_dir=FOLDER)`.

- frozen: a plain network is trained, and all heads on it at once, each behind a stop-gradient: none has an
  influence on the network or on another head, so all see the same features. The commonest use, a network that
  is there already.
- joint: a network for each head, trained with its exits, objective EED("kl"); for the default head, by other
  objectives too.
- plain: the plain network at several widths, trained alike: what one could run in place of early exit.

Each run is one line of results/heads.jsonl, keyed by its settings; runs that are there are skipped. For a
seed all runs see the same images in the same order. Thresholds are chosen on the calibration images; what
they give is read on the validation images, which choose the head, and on the test images, which are reported.
"""

import argparse
import functools
import gc
import itertools
import math
import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from accuracy import made_with, routed
from accuracy_results import Results, key_of

RESULTS = pathlib.Path(__file__).with_name("results") / "heads.jsonl"
PARTS = ("frozen", "joint", "plain")
# Width factor, learning rate, and widths of the plain networks. The rates are about twice those that
# benchmarks/accuracy.py found on other images for half the batch; there is no search.
NETWORKS = {
    "ResNet10": (0.25, 0.2, (0.125, 0.1875, 0.25)),
    "VGG11": (0.25, 0.04, (0.125, 0.1875, 0.25)),
}
SEEDS = (1, 2, 3)
EXITS = 3
BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
COMMON = {"epochs": 6, "batch": 64, "l2": 5e-4}
RECIPES = {
    "fashion_mnist": {"train_size": 6000, **COMMON},
    "cifar100": {"train_size": 10000, **COMMON},
}
SMOKE = {"digits": {**COMMON, "train_size": 512, "epochs": 2}}
PLAIN = "plain"
# Heads that stand on one frozen network together: what there was at first, and what was tried later.
GROUPS = {
    "all": ("mixed_hidden", "conv", "bottleneck", "separable", "linear", "mlp", "shrink", "mixed"),
    "later": ("mixed_wide", "light_hidden", "light", "light_32"),
}
JOINT = ("light", "mixed_hidden", "linear", "bottleneck")  # heads that are trained with the network
OBJECTIVES = ("eed-kl-output", "cross-entropy")  # that also train the default head; of accuracy_methods.py
WHERE = "mixed_hidden"  # exits stand where the compute placement puts those with this head, for all heads


def jobs(parts, networks, seeds, recipes, joint=JOINT):
    """The runs, seed by seed: a study that was stopped is a fair one of fewer seeds."""
    for seed, part, dataset, network in itertools.product(seeds, parts, recipes, networks):
        width, rate, widths = NETWORKS[network]
        common = {"part": part, "network": network, "rate": rate, "seed": seed}
        common = {**common, "dataset": dataset, **recipes[dataset]}
        if part == "frozen":
            yield from ({**common, "head": group, "width": width} for group in GROUPS)
        elif part == "joint":
            yield from ({**common, "head": head, "width": width} for head in joint)
            for objective in OBJECTIVES:
                yield {**common, "head": "light", "width": width, "objective": objective}
        else:
            yield from ({**common, "head": PLAIN, "width": width} for width in widths)


def objective_of(settings):
    """The name of the objective that trains heads with their network: `EED()` where a run names none."""
    return settings.get("objective", "eed-kl")


# Heads on one network


def with_heads(backbone, group):
    """The backbone with every head of a group at each exit, behind stop-gradients.

    Returns:
        A model with a dict of logits, `"final"` and `"exit_1.conv"` and so on; and the cumulative costs that
        each head has alone, a dict from its name.
    """
    import keras
    from keras import layers, ops

    import keras_exitens as kx
    from keras_exitens._attach.heads import apply_head
    from keras_exitens._network.exit_network import ExitNetwork

    heads = GROUPS[group]
    network = ExitNetwork.of(kx.add_exits(backbone, EXITS, head=WHERE))
    tensors = {name: where_attached(network, name) for name in network.names[:-1]}
    places = [network.graph.producer(tensor).operation.name for tensor in tensors.values()]
    costs = {head: list(kx.cost(kx.add_exits(backbone, places, head=head)).cumulative) for head in heads}
    last = network.graph.producer(network.features["final"]).inputs[0]
    outputs = {"final": network.logits["final"]}
    classes, kept = outputs["final"].shape[-1], {}
    for head, (name, tensor) in itertools.product(heads, tensors.items()):
        kept[head, name] = feature = apply_head(
            head,
            ops.stop_gradient(tensor),
            width=last.shape[-1],
            features=network.features["final"].shape[-1],
            halvings=round(math.log2(tensor.shape[1] / last.shape[1])),
            data_format="channels_last",
            name=f"{name}_{head}",
        )
        outputs[f"{name}.{head}"] = layers.Dense(classes, dtype="float32")(feature)
    if group != "all":
        return keras.Model(network.inputs, outputs), costs
    # ZTW (arXiv 2106.05409): an exit also sees what the exit before it says.
    before = outputs["exit_1.mixed_reuse"] = outputs["exit_1.mixed_hidden"]
    costs["mixed_reuse"] = list(costs["mixed_hidden"])
    for i, name in enumerate(list(tensors)[1:], 1):
        own, earlier = kept["mixed_hidden", name], ops.log_softmax(before)
        seen = layers.Concatenate()([ops.stop_gradient(own), ops.stop_gradient(earlier)])
        before = outputs[f"{name}.mixed_reuse"] = layers.Dense(classes)(seen)
        costs["mixed_reuse"][i:] = [total + classes**2 for total in costs["mixed_reuse"][i:]]
    return keras.Model(network.inputs, outputs), costs


def where_attached(network, name):
    """The map that the head of an exit stands on."""
    tensor = network.features[name]
    while (step := network.graph.producer(tensor)).operation.name.startswith(name):
        (tensor,) = step.inputs
    return tensor


# One run


def run(settings, data_dir=None):
    """Trains one network, and returns its line for the file of results."""
    import head_candidates
    import keras
    from accuracy import build, learning_rate, pipelines
    from accuracy_methods import make

    import keras_exitens as kx

    began = time.perf_counter()
    keras.backend.clear_session()
    gc.collect()
    keras.utils.set_random_seed(settings["seed"])
    head_candidates.add()
    settings = {**settings, "schedule": "cosine", "augment": "auto"}
    train, steps, one_pass, input_shape, classes = pipelines(settings, data_dir)
    backbone = build(settings["network"], input_shape=input_shape, classes=classes, width=settings["width"])
    optimizer = kx.optimizers.SGD(
        learning_rate(settings, settings["epochs"] * steps), momentum=0.9, l2=settings["l2"]
    )
    if settings["part"] == "frozen":
        model, costs = with_heads(backbone, settings["head"])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, dict.fromkeys(model.output, loss))
        train = train.map(lambda x, y: (x, dict.fromkeys(model.output, y)))
        trained, backbone_cost = model, kx.cost(backbone).backbone
    else:
        head = settings["head"]
        exits = {"exits": 0} if head == PLAIN else {"exits": EXITS, "head": head}
        model = kx.add_exits(backbone, **exits)
        objective = make(objective_of(settings), settings["epochs"] * steps, len(model.output))
        trained = kx.ExitEnsembleDistiller(model, objective)
        trained.compile(optimizer)
        found = kx.cost(model)
        costs, backbone_cost = {head: list(found.cumulative)}, found.backbone
    started, cpu = time.perf_counter(), time.process_time()
    trained.fit(train, epochs=settings["epochs"], steps_per_epoch=steps, shuffle=False, verbose=0)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    records = {part: collected(trained, one_pass(part)) for part in ("calibration", "validation", "test")}
    return {
        "backbone": int(backbone_cost),
        "heads": {head: judged(records, head, cumulative) for head, cumulative in costs.items()},
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "total_seconds": round(time.perf_counter() - began, 1),
        "made_with": made_with(),
    }


def collected(model, data):
    """The logits of all outputs, a dict, and the labels."""
    return model.predict(data, verbose=0), np.concatenate([y for _, y in data])


def judged(records, head, cumulative):
    """What an early-exit network with one head does: accuracy of each exit, and accuracy at each budget."""
    import keras_exitens as kx

    def of(part):
        logits, labels = records[part]
        names = [f"exit_{i}" for i in range(1, len(cumulative))]
        chosen = [logits.get(f"{name}.{head}", logits.get(name)) for name in names]
        return kx.ExitRecords(np.stack([*chosen, logits["final"]]), labels, names=[*names, "final"])

    parts = {part: of(part) for part in records}
    found = {"cumulative": [int(total) for total in cumulative]}
    for part in ("validation", "test"):
        right = parts[part].logits.argmax(-1) == parts[part].labels
        found[part] = {"exits": [round(float(r.mean()), 5) for r in right], "budgets": {}}
    if len(cumulative) == 1:
        return found
    for budget in BUDGETS:
        if budget * cumulative[-1] < cumulative[0]:
            continue
        policy = kx.calibrate(parts["calibration"], cumulative, cost_budget=budget)
        for part in ("validation", "test"):
            found[part]["budgets"][str(budget)] = list(routed(policy, parts[part], cumulative))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    several = functools.partial(parser.add_argument, type=lambda text: text.split(","))
    several("--part", default=PARTS, help=", ".join(PARTS))
    several("--datasets", default=tuple(RECIPES), help=", ".join(RECIPES))
    several("--networks", default=tuple(NETWORKS), help=", ".join(NETWORKS))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=SEEDS)
    parser.add_argument("--data-dir", help="folder of CIFAR-100; Fashion-MNIST is found where Debian puts it")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=1, help="threads; 0: all cores")
    parser.add_argument("--smoke", action="store_true", help="tiny runs on the digits of scikit-learn")
    parser.add_argument("--list", action="store_true", help="show the runs, and start none")
    args = parser.parse_args()
    results = Results(args.results, pathlib.Path(tempfile.gettempdir()) / "keras_exitens-claims")
    if args.smoke:
        chosen = list(jobs(args.part, ("ResNet10",), args.seeds[:1], SMOKE, joint=("light",)))
    else:
        chosen = list(jobs(args.part, args.networks, args.seeds, {d: RECIPES[d] for d in args.datasets}))
    if args.list:
        done = results.read()
        for settings in chosen:
            print("done" if key_of(settings) in done else "to do", *(f"{k}={v}" for k, v in settings.items()))
        return
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(args.threads)
    for settings in chosen:
        with results.claim(settings) as mine:
            if mine:
                data_dir = args.data_dir if settings["dataset"] == "cifar100" else None
                line = {"settings": settings, **run(settings, data_dir)}
                results.append(line)
                exits = {head: found["validation"]["exits"] for head, found in line["heads"].items()}
                print(
                    settings["part"],
                    settings["network"],
                    settings["seed"],
                    exits,
                    line["seconds"],
                    flush=True,
                )


if __name__ == "__main__":
    sys.exit(main())

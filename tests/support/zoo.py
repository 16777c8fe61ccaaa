"""Every network of keras.applications × every placement × every kind of head: does what is promised hold?

`test_zoo.py` asks a part of it; the whole table takes hours and is made by

    nice -n 19 python tests/support/zoo.py docs/applications.jsonl --table docs/applications.md

One line is written as soon as one cell is done. Interrupted and started again, it goes on; a cell is measured
again when its line is deleted. Each network has a process of its own, on one thread.
"""

import argparse
import datetime
import hashlib
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf
from harness import images, logits_by_hand, randomise, same
from keras import layers

import keras_exitens as kx

CLASSES = 5
EXITS = 3
CELLS = [(p, h) for p in ("compute", "stage") for h in ("light", "bottleneck", "conv", "separable", "linear")]
SIZES = (32, 48, 64, 71, 75, 96, 128)  # pixels, the smallest that the network takes

# The smallest of each family first, so that an unfinished table says most.
SMALLEST = (
    *("MobileNet", "MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0", "ResNet50"),
    *("ResNet50V2", "VGG16", "DenseNet121", "Xception", "InceptionV3", "ConvNeXtTiny", "NASNetMobile"),
    "InceptionResNetV2",
)
MODELS = tuple(n for n in sorted(dir(keras.applications)) if callable(getattr(keras.applications, n)))
MODELS = (*SMALLEST, *(name for name in MODELS if name not in SMALLEST))


class Network:
    """A network of keras.applications with random weights, images for it, and its logits by hand."""

    def __init__(self, name, count=8, **options):
        self.model, self.size = _smallest(name, options)
        self.x = 64 * images(self.model, count)  # about the range of pixels
        _tell_apart(randomise(self.model), self.x)
        self.y = np.arange(count) % CLASSES
        self.classifier = [la for la in self.model.layers if isinstance(la, layers.Dense | layers.Conv2D)][-1]
        # Logits of about 1: with random weights the softmax is otherwise as good as one-hot.
        expected = logits_by_hand(self.model, self.classifier, self.x)
        scale = np.abs(expected).max()
        self.classifier.set_weights([w / scale for w in self.classifier.get_weights()])
        self.expected = expected / scale
        self.spread = float(np.ptp(self.expected, axis=0).min())
        self.probabilities = np.asarray(self.model(self.x))
        self.weights = self.model.get_weights()


def _smallest(name, options):
    for size in SIZES:
        try:
            shape = (size, size, 3)
            build = getattr(keras.applications, name)
            return build(weights=None, classes=CLASSES, input_shape=shape, **options), size
        except ValueError as error:
            if "at least" not in str(error):
                raise
    raise ValueError(f"{name} takes none of {SIZES} pixels")


def _tell_apart(model, x):
    """Keeps what differs between images from fading: in a deep random network they all look alike else.

    Every BatchNorm gets the statistics of `x`; kernels followed by a ReLU without one get He's gain.
    """
    for la in model.layers:
        if getattr(la, "activation", None) is keras.activations.relu and hasattr(la, "kernel"):
            la.kernel.assign(la.kernel * 2**0.5)
    norms = [la for la in model.layers if isinstance(la, layers.BatchNormalization)]
    momenta = [la.momentum for la in norms]
    for la in norms:
        la.momentum = 0.0
    model(x, training=True)
    for la, momentum in zip(norms, momenta, strict=True):
        la.momentum = momentum


def build(network, placement, head):
    """The multi-exit model of a cell, and what can be said of it without training or saving it."""
    exits = kx.add_exits(network.model, EXITS, placement=placement, head=head)
    out = exits(network.x)
    final = float(np.abs(out["final"] - network.expected).max())
    stripped = float(np.abs(kx.strip_exits(exits)(network.x) - network.probabilities).max())
    finite = all(bool(np.isfinite(np.asarray(logits)).all()) for logits in out.values())
    return exits, {
        "exits": kx.exit_names(exits),
        "final_error": final,
        "stripped_error": stripped,
        "spread": network.spread,
        "shapes": {name: list(logits.shape) for name, logits in out.items()},
        "finite": finite,
        "parameters": exits.count_params(),
    }


def train(exits, network):
    """One step down the gradient in training mode: the loss before and after, on the same images.

    The step is as long as would lower a linear loss by 1%; where the loss is bent too much for that, it is
    quartered, up to five times. Dropout and stochastic depth are off: both losses are of one function. The
    weights of the network are as before afterwards, those of the heads are not.
    """
    rates = [(la, k) for la in exits.layers for k in ("rate", "drop_path_rate") if getattr(la, k, 0)]
    before = [(la, k, getattr(la, k)) for la, k in rates]
    for la, k in rates:
        setattr(la, k, 0.0)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def loss():
        return sum(cross_entropy(network.y, z) for z in exits(network.x, training=True).values())

    variables = exits.trainable_variables
    with tf.GradientTape() as tape:
        first = loss()
    gradients = tape.gradient(first, [v.value for v in variables])
    missing = [v.path for v, g in zip(variables, gradients, strict=True) if g is None]
    square = sum(float(tf.reduce_sum(g * g)) for g in gradients if g is not None)
    length, moved = 0.01 * float(first) / square, 0.0
    for attempt in range(6):
        change = length * 0.25**attempt - moved
        for v, g in zip(variables, gradients, strict=True):
            if g is not None:
                v.assign_sub(change * g)
        moved += change
        last = float(loss())
        if last < float(first):
            break
    for la, k, rate in before:
        setattr(la, k, rate)
    network.model.set_weights(network.weights)
    return {"loss_before": float(first), "loss_after": last, "without_gradient": missing}


def reload(exits, network, folder):
    """Whether the model that was saved and loaded gives the same logits bit for bit, in the same order."""
    path = pathlib.Path(folder) / "model.keras"
    out = exits(network.x)
    exits.save(path)
    loaded = keras.saving.load_model(path, safe_mode=True)
    path.unlink()
    return {"reloaded_equal": same(loaded(network.x), out) and kx.exit_names(loaded) == kx.exit_names(exits)}


def faults(row):
    """What a row of measurements says that must not be, as a list of str."""
    names = [*(f"exit_{i}" for i in range(1, EXITS + 1)), "final"]
    shapes = row["shapes"].values()
    promises = {
        "exits": row["exits"] == names,
        "shape": sorted(row["shapes"]) == sorted(names) and all(s[1:] == [CLASSES] for s in shapes),
        "finite": row["finite"],
        "final": row["final_error"] <= 1e-5 < 1e-2 < row["spread"],
        "stripped": row["stripped_error"] <= 1e-6,
        "loss": row.get("loss_after", 0.0) < row.get("loss_before", 1.0),
        "gradient": not row.get("without_gradient"),
        "reload": row.get("reloaded_equal", True),
    }
    return [name for name, holds in promises.items() if not holds]


def measure(network, placement, head):
    """All that one cell of the table holds."""
    start = time.perf_counter()
    try:
        exits, row = build(network, placement, head)
    except ValueError as error:
        return {"refused": str(error)}
    row |= train(exits, network)
    with tempfile.TemporaryDirectory() as folder:
        row |= reload(exits, network, folder)
    return row | {"faults": faults(row), "seconds": round(time.perf_counter() - start, 1)}


# The whole table ---------------------------------------------------------------------------------


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def missing(path, name):
    done = {(row["model"], row["placement"], row["head"]) for row in read(path)}
    return [cell for cell in CELLS if (name, *cell) not in done]


def write(path, row):
    sources = sorted(pathlib.Path(kx.__file__).parent.rglob("*.py"))
    row |= {
        "code": hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:12],
        "date": datetime.date.today().isoformat(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "keras_exitens": kx.__version__,
    }
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def measure_network(path, name):
    """Measures the missing cells of one network, in this process."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    network = Network(name)
    _wait_for_memory(8 * 4 * network.model.count_params())
    for placement, head in missing(path, name):
        cell = {"model": name, "placement": placement, "head": head, "pixels": network.size}
        row = measure(network, placement, head)
        peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)
        write(path, cell | {"network": network.model.count_params(), **row, "peak_gb": peak})


def _wait_for_memory(needed):
    """Waits until there are `needed` bytes and 2 GB more, so that others are not driven out."""
    while True:
        info = dict(line.split(":") for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
        if int(info["MemAvailable"].split()[0]) * 1024 > needed + 2 * 2**30:
            return
        time.sleep(30)


def measure_all(path, names):
    """One process a network; a cell in which the process dies is written down as such."""
    for name in names:
        while cells := missing(path, name):
            done = subprocess.run([sys.executable, __file__, str(path), "--model", name], check=False)
            left = missing(path, name)
            if done.returncode and left:
                placement, head = left[0]
                died = f"process ended with {done.returncode}"
                write(path, {"model": name, "placement": placement, "head": head, "died": died})
            elif left == cells:
                raise RuntimeError(f"{name}: nothing was measured")


def outcome(row):
    """One word for one cell."""
    if "refused" in row:
        return "too few stages" if "too few" in row["refused"] else "refused"
    if "died" in row:
        return row["died"]
    return ", ".join(row["faults"]) or "✓"


def table(rows):
    """The rows as a page of Markdown."""
    latest = {(row["model"], row["placement"], row["head"]): row for row in rows}
    heads = [f"{placement}, {head}" for placement, head in CELLS]
    lines = [
        "| network | pixels | parameters | " + " | ".join(heads) + " | largest error of `final` |",
        "| --- | ---: | ---: |" + " :-: |" * len(CELLS) + " ---: |",
    ]
    for name in MODELS:
        cells = [latest.get((name, *cell)) for cell in CELLS]
        known = [c for c in cells if c and "network" in c]
        if not known:
            continue
        errors = [c["final_error"] for c in known if "final_error" in c]
        lines.append(
            f"| {name} | {known[0]['pixels']} | {known[0]['network'] / 1e6:.1f} M | "
            + " | ".join(outcome(c) if c else "" for c in cells)
            + (f" | {max(errors):.1e} |" if errors else " | |")
        )
    whole = [row for row in latest.values() if not row.get("faults") and "faults" in row]
    dates = sorted(row["date"] for row in latest.values())
    versions = sorted({f"Keras {row['keras']}, TensorFlow {row['tensorflow']}" for row in latest.values()})
    refused = sum("refused" in row for row in latest.values())
    return PAGE.format(
        first=dates[0],
        last=dates[-1],
        versions="; ".join(versions),
        measured=len(latest),
        cells=len(MODELS) * len(CELLS),
        whole=len(whole),
        refused=refused,
        classes=CLASSES,
        exits=EXITS,
        table="\n".join(lines),
    )


PAGE = """\
# Every network of keras.applications

Made by `python tests/support/zoo.py docs/applications.jsonl --table docs/applications.md`, {first} to {last},
{versions}, on the CPU. {measured} of {cells} cells measured: in {whole} everything holds, {refused} were
refused with an error.

A cell is one network (random weights, the smallest images it takes, {classes} classes) with {exits} exits by
one placement, with one kind of head. ✓ means:

- `final` equals the network's own values before the activation, computed by hand in NumPy (atol 1e-5, for
  logits of about 1);
- every exit gives finite logits `(batch, classes)`, and `strip_exits` the network's output (atol 1e-6);
- every trainable weight has a gradient, and one small step down it lowers the training loss;
- saved and loaded, every bit is the same.

{table}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lines", type=pathlib.Path, help="file of JSON lines, made or gone on with")
    parser.add_argument("--table", type=pathlib.Path, help="Markdown file to write when all is measured")
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help="these networks only")
    parser.add_argument("--model", help="measure this network in this process")
    arguments = parser.parse_args()
    if arguments.model:
        measure_network(arguments.lines, arguments.model)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    measure_all(arguments.lines, arguments.models)
    if arguments.table:
        arguments.table.write_text(table(read(arguments.lines)))


if __name__ == "__main__":
    main()

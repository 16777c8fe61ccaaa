"""The paper's ground on a GPU: CIFAR-100, full training part, Keras on JAX, several seeds side by side.

    KERAS_BACKEND=jax python benchmarks/gpu/study.py --data-dir FOLDER --results OUT/gpu.jsonl --minutes 9
    KERAS_BACKEND=jax python benchmarks/gpu/study.py --data-dir FOLDER --tiny      # a look, on a CPU
    KERAS_BACKEND=jax python benchmarks/gpu/study.py --data-dir FOLDER --speed     # images a second, and stop

FOLDER holds CIFAR-100 as its authors publish it. Images, weights and optimizer stay on the device; an epoch
is one compiled program, a scan over the steps of the library's own training step, with shifts and mirroring
in it; the seeds of one network and method run as one by `vmap`. TensorFlow is not needed.

A group of seeds is one entry of the list: `--networks` times `--methods`, in that order, and each seed a line
of the results when the group is done. Groups that are there are skipped. No group is begun that would not end
within `--minutes`, by the time of the last epoch. Lines have the form of benchmarks/accuracy.py; training,
validation, calibration and test images are the same parts as there. `--chunk` epochs run between two looks at
the validation images.
"""

import argparse
import functools
import os
import pathlib
import sys
import time

os.environ.setdefault("KERAS_BACKEND", "jax")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import keras

if keras.backend.backend() != "jax":
    sys.exit("This program runs on JAX: KERAS_BACKEND=jax python benchmarks/gpu/study.py")

import jax
import jax.numpy as jnp
import numpy as np
from accuracy import build, images_of, learning_rate
from accuracy_methods import make
from accuracy_presets import PAPER, PLAIN
from accuracy_results import Results, key_of

import keras_exitens as kx
from keras_exitens.data.statistics import channel_statistics

NETWORKS = {"ResNet18": 0.5, "VGG13": 0.5, "WideResNet16_4": 0.5, "ResNeXt50": 0.5}
RECIPE = {"train_size": None, "batch": 128, "schedule": "steps", "l2": 5e-4, "augment": "auto"}
EVALUATION = 500


def network_for(settings, steps, shape, classes):
    """A distiller as its seed gives it, all of its variables made."""
    keras.utils.set_random_seed(settings["seed"])
    backbone = build(settings["network"], input_shape=shape, classes=classes, width=settings["width"])
    model = kx.add_exits(backbone, settings["exits"], placement="stage", head="conv")
    objective = make(settings["method"], settings["epochs"] * steps, len(kx.exit_names(model)))
    distiller = kx.ExitEnsembleDistiller(model, objective)
    rate = learning_rate(settings, settings["epochs"] * steps)
    distiller.compile(kx.optimizers.SGD(rate, momentum=0.9, l2=settings["l2"]), metrics=["accuracy"])
    before = [np.array(v.value) for v in distiller.variables]
    variables = list(distiller.variables)
    # A step makes metrics and the optimizer's variables; what it changed is put back.
    distiller.train_on_batch(np.zeros((2, *shape), "float32"), np.zeros(2, "int32"))
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    for variable in distiller.optimizer.variables:
        variable.assign(np.zeros(variable.shape, variable.dtype))
    distiller.reset_metrics()
    return distiller


def state_of(distiller):
    """All that a step changes, as `distiller.train_step` takes it on JAX."""
    groups = (
        distiller.trainable_variables,
        distiller.non_trainable_variables,
        distiller.optimizer.variables,
        distiller.metrics_variables,
    )
    return tuple([jnp.asarray(v.value) for v in group] for group in groups)


class Group:
    """The seeds of one network and method, trained side by side.

    Args:
        settings: list of dicts, alike but for their seeds.
        parts: dict from part to `(images, labels)` as arrays on the device.
        mean, std: of each channel of the training images.
        classes: int.
        mirror: bool, whether images may be mirrored.
    """

    def __init__(self, settings, parts, mean, std, classes, mirror):
        self.settings, self.parts, self.mirror = settings, parts, mirror
        self.mean, self.std = jnp.asarray(mean, "float32"), jnp.asarray(std, "float32")
        self.batch = settings[0]["batch"]
        images, _ = parts["train"]
        self.steps = len(images) // self.batch
        every = [network_for(one, self.steps, images.shape[1:], classes) for one in settings]
        self.distiller = every[0]
        self.names = kx.exit_names(self.distiller.model)
        self.multiply_adds = [int(c) for c in kx.cost(self.distiller.model).cumulative]
        self.state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(state_of, every))
        keys = [jax.random.key(one["seed"]) for one in settings]
        self.keys = jnp.stack(keys)
        self.seconds = 0.0

    def scaled(self, images):
        return (images.astype("float32") / 255 - self.mean) / self.std

    def augmented(self, images, key):
        """Shifted by up to an eighth of their height, and mirrored half of the time."""
        rows, height, width, _ = images.shape
        most = max(1, (height + 4) // 8)
        shift, mirror = jax.random.split(key)
        corners = jax.random.randint(shift, (rows, 2), 0, 2 * most + 1)
        padded = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))

        def cut(image, corner):
            return jax.lax.dynamic_slice(image, (*corner, 0), (height, width, image.shape[-1]))

        images = jax.vmap(cut)(padded, corners)
        if self.mirror:
            images = jnp.where(jax.random.bernoulli(mirror, 0.5, (rows, 1, 1, 1)), images[:, :, ::-1], images)
        return images

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def _epoch(self, states, keys, images, labels):
        def one(state, key):
            order, noise = jax.random.split(key)
            rows = jax.random.permutation(order, len(images))[: self.steps * self.batch]
            state = (*state[:3], [jnp.zeros_like(v) for v in state[3]])  # metrics begin anew

            def step(state, asked):
                chosen, noise = asked
                x = self.scaled(self.augmented(images[chosen], noise))
                _, state = self.distiller.train_step(state, (x, labels[chosen]))
                return state, ()

            asked = (rows.reshape(self.steps, self.batch), jax.random.split(noise, self.steps))
            state, _ = jax.lax.scan(step, state, asked)
            return state, self._logs(state[3])

        return jax.vmap(one)(states, keys)

    def _logs(self, metrics):
        """The mean metrics of an epoch, from the variables that keep them."""
        known = list(zip(self.distiller.metrics_variables, metrics, strict=True))
        with keras.StatelessScope(known):
            return self.distiller.get_metrics_result()

    @functools.partial(jax.jit, static_argnums=0)
    def _right(self, states, images, labels):
        """The share of the images that each exit, and their ensemble, has right."""
        rows = min(EVALUATION, len(images))
        batches = len(images) // rows
        images = images[: rows * batches].reshape(batches, rows, *images.shape[1:])
        labels = labels[: rows * batches].reshape(batches, rows)

        def one(state):
            def batch(known):
                x, y = known
                found, _ = self.distiller.stateless_call(*state[:2], self.scaled(x), training=False)
                return {name: (z.argmax(-1) == y).mean() for name, z in found.items()}

            return jax.tree.map(jnp.mean, jax.lax.map(batch, (images, labels)))

        return jax.vmap(one)(states)

    def right(self, part):
        """For each seed, the accuracy of each exit on a part."""
        found = jax.device_get(self._right(self.state, *self.parts[part]))
        return [{k: round(float(v[i]), 5) for k, v in found.items()} for i in range(len(self.settings))]

    def epoch(self, number):
        """Trains all seeds for an epoch; their logs, a list of dicts."""
        began = time.perf_counter()
        keys = jax.vmap(jax.random.fold_in, (0, None))(self.keys, number)
        self.state, logs = self._epoch(self.state, keys, *self.parts["train"])
        logs = jax.device_get(logs)
        self.seconds = time.perf_counter() - began
        return [{k: float(v[i]) for k, v in logs.items()} for i in range(len(self.settings))]

    def train(self, epochs, chunk):
        """Trains to the end; gives a line for each seed."""
        began = time.perf_counter()
        curves = [{"training": {}, "validation": {}, "loss": []} for _ in self.settings]
        for number in range(epochs):
            logs = self.epoch(number)
            looked = (number + 1) % chunk == 0 or number + 1 == epochs
            seen = self.right("validation") if looked else [{}] * len(logs)
            for curve, log, validation in zip(curves, logs, seen, strict=True):
                curve["loss"].append(round(log["loss"], 5))
                for key, value in log.items():
                    if key.endswith("_accuracy"):
                        name = key.removesuffix("_accuracy")
                        curve["training"].setdefault(name, []).append(round(value, 5))
                for name, value in validation.items():
                    curve["validation"].setdefault(name, []).append(value)
        tested = self.right("test")
        seconds = time.perf_counter() - began
        for settings, curve, test in zip(self.settings, curves, tested, strict=True):
            yield {
                "settings": settings,
                "exits": self.names,
                "diverged": not np.isfinite(curve["loss"][-1]),
                "seconds": round(seconds / len(self.settings), 1),
                "validated_every": chunk,
                "multiply_adds": self.multiply_adds,
                **curve,
                "test": {"last": test},
                "made_with": {
                    "keras_exitens": kx.__version__,
                    "keras": keras.__version__,
                    "jax": jax.__version__,
                    "policy": keras.mixed_precision.global_policy().name,
                    "machine": jax.devices()[0].device_kind,
                },
            }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    several = functools.partial(parser.add_argument, type=lambda text: text.split(","))
    parser.add_argument("--data-dir", help="folder of the data set")
    parser.add_argument("--dataset", default="cifar100")
    several("--networks", default=["ResNet18"], help=", ".join(NETWORKS))
    several("--methods", default=list(PAPER), help=", ".join(PAPER))
    parser.add_argument(
        "--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[1, 2, 3]
    )
    parser.add_argument("--width", type=float, help="in place of the one of the network")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--train-size", type=int)
    parser.add_argument("--chunk", type=int, default=5)
    parser.add_argument("--policy", default="mixed_bfloat16")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path("gpu.jsonl"))
    parser.add_argument("--speed", action="store_true", help="three epochs of the first group, and stop")
    parser.add_argument("--tiny", action="store_true", help="small settings for a look on a CPU")
    args = parser.parse_args(arguments)
    if args.tiny:
        args.networks, args.width, args.epochs, args.train_size = ["ResNet10"], 0.0625, 2, 512
        args.seeds, args.chunk, args.policy = args.seeds[:2], 1, "float32"
    keras.mixed_precision.set_global_policy(args.policy)
    began = time.perf_counter()
    found, classes, augment = images_of(args.dataset, args.data_dir)
    train = slice(args.train_size)
    images, _ = found["train"]
    mean, std = channel_statistics(images, np.arange(len(images))[train])
    parts = {part: found[part] for part in ("train", "validation", "test")}
    parts["train"] = tuple(array[train] for array in parts["train"])
    parts = jax.device_put(parts)
    results = Results(args.results, args.results.parent / "claims")
    for network in args.networks:
        for method in args.methods:
            settings = [
                {
                    "dataset": args.dataset,
                    "network": network,
                    "width": args.width or NETWORKS[network],
                    "exits": 0 if method == PLAIN else 2 if network.startswith("Wide") else 3,
                    "method": method,
                    "seed": seed,
                    "rate": 0.1,
                    **RECIPE,
                    "train_size": args.train_size,
                    "epochs": args.epochs,
                }
                for seed in args.seeds
            ]
            settings = [one for one in settings if key_of(one) not in results.read()]
            if not settings:
                continue
            group = Group(settings, parts, mean, std, classes, augment == "crop_flip")
            if args.speed:
                for number in range(3):
                    group.epoch(number)
                    images = len(settings) * group.steps * group.batch
                    print(f"{network} {method}: {images / group.seconds:,.0f} images/s", flush=True)
                return
            for line in group.train(args.epochs, args.chunk):
                results.append(line)
                say = " / ".join(f"{line['test']['last'][name]:.3f}" for name in line["exits"])
                print(f"{network} {method} seed {line['settings']['seed']}: {say}", flush=True)
            used = time.perf_counter() - began
            if used + group.seconds * args.epochs * 1.3 > 60 * args.minutes:
                print(f"stopped after {used:.0f} s")
                return


if __name__ == "__main__":
    main()

"""What `ExitTensorBoard` adds to training, beside Keras's own `TensorBoard`.

Trains a network with three exits on random images for ten epochs, once with each callback in turns, and adds
up the time spent in the callback. Validation images are a tenth of the training images. The figure is the
share of the whole time of `fit`, at the default frequency: one picture in ten epochs. The first rounds, with
all tracing in them, are shown too.

    python benchmarks/tensorboard_overhead.py
    python benchmarks/tensorboard_overhead.py --images 20000 --rounds 5
"""

import argparse
import os
import platform
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import keras_exitens as kx

EPOCHS = 10


def timed(kind):
    """A callback class that adds up the seconds spent in its own hooks."""

    def measured(name):
        def hook(self, *args, **kwargs):
            start = time.perf_counter()
            getattr(kind, name)(self, *args, **kwargs)
            self.seconds += time.perf_counter() - start

        return hook

    hooks = [name for name in dir(kind) if name.startswith("on_")]
    return type(
        f"Timed{kind.__name__}", (kind,), {"seconds": 0.0, **{name: measured(name) for name in hooks}}
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    images = rng.normal(size=(args.images, 32, 32, 3)).astype("float32")
    labels = rng.integers(0, 10, args.images)
    held_out = (images[: args.images // 10], labels[: args.images // 10])
    backbone = kx.applications.ResNet18(classes=10, width=args.width)
    distiller = kx.ExitEnsembleDistiller(kx.add_exits(backbone, 3))
    distiller.compile(keras.optimizers.SGD(0.01), metrics=["accuracy"])
    kinds = {
        "TensorBoard": (timed(keras.callbacks.TensorBoard), {}),
        "ExitTensorBoard": (timed(kx.callbacks.ExitTensorBoard), {"data": held_out}),
    }
    print(f"{platform.machine()}, {os.cpu_count()} cores; {args.images:,} images, batch {args.batch}")
    distiller.fit(images[:128], labels[:128], batch_size=args.batch, validation_data=held_out, verbose=0)
    shares = {name: [] for name in kinds}
    for round_ in range(args.rounds):
        for name, (kind, arguments) in kinds.items():
            with tempfile.TemporaryDirectory() as folder:
                board = kind(folder, **arguments)
                start = time.perf_counter()
                distiller.fit(
                    images,
                    labels,
                    batch_size=args.batch,
                    epochs=EPOCHS,
                    validation_data=held_out,
                    callbacks=[board],
                    verbose=0,
                )
                total = time.perf_counter() - start
            shares[name].append(board.seconds / total)
            spent = f"{board.seconds:6.2f} s of {total:6.1f} s: {shares[name][-1]:.2%}"
            print(f"  round {round_ + 1}  {name:16} {spent}", flush=True)
    for name, values in shares.items():
        print(f"{name:16} median {statistics.median(values):.2%} ({min(values):.2%} to {max(values):.2%})")


if __name__ == "__main__":
    main()

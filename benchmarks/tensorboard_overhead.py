"""What `ExitTensorBoard` adds to training.

Trains a network with three exits on random images and times every call into the callback, at its default
frequency: one picture in ten epochs. Validation images are a tenth of the training images. What Keras's own
`TensorBoard` takes, which it extends, is told apart. A picture costs the same however long an epoch is, apart
from the pass over the validation images; the first one of a run also traces a graph and loads matplotlib. So
the figures are seconds a picture, seconds an epoch, and the share of the whole time of `fit`.

    python benchmarks/tensorboard_overhead.py
    python benchmarks/tensorboard_overhead.py --images 20000 --epochs 30
"""

import argparse
import os
import platform
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import keras_exitens as kx


class Timed(kx.callbacks.ExitTensorBoard):
    """Keeps the seconds of the calls into the callback, and of those into Keras's `TensorBoard` in them."""

    def __init__(self, *args, **kwargs):
        self.seconds, self.stock, self.epoch_ends = 0.0, 0.0, []
        super().__init__(*args, **kwargs)

    def on_epoch_end(self, *args, **kwargs):
        before = self.seconds
        super().on_epoch_end(*args, **kwargs)
        self.epoch_ends.append(self.seconds - before)


def timed(kind, name, total):
    """Has the calls of a method add their seconds to an attribute of the callback."""
    function = getattr(kind, name)

    def hook(self, *args, **kwargs):
        start = time.perf_counter()
        function(self, *args, **kwargs)
        setattr(self, total, getattr(self, total) + time.perf_counter() - start)

    setattr(kind, name, hook)


for _name in [name for name in dir(keras.callbacks.TensorBoard) if name.startswith("on_")]:
    timed(keras.callbacks.TensorBoard, _name, "stock")
    timed(kx.callbacks.ExitTensorBoard, _name, "seconds")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--epochs", type=int, default=30, help="a multiple of 10")
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    images = rng.normal(size=(args.images, 32, 32, 3)).astype("float32")
    labels = rng.integers(0, 10, args.images)
    held_out = (images[: args.images // 10], labels[: args.images // 10])
    backbone = kx.applications.ResNet18(classes=10, width=args.width)
    distiller = kx.ExitEnsembleDistiller(kx.add_exits(backbone, 3))
    distiller.compile(keras.optimizers.SGD(0.01), metrics=["accuracy"])
    distiller.fit(images[:128], labels[:128], batch_size=args.batch, validation_data=held_out, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        board = Timed(folder, data=held_out)
        start = time.perf_counter()
        distiller.fit(
            images,
            labels,
            batch_size=args.batch,
            epochs=args.epochs,
            validation_data=held_out,
            callbacks=[board],
            verbose=0,
        )
        total = time.perf_counter() - start
    pictures = board.epoch_ends[9::10]
    print(f"{platform.machine()}, {os.cpu_count()} cores; {args.images:,} images, batch {args.batch}")
    print(f"an epoch           {(total - board.seconds) / args.epochs:.2f} s")
    print(
        f"pictures           {', '.join(f'{seconds:.2f}' for seconds in pictures)} s, the first with tracing"
    )
    own = board.seconds - board.stock
    print(f"all of the callback {board.seconds:.2f} s of {total:.1f} s: {board.seconds / total:.2%}")
    print(f"without Keras's own {own:.2f} s: {own / total:.2%}")


if __name__ == "__main__":
    main()

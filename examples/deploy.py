"""Early exit away from Keras: one trained network, exported three ways, each run in a process of its own.

Trains a small network with exits on the handwritten digits that come with scikit-learn, lets it leave at
fixed thresholds, exports it for TensorFlow Serving, LiteRT and ONNX Runtime, and runs each export on the test
images in a new process. The last two processes import neither TensorFlow nor Keras nor keras_exitens.

    python examples/deploy.py
    python examples/deploy.py --data fashion_mnist --train-limit 4000 --threshold 0.95 --quantize int8
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import keras_exitens as kx

# What runs where the network is deployed: a folder, images in, what they were taken for out.
SERVER = """
import sys, time
import numpy as np
import tensorflow as tf

folder, images, results = sys.argv[1:]
loaded = tf.saved_model.load(folder)
images = tf.constant(np.load(images))
run = lambda: loaded.signatures["serving_default"](images=images)
run()
start = time.perf_counter()
found = run()
np.savez(results, seconds=time.perf_counter() - start, modules=list(sys.modules), **found)
"""

DEVICE = """
import sys, time
import numpy as np

folder, images, results = sys.argv[1:]
sys.path.insert(0, folder)
import exitens_runtime as runtime

network = runtime.load(folder)
images = np.load(images)
run = lambda: network.predict(images, batch_size=len(images))
run()
start = time.perf_counter()
found = run()
np.savez(results, seconds=time.perf_counter() - start, modules=list(sys.modules), **found)
"""


def train(splits, args):
    keras.utils.set_random_seed(args.seed)
    backbone = kx.applications.ResNet18(
        input_shape=splits.input_shape, classes=splits.classes, width=args.width, name="resnet18"
    )
    model = kx.add_exits(backbone, exits=2)
    distiller = kx.ExitEnsembleDistiller(model)
    schedule = keras.optimizers.schedules.CosineDecay(0.05, args.epochs * splits.steps_per_epoch)
    distiller.compile(keras.optimizers.SGD(schedule, momentum=0.9), metrics=["accuracy"])
    distiller.fit(**splits.fit_arguments(args.epochs), verbose=0)
    return model


def run_elsewhere(program, folder, images):
    """Runs an export in a new process, started from its folder. Returns what it found."""
    with tempfile.TemporaryDirectory() as place:
        given, results = pathlib.Path(place, "images.npy"), pathlib.Path(place, "results.npz")
        np.save(given, images)
        command = [sys.executable, "-c", program, str(folder), str(given), str(results)]
        subprocess.run(command, check=True, cwd=folder)
        return dict(np.load(results))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--train-limit", type=int)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--threshold", type=float, default=0.9, help="how sure an exit has to be")
    parser.add_argument("--quantize", choices=("float16", "int8"), help="for LiteRT")
    parser.add_argument("--folder", default="runs/deploy")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    splits = kx.data.load(args.data, batch_size=64, train_limit=args.train_limit, seed=args.seed)
    model = train(splits, args)
    images, labels = (np.concatenate(part) for part in zip(*splits.test.as_numpy_iterator(), strict=True))
    early = kx.EarlyExit(model, kx.policies.MaxProbability(args.threshold))
    wanted = early.predict(images, batch_size=len(images), verbose=0)
    shares = np.bincount(wanted["exit"], minlength=len(early.exit_names)) / len(images)
    accuracy = np.mean(wanted["logits"].argmax(-1) == labels)
    left = ", ".join(f"{name} {share:.0%}" for name, share in zip(early.exit_names, shares, strict=True))
    print(f"{len(images)} test images, accuracy {accuracy:.3f}; they leave at {left}")

    calibration = np.concatenate([batch for batch, _ in splits.calibration.as_numpy_iterator()])
    quantized = {"quantize": args.quantize, "representative_data": calibration[:100]} if args.quantize else {}
    print(f"\n{'format':16}{'size':>10}{'same exit':>11}{'same class':>12}{'accuracy':>10}{'time':>10}")
    for format, program, options in (
        ("tf_saved_model", SERVER, {}),
        ("litert", DEVICE, quantized),
        ("onnx", DEVICE, {}),
    ):
        folder = pathlib.Path(args.folder, format).absolute()
        early.export(folder, format, **options)
        found = run_elsewhere(program, folder, images)
        if format != "tf_saved_model":
            assert not {"tensorflow", "keras", "keras_exitens"} & {*found["modules"]}
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        classes = found["logits"].argmax(-1)
        print(
            f"{format:16}{size / 1e6:7.2f} MB{np.mean(found['exit'] == wanted['exit']):11.2%}"
            f"{np.mean(classes == wanted['logits'].argmax(-1)):12.2%}{np.mean(classes == labels):10.3f}"
            f"{float(found['seconds']) * 1e3:7.1f} ms"
        )


if __name__ == "__main__":
    main()

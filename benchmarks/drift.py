"""Does the drift monitor keep its word? False alarms, and how soon changes are seen, on Fashion-MNIST.

    python benchmarks/drift.py

A small network with three exits is trained, and calibrated on calibration images, as in `examples/`. Streams
are test images, drawn without replacement. Without a change: the share of streams with an alarm, by the
records that the thresholds were chosen on and by other ones (validation images). With a change from the first
image on: how many images it takes, median and the slowest of all streams.
"""

import argparse
import json
import os
import pathlib
import statistics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_exitens as kx

RESULTS = pathlib.Path(__file__).parent / "results" / "drift.json"
ALPHA = 0.05
LENGTH = 4000  # images in a stream


def network(epochs, limit):
    splits = kx.data.load("fashion_mnist", batch_size=64, augment=None, train_limit=limit, seed=0)
    backbone = kx.applications.ResNet18(input_shape=splits.input_shape, classes=splits.classes, width=0.25)
    model = kx.add_exits(backbone, 3)
    distiller = kx.ExitEnsembleDistiller(model)
    rate = keras.optimizers.schedules.CosineDecay(0.05, epochs * splits.steps_per_epoch)
    distiller.compile(kx.optimizers.SGD(rate, momentum=0.9), metrics=["accuracy"])
    distiller.fit(splits.train, epochs=epochs, steps_per_epoch=splits.steps_per_epoch, verbose=2)
    return model, splits


def changes(images, rng):
    """Test images, changed: name to array. Images are normalised."""
    low = images.min()
    return {
        "brightness × 0.8": (images - low) * 0.8 + low,
        "brightness × 0.5": (images - low) * 0.5 + low,
        "noise of 0.2 standard deviations": images + rng.normal(0, 0.2, images.shape).astype("float32"),
        "noise of 0.5 standard deviations": images + rng.normal(0, 0.5, images.shape).astype("float32"),
    }


def first_alarm(reference, policy, outputs, rows, seed):
    """The image at which the alarm comes, or `None`."""
    monitor = kx.DriftMonitor(reference, policy, alpha=ALPHA, seed=seed)
    return monitor.update({key: outputs[key][rows] for key in ("exit", "score")}).alarm_row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--train-limit", type=int, default=12000)
    parser.add_argument("--streams", type=int, default=200, help="without a change; a tenth of it with each")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()
    keras.utils.set_random_seed(0)
    model, splits = network(args.epochs, args.train_limit)
    records = kx.collect(model, splits.calibration)
    others = kx.collect(model, splits.validation)
    policy = kx.calibrate(records, kx.cost(model), max_accuracy_drop=0.01)
    images, labels = (np.concatenate(part) for part in zip(*splits.test, strict=True))
    rng = np.random.default_rng(0)

    def outputs(pixels):
        found = policy.simulate(kx.collect(model, (pixels, labels), batch_size=256).logits)
        return {key: np.asarray(found[key]) for key in ("exit", "score", "logits")}

    usual = outputs(images)
    accuracy = float((usual["logits"].argmax(-1) == labels).mean())
    report = {
        "alpha": ALPHA,
        "images in a stream": LENGTH,
        "images of the reference": [len(records), len(others)],
        "shares of exits": (np.bincount(usual["exit"], minlength=4) / len(labels)).tolist(),
        "accuracy": accuracy,
        "false alarms": {},
        "changes": {},
    }
    for name, reference in (("the records of the thresholds", records), ("other records", others)):
        alarms = [
            first_alarm(reference, policy, usual, rng.permutation(len(labels))[:LENGTH], seed) is not None
            for seed in range(args.streams)
        ]
        report["false alarms"][name] = float(np.mean(alarms))
    streams = {name: (outputs(pixels), None) for name, pixels in changes(images, rng).items()}
    for share in (0.2, 0.4):
        weights = np.where(labels == 6, share, (1 - share) / 9)  # shirts, the hardest class, in place of 10%
        streams[f"class mix: {share:.0%} shirts in place of 10%"] = usual, weights / weights.sum()
    for name, (found, weights) in streams.items():
        rows = [
            first_alarm(
                records, policy, found, rng.choice(len(labels), LENGTH, replace=False, p=weights), seed
            )
            for seed in range(args.streams // 10)
        ]
        seen = [row for row in rows if row is not None]
        right = found["logits"].argmax(-1) == labels
        report["changes"][name] = {
            "accuracy": float(np.average(right, weights=weights)),
            "seen": f"{len(seen)} of {len(rows)}",
            "images until the alarm, median": statistics.median(seen) if seen else None,
            "at most": max(seen, default=None),
        }
    args.results.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(report, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()

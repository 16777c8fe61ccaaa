"""Chooses when to leave for three budgets, and checks the promise on images that chose nothing.

Trains a small multi-exit network (or takes the one of a run of examples/train.py), collects what its exits
say of the calibration images, and calibrates a policy for each budget: a drop in accuracy, a cost, and a drop
in accuracy that holds with 95% confidence. Each policy is then run, image by image, on the test images.
Written are a table, one page and one picture a budget, and the policies.

    python examples/calibrate.py
    python examples/calibrate.py --data fashion_mnist --train-limit 10000 --epochs 6 --width 0.125
    python examples/calibrate.py --run runs/my_run
"""

import argparse
import json
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import keras_exitens as kx


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="digits", help="data set (see keras_exitens.data.load)")
    parser.add_argument("--run", type=pathlib.Path, help="folder of a run of train.py, in place of training")
    parser.add_argument("--train-limit", type=int, help="train on so many images only")
    parser.add_argument("--calibration", type=float, default=0.3, help="share of the images to calibrate on")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--exits", type=int, default=3)
    parser.add_argument("--width", type=float, default=0.25, help="width factor of the ResNet18")
    parser.add_argument("--policy", default="max_probability")
    parser.add_argument("--drop", type=float, default=0.01, help="accuracy that may be lost")
    parser.add_argument("--cost", type=float, default=0.5, help="fraction of the full cost")
    parser.add_argument("--certified-drop", type=float, default=0.03)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/calibrate"))
    args = parser.parse_args()
    if args.run:
        own = ("data", "train_limit", "calibration", "epochs", "exits", "width")
        given = [
            f"--{name.replace('_', '-')}" for name in own if vars(args)[name] != parser.get_default(name)
        ]
        if given:
            parser.error(
                f"a run brings its data set, its parts and its network: leave out {', '.join(given)}"
            )
    return args


def take_up(folder):
    """The images of a run of train.py, cut as they were for it, and its best distiller."""
    config, best = folder / "config.json", folder / "best.keras"
    if not (config.exists() and best.exists()):
        sys.exit(f"{folder} holds no run of examples/train.py that has finished an epoch: {best} is missing")
    settings = json.loads(config.read_text())
    keys = ("train_limit", "data_dir", "seed")
    # The shares are those of train.py: a larger one would take in images that trained the network.
    splits = kx.data.load(settings["data"], 64, **{key: settings[key] for key in keys})
    return splits, keras.models.load_model(best)


def train(args, splits):
    keras.utils.set_random_seed(args.seed)
    backbone = kx.applications.ResNet18(
        input_shape=splits.input_shape, classes=splits.classes, width=args.width
    )
    distiller = kx.ExitEnsembleDistiller(kx.add_exits(backbone, args.exits))
    schedule = keras.optimizers.schedules.CosineDecay(0.05, args.epochs * splits.steps_per_epoch)
    distiller.compile(keras.optimizers.SGD(schedule, momentum=0.9), metrics=["accuracy"])
    distiller.fit(**splits.fit_arguments(args.epochs), verbose=2)
    return distiller


def main():
    args = parse()
    if args.run:
        splits, distiller = take_up(args.run)
    else:
        parts = {"train_limit": args.train_limit, "calibration": args.calibration}
        splits = kx.data.load(args.data, 64, **parts, seed=args.seed)
        distiller = train(args, splits)
    args.folder.mkdir(parents=True, exist_ok=True)
    model = distiller.model
    cost = kx.cost(model)
    calibration = kx.collect(model, splits.calibration)
    calibration.save(args.folder / "calibration.npz")
    test = kx.collect(model, splits.test)
    images = np.concatenate([x for x, _ in splits.test])

    budgets = {
        f"at most {args.drop:.1%} less accurate": {"max_accuracy_drop": args.drop},
        f"at most {args.cost:.0%} of the cost": {"cost_budget": args.cost},
        f"{args.certified_drop:.1%} less, 95% certain": {
            "max_accuracy_drop": args.certified_drop,
            "confidence": 0.95,
        },
    }
    print(f"\n{cost}\n\nMeasured on {len(test):,} test images by running EarlyExit:")
    print(
        f"{'budget':32}{'multiply-adds':>15}{'accuracy':>10}{'drop':>8}   shares of {', '.join(test.names)}"
    )
    report = {}
    for number, (name, budget) in enumerate(budgets.items(), 1):
        policy = kx.calibrate(calibration, cost, policy=args.policy, seed=args.seed, **budget)
        found = kx.EarlyExit(model, policy).benchmark(splits.test)
        share, drop = found.multiply_adds / found.full_multiply_adds, found.full_accuracy - found.accuracy
        cells = f"{share:15.1%}{found.accuracy:10.2%}{drop:8.2%}"
        print(f"{name:32}{cells}   {', '.join(f'{s:.0%}' for s in found.shares)}")
        curve = kx.tradeoff(test, cost, args.policy, chosen_on=calibration, chosen=policy)
        curve.plot().savefig(args.folder / f"budget_{number}.png", dpi=130)
        curve.to_html(args.folder / f"budget_{number}.html", images=images, title=f"{splits.name}: {name}")
        report[name] = {
            "calibration": policy.calibration.to_dict(),
            "test": {"multiply_adds": share, "accuracy": found.accuracy, "accuracy_drop": drop},
            "policy": keras.saving.serialize_keras_object(policy),
        }
    (args.folder / "policies.json").write_text(json.dumps(report, indent=1))
    print(f"\nPages, pictures and policies: {args.folder}")


if __name__ == "__main__":
    main()

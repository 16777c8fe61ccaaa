"""Trains a multi-exit network by the paper's recipe, and writes everything about the run into one folder.

The defaults are the recipe of arXiv 2104.00299: SGD with momentum 0.9 and L2 weight decay 5e-4, learning rate
0.1 divided by ten after 75, 130 and 180 of 200 epochs (scaled to --epochs), batches of 128, padded crops and
flips. A run that was stopped goes on with --resume, at the step of its last backup.

    python examples/train.py --data cifar100                    # the paper's 200 epochs: for a GPU
    python examples/train.py --width 0.125 --epochs 8 --drops 0.5 0.8 --run runs/my_run   # minutes on a CPU
    python examples/train.py --run runs/my_run --resume         # goes on with that one
    python examples/train.py --width 0.125 --epochs 8 --drops 0.5 0.8 --objective none    # without exits

The folder holds config.json, history.csv, best.keras (by validation accuracy of the final exit), last.keras,
test.json, tensorboard/ and backup, for --resume.
"""

import argparse
import csv
import json
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras

import keras_exitens as kx
from keras_exitens import objectives

OBJECTIVES = {
    "eed": lambda: objectives.EED("mse"),
    "eed-kl": lambda: objectives.EED("kl"),
    "beed": objectives.BEED,
    "dbt": objectives.DBT,
    "dbt-annealed": lambda: objectives.DBT(temperature="annealed"),
    "byot": objectives.BYOT,
    "cross-entropy": objectives.CrossEntropy,
    "none": objectives.CrossEntropy,  # no early exits: the network alone
}
MONITOR = "val_final_accuracy"


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="fashion_mnist", help="data set (see keras_exitens.data.load)")
    parser.add_argument("--data-dir", help="folder of the data set")
    parser.add_argument("--train-limit", type=int, help="train on so many images only")
    parser.add_argument("--network", default="ResNet18", choices=kx.applications.__all__)
    parser.add_argument("--width", type=float, default=1.0, help="width factor of the network")
    parser.add_argument("--exits", type=int, default=3)
    parser.add_argument("--placement", default="stage", choices=("compute", "stage"))
    parser.add_argument(
        "--head", default="conv", choices=("light", "conv", "bottleneck", "separable", "linear")
    )
    parser.add_argument("--objective", default="eed", choices=OBJECTIVES)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=5e-4, help="as L2 in the gradient")
    parser.add_argument(
        "--drops",
        type=float,
        nargs="*",
        default=[75 / 200, 130 / 200, 180 / 200],
        help="fractions of the epochs after which the learning rate is divided by ten",
    )
    parser.add_argument(
        "--precision", default="float32", choices=("float32", "mixed_bfloat16", "mixed_float16")
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--run", type=pathlib.Path, help="folder of the run; by default made from the settings"
    )
    parser.add_argument("--backup-every", type=int, default=200, help="steps between backups in an epoch")
    parser.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    args = parser.parse_args(arguments)
    args.given = {k for k, v in vars(args).items() if v != parser.get_default(k)}
    if args.run is None:
        name = f"{args.data}-{args.network}-{args.width:g}-{args.objective}-{args.seed}"
        args.run = pathlib.Path("runs") / name
    return args


class Run:
    """The folder of one run."""

    def __init__(self, args):
        self.folder = args.run
        self.config = self.folder / "config.json"
        self.history = self.folder / "history.csv"
        self.best = self.folder / "best.keras"
        self.last = self.folder / "last.keras"
        self.backup = self.folder / "backup"
        self.test = self.folder / "test.json"
        self.tensorboard = self.folder / "tensorboard"

    def open(self, args):
        """Makes the folder, or takes up the one that is there; returns the settings to train with."""
        settings = {k: v for k, v in vars(args).items() if k not in ("run", "resume", "given")}
        if self.config.exists():
            if not args.resume:
                sys.exit(
                    f"{self.folder} holds a run already: pass --resume to go on with it, or another --run"
                )
            stored = json.loads(self.config.read_text())
            other = [k for k in args.given if k in settings and stored[k] != settings[k]]
            if other:
                said = ", ".join(f"{k}={settings[k]} (the run has {stored[k]})" for k in other)
                sys.exit(f"A resumed run keeps its settings; leave out: {said}")
            return argparse.Namespace(**stored)
        if args.resume:
            sys.exit(
                f"{self.folder} holds no run to resume: {self.config} is missing. Start without --resume"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.config.write_text(json.dumps(settings, indent=1))
        except OSError as cause:
            sys.exit(f"The run folder {self.folder} cannot be written ({cause.strerror}): pass another --run")
        return args

    def keep_history(self, epochs):
        """Cuts the history to the epochs that the last backup has seen the end of."""
        if not self.history.exists():
            return
        with open(self.history, newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["epoch"]) < epochs]
        if not rows:
            self.history.unlink()
            return
        with open(self.history, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


def make_distiller(args, splits):
    build = getattr(kx.applications, args.network)
    backbone = build(input_shape=splits.input_shape, classes=splits.classes, width=args.width)
    exits = 0 if args.objective == "none" else args.exits
    model = kx.add_exits(backbone, exits, placement=args.placement, head=args.head)
    distiller = kx.ExitEnsembleDistiller(model, OBJECTIVES[args.objective]())
    steps = args.epochs * splits.steps_per_epoch
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [round(steps * drop) for drop in args.drops],
        [args.learning_rate / 10**i for i in range(len(args.drops) + 1)],
    )
    optimizer = kx.optimizers.SGD(schedule, momentum=0.9, l2=args.weight_decay)
    distiller.compile(optimizer, metrics=["accuracy"])
    return distiller


def main(arguments=None):
    args = parse(arguments)
    run = Run(args)
    args = run.open(args)
    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy(args.precision)
    splits = kx.data.load(
        args.data, args.batch, data_dir=args.data_dir, train_limit=args.train_limit, seed=args.seed
    )
    distiller = make_distiller(args, splits)
    print(f"{args.network}: multiply-adds an image\n{kx.cost(distiller.model)}")
    backup = kx.callbacks.StepBackup(run.backup, every=args.backup_every)
    done = backup.restore(distiller)
    epoch, step = divmod(done, splits.steps_per_epoch)
    if done:
        print(f"resuming {run.folder} after epoch {epoch} and {step} steps, of {args.epochs} epochs")
    run.keep_history(epoch)

    distiller.fit(
        **splits.fit_arguments(args.epochs, start=done),
        verbose=2,
        callbacks=[
            keras.callbacks.ModelCheckpoint(run.best, MONITOR, save_best_only=True),
            keras.callbacks.CSVLogger(run.history, append=True),
            keras.callbacks.TensorBoard(run.tensorboard),
            backup,
        ],
    )
    distiller.save(run.last)

    # The test images are looked at once, here; the best epoch was chosen on the validation images.
    results = {}
    for name, path in (("best by validation", run.best), ("last", run.last)):
        logs = keras.models.load_model(path).evaluate(splits.test, verbose=0, return_dict=True)
        results[name] = {k.removesuffix("_accuracy"): v for k, v in logs.items() if k.endswith("_accuracy")}
    run.test.write_text(json.dumps(results, indent=1))
    print("\nTest accuracy")
    for name, accuracy in results.items():
        print(f"  {name:20}" + "".join(f"  {exit_name} {value:.4f}" for exit_name, value in accuracy.items()))
    print(f"\nEverything about this run: {run.folder}")


if __name__ == "__main__":
    main()

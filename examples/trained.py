"""Early exit for a network that is trained already, in three ways: which keeps most of its accuracy?

- frozen: not a bit of the network changes; its exits learn from the labels.
- taught: the same, and the exits learn from what the network says, too (`DBT`).
- joint: the network goes on learning with its exits.

Each way starts from the same file. Without --network a small one is trained first and kept in the folder.

    python examples/trained.py --data fashion_mnist --train-limit 6000
    python examples/trained.py --data fashion_mnist --network my.keras --ways frozen
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras

import keras_exitens as kx

WAYS = {
    "frozen": (False, kx.objectives.CrossEntropy()),
    "taught": (False, kx.objectives.DBT()),
    "joint": (True, None),  # the default: all exits teach each other
}


def optimizer(rate, epochs, splits):
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * splits.steps_per_epoch)
    return keras.optimizers.SGD(schedule, momentum=0.9)


def train_backbone(splits, args, path):
    """A plain network, trained and saved as a user's own would be."""
    backbone = kx.applications.ResNet18(
        input_shape=splits.input_shape, classes=splits.classes, width=args.width, name="backbone"
    )
    backbone.compile(
        optimizer(args.rate, args.epochs, splits), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    backbone.fit(**splits.fit_arguments(args.epochs), validation_freq=args.epochs, verbose=2)
    backbone.save(path)


def with_exits(way, path, splits, args):
    """The network in the file with trained exits, as a distiller."""
    keras.utils.set_random_seed(args.seed)
    trainable, objective = WAYS[way]
    backbone = keras.models.load_model(path)
    backbone.trainable = trainable
    model = kx.add_exits(backbone, args.exits)
    distiller = kx.ExitEnsembleDistiller(model, objective)
    distiller.compile(optimizer(args.rate, args.exit_epochs, splits), metrics=["accuracy"])
    # Validated once: the validation part is as large for a small training part as for all of it.
    arguments = splits.fit_arguments(args.exit_epochs)
    distiller.fit(**arguments, validation_freq=args.exit_epochs, verbose=2)
    return distiller


def result(way, distiller, splits, drop):
    """One row of the table: test accuracy at each exit, and of early exit within the budget."""
    model = distiller.model
    records = kx.collect(model, splits.calibration, verbose=0)
    tested = distiller.evaluate(splits.test, verbose=0, return_dict=True)
    cost = kx.cost(model)
    policy = kx.calibrate(records, cost, max_accuracy_drop=drop)
    found = kx.EarlyExit(model, policy).benchmark(splits.test)
    exits = " / ".join(f"{tested[f'{name}_accuracy']:.1%}" for name in kx.exit_names(model))
    return (
        f"| {way} | {exits} | {found.accuracy:.1%} | {found.multiply_adds / cost.backbone:.0%} | "
        f"{found.full_seconds / found.seconds:.2f} |"
    )


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="digits", help="name of a data set (default: digits)")
    parser.add_argument("--data-dir", help="folder of the data set")
    parser.add_argument("--train-limit", type=int, help="train on so many images only")
    parser.add_argument("--network", type=pathlib.Path, help="a trained .keras file")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--width", type=float, default=0.25, help="width factor of the ResNet18")
    parser.add_argument("--epochs", type=int, default=20, help="of the network")
    parser.add_argument("--exit-epochs", type=int, default=10, help="of the exits")
    parser.add_argument("--rate", type=float, default=0.05, help="learning rate at the start; it falls to 0")
    parser.add_argument("--exits", type=int, default=3)
    parser.add_argument("--drop", type=float, default=0.01, help="of accuracy, that early exit may cost")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/trained"))
    return parser.parse_args()


def main():
    args = parse()
    splits = kx.data.load(
        args.data,
        batch_size=64,
        calibration=0.2,
        train_limit=args.train_limit,
        data_dir=args.data_dir,
        seed=args.seed,
    )
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.network or args.folder / "backbone.keras"
    if not path.exists():
        if args.network:
            raise SystemExit(
                f"{path} does not exist. Save a trained network there: model.save({str(path)!r})"
            )
        keras.utils.set_random_seed(args.seed)
        train_backbone(splits, args, path)
    rows = []
    for way in args.ways:
        distiller = with_exits(way, path, splits, args)
        distiller.model.save(args.folder / f"{way}.keras")
        rows.append(result(way, distiller, splits, args.drop))
    plain = keras.models.load_model(path)
    plain.compile(metrics=["accuracy"], loss="sparse_categorical_crossentropy")
    before = plain.evaluate(splits.test, verbose=0, return_dict=True)["accuracy"]
    print(f"\nThe network as it came: {before:.1%} of {splits.sizes['test']:,} test images right\n")
    print(
        f"| way | right at each exit | early exit, {args.drop:.0%} budget | multiply-adds | times as fast |"
    )
    print("| --- | --- | --- | --- | --- |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()

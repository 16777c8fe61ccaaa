"""Searches where to put exits and how to train them, on real images, within a budget.

    python examples/tune.py --trials 10 --epochs 5
    python examples/tune.py --goal val_final_accuracy --tuner bayesian

The search is kept in --folder and goes on there when it is started again; with KERASTUNER_TUNER_ID,
KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT set, several processes share it (one of them the chief). The
trials are chosen on the validation images; the test images are looked at once, at the end.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import keras_tuner

import keras_exitens as kx

TUNERS = {
    "random": lambda space, goal, args, **o: keras_tuner.RandomSearch(
        space, goal, max_trials=args.trials, **o
    ),
    "bayesian": lambda space, goal, args, **o: keras_tuner.BayesianOptimization(
        space, goal, max_trials=args.trials, **o
    ),
    "grid": lambda space, goal, args, **o: keras_tuner.GridSearch(space, goal, max_trials=args.trials, **o),
    "hyperband": lambda space, goal, args, **o: keras_tuner.Hyperband(
        space, goal, max_epochs=args.epochs, **o
    ),
}


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="digits", help="data set (see keras_exitens.data.load)")
    parser.add_argument("--tuner", default="random", choices=TUNERS)
    parser.add_argument(
        "--goal",
        default="val_tradeoff",
        help="a logged metric of which more is better; val_tradeoff is the area under accuracy against cost",
    )
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=float, default=0.125, help="width factor of the ResNet18")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/tune"))
    return parser.parse_args(arguments)


def main(arguments=None):
    args = parse(arguments)
    keras.utils.set_random_seed(args.seed)
    splits = kx.data.load(args.data, args.batch, seed=args.seed)

    def backbone():
        build = kx.applications.ResNet18
        return build(input_shape=splits.input_shape, classes=splits.classes, width=args.width)

    tuner = TUNERS[args.tuner](
        kx.tuner.ExitHyperModel(backbone),
        keras_tuner.Objective(args.goal, "max"),
        args,
        seed=args.seed,
        directory=args.folder,
        project_name=f"{args.data}-{args.tuner}",
    )
    board = keras.callbacks.TensorBoard(args.folder / "tensorboard")  # with HParams, by KerasTuner
    tuner.search(**splits.fit_arguments(args.epochs), verbose=2, callbacks=[board])

    (trial,) = tuner.oracle.get_best_trials(1)
    (best,) = tuner.get_best_models(1)
    print(f"\nbest {args.goal}: {trial.score:.4f}")
    for name, value in trial.hyperparameters.values.items():
        print(f"  {name}: {value}")
    logs = best.evaluate(splits.test, verbose=0, return_dict=True)
    accuracy = {k.removesuffix("_accuracy"): v for k, v in logs.items() if k.endswith("_accuracy")}
    print("test accuracy", "  ".join(f"{name} {value:.4f}" for name, value in accuracy.items()))
    best.save(args.folder / "best.keras")


if __name__ == "__main__":
    main()

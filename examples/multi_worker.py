"""Trains one network on several machines: each of them runs this script with its own TF_CONFIG.

    TF_CONFIG='{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}' \\
        python examples/multi_worker.py --run /shared/run      # and "index": 1 on machine b

    python examples/multi_worker.py --local 2                  # or both on this machine, to try it

--batch is that of all workers together. The weights are those of one machine at that batch, but for batch
normalisation, whose statistics each worker takes from its own rows. When a worker dies, the others end with
an error; start all of them again with the same command, and they go on at the step of the last backup. --run
must be a folder that all of them see.
"""

import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--local", type=int, help="start so many workers on this machine")
    parser.add_argument("--data", default="digits", help="data set (see keras_exitens.data.load)")
    parser.add_argument("--data-dir", help="folder of the data set")
    parser.add_argument("--width", type=float, default=0.25, help="width factor of the ResNet18")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64, help="rows of a step, all workers together")
    parser.add_argument("--every", type=int, default=100, help="steps between backups")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=pathlib.Path, default=pathlib.Path("runs/multi_worker"))
    return parser.parse_args(arguments)


def start_local(workers):
    """Starts this script once for each worker, on free ports of this machine; returns the worst exit code."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(workers)]
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    processes = []
    for index in range(workers):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(task)}
        arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local")]
        if "--local" in sys.argv:
            arguments.remove(str(workers))
        processes.append(subprocess.Popen([sys.executable, __file__, *arguments], env=environment))
        print(f"worker {index}: process {processes[-1].pid}", flush=True)
    return max(abs(process.wait()) for process in processes)


def train(args):
    import keras
    import tensorflow as tf

    # Before anything else of TensorFlow: it opens the connections.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    chief = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0) == 0

    import keras_exitens as kx

    keras.utils.set_random_seed(args.seed)
    splits = kx.data.load(args.data, args.batch, data_dir=args.data_dir, seed=args.seed)
    with strategy.scope():
        build = kx.applications.ResNet18
        backbone = build(input_shape=splits.input_shape, classes=splits.classes, width=args.width)
        distiller = kx.ExitEnsembleDistiller(kx.add_exits(backbone, exits=3))
        distiller.compile(keras.optimizers.SGD(0.05, momentum=0.9), metrics=["accuracy"])
    backup = kx.callbacks.StepBackup(args.run / "backup", every=args.every)
    done = backup.restore(distiller)
    if chief:
        print(f"{strategy.num_replicas_in_sync} replicas, from step {done} on", flush=True)
    distiller.fit(
        **splits.fit_arguments(args.epochs, start=done), verbose=2 if chief else 0, callbacks=[backup]
    )
    results = distiller.evaluate(splits.test, verbose=0, return_dict=True)
    if chief:
        distiller.save(args.run / "last.keras")
        accuracy = {k.removesuffix("_accuracy"): v for k, v in results.items() if k.endswith("_accuracy")}
        print("test accuracy", "  ".join(f"{name} {value:.4f}" for name, value in accuracy.items()))


def main(arguments=None):
    args = parse(arguments)
    if args.local:
        sys.exit(start_local(args.local))
    train(args)


if __name__ == "__main__":
    main()

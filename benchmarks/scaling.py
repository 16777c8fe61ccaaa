"""How training scales: measured for one and two logical devices or workers, on paper for more.

    python benchmarks/scaling.py                        # 1 and 2 replicas, MirroredStrategy
    python benchmarks/scaling.py --workers              # 1 and 2 processes, MultiWorkerMirroredStrategy
    python benchmarks/scaling.py --paper                # 8 and 64 GPUs, from bytes and operations alone

All replicas share the cores of this machine, so two of them cannot be faster than one: what is measured is
what dividing a batch costs, the sums over replicas included. Each configuration runs in a process of its own,
in turns, --repeats times; the median and the range are printed.

--paper needs no measurement: a ring all-reduce moves 2 (n-1)/n times the bytes of the gradients, and compute
is 3 times the multiply-adds of the forward pass, two operations each. Latency and input are left out and
nothing overlaps: a rough guide, not a forecast.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workers", action="store_true", help="processes on loopback, not devices in one")
    parser.add_argument("--paper", action="store_true", help="print the model for 8 and 64 GPUs only")
    parser.add_argument("--batch", type=int, default=64, help="rows of a step, all replicas together")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--width", type=float, default=0.25, help="width factor of the ResNet18")
    parser.add_argument("--tflops", type=float, default=100.0, help="of a GPU, as the network reaches them")
    parser.add_argument("--bandwidth", type=float, default=25.0, help="GB/s between two GPUs of the ring")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # a single run of so many replicas
    return parser.parse_args(arguments)


def build(width):
    import keras_exitens as kx

    backbone = kx.applications.ResNet18(input_shape=(32, 32, 3), classes=100, width=width)
    return kx.add_exits(backbone, exits=3)


def one_run(args):
    """Trains and prints the seconds of a step, without the first ones."""
    import tensorflow as tf

    if args.workers:
        strategy = (
            tf.distribute.MultiWorkerMirroredStrategy() if args.one > 1 else tf.distribute.get_strategy()
        )
    else:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * args.one)
        devices = [f"CPU:{i}" for i in range(args.one)]
        strategy = tf.distribute.MirroredStrategy(devices) if args.one > 1 else tf.distribute.get_strategy()
    import keras

    import keras_exitens as kx

    class Clock(keras.callbacks.Callback):
        times = ()

        def on_train_batch_end(self, batch, logs=None):
            self.times = [*self.times, time.perf_counter()]

    with strategy.scope():
        distiller = kx.ExitEnsembleDistiller(build(args.width))
        distiller.compile(keras.optimizers.SGD(0.01, momentum=0.9))
    images = tf.random.stateless_uniform((args.batch, 32, 32, 3), (0, 0))
    labels = tf.random.stateless_uniform((args.batch,), (0, 1), 0, 100, tf.int32)
    data = tf.data.Dataset.from_tensors((images, labels)).unbatch().batch(args.batch).cache().repeat()
    clock, warm = Clock(), 5
    distiller.fit(data, steps_per_epoch=args.steps + warm, verbose=0, shuffle=False, callbacks=[clock])
    seconds = [b - a for a, b in zip(clock.times[warm - 1 :], clock.times[warm:], strict=False)]
    print(json.dumps(statistics.median(seconds)))


def measure(args, replicas):
    """Seconds of a step of one run of so many replicas."""
    options = ["--batch", args.batch, "--steps", args.steps, "--width", args.width, "--one", replicas]
    command = [sys.executable, __file__, *map(str, options)] + ["--workers"] * args.workers
    count = replicas if args.workers else 1
    environments = [dict(os.environ) for _ in range(count)]
    if count > 1:
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
        for s in sockets:
            s.close()
        for index, environment in enumerate(environments):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            environment["TF_CONFIG"] = json.dumps(task)
    processes = [
        subprocess.Popen(command, env=e, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for e in environments
    ]
    outputs = [process.communicate()[0] for process in processes]
    return max(json.loads(output.splitlines()[-1]) for output in outputs)


def paper(args):
    """Bytes against operations, for one GPU's share of a batch of `args.batch` rows a GPU."""
    import keras_exitens as kx

    model = build(args.width)
    network = kx.cost(model)
    gradients = 4 * sum(w.shape.num_elements() for w in (v.value for v in model.trainable_variables))
    operations = 2 * 3 * network.cumulative[-1] * args.batch
    compute = operations / (args.tflops * 1e12)
    print(f"{gradients / 1e6:.1f} MB of gradients a step, {operations / 1e9:.1f} Gflop a GPU and step")
    print(f"{'GPUs':>6}{'sent, MB':>12}{'sum, ms':>12}{'compute, ms':>14}{'efficiency':>12}")
    for gpus in (8, 64):
        sent = 2 * (gpus - 1) / gpus * gradients
        seconds = sent / (args.bandwidth * 1e9)
        efficiency = compute / (compute + seconds)
        print(f"{gpus:>6}{sent / 1e6:>12.1f}{1e3 * seconds:>12.3f}{1e3 * compute:>14.3f}{efficiency:>12.2f}")


def main(arguments=None):
    args = parse(arguments)
    if args.one:
        return one_run(args)
    if args.paper:
        return paper(args)
    seconds = {1: [], 2: []}
    for _ in range(args.repeats):
        for replicas, values in seconds.items():
            values.append(measure(args, replicas))
    what = "workers" if args.workers else "logical devices"
    for replicas, values in seconds.items():
        middle = statistics.median(values)
        print(
            f"{replicas} {what}: {args.batch / middle:.0f} images/s, {1e3 * middle:.1f} ms a step "
            f"({1e3 * min(values):.1f} to {1e3 * max(values):.1f} in {len(values)} runs)"
        )
    ratios = [two / one for one, two in zip(*seconds.values(), strict=True)]
    print(
        f"a step on two takes {statistics.median(ratios):.2f} times that on one "
        f"({min(ratios):.2f} to {max(ratios):.2f}): the cost of dividing and summing on the same cores"
    )
    return None


if __name__ == "__main__":
    main()

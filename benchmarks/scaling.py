"""How training scales: measured for one and two logical devices and workers, on paper for 8 and 64 GPUs.

    python benchmarks/scaling.py                # goes on from its JSON file until it has --rounds rounds
    python benchmarks/scaling.py --paper        # 8 and 64 GPUs, from bytes and operations alone

Every replica gets --batch rows a step. Logical devices (MirroredStrategy) share all cores of the machine:
what is seen is what dividing and summing costs, and two win only where one leaves cores idle. Workers (two
processes on loopback, MultiWorkerMirroredStrategy) get one core each, and one worker has one core too: there
two can be twice as fast. Beside whole steps of `fit` the communication alone is timed, in the same processes:
an all-reduce of tensors of the shapes of all gradients, made as the optimizer makes it. Each configuration
runs in processes of its own, in turns; medians and ranges over the rounds.

On paper: a ring all-reduce of b bytes between n GPUs takes 2 (n − 1) (latency + b / n / bandwidth); compute
is three times the multiply-adds of the forward pass, two operations each. Nothing overlaps and input is free:
a rough guide, not a forecast. The assumptions are arguments, and stand in the JSON file.
"""

import argparse
import json
import os
import pathlib
import platform
import socket
import statistics
import subprocess
import sys
import time

from kept import keep, stored

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

RESULTS = pathlib.Path(__file__).parent / "results"
KINDS = {"logical devices": "on the same cores", "workers": "on a core each"}
WARM = 5
# Network -> (width, input shape, rows a GPU), for the model on paper.
PAPER = {
    "ResNet18, 32 × 32": ("ResNet18", (32, 32, 3), 128),
    "ResNet18, 224 × 224": ("ResNet18", (224, 224, 3), 64),
}


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--paper", action="store_true", help="the model for 8 and 64 GPUs only")
    parser.add_argument("--batch", type=int, default=32, help="rows of a step, each replica")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=60, help="begin no further run after these")
    parser.add_argument("--width", type=float, default=0.25, help="width factor of the ResNet18")
    parser.add_argument("--json", type=pathlib.Path, default=RESULTS / "scaling.json")
    paper = parser.add_argument_group("assumptions of the model on paper")
    paper.add_argument("--tflops", type=float, default=50.0, help="of a GPU, as the network reaches them")
    paper.add_argument("--bandwidth-8", type=float, default=200.0, help="GB/s of the ring, one machine")
    paper.add_argument("--bandwidth-64", type=float, default=25.0, help="GB/s of the ring, eight machines")
    paper.add_argument("--latency", type=float, default=10.0, help="microseconds of one hop")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # a single run: kind and replicas
    return parser.parse_args(arguments)


def build(width, name="ResNet18", input_shape=(32, 32, 3)):
    import keras_exitens as kx

    make = getattr(kx.applications, name)
    return kx.add_exits(make(input_shape=input_shape, classes=100, width=width), exits=3)


# One run, in a process of its own ---------------------------------------------------------------------


def make_strategy(kind, replicas):
    import tensorflow as tf

    if replicas == 1:
        return tf.distribute.get_strategy()
    if kind == "workers":
        return tf.distribute.MultiWorkerMirroredStrategy()
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])


def seconds_of_sums(strategy, variables, times):
    """Median seconds of one all-reduce of tensors of the shapes of `variables`."""
    import tensorflow as tf

    @tf.function
    def summed():
        def of_one():
            tensors = [tf.ones(v.shape, v.dtype) for v in variables]
            context = tf.distribute.get_replica_context()
            sums = context.all_reduce(tf.distribute.ReduceOp.SUM, tensors)
            return tf.add_n([tf.reshape(s, (-1,))[0] for s in sums])  # so that all of them are computed

        return strategy.run(of_one)

    seconds = []
    for _ in range(WARM + times):
        start = time.perf_counter()
        found = strategy.experimental_local_results(summed())[0].numpy()
        seconds.append(time.perf_counter() - start)
    assert found == len(variables) * strategy.num_replicas_in_sync
    return statistics.median(seconds[WARM:])


def one_run(args):
    """Trains and prints the seconds of a step and of the sums in it."""
    kind, replicas = args.one[0], int(args.one[1])
    if kind == "workers" and len(cores := sorted(os.sched_getaffinity(0))) > 1:
        task = json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))["task"]["index"]
        os.sched_setaffinity(0, {cores[task % len(cores)]})
    strategy = make_strategy(kind, replicas)  # first of all: it opens the connections
    import keras
    import tensorflow as tf

    import keras_exitens as kx

    class Clock(keras.callbacks.Callback):
        times = ()

        def on_train_batch_end(self, batch, logs=None):
            self.times = [*self.times, time.perf_counter()]

    with strategy.scope():
        distiller = kx.ExitEnsembleDistiller(build(args.width))
        distiller.compile(keras.optimizers.SGD(0.01, momentum=0.9))
    rows = args.batch * replicas
    images = tf.random.stateless_uniform((rows, 32, 32, 3), (0, 0))
    labels = tf.random.stateless_uniform((rows,), (0, 1), 0, 100, tf.int32)
    data = tf.data.Dataset.from_tensors((images, labels)).unbatch().batch(rows).cache().repeat()
    clock = Clock()
    distiller.fit(data, steps_per_epoch=args.steps + WARM, verbose=0, shuffle=False, callbacks=[clock])
    steps = [b - a for a, b in zip(clock.times[WARM - 1 :], clock.times[WARM:], strict=False)]
    variables = distiller.trainable_variables
    sums = seconds_of_sums(strategy, variables, args.steps) if replicas > 1 else 0.0
    sizes = [4 * v.value.shape.num_elements() for v in variables]
    print(json.dumps({"step": statistics.median(steps), "sums": sums, "bytes": sum(sizes)}))


def measure(args, kind, replicas):
    """One run of so many replicas; of workers the slower one counts."""
    options = ["--batch", args.batch, "--steps", args.steps, "--width", args.width, "--one", kind, replicas]
    command = [sys.executable, __file__, *map(str, options)]
    environments = [dict(os.environ) for _ in range(replicas if kind == "workers" else 1)]
    if len(environments) > 1:
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in environments]
        addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
        for s in sockets:
            s.close()
        for index, environment in enumerate(environments):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            environment["TF_CONFIG"] = json.dumps(task)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=e, **pipes) for e in environments]
    try:
        outputs = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        if process.returncode:
            sys.exit(f"A run of {replicas} {kind} failed:\n{errors[-3000:]}")
    found = [json.loads(output.splitlines()[-1]) for output, _ in outputs]
    return max(found, key=lambda one: one["step"])


# All runs ------------------------------------------------------------------------------------------


def settings(args):
    names = ("batch", "steps", "width")
    return {"machine": platform.machine(), "cores": os.cpu_count(), **{n: getattr(args, n) for n in names}}


def span(values, scale=1.0, digits=1):
    middle, low, high = (
        f"{scale * value:.{digits}f}" for value in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({low} to {high})"


def report(args, runs):
    for kind, where in KINDS.items():
        one, two = ([run["step"] for run in runs[f"{n} {kind}"]] for n in (1, 2))
        rounds = min(len(one), len(two))
        if not rounds:
            continue
        print(f"\n{kind}, {args.batch} rows a step each, {rounds} rounds")
        for n, values in ((1, one), (2, two)):
            speed = [n * args.batch / value for value in values]
            print(f"  {n}: {span(speed, digits=0)} images/s; a step {span(values, 1e3)} ms")
        sums = [run["sums"] for run in runs[f"2 {kind}"]]
        size = runs[f"2 {kind}"][0]["bytes"]
        share = [run["sums"] / run["step"] for run in runs[f"2 {kind}"]]
        print(
            f"  communication: {size / 1e6:.2f} MB of gradients summed in {span(sums, 1e3)} ms, "
            f"{span(share, 100)} % of a step"
        )
        gains = [2 * a / b for a, b in zip(one, two, strict=False)]
        print(f"  throughput of two beside one, {where}: {span(gains, digits=2)}")


def paper(args):
    """Bytes against operations, for one step of each network."""
    import keras_exitens as kx

    rows = []
    for label, (name, shape, batch) in PAPER.items():
        model = build(1.0, name, shape)
        network = kx.cost(model)
        # Gradients, and the moving statistics of batch normalisation, which are averaged too.
        size = 4 * sum(v.value.shape.num_elements() for v in model.variables if "seed" not in v.path)
        operations = 2 * 3 * network.cumulative[-1] * batch
        compute = operations / (args.tflops * 1e12)
        print(
            f"\n{label}, three exits, {batch} rows a GPU: {size / 1e6:.1f} MB summed and "
            f"{operations / 1e12:.2f} Tflop a step"
        )
        print(f"{'GPUs':>6}{'sent, MB':>12}{'sums, ms':>12}{'compute, ms':>14}{'efficiency':>12}")
        for gpus, bandwidth in ((8, args.bandwidth_8), (64, args.bandwidth_64)):
            sent = 2 * (gpus - 1) / gpus * size
            sums = sent / (bandwidth * 1e9) + 2 * (gpus - 1) * args.latency * 1e-6
            efficiency = compute / (compute + sums)
            print(f"{gpus:>6}{sent / 1e6:>12.1f}{1e3 * sums:>12.3f}{1e3 * compute:>14.3f}{efficiency:>12.2f}")
            rows.append(
                {
                    "network": label,
                    "rows_a_gpu": batch,
                    "gpus": gpus,
                    "bytes_summed": size,
                    "bytes_sent_by_each": sent,
                    "operations": operations,
                    "sums_seconds": sums,
                    "compute_seconds": compute,
                    "efficiency": efficiency,
                }
            )
    names = ("tflops", "bandwidth_8", "bandwidth_64", "latency")
    return {"assumptions": {name: getattr(args, name) for name in names}, "rows": rows}


def main(arguments=None):
    args = parse(arguments)
    if args.one:
        return one_run(args)
    none = {f"{n} {kind}": [] for kind in KINDS for n in (1, 2)}
    found = stored(args.json, {"settings": settings(args), "runs": none})
    end = time.monotonic() + 60 * args.minutes
    if not args.paper:
        for done in range(args.rounds):
            for name, runs in found["runs"].items():
                if len(runs) > done or time.monotonic() > end:
                    continue
                replicas, kind = name.split(" ", 1)
                runs.append(measure(args, kind, int(replicas)))
                keep(args.json, found)
                print(f"{name}: {runs[-1]}", flush=True)
    report(args, found["runs"])
    found["paper"] = paper(args)
    keep(args.json, found)
    return None


if __name__ == "__main__":
    main()

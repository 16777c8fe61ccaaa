"""TensorFlow, JAX and PyTorch beside each other: one training step, and early exit beside its ideal.

    make backends                              # the environments of JAX and PyTorch
    python benchmarks/backend_speed.py         # all of it, some ten minutes
    python benchmarks/backend_speed.py --parts routing --backends jax --batches 64

Each backend runs in a process of its own, two threads each; the rounds go through all of them in turns, while
the others wait. Half precision pays on processors that have it (AVX512-BF16, AMX): elsewhere `--policies
mixed_bfloat16` takes minutes a step. "Ideal" is each stage alone, compiled, on just the rows that reach it.
"""

import argparse
import contextlib
import os
import pathlib
import statistics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from measuring import Worker, keeper, ratio

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = pathlib.Path(__file__).parent / "results" / "backend_speed.json"
BACKENDS = {"tensorflow": ".venv", "jax": ".venv-jax", "torch": ".venv-torch"}
POLICIES = ("float32", "mixed_bfloat16")


def worker(backend):
    os.environ["KERAS_BACKEND"] = backend
    python = ROOT / BACKENDS[backend] / "bin" / "python"
    return Worker(python, pathlib.Path(__file__).with_name("backend_worker.py"))


def steps(backends, policy, rounds, width, batch):
    """Milliseconds of a training step by backend, and the ratios to TensorFlow's."""
    times = {backend: [] for backend in backends}
    with contextlib.ExitStack() as stack:
        workers = {backend: stack.enter_context(worker(backend)) for backend in backends}
        for number in range(rounds + 1):
            for backend in backends:
                asked = {"what": "step", "policy": policy, "batch": batch, "width": width, "steps": 3}
                seconds = workers[backend].ask(**asked)
                if number:
                    times[backend].append(seconds)
    report = {}
    for backend, seconds in times.items():
        report[f"{backend}, milliseconds"] = statistics.median(seconds) * 1e3
        if backend != "tensorflow" and "tensorflow" in backends:
            report[f"tensorflow / {backend}"] = ratio(times["tensorflow"], seconds)
    return report


def routing(backend, batch, rounds, width):
    with worker(backend) as process:
        found = process.ask(what="routing", batch=batch, width=width, rounds=rounds)
    return {
        "rows that reach each stage": found["reached"],
        "milliseconds": statistics.median(found["routed"]) * 1e3,
        "ideal / routed": ratio(found["ideal"], found["routed"]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("step", "routing"), default=["step", "routing"])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64, 128], help="of early exit")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=["float32"])
    parser.add_argument("--width", type=float, default=0.5, help="width factor of the ResNet18")
    parser.add_argument("--batch", type=int, default=128, help="of the training step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="measure what is in the results already")
    args = parser.parse_args()
    _, measure = keeper(args.results, args.again, rounds=args.rounds)
    if "step" in args.parts:
        for policy in args.policies:
            key = f"step of ResNet18 width {args.width}, batch {args.batch}, {policy}"
            measure(key, lambda p=policy: steps(args.backends, p, args.rounds, args.width, args.batch))
    if "routing" in args.parts:
        for backend in args.backends:
            for batch in args.batches:
                key = f"routing on {backend}, batch {batch}"
                measure(key, lambda b=backend, n=batch: routing(b, n, 4 * args.rounds, args.width))


if __name__ == "__main__":
    main()

"""Does early exit pay in a server? Three ways to serve one network with Ray Serve, beside each other.

    python benchmarks/serving.py                       # ResNet50, ResNet152 at 224 × 224, ResNet18 at 32 × 32
    python benchmarks/serving.py --networks ResNet18   # one of them

- whole: the network without early exits, in one deployment with batching;
- one: with early exits, in one deployment: its batch shrinks at each exit;
- chained: with early exits, a deployment a stage, which fills its batches from different requests.

All three are up in one cluster on this machine, the first two with a replica a core, the third with one a
stage, one thread each; a client process asks them in turns over HTTP on loopback, one image of bytes in a
request, as a .npy file, some seconds each: first as fast as they answer (so many requests under way at once),
then at the same offered load for all, with exponential gaps. 40, 30, 20 and 10% of the images leave at the
exits. Weights are random, and thresholds set so that those shares leave. All processes share the cores, the
client too.
"""

import argparse
import asyncio
import io
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
from leaving import leaving

RESULTS = pathlib.Path(__file__).parent / "results" / "serving.json"
STAGES = ("exit_1", "exit_2", "exit_3", "final")
WAYS = ("whole", "one", "chained")
NETWORKS = {"ResNet50": 224, "ResNet152": 224, "ResNet18": 32}
PORT = 8345


def exports(network, size, folder, rows):
    """Writes both exports; gives the images and the exit of each."""
    import keras

    import keras_exitens as kx

    keras.utils.set_random_seed(0)
    maker = getattr(kx.applications if size < 64 else keras.applications, network)
    options = {"input_shape": (size, size, 3), "classes": 100}
    inner = maker(**options, **({} if size < 64 else {"weights": None}))
    pixels = keras.Input((size, size, 3), name="pixels")
    scaled = keras.layers.Rescaling(1 / 64, -2)(pixels)
    model = kx.add_exits(keras.Model(pixels, inner(scaled)), 3)
    images = np.random.default_rng(0).integers(0, 256, (rows, size, size, 3)).astype("uint8")
    records = kx.collect(model, (images, np.zeros(rows, int)), verbose=0)
    thresholds, _ = leaving(records.logits)
    policy = kx.policies.MaxProbability(thresholds)
    kx.EarlyExit(model, policy).export(folder / "early", format="onnx")
    never = kx.policies.MaxProbability(policy.thresholds, enabled=[False] * 3)
    kx.EarlyExit(model, never).export(folder / "whole", format="onnx")
    return images, policy.decide(records.logits)


# The client


async def load(address, bodies, seconds, rate=None, under_way=None, seed=0):
    """Asks for some seconds; seconds from each request's arrival to its answer, and what was not answered.

    Args:
        address: str.
        bodies: list of bytes, asked in random order.
        seconds: float.
        rate: float, requests a second, with exponential gaps; or
        under_way: int, requests at once.
    """
    import aiohttp

    rng = np.random.default_rng(seed)
    times, failed = [], 0
    limits = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=limits, timeout=aiohttp.ClientTimeout(120)) as session:

        async def ask(body):
            nonlocal failed
            began = time.perf_counter()
            try:
                async with session.post(address, data=body) as answer:
                    await answer.read()
                    ok = answer.status == 200
            except aiohttp.ClientError:
                ok = False
            if ok:
                times.append(time.perf_counter() - began)
            else:
                failed += 1

        def some():
            return bodies[rng.integers(len(bodies))]

        began = time.perf_counter()
        if under_way:

            async def loop():
                while time.perf_counter() - began < seconds:
                    await ask(some())

            await asyncio.gather(*(loop() for _ in range(under_way)))
            elapsed = time.perf_counter() - began
        else:
            tasks, due = [], began
            while (due := due + rng.exponential(1 / rate)) < began + seconds:
                await asyncio.sleep(max(0, due - time.perf_counter()))
                tasks.append(asyncio.ensure_future(ask(some())))
            elapsed = time.perf_counter() - began
            await asyncio.gather(*tasks)
    return times, failed, elapsed


def client(pipe):
    """A process of its own: answers `(address, bodies or None, options)` until it gets `None`."""
    bodies = None
    while (asked := pipe.recv()) is not None:
        address, new, options = asked
        bodies = new or bodies
        pipe.send(asyncio.run(load(address, bodies, **options)))


# Ray


def counts(way):
    """`{stage: (batches, rows)}` since its replica began."""
    from ray import serve

    found = {}
    for name in STAGES if way == "chained" else STAGES[-1:]:
        every = serve.get_deployment_handle(name, way).broadcast("stats").results()
        found[name] = sum(s["batches"] for s in every), sum(s["rows"] for s in every)
    return found


def figures(times, failed, elapsed):
    return {
        "requests a second": len(times) / elapsed,
        "p50, milliseconds": float(np.percentile(times, 50)) * 1e3,
        "p99, milliseconds": float(np.percentile(times, 99)) * 1e3,
        "not answered": failed,
    }


def serving(network, size, rounds, seconds, under_way, batch, wait, replicas):
    """The report of one network."""
    import ray
    from ray import serve

    import keras_exitens as kx

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        images, exits = exports(network, size, folder, 200)
        bodies = []
        for image in images:
            file = io.BytesIO()
            np.save(file, image)
            bodies.append(file.getvalue())
        here, there = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=client, args=(there,), daemon=True)
        process.start()
        ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False)
        serve.start(http_options={"port": PORT})
        try:
            options = {"max_batch_size": batch, "batch_wait_timeout_s": wait}
            for way in WAYS:
                own = {} if way == "chained" else {"final": {"num_replicas": replicas}}
                app = kx.serving.ray_app(
                    folder / ("whole" if way == "whole" else "early"),
                    stage_options=own,
                    chained=way == "chained",
                    **options,
                )
                serve.run(app, name=way, route_prefix=f"/{way}")

            def ask(way, **how):
                before = counts(way)
                here.send((f"http://127.0.0.1:{PORT}/{way}/predict", bodies, how))
                report = figures(*here.recv())
                sizes = {}
                for name, (batches, rows) in counts(way).items():
                    made = batches - before[name][0]
                    sizes[name] = (rows - before[name][1]) / made if made else 0.0
                return {**report, "rows a batch": sizes}

            for way in WAYS:
                ask(way, seconds=min(5, seconds), under_way=under_way)  # warm
            found = {way: {"as fast as it answers": [], "offered load": {}} for way in WAYS}
            for number in range(rounds):
                for way in WAYS[number % 3 :] + WAYS[: number % 3]:
                    found[way]["as fast as it answers"].append(ask(way, seconds=seconds, under_way=under_way))
            most = {
                way: statistics.median(r["requests a second"] for r in found[way]["as fast as it answers"])
                for way in WAYS
            }
            for part in (0.5, 0.9, 1.4):
                rate = part * most["whole"]
                said = f"{rate:.3g} a second, {part} of the whole network's most"
                for way in WAYS:
                    if rate < 0.97 * most[way]:
                        answered = ask(way, seconds=2 * seconds, rate=rate, seed=1)
                        found[way]["offered load"][said] = answered
        finally:
            here.send(None)
            process.join(10)
            serve.shutdown()
            ray.shutdown()
    return {
        "shares": (np.bincount(exits, minlength=4) / len(exits)).tolist(),
        "most, over the whole network's": {way: most[way] / most["whole"] for way in WAYS},
        **found,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--under-way", type=int, default=48)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--wait", type=float, default=0.005, help="seconds")
    parser.add_argument("--replicas", type=int, default=os.cpu_count(), help="of the first two")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()
    from measuring import keeper

    given = {
        key: getattr(args, key) for key in ("rounds", "seconds", "under_way", "batch", "wait", "replicas")
    }
    _, measure = keeper(args.results, args.again, **given)
    for network in args.networks:
        size = NETWORKS[network]
        measure(f"{network} at {size}", lambda: serving(network, size, **given))  # noqa: B023


if __name__ == "__main__":
    main()

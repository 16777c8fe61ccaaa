"""How many processes for ten and a hundred times the load? A simulation from what the stages take here.

    python benchmarks/serving_plan.py                    # ResNet50, ResNet18: measures the stages, then plans
    python benchmarks/serving_plan.py --export served    # yours, an ONNX or LiteRT export
    python benchmarks/serving_plan.py --export served --rate 200 --limit 0.3 --shares 0.5,0.3,0.1,0.1

Each stage is timed alone, on one thread, at batches of 1 to 16 rows. The simulation lets requests of one image
come at random (exponential gaps), and follows each of them: a row goes to the less loaded of two replicas, which
takes what waits, up to a full batch, or what there is after a short wait, as Ray and `keras_exitens.serving` do. `--hop` is the core time that
Ray needs to take one row from one deployment to the next; the default was derived from benchmarks/serving.py. The
plan has the fewest replicas, a core each, by which 99% of the requests are answered within the limit: it begins
with the fewest that can bear the load, and gives one more to the stage where rows wait longest until that holds.
`--gpu` plans for stages as on a fast accelerator, where rows of a batch are nearly free: 2 ms a batch and a
fiftieth of the measured time a row. That is an assumption, for comparison, and no measurement.

What it leaves out: the network between machines, and the router, of which one is needed for some hundred
requests a second.
"""

import argparse
import collections
import heapq
import itertools
import math
import os
import pathlib
import random
import sys
import tempfile
import time
import typing

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
from serving import NETWORKS, SHARES, exports

RESULTS = pathlib.Path(__file__).parent / "results" / "serving_plan.json"
BATCHES = (1, 2, 4, 8, 16)
REQUESTS, WARM = 20_000, 2_000  # of a simulation, and how many of them are not counted
TIMES = (1, 10, 100)  # the load
# Seconds. With 40, 30, 20 and 10% leaving, a row is handed over 2.0 times in a chain and once in one deployment;
# two cores answered 41 and 54 requests of ResNet50 a second, 96 and 166 of ResNet18: 12 ms and 9 ms.
HOP = 0.01
SCALES = (0.1, 0.3, 1, 3, 10, 30)


# What a batch takes


class Curve(typing.NamedTuple):
    """Seconds of a stage by its rows, measured at some numbers of them and straight between these."""

    rows: tuple
    seconds: tuple

    def __call__(self, rows):
        if not rows:
            return 0.0
        if rows > self.rows[-1]:
            return self.seconds[-1] * rows / self.rows[-1]
        return float(np.interp(rows, self.rows, self.seconds))


class Service(typing.NamedTuple):
    """A deployment: the stages that run in it one after the other, and its options.

    Attributes:
        first: int, the number of its first stage.
        curves: a `Curve` for each of its stages.
        hop: seconds a row that handing it on takes.
        batch, wait: rows and seconds, as of `ray_app`.
    """

    first: int
    curves: tuple
    hop: float
    batch: int
    wait: float

    @property
    def last(self):
        return self.first + len(self.curves) - 1

    def seconds(self, exits):
        """What a batch takes whose rows leave at these exits."""
        stages = enumerate(self.curves, self.first)
        return self.hop * len(exits) + sum(curve(int((exits >= n).sum())) for n, curve in stages)

    def capacity(self, shares):
        """Rows that come to a replica a second, at most, whatever the batch."""
        reach = np.cumsum(shares[::-1])[::-1]

        def rate(rows):
            here = [rows * reach[n] / reach[self.first] for n in range(self.first, self.last + 1)]
            return rows / (self.hop * rows + sum(c(max(n, 1e-9)) for c, n in zip(self.curves, here, strict=True)))

        return max(rate(rows) for rows in range(1, self.batch + 1))


# The simulation


class Found(typing.NamedTuple):
    """What a simulation saw.

    Attributes:
        seconds: array, from coming to answer, of each request that counts.
        waits: for each service, the mean seconds that a row waited there.
        rows: for each service, mean rows of a batch.
    """

    seconds: np.ndarray
    waits: list
    rows: list

    @property
    def p99(self):
        return float(np.percentile(self.seconds, 99))


class Replica:
    """One process: rows that wait, as `(row, since when)`, and whether it is at a batch, of `rows`."""

    def __init__(self):
        self.waiting, self.rows = collections.deque(), 0

    @property
    def load(self):
        return len(self.waiting) + self.rows


def simulate(services, replicas, exits, arrivals, seed=0):
    """Follows requests of one row through the services.

    A row goes to the less loaded of two replicas, drawn at random. A replica takes what waits, up to a full
    batch, once that is full or its first row has waited long enough.

    Args:
        services: list of `Service`, in the order in which a row takes them.
        replicas: int for each.
        exits: int array, the exit at which each request leaves.
        arrivals: float array, seconds, ascending.
        seed: int, of the draws.

    Returns:
        A `Found`.
    """
    draws = random.Random(seed)
    every = [[Replica() for _ in range(count)] for count in replicas]
    waits, batches = [[] for _ in services], [[] for _ in services]
    answered = np.zeros(len(exits))
    ticket = itertools.count()  # events of one time keep their order
    # (time, ticket, service, replica, rows): rows come to a service where there is no replica; a replica has
    # done its rows; or it looks at what waits, where there are none.
    events = [(t, next(ticket), 0, None, (row,)) for row, t in enumerate(arrivals)]
    heapq.heapify(events)

    def look(now, number, replica):
        service, waiting = services[number], replica.waiting
        if replica.rows or not waiting:
            return
        due = waiting[0][1] + service.wait
        if len(waiting) < service.batch and now < due:
            return heapq.heappush(events, (due, next(ticket), number, replica, ()))
        taken = [waiting.popleft() for _ in range(min(service.batch, len(waiting)))]
        rows = np.array([row for row, _ in taken])
        waits[number] += [now - since for _, since in taken]
        batches[number].append(len(rows))
        replica.rows = len(rows)
        heapq.heappush(events, (now + service.seconds(exits[rows]), next(ticket), number, replica, rows))

    while events:
        now, _, number, replica, rows = heapq.heappop(events)
        if replica is None:
            for row in rows:
                one, other = draws.choice(every[number]), draws.choice(every[number])
                taker = one if one.load <= other.load else other
                taker.waiting.append((row, now))
                look(now, number, taker)
            continue
        if len(rows):
            replica.rows = 0
            leave = exits[rows] <= services[number].last
            answered[rows[leave]] = now
            if not leave.all():
                heapq.heappush(events, (now, next(ticket), number + 1, None, rows[~leave]))
        look(now, number, replica)
    return Found((answered - arrivals)[WARM:], _means(waits), _means(batches))


def _means(lists):
    return [float(np.mean(values)) if values else 0.0 for values in lists]


def plan(services, shares, rate, limit, seed=0):
    """The fewest replicas of each service that keep the limit at this load.

    Args:
        services: list of `Service`.
        shares: of the images that leave at each exit.
        rate: requests a second.
        limit: seconds within which 99% of the requests are to be answered.

    Returns:
        List of replicas, and a `Found`; `None` where one image alone, all the way, takes longer than the limit.
    """
    last = np.array([len(shares) - 1])
    if sum(s.seconds(last) + s.wait for s in services) > limit:
        return None
    rng = np.random.default_rng(seed)
    exits = rng.choice(len(shares), REQUESTS, p=shares)
    arrivals = np.cumsum(rng.exponential(1 / rate, REQUESTS))
    reach = np.cumsum(shares[::-1])[::-1]
    replicas = [math.floor(rate * reach[s.first] / s.capacity(shares)) + 1 for s in services]
    while True:
        found = simulate(services, replicas, exits, arrivals)
        if found.p99 <= limit:
            return replicas, found
        if sum(replicas) > 3 * rate * sum(s.seconds(last) for s in services) + 10:
            return None  # more than each request could keep busy: waits are not what is too long
        longest = int(np.argmax(found.waits))
        replicas[longest] += max(1, replicas[longest] // 10)


# All of it


def curves_of(folder, rounds=5):
    """A `Curve` for each stage of an export; each stage alone, on one thread."""
    from keras_exitens import runtime

    network = runtime.load(folder, threads=1)
    shape = [32 if size is None else size for size in network.manifest["input"]["shape"][1:]]
    pixels = np.random.default_rng(0).integers(0, 256, (BATCHES[-1], *shape))
    pixels = pixels.astype(network.manifest["input"]["dtype"])
    never = np.full(len(network.exit_names) - 1, np.inf, "float32")
    seconds = [[] for _ in network.stages]
    for rows in BATCHES:
        fed = network.start(pixels[:rows])
        for number, known in enumerate(seconds):
            measured = []
            for _ in range(rounds + 1):
                began = time.perf_counter()
                _, _, rest = network.advance(number, fed, never)
                measured.append(time.perf_counter() - began)
            known.append(float(np.median(measured[1:])))  # the first one is warm-up
            fed = rest
    return [Curve(BATCHES, tuple(known)) for known in seconds]


def fast(curve):
    """As on an accelerator; assumed, see above."""
    return Curve(BATCHES, tuple(0.002 + rows * curve.seconds[0] / 50 for rows in BATCHES))


def ways(curves, hop, batch, wait):
    """For each way to serve: its services, and whether rows leave early in it."""
    one = Service(0, tuple(curves), hop, batch, wait)
    chained = [Service(n, (curve,), hop, batch, wait) for n, curve in enumerate(curves)]
    return {"whole": ([one], False), "one": ([one], True), "chained": (chained, True)}


def planned(curves, shares, rate, limit, hop, batch, wait):
    """The report: for each load and way, replicas, p99 in milliseconds, rows a batch.

    The rate of the load "1" is the one given, or what one core answers of the whole network, nine tenths full;
    the limit the one given, or four times what one image alone takes all the way through a chain.
    """
    to_the_end = [0.0] * (len(shares) - 1) + [1.0]
    every = ways(curves, hop, batch, wait)
    last = np.array([len(shares) - 1])
    rate = rate or 0.9 * every["whole"][0][0].capacity(to_the_end)
    limit = limit or 4 * sum(s.seconds(last) + s.wait for s in every["chained"][0])
    report = {
        "milliseconds of a stage, one row": [1e3 * curve(1) for curve in curves],
        f"milliseconds of a stage, {batch} rows": [1e3 * curve(batch) for curve in curves],
        "limit of p99, milliseconds": 1e3 * limit,
        "plans": [],
    }
    for times in TIMES:
        for way, (services, early) in every.items():
            found = plan(services, shares if early else to_the_end, times * rate, limit)
            row = {"requests a second": times * rate, "way": way}
            if found:
                replicas, seen = found
                row |= {"replicas": replicas, "p99, milliseconds": 1e3 * seen.p99, "rows a batch": seen.rows}
            report["plans"].append(row)
    report["gains"] = [gains(curves, scale, shares, hop, batch, wait) for scale in SCALES]
    return report


def gains(curves, scale, shares, hop, batch, wait):
    """Requests a second for each core, over those of the whole network, if stages took `scale` times as long."""
    scaled = [Curve(curve.rows, tuple(scale * s for s in curve.seconds)) for curve in curves]
    every = ways(scaled, hop, batch, wait)
    to_the_end = [0.0] * (len(shares) - 1) + [1.0]

    def seconds(way):
        services, early = every[way]
        reach = np.cumsum(shares[::-1])[::-1] if early else np.ones(len(shares))
        return sum(reach[s.first] / s.capacity(shares if early else to_the_end) for s in services)

    return {
        "milliseconds of the whole network, one row": 1e3 * sum(curve(1) for curve in scaled),
        **{way: seconds("whole") / seconds(way) for way in ("one", "chained")},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--export", type=pathlib.Path, help="folder of an ONNX or LiteRT export")
    parser.add_argument("--networks", nargs="+", default=["ResNet50", "ResNet18"], help="in its place")
    parser.add_argument("--shares", type=lambda text: [float(s) for s in text.split(",")], default=SHARES)
    parser.add_argument("--rate", type=float, help="requests a second, once")
    parser.add_argument("--limit", type=float, help="seconds, of p99")
    parser.add_argument("--hop", type=float, default=HOP, help="seconds of a core for a row from one to the next")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--wait", type=float, default=0.005, help="seconds")
    parser.add_argument("--gpu", action="store_true", help="as on an accelerator: assumed, not measured")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()
    from measuring import keeper

    given = {"shares": list(args.shares), "hop": args.hop, "batch": args.batch, "wait": args.wait}
    _, measure = keeper(args.results, args.again, **given)

    def report(network):
        with tempfile.TemporaryDirectory() as folder:
            exported = args.export
            if exported is None:
                exports(network, NETWORKS[network], pathlib.Path(folder), 40)
                exported = pathlib.Path(folder) / "early"
            curves = curves_of(exported)
        if len(curves) != len(args.shares):
            sys.exit(f"--shares has {len(args.shares)} shares, and the network {len(curves)} exits")
        curves = [fast(curve) for curve in curves] if args.gpu else curves
        return planned(curves, args.shares, args.rate, args.limit, args.hop, args.batch, args.wait)

    for name in [args.export.name] if args.export else args.networks:
        measure(f"{name}, as on an accelerator" if args.gpu else name, lambda n=name: report(n))


if __name__ == "__main__":
    main()

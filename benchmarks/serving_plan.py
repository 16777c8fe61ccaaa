"""How many processes for ten and a hundred times the load? A simulation from what the stages take here.

    python benchmarks/serving_plan.py                    # ResNet50, ResNet18: measures the stages, then plans
    python benchmarks/serving_plan.py --export served    # yours, an ONNX or LiteRT export
    python benchmarks/serving_plan.py --export served --rate 200 --limit 0.3 --shares 0.5,0.3,0.1,0.1

Each stage is timed alone, on one thread, at batches of 1 to 16 rows. The simulation lets requests of one
image come at random (exponential gaps), and follows each of them: a request goes to the less loaded of two
replicas, which takes what waits, up to a full batch, or what there is after a short wait, as Ray and
`keras_exitens.serving` do. `--hop` is the core time of a call from one deployment to the next; the default
was derived from benchmarks/serving.py. The plan has the fewest replicas, a core each, by which 99% of the
requests are answered within the limit: it begins with the fewest that can bear the load, and gives one more
to the stage where rows wait longest until that holds. `--gpu` plans for stages as on a fast accelerator,
where rows of a batch are nearly free: 2 ms a batch and a fiftieth of the measured time a row. That is an
assumption, for comparison, and no measurement.

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
from leaving import SHARES
from serving import NETWORKS, exports

RESULTS = pathlib.Path(__file__).parent / "results" / "serving_plan.json"
BATCHES = (1, 2, 4, 8, 16)
REQUESTS, WARM = 20_000, 2_000  # of a simulation, and how many of them are not counted
TIMES = (1, 10, 100)  # the load
# Seconds. Beside one deployment, a chain has 0.36 calls more for each request of ResNet50, by its rows a
# batch, and two cores answered 42 and 50 of them a second: 20 ms a call, which carries up to 15 MB.
# ResNet18's took 6 ms.
HOP = 0.015
SCALES = (0.1, 0.3, 1, 3, 10, 30)


# What a batch takes


class Curve(typing.NamedTuple):
    """Seconds of a stage by its rows, measured at some numbers of them and straight between these."""

    rows: tuple
    seconds: tuple

    def __call__(self, rows):
        if rows > self.rows[-1]:
            return self.seconds[-1] * rows / self.rows[-1]
        return float(np.interp(rows, (0, *self.rows), (0, *self.seconds)))


class Service(typing.NamedTuple):
    """A deployment: the stages that run in it one after the other, and its options.

    Attributes:
        first: int, the number of its first stage.
        curves: a `Curve` for each of its stages.
        hop: seconds that a call to it takes, whatever rows are in it.
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

    def seconds(self, exits, calls):
        """What a batch from so many calls takes, whose rows leave at these exits."""
        stages = enumerate(self.curves, self.first)
        return self.hop * calls + sum(curve(int((exits >= n).sum())) for n, curve in stages)

    def capacity(self, shares, rows_of_a_call=1):
        """Rows that a replica can take a second, whatever the batch."""
        reach = np.cumsum(shares[::-1])[::-1] / sum(shares[self.first :])

        def rate(rows):
            stages = enumerate(self.curves, self.first)
            calls = rows / rows_of_a_call
            return rows / (self.hop * calls + sum(curve(rows * reach[n]) for n, curve in stages))

        return max(rate(rows) for rows in range(1, self.batch + 1))


def capacities(services, shares):
    """The capacity of each service; what goes on from a full batch comes to the next one in one call."""
    calls = [1] + [max(1.0, s.batch * sum(shares[s.last + 1 :]) / sum(shares[s.first :])) for s in services]
    return [s.capacity(shares, rows) for s, rows in zip(services, calls, strict=False)]


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
    """One process: rows that wait, as `(row, call, since when)`, and how many are in its batch."""

    def __init__(self):
        self.waiting, self.rows = collections.deque(), 0

    @property
    def load(self):
        return len(self.waiting) + self.rows


class Call:
    """Rows that come to a service and are answered together: `(row, the call that it came in before)`."""

    def __init__(self, rows):
        self.rows, self.left = rows, len(rows)


def simulate(services, replicas, exits, arrivals, seed=0, warm=WARM):
    """Follows requests of one row through the services.

    A call goes to the less loaded of two replicas, drawn at random. A replica takes what waits, up to a full
    batch, once that is full or its first row has waited long enough; rows of it that go on are one call to
    the next service.

    Args:
        services: list of `Service`, in the order in which a row takes them.
        replicas: int for each.
        exits: int array, the exit at which each request leaves.
        arrivals: float array, seconds, ascending.
        seed: int, of the draws.
        warm: int, so many requests at the beginning are not counted.

    Returns:
        A `Found`.
    """
    draws = random.Random(seed)
    every = [[Replica() for _ in range(count)] for count in replicas]
    waits, batches = [[] for _ in services], [[] for _ in services]
    answered = np.zeros(len(exits))
    ticket = itertools.count()  # events of one time keep their order
    # (time, ticket, service, replica, batch or call): a call comes to a service, where there is no replica
    # yet; a replica has done its batch; or it looks at what waits, where there is neither.
    events = [(t, next(ticket), 0, None, Call([(row, None)])) for row, t in enumerate(arrivals)]
    heapq.heapify(events)

    def look(now, number, replica):
        service, waiting = services[number], replica.waiting
        if replica.rows or not waiting:
            return
        due = waiting[0][2] + service.wait
        if len(waiting) < service.batch and now < due:
            heapq.heappush(events, (due, next(ticket), number, replica, None))
            return
        batch = [waiting.popleft() for _ in range(min(service.batch, len(waiting)))]
        waits[number] += [now - since for *_, since in batch]
        batches[number].append(len(batch))
        replica.rows = len(batch)
        taken = service.seconds(exits[[row for row, *_ in batch]], len({call for _, call, _ in batch}))
        heapq.heappush(events, (now + taken, next(ticket), number, replica, batch))

    def answer(now, row, call):
        call.left -= 1
        if not call.left:
            for row, before in call.rows:
                if before is None:
                    answered[row] = now
                else:
                    answer(now, row, before)

    while events:
        now, _, number, replica, found = heapq.heappop(events)
        if replica is None:
            one, other = draws.choice(every[number]), draws.choice(every[number])
            replica = one if one.load <= other.load else other
            replica.waiting.extend((row, found, now) for row, _ in found.rows)
        elif found:
            replica.rows = 0
            onward = [(row, call) for row, call, _ in found if exits[row] > services[number].last]
            for row, call, _ in found:
                if exits[row] <= services[number].last:
                    answer(now, row, call)
            if onward:
                heapq.heappush(events, (now, next(ticket), number + 1, None, Call(onward)))
        look(now, number, replica)
    return Found((answered - arrivals)[warm:], _means(waits), _means(batches))


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
        List of replicas, and a `Found`; `None` where one image alone, all the way, takes longer than the
        limit.
    """
    last = np.array([len(shares) - 1])
    if sum(s.seconds(last, 1) + s.wait for s in services) > limit:
        return None
    rng = np.random.default_rng(seed)
    exits = rng.choice(len(shares), REQUESTS, p=shares)
    arrivals = np.cumsum(rng.exponential(1 / rate, REQUESTS))
    reach = np.cumsum(shares[::-1])[::-1]
    able = capacities(services, shares)
    replicas = [math.floor(rate * reach[s.first] / rows) + 1 for s, rows in zip(services, able, strict=True)]
    while True:
        found = simulate(services, replicas, exits, arrivals)
        if found.p99 <= limit:
            return replicas, found
        if sum(replicas) > 3 * rate * sum(s.seconds(last, 1) for s in services) + 10:
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

    The rate of the load "1" is the one given, or what one core answers of the whole network, nine tenths
    full; the limit the one given, or four times what one image alone takes all the way through a chain.
    """
    to_the_end = [0.0] * (len(shares) - 1) + [1.0]
    every = ways(curves, hop, batch, wait)
    last = np.array([len(shares) - 1])
    rate = rate or 0.9 * every["whole"][0][0].capacity(to_the_end)
    limit = limit or 4 * sum(s.seconds(last, 1) + s.wait for s in every["chained"][0])
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
    """Requests a second of a core, over those of the whole network, if stages took `scale` times as long."""
    scaled = [Curve(curve.rows, tuple(scale * s for s in curve.seconds)) for curve in curves]
    every = ways(scaled, hop, batch, wait)
    to_the_end = [0.0] * (len(shares) - 1) + [1.0]

    def seconds(way):
        services, early = every[way]
        leave = shares if early else to_the_end
        able = capacities(services, leave)
        return sum(sum(leave[s.first :]) / rows for s, rows in zip(services, able, strict=True))

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
    parser.add_argument(
        "--hop", type=float, default=HOP, help="seconds of a core for a row from one to the next"
    )
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

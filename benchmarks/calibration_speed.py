"""How long `calibrate` takes, and how that grows with the number of images.

Records are drawn at random: 4 exits, 100 classes, later exits better. Sizes and policies take turns; the
figure is the median over the rounds, with the least and the greatest.

    python benchmarks/calibration_speed.py
    python benchmarks/calibration_speed.py --rows 10000 100000 --rounds 9 --json result.json
"""

import argparse
import json
import os
import platform
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

import keras_exitens as kx

CASES = {
    "accuracy drop 1%": {"max_accuracy_drop": 0.01},
    "half of the cost": {"cost_budget": 0.5},
    "with temperatures": {"max_accuracy_drop": 0.01, "temperature": True},
    "with confidence": {"max_accuracy_drop": 0.02, "confidence": 0.95},
    "ensemble": {"max_accuracy_drop": 0.01, "ensemble": True},
    "patience": {"max_accuracy_drop": 0.01, "policy": "patience"},
}


def draw(rows, exits, classes, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.standard_normal((exits, rows, classes), "float32")
    easy = rng.normal(2, 2, rows).astype("float32")
    for i in range(exits):
        logits[i, np.arange(rows), labels] += easy + i
    return kx.ExitRecords(logits, labels)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[5_000, 10_000, 20_000, 40_000])
    parser.add_argument("--exits", type=int, default=4)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="file for the figures")
    args = parser.parse_args()

    print(f"{platform.machine()}, {os.cpu_count()} cores; {args.exits} exits, {args.classes} classes")
    records = {rows: draw(rows, args.exits, args.classes) for rows in args.rows}
    cost = np.linspace(1, args.exits, args.exits)
    times = {}
    for round_ in range(args.rounds + 1):
        for name, arguments in CASES.items():
            for rows in args.rows:
                start = time.perf_counter()
                kx.calibrate(records[rows], cost, **arguments)
                if round_:  # the first round warms up
                    times.setdefault((name, rows), []).append(time.perf_counter() - start)
    report = [
        {"case": name, "rows": rows, "median": statistics.median(t), "low": min(t), "high": max(t)}
        for (name, rows), t in times.items()
    ]
    print(f"{'seconds, median (least to greatest)':34}" + "".join(f"{rows:>24,}" for rows in args.rows))
    for name in CASES:
        cells = [r for r in report if r["case"] == name]
        print(
            f"{name:34}" + "".join(f"{r['median']:9.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in cells)
        )
    if args.json:
        with open(args.json, "w") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()

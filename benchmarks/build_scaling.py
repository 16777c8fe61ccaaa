"""What it takes to attach exits to a network, to count its costs and to cut it into stages, by its size.

Each network is built in a process of its own: the backbone, `add_exits`, `cost`, `stages.split`, each timed
once, with the peak memory of the process after it. Times are seconds of CPU: a busy machine changes them less
than those of the clock; the JSON file holds both. The rounds go through all networks in turn; figures are
medians. A run that was broken off goes on from its JSON file.

    python benchmarks/build_scaling.py
    python benchmarks/build_scaling.py --networks ResNet18 NASNetLarge --head linear --json mine.json
"""

import argparse
import gc
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

RESULTS = pathlib.Path(__file__).parent / "results"
NETWORKS = (
    "ResNet18",
    "ResNet50",
    "ResNet101",
    "ResNet152",
    "DenseNet121",
    "DenseNet201",
    *(f"EfficientNetB{i}" for i in range(8)),
    "InceptionResNetV2",
    "EfficientNetV2L",
    "NASNetLarge",
)
STEPS = ("backbone", "add_exits", "cost", "split")


def measure(network, exits, head):
    """Builds one network in this process: number of its layers, seconds and peak MiB of each step."""
    import keras

    import keras_exitens as kx
    from keras_exitens import stages

    # What is loaded on first use shall not count for the first step.
    warm = kx.applications.ResNet18(classes=10, width=0.125)
    warm = kx.add_exits(warm, 1)
    kx.cost(warm)
    stages.split(warm)
    where = kx.applications if hasattr(kx.applications, network) else keras.applications
    options = {} if where is kx.applications else {"weights": None}
    made = {"backbone": lambda: getattr(where, network)(**options)}
    made["add_exits"] = lambda: kx.add_exits(backbone, exits, head=head)
    made["cost"] = lambda: kx.cost(model)
    made["split"] = lambda: stages.split(model)
    seconds, clock, peak = {}, {}, {"before": peak_mib()}
    results = {}
    for step in STEPS:
        gc.collect()
        start = time.process_time(), time.perf_counter()
        results[step] = made[step]()
        seconds[step], clock[step] = time.process_time() - start[0], time.perf_counter() - start[1]
        peak[step] = peak_mib()
        backbone, model = results["backbone"], results.get("add_exits")
    return {"layers": len(backbone.layers), "seconds": seconds, "clock": clock, "peak_mib": peak}


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(args, path):
    """Fills the report at `path` round by round; what stands there already is not measured again."""
    report = json.loads(path.read_text()) if path.exists() else {}
    report.setdefault("machine", f"{platform.machine()}, {os.cpu_count()} cores")
    report.setdefault("exits", args.exits)
    report.setdefault("head", args.head)
    runs = report.setdefault("runs", {})
    for count in range(1, args.rounds + 1):
        for network in args.networks:
            done = runs.setdefault(network, [])
            if len(done) < count:
                options = ["--exits", str(args.exits), "--head", args.head]
                command = [sys.executable, __file__, "--measure", network, *options]
                output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                done.append(json.loads(output.splitlines()[-1]))
                report["medians"] = medians(runs)
                report["growth"] = growth(report["medians"])
                save(path, report)
                print(f"{count}. {network:18} {show(done[-1])}", flush=True)
    return report


def save(path, report):
    part = path.with_suffix(".part")
    part.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(part, path)


def medians(runs):
    """For each network: layers, and for each step the median seconds and the growth of the peak in MiB."""
    result = {}
    for network, done in runs.items():
        if done:
            result[network] = {"layers": done[0]["layers"], "rounds": len(done)}
            for step, previous in zip(STEPS, ("before", *STEPS), strict=False):
                times = [d["seconds"][step] for d in done]
                clock = [d["clock"][step] for d in done]
                grown = [d["peak_mib"][step] - d["peak_mib"][previous] for d in done]
                result[network][step] = {
                    "seconds": statistics.median(times),
                    "least": min(times),
                    "most": max(times),
                    "clock": statistics.median(clock),
                    "peak_mib": statistics.median(grown),
                }
    return result


def growth(found):
    """Exponent of each step's time in the number of layers: 1 is linear. Least squares in the logarithms."""
    import numpy as np

    if len(found) < 3:
        return {}
    layers = np.log([row["layers"] for row in found.values()])
    return {
        step: float(np.polyfit(layers, np.log([row[step]["seconds"] for row in found.values()]), 1)[0])
        for step in STEPS
    }


def show(row):
    return f"{row['layers']:5} layers  " + "  ".join(f"{s} {row['seconds'][s]:.3f} s" for s in STEPS)


def draw(report, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = sorted(report["medians"].values(), key=lambda row: row["layers"])
    layers = [row["layers"] for row in found]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for step in STEPS:
        rows = [row[step] for row in found]
        middle = [row["seconds"] for row in rows]
        spread = [
            [row["seconds"] - row["least"] for row in rows],
            [row["most"] - row["seconds"] for row in rows],
        ]
        grows = report["growth"].get(step)  # of three networks or more
        label = step if step == "backbone" or grows is None else f"{step} (grows as layers^{grows:.2f})"
        left.errorbar(layers, middle, spread, marker="o", markersize=4, linewidth=1, capsize=2, label=label)
        right.plot(
            layers, [row["peak_mib"] for row in rows], marker="o", markersize=4, linewidth=1, label=step
        )
    bound = [2 + 0.25 * row["backbone"]["seconds"] for row in found]
    left.plot(layers, bound, "k--", linewidth=1, label="2 s + 25 % of the backbone")
    left.set(xlabel="layers of the backbone", ylabel="seconds of CPU", title="time of each step", ylim=0)
    right.set(xlabel="layers of the backbone", ylabel="MiB", title="peak memory that each step adds", ylim=0)
    left.legend()
    right.legend()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS, metavar="NETWORK")
    parser.add_argument("--exits", type=int, default=3)
    parser.add_argument("--head", default="light", help="a name of add_exits")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each network")
    parser.add_argument("--json", type=pathlib.Path, default=RESULTS / "build_scaling.json")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.exits, args.head)))
        return
    args.json.parent.mkdir(parents=True, exist_ok=True)
    report = run(args, args.json)
    draw(report, args.json.with_suffix(".png"))
    print("exponents of growth:", {step: round(value, 2) for step, value in report["growth"].items()})


if __name__ == "__main__":
    main()

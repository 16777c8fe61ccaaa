"""The page of benchmarks, from the scripts in `benchmarks/` and what they measured, `benchmarks/results/`.

A script's docstring says what it measures and gives its commands; `results/NAME.json` holds its figures.
Every dict in it that has a `"median"` is a row of the table, wherever it stands; `TABLES` has the scripts
that keep something else. Where there is no file yet, the page says so.
"""

import ast
import json
import re

# Script -> heading, in the order of the page. Scripts that are not there are left out.
TITLES = {
    "training_speed": "Training step",
    "backend_speed": "TensorFlow, JAX and PyTorch",
    "scaling": "Several devices",
    "kill_points": "Killed and resumed",
    "precision_accuracy": "Half precision",
    "many_classes": "Many classes",
    "inference_speed": "Early exit in TensorFlow",
    "deployment_speed": "Early exit on other runtimes",
    "serving": "Early exit in a server",
    "serving_plan": "Replicas for more load",
    "drift": "Drift",
    "calibration_speed": "Calibration",
    "tensorboard_overhead": "TensorBoard",
    "build_scaling": "Attaching exits, by the size of the network",
}
_LOW, _HIGH = ("low", "least", "min"), ("high", "greatest", "max")
_FACTS = ("machine", "processor", "cores", "tensorflow", "keras", "torch", "date")

_HEAD = """\
# Benchmarks

Each section is one script of `benchmarks/`: what it measures, the command, and the figures of the last run
kept in the repository. The page is made from these files when the site is built; nothing is written by hand.
Medians stand with the least and the greatest value of the rounds. On a machine shared with others, ratios of
things timed in turns are steadier than times.
{accuracy}"""


def make(root):
    """The page as Markdown. `root` is the folder of the repository."""
    accuracy = (
        "\nThe accuracy after training has its own page: [accuracy](accuracy.md).\n"
        if (root / "docs" / "accuracy.md").exists()
        else ""
    )
    sections = [
        section(title, script, root / "benchmarks" / "results" / f"{name}.json")
        for name, title in TITLES.items()
        if (script := root / "benchmarks" / f"{name}.py").exists()
    ]
    return "\n".join([_HEAD.format(accuracy=accuracy), *sections])


def section(title, script, results):
    lines = [f"## {title}\n", _document(script), ""]
    picture = results.with_suffix(".png")
    if results.exists():
        report = json.loads(results.read_text())
        lines += TABLES.get(results.stem, medians)(report)
    else:
        lines.append("*No figures are kept of this script yet. Run it to get them for your machine.*\n")
    if picture.exists():
        lines.append(f"![{title}](results/{picture.name})\n")
    return "\n".join(lines)


def _document(script):
    """The docstring of a script; its commands, which are indented, become code."""
    document = ast.get_docstring(ast.parse(script.read_text()), clean=False)
    blocks = []
    for block in document.strip().split("\n\n"):
        if all(line.startswith("    ") for line in block.splitlines()):
            code = "\n".join(line[4:] for line in block.splitlines())
            blocks.append(f"```bash\n{code}\n```")
        else:
            blocks.append(block)
    return "\n\n".join(blocks)


def medians(report):
    """A table of every dict with a median, and under it on what it was measured."""
    rows = list(_medians(report))
    lines = ["| measured | median | least to greatest |", "| --- | ---: | ---: |"] if rows else []
    for path, found in rows:
        low, high = (next((found[k] for k in keys if k in found), None) for keys in (_LOW, _HIGH))
        spread = "" if None in (low, high) else f"{_number(low)} to {_number(high)}"
        unit = f" {found['unit']}" if "unit" in found else ""
        lines.append(f"| {_cell(' · '.join(path))} | {_number(found['median'])}{unit} | {spread} |")
    facts = _facts(report)
    return [*lines, "", f"Measured on: {facts}.\n" if facts else ""]


def _medians(value, path=()):
    if not isinstance(value, dict):
        return
    if isinstance(value.get("median"), int | float):
        yield path, value
    for key, inner in value.items():
        yield from _medians(inner, (*path, key))


def _facts(report):
    """What is said of the machine and the versions, each once, wherever it stands."""
    found = {}

    def look(value):
        if isinstance(value, dict):
            for key, inner in value.items():
                if key in _FACTS and isinstance(inner, str | int | float):
                    found.setdefault(key, set()).add(str(inner))
                look(inner)

    look(report)
    return "; ".join(f"{key} {', '.join(sorted(found[key]))}" for key in _FACTS if key in found)


def build_scaling(report):
    steps = ("backbone", "add_exits", "cost", "split")
    lines = [
        f"Seconds of CPU, medians of the rounds, {report['exits']} exits; {report.get('machine', '')}.\n",
        "| network | layers | building it | `add_exits` | `cost` | `stages.split` | rounds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for network, runs in report["runs"].items():
        seconds = (_median(run["seconds"][step] for run in runs) for step in steps)
        cells = " | ".join(_number(value) for value in seconds)
        lines.append(f"| {network} | {runs[0]['layers']} | {cells} | {len(runs)} |")
    return [*lines, ""]


def kill_points(report):
    different, arrays = len(report["arrays_that_differ"]), report["arrays"]
    history = "the same" if report["history_equal"] else "NOT the same"
    middle = sum(kill["in_a_backup"] for kill in report["kills"])
    return [
        f"{len(report['kills'])} kills, {middle} of them in the middle of a backup: of {arrays} arrays with "
        f"{report['values']:,} values {different} differ; the history of {report['epochs']} epochs is "
        f"{history}.\n"
    ]


def precision_accuracy(report):
    lines = [
        f"`{' '.join(report['settings'])}`; test accuracy in percent, mean (least to greatest).\n",
        "| precision | seeds | final exit | ensemble | steps skipped by loss scaling, a run |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for precision, runs in report["runs"].items():
        cells = []
        for name in ("final", "ensemble"):
            found = [100 * run["accuracy"][name] for run in runs.values()]
            cells.append(f"{sum(found) / len(found):.1f} ({min(found):.1f} to {max(found):.1f})")
        skipped = sum(run["skipped_steps"] for run in runs.values()) / len(runs)
        lines.append(f"| {precision} | {len(runs)} | {' | '.join(cells)} | {_number(skipped)} |")
    return [*lines, ""]


def scaling(report):
    settings = report["settings"]
    lines = [
        f"ResNet18 of width {settings['width']}, {settings['batch']} images a replica and step, medians; "
        f"{settings['cores']} cores of {settings['machine']}.\n",
        "| replicas | step, ms | least to greatest | summing the gradients, ms | images a second | rounds |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, runs in report["runs"].items():
        steps = [1e3 * run["step"] for run in runs]
        images = 1e3 * settings["batch"] * int(name.split()[0]) / _median(steps)
        sums = _median([1e3 * run["sums"] for run in runs])
        spread = f"{_number(min(steps))} to {_number(max(steps))}"
        cells = (_number(_median(steps)), spread, _number(sums), _number(images), str(len(runs)))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "\nOn paper, not measured:\n",
        "| network | GPUs | images a GPU | MB summed | compute, ms | sums, ms | efficiency |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in report["paper"]["rows"]:
        cells = (
            *(str(row[key]) for key in ("gpus", "rows_a_gpu")),
            _number(row["bytes_summed"] / 1e6),
            *(_number(1e3 * row[key]) for key in ("compute_seconds", "sums_seconds")),
            f"{row['efficiency']:.0%}",
        )
        lines.append(f"| {row['network']} | {' | '.join(cells)} |")
    return [*lines, ""]


def serving(report):
    lines = [
        "Requests a second as fast as they are answered, each round; p50 and p99 in milliseconds at the same "
        "offered load, in parts of the most that the whole network answers.\n",
        "| network | served | most, requests a second | load | p50 | p99 | rows a batch |",
        "| --- | --- | ---: | --- | ---: | ---: | --- |",
    ]
    for network, found in report.items():
        for way in ("whole", "one", "chained"):
            most = ", ".join(_number(r["requests a second"]) for r in found[way]["as fast as it answers"])
            for load, at in found[way]["offered load"].items():
                part = load.partition(", ")[2].split()[0]
                rows = " / ".join(f"{n:.1f}" for n in at["rows a batch"].values())
                times = (_number(at[f"{p}, milliseconds"]) for p in ("p50", "p99"))
                lines.append(f"| {network} | {way} | {most} | {part} | {' | '.join(times)} | {rows} |")
    return [*lines, "", f"Measured on: {_facts(report)}.\n"]


def serving_plan(report):
    lines = [
        "| network | requests a second | served | replicas | p99, ms | rows a batch |",
        "| --- | ---: | --- | --- | ---: | --- |",
    ]
    for network, found in report.items():
        for row in found["plans"]:
            replicas = " + ".join(map(str, row.get("replicas", ["none keeps the limit"])))
            cells = replicas, _number(row.get("p99, milliseconds", 0)) if "replicas" in row else ""
            rows = " / ".join(f"{n:.1f}" for n in row.get("rows a batch", ()))
            rate = _number(row["requests a second"])
            lines.append(f"| {network} | {rate} | {row['way']} | {' | '.join(cells)} | {rows} |")
    lines += [
        "\nRequests a second for each core, over those of the whole network, by what a row costs:\n",
        "| network, its time scaled | milliseconds of a row | one | chained |",
        "| --- | ---: | ---: | ---: |",
    ]
    for network, found in report.items():
        for gain in found["gains"]:
            cost = _number(gain["milliseconds of the whole network, one row"])
            lines.append(f"| {network} | {cost} | {gain['one']:.2f} | {gain['chained']:.2f} |")
    return [*lines, "", f"Measured on: {_facts(report)}.\n"]


def drift(report):
    length = f"{report['images in a stream']:,}"
    lines = [
        f"False alarms asked for: {report['alpha']:.0%}; streams of {length} images.\n",
        "| change | right | seen | images until the alarm, median | at most |",
        "| --- | ---: | --- | ---: | ---: |",
    ]
    for name, rate in report["false alarms"].items():
        lines.append(f"| none, {name} | {report['accuracy']:.1%} | {rate:.1%} of the streams | | |")
    for name, found in report["changes"].items():
        numbers = (found["images until the alarm, median"], found["at most"])
        cells = " | ".join("" if n is None else _number(n) for n in numbers)
        lines.append(f"| {name} | {found['accuracy']:.1%} | {found['seen']} | {cells} |")
    return [*lines, ""]


# Scripts whose results are no medians that stand as they are.
TABLES = {
    "build_scaling": build_scaling,
    "kill_points": kill_points,
    "precision_accuracy": precision_accuracy,
    "scaling": scaling,
    "serving": serving,
    "serving_plan": serving_plan,
    "drift": drift,
}


def _median(values):
    values = sorted(values)
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2


def _number(value):
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _cell(words):
    return re.sub(r"\s+", " ", words).replace("|", "\\|")

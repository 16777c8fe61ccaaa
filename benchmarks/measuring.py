"""What the benchmarks share: runs in turns, ratios round by round, results that are kept, another Python."""

import json
import os
import platform
import statistics
import subprocess
import time

import keras
import tensorflow as tf

__all__ = ["Worker", "in_turns", "keeper", "ratio"]


def in_turns(functions, rounds, warm=True):
    """Seconds of each function, round by round, `{name: [seconds]}`; `warm`: one more round, not counted.

    The clock stops when the tensors that a function returns can be read. A function that returns a float has
    timed itself.
    """
    times = {name: [] for name in functions}
    for number in range(rounds + warm):
        names = list(functions)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            result = functions[name]()
            if not isinstance(result, float):
                tf.nest.map_structure(lambda t: t.numpy(), result)
                result = time.perf_counter() - start
            if number >= warm:
                times[name].append(result)
    return times


def ratio(above, below):
    """Median, least and greatest of the ratios round by round."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}


def keeper(path, again, **settings):
    """The figures in a file, and a function `(key, measure)` that adds to them.

    A figure is written at once, with `settings`, and not measured when it is there already, unless `again`.
    """
    figures = json.loads(path.read_text()) if path.exists() else {}

    def measure(key, function):
        if key in figures and not again:
            return
        print(f"{key} ...", flush=True)
        load = os.getloadavg()[0]
        report = function()
        figures[key] = {
            **settings,
            **report,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "load": load,
            "date": time.strftime("%Y-%m-%d"),
        }
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
        print(json.dumps(report, indent=1, ensure_ascii=False), flush=True)

    return figures, measure


class Worker:
    """A process of another Python that answers JSON objects, one a line. A context manager.

    Args:
        python: the interpreter.
        script: path of what it runs.
    """

    def __init__(self, python, script):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([python, str(script)], **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()

    def ask(self, **what):
        """The answer to one question."""
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The worker has ended, code {self._process.wait()}, at {what}")
        return json.loads(line)

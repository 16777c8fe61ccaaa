"""The study of heads: what runs, and what its page says of figures that are known."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


def script(name, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_runs_of_a_seed_come_before_those_of_the_next(monkeypatch):
    heads = script("heads", monkeypatch)
    jobs = list(heads.jobs(heads.PARTS, heads.NETWORKS, (1, 2), heads.RECIPES))
    assert [job["seed"] for job in jobs] == sorted(job["seed"] for job in jobs)
    assert len({json.dumps(job, sort_keys=True) for job in jobs}) == len(jobs)
    joint = {(job["network"], job["head"]) for job in jobs if job["part"] == "joint"}
    assert joint == {
        (n, h) for n in heads.NETWORKS for h in ("light", "mixed_hidden", "linear", "bottleneck")
    }
    frozen = {job["head"] for job in jobs if job["part"] == "frozen"}
    assert frozen == set(heads.GROUPS)


def entry(cumulative, exits, budgets):
    found = {"exits": exits, "budgets": budgets}
    return {"cumulative": cumulative, "validation": found, "test": found}


def line(part, head, seed, heads, backbone=1000):
    settings = {"part": part, "dataset": "digits", "network": "N", "head": head, "seed": seed}
    return {"settings": {**settings, "width": 1.0, "epochs": 2}, "backbone": backbone, "heads": heads}


def test_the_page_says_what_the_figures_say(monkeypatch):
    report = script("heads_report", monkeypatch)

    def budgets(*accuracies):
        return {b: [a, 1000 * float(b)] for b, a in zip(report.BUDGETS, accuracies, strict=True) if a}

    lines = []
    for seed, better in ((1, 0.0), (2, 0.02)):
        found = {
            "light": entry([300, 1040], [0.5, 0.9], budgets(0.5, 0.6 + better, 0.8)),
            "linear": entry([290, 1010], [0.4, 0.9], budgets(0.4, 0.5, 0.7)),
            "conv": entry([390, 1300], [0.8, 0.9], budgets(None, 0.8, 0.9)),
        }
        lines.append(line("frozen", "all", seed, found))
    frozen = report.grouped(lines, "frozen")
    rows = list(report.rows_of(frozen, ("light", "linear", "conv")))
    assert rows[0] == ["N, digits", "`light`", 2, "4.0", "50.0 / 90.0", "50.0", "61.0", "80.0"]
    assert rows[2] == ["N, digits", "`conv`", 2, "30.0", "80.0 / 90.0", "–", "80.0", "90.0"]
    monkeypatch.setattr(report, "HEADS", ("light", "linear", "conv"))
    monkeypatch.setattr(report, "TRIED", {})
    order = [row.split("|")[1].strip() for row in report.choice(frozen).splitlines()[2:]]
    assert order == ["`light`", "`linear`", "`conv`"], "the one that is too dear comes last"
    assert "| `light` | 4.0% | yes | 63.7 |" in report.choice(frozen)
    pairs = report.pairs(frozen)
    # Differences of 10 and 12 points: their mean, and t(0.975, 1) = 12.706 times 1.
    assert "| `linear` | +10.0 ± 0.0 (2) | +11.0 ± 12.7 (2) | +10.0 ± 0.0 (2) |" in pairs
    assert "| `conv` | – |" in pairs
    points = report.curve(frozen["digits", "N"]["light"], 1000)
    np.testing.assert_allclose(points, [(30, 50), (40, 61), (60, 80)])


def test_what_comparing_features_costs_is_said_as_it_was_measured(monkeypatch):
    report = script("heads_report", monkeypatch)
    joint, plain = ({("cifar100", "N"): {}} for _ in range(2))
    for name, finals in {"light": (0.1, 0.2), "light, eed-kl-output": (0.16, 0.26)}.items():
        entries = [{**entry([1, 2], [0, final], {}), "seed": seed} for seed, final in enumerate(finals)]
        joint["cifar100", "N"][name] = entries
    for width, final in ((0.5, 0.0), (1.0, 0.2)):
        plain["cifar100", "N"][width] = [{**entry([1], [final], {}), "seed": seed} for seed in (0, 1, 2)]
    said = report.features_cost(joint, plain)
    assert said.endswith("on CIFAR-100: N -5.0 points by `EED()` and +1.0 without.")
    (row,) = report.finals(joint, plain)
    assert row[:2] == ["N, CIFAR-100", "+1.0 ± 63.5 (2)"] and row[3] == "-5.0 ± 63.5 (2)" and row[4] == "–"
    assert report.features_cost({}, plain).endswith("not run yet.")


@pytest.mark.slow
def test_the_study_runs_and_goes_on(tmp_path):
    results = tmp_path / "heads.jsonl"
    command = [sys.executable, str(BENCHMARKS / "heads.py"), "--smoke", "--results", str(results)]
    subprocess.run(command, check=True, capture_output=True)
    lines = [json.loads(text) for text in results.read_text().splitlines()]
    assert [found["settings"]["part"] for found in lines] == [
        "frozen",
        "frozen",
        *["joint"] * 3,
        *["plain"] * 3,
    ]
    assert set(lines[0]["heads"]) == {
        *("conv", "bottleneck", "separable", "linear"),
        *("mlp", "shrink", "mixed", "mixed_hidden", "mixed_reuse"),
    }
    assert set(lines[1]["heads"]) == {"mixed_wide", "light_hidden", "light", "light_32"}
    finals = [{tuple(e["test"]["exits"][-1:]) for e in found["heads"].values()} for found in lines[:2]]
    assert len(finals[0]) == 1 and finals[0] == finals[1], "all heads stand on the same network"
    assert all(0 <= v <= 1 for found in lines for e in found["heads"].values() for v in e["test"]["exits"])
    subprocess.run(command, check=True, capture_output=True)
    assert len(results.read_text().splitlines()) == len(lines)

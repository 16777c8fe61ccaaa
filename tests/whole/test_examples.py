"""The examples run as a user would run them, on real digits."""

import csv
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import keras_exitens as kx  # also so that Keras can load what the examples saved

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
TINY = [
    "--data",
    "digits",
    "--network",
    "WideResNet16_4",
    "--width",
    "0.0625",
    "--exits",
    "2",
    "--batch",
    "64",
]


def run(script, *arguments, cwd, check=True):
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, check=check, capture_output=True, text=True)


def train(*arguments, cwd, check=True):
    return run("train.py", *TINY, *arguments, cwd=cwd, check=check)


def weights(path):
    return keras.models.load_model(path).get_weights()


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_quickstart_prints_the_table_and_draws_the_picture(tmp_path):
    done = run("quickstart.py", "--epochs", 1, "--width", 0.0625, "--exits", 2, cwd=tmp_path)
    assert not done.stderr, "nothing but what the example itself says"
    lines = done.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if "95% interval" in line)
    found = {}
    for line in lines[start + 1 : start + 5]:
        name, right, low, high, cost, *seconds = re.fullmatch(
            r"(.+?)  +([\d.]+)% \(([\d.]+)% to ([\d.]+)%\) +([\d.]+)%(?:  +([\d.]+) ms)?", line
        ).groups()
        assert 0 <= float(low) <= float(right) <= float(high) <= 100
        found[name] = float(cost), seconds[0]
    assert list(found) == [
        "plain network",
        "with exits, all to the end",
        "early exit, 1% budget",
        "plain, half the width",
    ]
    assert found["plain network"][0] == 100 < found["with exits, all to the end"][0] < 120
    assert found["plain, half the width"][0] < 50
    assert float(found["plain network"][1]) > 0 < float(found["early exit, 1% budget"][1])
    assert sum("of the validation images right" in line for line in lines) == 3, "a line an epoch"
    picture = tmp_path / "runs/quickstart/early_exit.png"
    assert picture.read_bytes().startswith(b"\x89PNG") and str(picture.relative_to(tmp_path)) in done.stdout


def test_a_trained_network_gets_exits_in_three_ways(tmp_path):
    options = ("--epochs", 1, "--exit-epochs", 1, "--width", 0.0625, "--exits", 2)
    done = run("trained.py", *options, cwd=tmp_path)
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| ")][2:]
    assert [row[0].strip() for row in rows] == ["frozen", "taught", "joint"]
    final = [row[1].split("/")[-1].strip() for row in rows]
    before = re.search(r"The network as it came: ([\d.]+%)", done.stdout)[1]
    assert final[:2] == [before, before], "a frozen network keeps its accuracy"
    folder = tmp_path / "runs/trained"
    backbone, frozen = (keras.models.load_model(folder / f"{name}.keras") for name in ("backbone", "frozen"))
    plain = kx.strip_exits(frozen)
    for a, b in zip(backbone.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    again = run("trained.py", "--network", "no.keras", cwd=tmp_path, check=False)
    assert again.returncode == 1 and "no.keras does not exist" in again.stderr


def test_a_killed_run_resumes_and_ends_as_one_that_was_not(tmp_path, monkeypatch):
    # On some processors the kernels of oneDNN give other gradients each time: two whole runs differ there.
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    train("--epochs", 3, "--run", "whole", cwd=tmp_path)
    command = [
        sys.executable,
        str(EXAMPLES / "train.py"),
        *TINY,
        "--epochs",
        "3",
        "--run",
        "cut",
        "--backup-every",
        "5",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (tmp_path / "cut/backup").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    resumed = train("--epochs", 3, "--run", "cut", "--resume", cwd=tmp_path)
    assert "resuming cut after epoch" in resumed.stdout

    for a, b in zip(
        weights(tmp_path / "whole/last.keras"), weights(tmp_path / "cut/last.keras"), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    whole, cut = rows(tmp_path / "whole/history.csv"), rows(tmp_path / "cut/history.csv")
    assert [row["epoch"] for row in cut] == ["0", "1", "2"]
    assert float(cut[2]["loss"]) == pytest.approx(float(whole[2]["loss"]), rel=1e-4)
    accuracy = json.loads((tmp_path / "cut/test.json").read_text())["last"]
    assert set(accuracy) == {"exit_1", "exit_2", "final", "ensemble"}


def test_the_network_without_exits_trains_by_the_same_recipe(tmp_path):
    train("--epochs", 1, "--objective", "none", "--run", "plain", cwd=tmp_path)
    accuracy = json.loads((tmp_path / "plain/test.json").read_text())["last"]
    assert accuracy["final"] == accuracy["ensemble"] and set(accuracy) == {"final", "ensemble"}


def test_train_refuses_what_it_cannot_do(tmp_path):
    (tmp_path / "file").write_text("in the way")
    refusals = {
        "cannot be written": ["--run", "file/run"],
        "no run to resume": ["--run", "nothing", "--resume"],
        "invalid choice: 'ResNet'": ["--network", "ResNet"],
    }
    for message, arguments in refusals.items():
        done = train("--epochs", 1, *arguments, cwd=tmp_path, check=False)
        assert done.returncode != 0 and message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "nothing").exists()


def test_calibrate_keeps_its_cost_on_the_test_images_and_writes_its_pages(tmp_path):
    settings = ["--epochs", 2, "--width", 0.0625, "--exits", 2, "--certified-drop", 0.2, "--folder", "out"]
    done = run("calibrate.py", *settings, cwd=tmp_path)
    assert "at most 50% of the cost" in done.stdout
    report = json.loads((tmp_path / "out/policies.json").read_text())
    assert len(report) == 3
    for number, (name, result) in enumerate(report.items(), 1):
        policy = keras.saving.deserialize_keras_object(result["policy"])
        assert policy.calibration.to_dict() == result["calibration"]
        assert result["test"]["multiply_adds"] <= 1.1 and 0 <= result["test"]["accuracy"] <= 1
        row = next(line for line in done.stdout.splitlines() if line.startswith(name))
        assert f"{result['test']['accuracy']:.2%}" in row
        assert "Images that leave last" in (tmp_path / f"out/budget_{number}.html").read_text()
        assert (tmp_path / f"out/budget_{number}.png").read_bytes().startswith(b"\x89PNG")
    assert len(kx.ExitRecords.load(tmp_path / "out/calibration.npz")) == 431


def test_calibrate_takes_up_a_run_with_the_parts_that_it_was_trained_on(tmp_path):
    train("--epochs", 1, "--run", "trained", cwd=tmp_path)
    folder = tmp_path / "out"
    run("calibrate.py", "--run", "trained", "--certified-drop", 0.2, "--folder", folder, cwd=tmp_path)
    records = kx.ExitRecords.load(folder / "calibration.npz")
    splits = kx.data.load("digits", 64)
    model = keras.models.load_model(tmp_path / "trained/best.keras").model
    expected = kx.collect(model, splits.calibration)
    assert (records.labels == expected.labels).all()
    np.testing.assert_allclose(records.logits, expected.logits, atol=1e-4)

    refusals = {
        "leave out --calibration": ["--run", "trained", "--calibration", 0.4],
        "holds no run": ["--run", "nothing"],
    }
    for message, arguments in refusals.items():
        done = run("calibrate.py", *arguments, "--folder", "refused", cwd=tmp_path, check=False)
        assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "refused").exists()


@pytest.mark.slow
def test_two_workers_train_together_and_the_search_finds_a_network(tmp_path):
    arguments = ["--width", 0.0625, "--epochs", 1, "--run", "job"]
    done = run("multi_worker.py", "--local", 2, *arguments, cwd=tmp_path)
    assert "2 replicas, from step 0 on" in done.stdout and "test accuracy" in done.stdout
    assert (tmp_path / "job/last.keras").exists() and (tmp_path / "job/backup").exists()

    arguments = ["--trials", 2, "--epochs", 1, "--width", 0.0625, "--folder", "search"]
    done = run("tune.py", *arguments, cwd=tmp_path)
    assert "best val_tradeoff" in done.stdout and "learning_rate" in done.stdout
    loaded = keras.models.load_model(tmp_path / "search/best.keras")
    assert loaded.compiled
    assert list((tmp_path / "search/tensorboard").rglob("events.*"))

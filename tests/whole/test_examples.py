"""The examples run as a user would run them, on real digits."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import keras_exitens  # also so that Keras can load what the examples saved

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
    lines = done.stdout.splitlines()
    header = next(line for line in lines if "ensemble" in line and "parameters" in line)
    assert header.split() == ["exit_1", "exit_2", "final", "ensemble", "parameters", "seconds"]
    for method, filled in [("plain network", 1), ("exits, cross-entropy", 4), ("exits, EED", 4)]:
        row = next(line for line in lines if line.startswith(method) and len(line) == len(header))
        cells = row[22:].split()
        accuracy = [float(cell) for cell in cells[:4] if cell != "-"]
        assert len(accuracy) == filled and all(0 <= a <= 100 for a in accuracy)
    assert any("points" in line for line in lines)
    assert any("of the multiply-adds at" in line for line in lines)
    picture = tmp_path / "runs/quickstart/curves.png"
    assert picture.read_bytes().startswith(b"\x89PNG") and str(picture.relative_to(tmp_path)) in done.stdout
    assert len(list((tmp_path / "runs/quickstart/tensorboard").rglob("events.*"))) >= 3


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
    assert len(keras_exitens.ExitRecords.load(tmp_path / "out/calibration.npz")) == 431


def test_calibrate_takes_up_a_run_with_the_parts_that_it_was_trained_on(tmp_path):
    train("--epochs", 1, "--run", "trained", cwd=tmp_path)
    folder = tmp_path / "out"
    run("calibrate.py", "--run", "trained", "--certified-drop", 0.2, "--folder", folder, cwd=tmp_path)
    records = keras_exitens.ExitRecords.load(folder / "calibration.npz")
    splits = keras_exitens.data.load("digits", 64)
    model = keras.models.load_model(tmp_path / "trained/best.keras").model
    expected = keras_exitens.collect(model, splits.calibration)
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

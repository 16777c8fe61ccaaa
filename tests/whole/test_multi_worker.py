"""Two workers on loopback train what one process trains; when one dies nothing is lost."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time

import distillers
import numpy as np
import pytest
import worker

SCRIPT = worker.__file__


def start(part, folder, die_at=0, who=1):
    """Starts two workers; worker `who` kills itself at step `die_at`."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]
    for server in servers:
        server.close()
    processes = []
    for index in range(2):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        command = [sys.executable, SCRIPT, part, str(folder), str(die_at * (index == who))]
        environment = {**os.environ, "TF_CONFIG": json.dumps(task)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
    return processes


def finish(processes, timeout=400):
    """Exit codes and outputs; no process outlives the test."""
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


def assert_same(folder, expected, rtol, atol=1e-5):
    """Both workers found what is expected, and the same to the bit."""
    for index in range(2):
        found = np.load(folder / f"{index}.npz")
        assert set(expected) <= set(found)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=rtol, atol=atol, err_msg=name)
    first, second = (np.load(folder / f"{index}.npz") for index in range(2))
    for name in expected:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def distance(found, wanted, names):
    return np.sqrt(sum(np.sum((np.float64(found[name]) - wanted[name]) ** 2) for name in names))


def assert_as_near_as_other_orders(folder, expected, precision):
    """Two workers differ from one process by what half precision's rounding of another order of rows does."""

    def of_precision(found):
        return {k.removeprefix(f"{precision} "): found[k] for k in found if k.startswith(precision)}

    alone = of_precision(expected)
    first, second = (of_precision(np.load(folder / f"{index}.npz")) for index in range(2))
    assert set(alone) == set(first) == set(second)
    for name in alone:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    assert first["skipped"] == alone["skipped"]
    orders = worker.train_in_other_orders(distillers, precision)
    for kind in ("weight", "log", "evaluate", "predict"):
        names = [name for name in orders[0] if name.startswith(kind)]
        rounding = max(distance(order, alone, names) for order in orders)
        assert 0 < rounding < 0.1 * distance(dict.fromkeys(names, 0), alone, names), kind
        assert distance(first, alone, names) <= 2 * rounding, kind
    for found in (alone, first):
        logits = [found[f"predict {name}"] for name in distillers.EXITS]
        np.testing.assert_allclose(found["collected"], logits, atol=1e-6)


def test_two_workers_end_as_one_process(tmp_path):
    processes = start("train", tmp_path)
    expected = worker.train(distillers, worker.make(distillers))
    codes, outputs = finish(processes)
    assert codes == [0, 0], outputs
    assert "log val_final_accuracy" in expected
    assert_same(tmp_path, expected, rtol=1e-4)


@pytest.mark.slow
def test_half_precisions_and_keras_own_backups_on_two_workers(tmp_path):
    """Half precisions as in one process; BackupAndRestore and ModelCheckpoint after an interruption."""
    (tmp_path / "alone").mkdir()
    processes = start("more", tmp_path)
    expected = worker.more(distillers, contextlib.nullcontext, tmp_path / "alone")
    codes, outputs = finish(processes)
    assert codes == [0, 0], outputs
    computed = [str(expected[f"{p} computed in"]) for p in worker.PRECISIONS]
    assert computed == ["bfloat16", "float16"]
    for precision in worker.PRECISIONS:
        assert_as_near_as_other_orders(tmp_path, expected, precision)

    callbacks = {k: v for k, v in expected.items() if k.startswith("callbacks ")}
    assert_same(tmp_path, callbacks, rtol=1e-4)
    found = np.load(tmp_path / "1.npz")
    assert list(found["callbacks epochs of the resumed run"]) == [2]
    straight = [k for k in callbacks if k.startswith("callbacks straight")]
    assert len(straight) == 13
    for name in straight:
        for way in ("resumed", "loaded"):
            again = found[name.replace("straight", way)]
            np.testing.assert_allclose(again, found[name], rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_worker_that_dies_ends_the_job_with_an_error_and_it_goes_on_from_the_backup(who, tmp_path):
    """The chief, which writes the backups, or the other one."""
    processes = start("stream", tmp_path, die_at=9, who=who)
    other = 1 - who
    died = None
    while processes[other].poll() is None:
        if died is None and processes[who].poll() is not None:
            died = time.monotonic()
        assert died is None or time.monotonic() - died < 60
        time.sleep(0.2)
    codes, outputs = finish(processes)
    assert codes[who] == -9 and codes[other] != 0
    assert "ConnectionError: Another worker of this job is gone." in outputs[other]

    codes, outputs = finish(start("stream", tmp_path))
    assert codes == [0, 0], outputs
    assert all("from step 8" in output for output in outputs)
    expected = worker.stream(distillers, worker.make(distillers), tmp_path / "alone")
    assert_same(tmp_path, expected, rtol=1e-4)


@pytest.mark.slow
def test_keras_itself_cannot_yet(tmp_path):
    """When this fails, keras-team/keras#20585 is mended: the distiller needs its overrides no longer."""
    codes, outputs = finish(start("stock", tmp_path))
    assert all(codes), "Keras trains on several workers: remove _maybe_symbolic_build and reducible"
    assert not any("Keras trains by itself" in output for output in outputs)

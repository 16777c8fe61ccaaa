"""benchmarks/gpu/study.py, on a CPU: seeds that train side by side learn, and are what each is alone."""

import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest
from contracts import BACKEND

pytestmark = pytest.mark.skipif(BACKEND != "jax", reason="it runs on JAX alone")
PROGRAM = pathlib.Path(__file__).parents[2] / "benchmarks" / "gpu" / "study.py"
SMALL = [
    "--dataset",
    "digits",
    "--networks",
    "ResNet10",
    "--width",
    "0.0625",
    "--train-size",
    "384",
    "--policy",
    "float32",
]


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("study", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines_of(study, path, *arguments):
    study.main([*SMALL, "--methods", "eed-kl", "--results", str(path), *arguments])
    return {line["settings"]["seed"]: line for line in map(json.loads, path.read_text().splitlines())}


def test_seeds_side_by_side_are_what_each_is_alone(study, tmp_path):
    few = ["--epochs", "3", "--chunk", "2"]
    both = lines_of(study, tmp_path / "both.jsonl", "--seeds", "1,2", *few)
    assert set(both) == {1, 2} and both[1]["loss"] != both[2]["loss"]
    for line in both.values():
        assert len(line["loss"]) == 3 and len(line["validation"]["final"]) == 2
        assert line["loss"][-1] < line["loss"][0] and not line["diverged"]
        assert set(line["test"]["last"]) == {*line["exits"], "ensemble"}
    alone = lines_of(study, tmp_path / "alone.jsonl", "--seeds", "2", *few)
    # Batched convolutions round elsewhere, and steps amplify it.
    np.testing.assert_allclose(alone[2]["loss"], both[2]["loss"], rtol=1e-2)
    # What is done is not done again.
    before = (tmp_path / "both.jsonl").read_text()
    assert lines_of(study, tmp_path / "both.jsonl", "--seeds", "1,2", *few) == both
    assert (tmp_path / "both.jsonl").read_text() == before
    assert "tensorflow" not in sys.modules

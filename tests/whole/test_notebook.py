"""The notebook runs from its first cell to its last, with random weights and images: no download."""

import json
import os
import pathlib
import subprocess
import sys

NOTEBOOK = pathlib.Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


def cells(kind):
    found = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def test_every_cell_runs(tmp_path):
    code = "\n\n".join(["import matplotlib; matplotlib.use('Agg')", *cells("code")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "KERAS_EXITENS_QUICK": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for text in ("exit_1", "of network", "multiply-adds of a row", "time of a row"):
        assert text in done.stdout
    assert (tmp_path / "early.keras").exists()
    assert (tmp_path / "serving/1/saved_model.pb").exists()


def test_it_is_kept_without_outputs_and_knows_its_parts():
    found = json.loads(NOTEBOOK.read_text())
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in found["cells"])
    assert len(cells("markdown")) >= 8

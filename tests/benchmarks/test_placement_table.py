"""The table in docs/placement.md says what the library does now."""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_the_table_is_what_the_library_gives():
    spec = importlib.util.spec_from_file_location(
        "placement_table", ROOT / "benchmarks" / "placement_table.py"
    )
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = script.written(script.DOCUMENT.read_text())
    assert found == script.table(), "run: python benchmarks/placement_table.py --write"
    assert len(found.splitlines()) == 2 + 3 * len(script.NETWORKS)

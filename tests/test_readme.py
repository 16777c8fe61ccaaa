"""The code in the README runs."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def namespace(tmp_path_factory):
    """Blocks share their names, as a reader who follows along does, and write into a folder of their own."""
    patch = pytest.MonkeyPatch()
    patch.chdir(tmp_path_factory.mktemp("readme"))
    yield {}
    patch.undo()


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number, namespace):
    exec(compile(BLOCKS[number], f"README block {number}", "exec"), namespace)
    assert set(namespace["model"].output) >= {"exit_1", "final"}


def test_there_are_blocks_and_the_first_is_the_dozen_lines():
    assert len(BLOCKS) >= 2
    assert "ExitEnsembleDistiller" in BLOCKS[0]


def test_commands_at_the_top_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target

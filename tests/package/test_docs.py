"""The code in the README and on the pages of the documentation runs, and the site is whole."""

import contextlib
import importlib
import io
import pathlib
import re
import subprocess
import sys
import types
import zlib

import keras
import pytest

import keras_exitens as kx
from keras_exitens._reports.tradeoff import Point
from keras_exitens._tables import Report

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"

# A block, and what it prints where the page says so.
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\s*^```\{ \.text \.output \}\n(?P<output>.*?)^```)?",
    re.DOTALL | re.MULTILINE,
)
SLOW = set()  # pages of more than half a minute
SERVING = {"docs/howto/serving.md"}  # a page that starts Ray


def pages():
    for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]:
        if BLOCK.search(path.read_text()):
            name = str(path.relative_to(ROOT))
            marks = [
                mark
                for names, mark in ((SLOW, pytest.mark.slow), (SERVING, pytest.mark.serving))
                if name in names
            ]
            yield pytest.param(path, id=name, marks=marks)


@pytest.mark.parametrize("path", list(pages()))
def test_code_of_a_page_runs(path, tmp_path, monkeypatch):
    """Blocks share their names, as a reader who follows along does, and write into a folder of their own."""
    monkeypatch.chdir(tmp_path)
    keras.utils.clear_session()  # names of layers as in a process of its own
    page = path.read_text()
    namespace = {"__name__": "page"}
    for block in BLOCK.finditer(page):
        # Blank lines before the code, so that errors name its line on the page.
        blank = "\n" * (page.count("\n", 0, block.start()) + 1)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(blank + block["code"], str(path), "exec"), namespace)
        if block["output"] is not None:
            assert printed.getvalue().rstrip() == block["output"].rstrip(), block["code"]
    if "model" in namespace:
        assert set(namespace["model"].output) >= {"exit_1", "final"}


def test_every_python_block_is_run():
    for path in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        page = path.read_text()
        assert page.count("```python") == len(BLOCK.findall(page)), path
        assert page.count(".output }") == sum(bool(block["output"]) for block in BLOCK.finditer(page)), path


def test_the_first_block_of_the_readme_is_the_dozen_lines():
    first = BLOCK.search((ROOT / "README.md").read_text())["code"]
    assert "ExitEnsembleDistiller" in first
    assert len(first.splitlines()) <= 16


def test_commands_at_the_top_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert len(targets) >= 2
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", (ROOT / "README.md").read_text())
    local = [link for pair in links for link in pair if link and not link.startswith("http")]
    assert local
    for link in local:
        assert (ROOT / link).exists(), link


def test_what_contributors_are_sent_to_is_there():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    places = page.partition("## Where things are")[2].partition("## Habits")[0]
    named = re.findall(r"`([\w./]+(?:\.py|/)|_[a-z]+)`", places)
    assert {"_graph", "_attach/heads.py", "objectives/", "docs/builder/"} <= {*named}
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "keras_exitens" / name).exists(), name
    inside = re.findall(r"`([\w/]+\.py)`: `(\w+)`", places)
    assert ("_attach/heads.py", "HEADS") in inside
    for file, name in inside:
        assert re.search(
            rf"^\s*(?:def )?{name}\b", (ROOT / "keras_exitens" / file).read_text(), re.MULTILINE
        ), name


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built with every warning an error: broken links, names that are not there."""
    pytest.importorskip("mkdocs", reason="no MkDocs: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def documented(site):
    """Full names of all objects in the API reference."""
    *_, compressed = (site / "objects.inv").read_bytes().split(b"\n", 4)
    lines = zlib.decompress(compressed).decode().splitlines()
    return {line.split(" ", 1)[0] for line in lines}


def public_names():
    """Full names of the functions and classes that the package and its public modules offer."""
    modules = [name for name in kx.__all__ if isinstance(getattr(kx, name), types.ModuleType)]
    yield from (f"keras_exitens.{name}" for name in kx.__all__ if name not in modules)
    for name in modules:
        module = importlib.import_module(f"keras_exitens.{name}")
        names = (inner for inner in module.__all__ if callable(getattr(module, inner)))
        yield from (f"keras_exitens.{name}.{inner}" for inner in names)


def test_every_public_name_is_in_the_reference(site):
    names = set(public_names())
    assert {"keras_exitens.add_exits", "keras_exitens.objectives.EED", "keras_exitens.runtime.load"} <= names
    assert not names - documented(site)


def test_every_report_is_in_the_reference(site):
    """What public functions return: no name to import, but attributes to read."""
    names = {report.__name__ for report in Report.__subclasses__() + Point.__subclasses__()}
    assert {"Benchmark", "Calibration", "Manifest", "Outcome", "Tradeoff"} <= names
    assert not names - {name.rpartition(".")[2] for name in documented(site)}


def test_docstrings_of_networks_are_filled(site):
    page = (site / "api" / "data.html").read_text()
    assert "{arguments}" not in page
    assert "classifier_activation" in page


def test_the_site_loads_nothing_from_elsewhere(site):
    for path in site.rglob("*.html"):
        tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", path.read_text())
        assert tags
        for tag in tags:
            assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", tag), (path.name, tag)
    for path in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", path.read_text()), path.name


def test_formulas_are_mathml_and_drawings_are_in_the_page(site):
    method, concepts = ((site / f"{name}.html").read_text() for name in ("method", "concepts"))
    assert method.count("<math") > 20
    assert "arithmatex" not in method
    assert concepts.count('<figure class="drawing"') == 3
    assert "picture:" not in concepts


@pytest.fixture
def benchmarks_page(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "builder")
    return importlib.import_module("benchmarks_page")


def test_benchmarks_page_has_every_script_and_what_was_measured(benchmarks_page, tmp_path):
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "training_speed.py").write_text(
        '"""What it measures.\n\n    python benchmarks/training_speed.py\n"""\n'
    )
    page = benchmarks_page.make(tmp_path)
    assert "```bash\npython benchmarks/training_speed.py\n```" in page
    assert "No figures are kept" in page
    (tmp_path / "benchmarks" / "results" / "training_speed.json").write_text(
        '{"a step": {"two | one": {"median": 1.26, "low": 1.1, "high": 1.4}}, "keras": "3.15.1"}'
    )
    page = benchmarks_page.make(tmp_path)
    assert "| a step · two \\| one | 1.26 | 1.1 to 1.4 |" in page
    assert "keras 3.15.1" in page
    assert "No figures are kept" not in page


def test_every_section_with_results_has_figures(benchmarks_page):
    page = benchmarks_page.make(ROOT)
    for name, title in benchmarks_page.TITLES.items():
        section = page.partition(f"## {title}\n")[2].partition("\n## ")[0]
        figures = section.partition("| ---")[2] or section.partition("kills, ")[2]
        kept = (ROOT / "benchmarks" / "results" / f"{name}.json").exists()
        assert bool(re.search(r"\d", figures)) == kept, section


def test_benchmarks_page_knows_all_that_keep_figures(benchmarks_page):
    kept = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert kept <= set(benchmarks_page.TITLES)

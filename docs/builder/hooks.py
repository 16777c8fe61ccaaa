"""What MkDocs does beside reading the pages: drawings, formulas, the page of benchmarks, pictures of results.

- `<!-- picture: NAME -->` in a page becomes the drawing of that name from `pictures.py`, in the page itself,
  so that it takes the colours of the scheme.
- Formulas become MathML, which browsers draw without a script.
- `benchmarks.md` is made by `benchmarks_page.py` from `benchmarks/results/`.
- `accuracy.md`, made by a benchmark, is taken into the navigation where it is there.
- Links from a page to a picture in `benchmarks/results/` work; other links out of `docs/` become plain text.
"""

import html
import pathlib
import re
import sys

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import benchmarks_page
import pictures

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def on_config(config):
    if (ROOT / "docs" / "accuracy.md").exists():
        results = next(entry["Results"] for entry in config.nav if "Results" in entry)
        if {"Accuracy": "accuracy.md"} not in results:
            results.insert(0, {"Accuracy": "accuracy.md"})
    return config


def on_files(files, config):
    files.append(File.generated(config, "benchmarks.md", content=benchmarks_page.make(ROOT)))
    for path in sorted(RESULTS.glob("*.png")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    if not re.search(r"^(?:##|:::) ", markdown, flags=re.MULTILINE):
        page.meta.setdefault("hide", ["toc"])  # no headings: the room is for a wide table
    up = "../" * page.file.src_uri.count("/")
    markdown = re.sub(r"\]\((?:\.\./)+benchmarks/results/(\w+\.png)\)", rf"]({up}results/\1)", markdown)
    markdown = re.sub(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#]+)\)", _inside, markdown)
    return re.sub(r"<!-- picture: (\w+) -->", lambda found: _picture(found[1]), markdown)


def _inside(link):
    """The link, or its text where it leads out of the documentation, to a file of the repository."""
    text, target = link.groups()
    name = target.lstrip("./")
    if not (ROOT / "docs" / name).exists() and (ROOT / name).exists():
        return text if name in text else f"{text} (`{name}`)"
    return link[0]


def _picture(name):
    drawing, caption = pictures.PICTURES[name]
    return f'<figure class="drawing" markdown="0">{drawing()}<figcaption>{caption}</figcaption></figure>'


def on_page_content(content, page, config, files):
    content = re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', _inline, content, flags=re.DOTALL)
    content = re.sub(r'(<li class="doc-section-item field-body">)\s*–', r"\1", content)  # no name, no type
    return re.sub(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', _block, content, flags=re.DOTALL)


def _inline(formula):
    return _mathml(formula[1], "inline")


def _block(formula):
    return f'<div class="formula">{_mathml(formula[1], "block")}</div>'


def _mathml(formula, display):
    formula = html.unescape(formula).strip()
    try:
        found = convert(formula, display=display)
    except Exception as cause:
        raise PluginError(f"This formula cannot be read: {formula}") from cause
    # Double bars grow to the height of the line where browsers are free to choose.
    return re.sub(r"<mo[^>]*>(&#x0(?:2016|2225);)</mo>", r'<mo stretchy="false">\1</mo>', found)

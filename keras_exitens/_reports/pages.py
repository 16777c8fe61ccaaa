"""One HTML page that shows a trade-off, with pictures and tables inside it."""

import base64
import html
import io
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_exitens import _checks as checks
from keras_exitens._reports import figures
from keras_exitens._types import Path

if TYPE_CHECKING:
    from keras_exitens._reports.tradeoff import Tradeoff

__all__ = ["write"]

_SHOWN = 12  # images that leave first, and as many that leave last

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #111; max-width: 70rem; margin: 2rem auto;
  padding: 0 1rem; }}
img {{ max-width: 100%; height: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }}
th, td {{ padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ccc; }}
th:first-child, td:first-child {{ text-align: left; }}
.scroll {{ overflow-x: auto; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def write(
    path: Path, title: str, tradeoff: "Tradeoff", images: Sequence[np.ndarray] | np.ndarray | None = None
) -> None:
    """Writes the page, whole or not at all. Arguments as `Tradeoff.to_html`."""
    if images is not None and len(images) != tradeoff.images:
        raise checks.error(
            "The images do not belong to these records.",
            expected=f"{tradeoff.images} images, in the order of the records",
            received=f"{len(images)}",
            fix="pass the images that were given to collect",
        )
    chosen = tradeoff.chosen
    parts = [
        f"<p>The chosen policy classifies {chosen.accuracy:.1%} of {tradeoff.images:,} images right at "
        f"{chosen.cost:.1%} of the cost of the network without early exits, which classifies "
        f"{tradeoff.full_accuracy:.1%} right.</p>",
        _picture(tradeoff.plot(), "Accuracy against cost, shares of images per exit, reliability diagrams"),
    ]
    for heading, rows in tradeoff.tables().items():
        parts += [f"<h2>{html.escape(heading)}</h2>", _table(rows)]
    if images is not None:
        parts += _images(tradeoff, images)
    parts.append(f"<p>Policy: <code>{html.escape(repr(chosen.policy))}</code></p>")
    page = _PAGE.format(title=html.escape(title), body="\n".join(parts))
    path = pathlib.Path(path)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)


def _picture(figure: Any, text: str) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<p><img alt="{html.escape(text)}" src="data:image/png;base64,{data}"></p>'


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = []
    for kind, row in zip(["th", *["td"] * (len(rows) - 1)], rows, strict=True):
        cells = [f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _images(tradeoff: "Tradeoff", images: Sequence[np.ndarray] | np.ndarray) -> list[str]:
    """Those that leave at the earliest exit with the greatest score, and at the latest with the least."""
    chosen = tradeoff.chosen
    score = np.nan_to_num(chosen.score, nan=-np.inf)
    order = np.lexsort((-score, chosen.exit))
    parts = []
    for heading, rows in (
        ("Images that leave first", order[:_SHOWN]),
        ("Images that leave last", order[::-1][:_SHOWN]),
    ):
        names = [tradeoff.exits[chosen.exit[row]].name for row in rows]
        right = ["right" if chosen.right[row] else "wrong" for row in rows]
        captions = [f"{name}, {word}" for name, word in zip(names, right, strict=True)]
        figure = figures.image_grid([images[row] for row in rows], captions)
        parts += [f"<h2>{heading}</h2>", _picture(figure, f"{heading}: {', '.join(captions)}")]
    return parts

"""The drawings of the documentation, as SVG in the page: `currentColor` takes the scheme's ink.

Nothing is told by colour alone: who teaches is dashed, rows of a batch have numbers, everything has its name.

    python docs/builder/pictures.py FOLDER     # as files of their own, black on white
"""

import pathlib
import sys

EARLY, FINAL = 3, 3  # three early exits; the index of the final one


def text(x, y, words, size=13, anchor="middle", **more):
    return _tag("text", words, x=x, y=y, font_size=size, text_anchor=anchor, **more)


def box(x, y, width, height, words="", soft=True, **more):
    """A box around its middle."""
    shape = _tag(
        "rect",
        x=x - width / 2,
        y=y - height / 2,
        width=width,
        height=height,
        rx=4,
        class_="soft" if soft else "line",
        **more,
    )
    return shape + (text(x, y + 4.5, words) if words else "")


def circle(x, y, words, r=17, heavy=False):
    return _tag("circle", cx=x, cy=y, r=r, class_="heavy" if heavy else "line") + text(x, y + 4.5, words)


def arrow(*points, teaches=False, head=True):
    """A line through points `(x, y)` with an arrow at its end; dashed where someone teaches."""
    path = "M" + " L".join(f"{x} {y}" for x, y in points)
    return _path(path, teaches, head)


def curve(start, bend, end, teaches=False):
    return _path(f"M{start[0]} {start[1]} Q{bend[0]} {bend[1]} {end[0]} {end[1]}", teaches, True)


def _path(path, teaches, head):
    kind = "teaches" if teaches else "flow"
    marker = {"marker_end": f"url(#{kind}-head)"} if head else {}
    return _tag("path", d=path, class_=kind, **marker)


def _tag(name, inside="", **attributes):
    written = " ".join(f'{k.rstrip("_").replace("_", "-")}="{v}"' for k, v in attributes.items())
    return f"<{name} {written}>{inside}</{name}>"


def svg(name, width, height, title, *parts):
    """A drawing; `name` makes its ids unique in a page of several."""
    heads = "".join(
        f'<marker id="{name}-{kind}-head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto-start-reverse">'
        f'<path d="M0 0.5 L7.5 4 L0 7.5 z" class="{kind}-tip"/></marker>'
        for kind in ("flow", "teaches")
    )
    drawn = "".join(parts).replace("url(#", f"url(#{name}-")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{title}"><title>{title}</title><defs>{heads}</defs>{drawn}</svg>'
    )


def exits():
    """A network with three early exits."""
    parts = []
    line, xs = 62, (150, 310, 470, 630)
    parts.append(
        _tag("rect", x=24, y=line - 26, width=52, height=52, class_="line") + text(50, line + 5, "image")
    )
    parts.append(arrow((76, line), (96, line)))
    for i, (x, height) in enumerate(zip(xs, (96, 82, 68, 54), strict=True)):
        parts.append(box(x, line, 104, height, f"stage {i + 1}"))
        last = i == FINAL
        branch = x + 80 if not last else x + 84
        if last:
            parts.append(arrow((x + 52, line), (branch, line), (branch, 182)))
        else:
            parts.append(arrow((x + 52, line), (xs[i + 1] - 53, line)))
            parts.append(_tag("circle", cx=branch, cy=line, r=3.5, class_="dot"))
            parts.append(arrow((branch, line), (branch, 127)))
            parts.append(box(branch, 146, 70, 34, "head"))
            parts.append(arrow((branch, 163), (branch, 182)))
        name = "K" if last else i + 1
        parts.append(box(branch, 197, 70, 26, soft=False) + text(branch, 201.5, f"f{_low(name)}"))
        parts.append(arrow((branch, 210), (branch, 236)))
        parts.append(circle(branch, 254, f"z{_low(name)}"))
        parts.append(text(branch, 294, "final" if last else f"exit_{i + 1}", font_weight="bold"))
    for y, words in ((150, "head"), (201, "feature"), (258, "logits"), (294, "name")):
        parts.append(text(24, y, words, anchor="start", class_="faint"))
    parts.append(text(230, 24, "cut", class_="faint"))
    parts.append(arrow((230, 30), (230, 54)))
    return svg("exits", 760, 306, "A network of four stages with three early exits and the final one", *parts)


def _low(name):
    return f'<tspan font-size="10" dy="3">{name}</tspan>'


def teachers():
    """Who teaches whom, by objective."""
    panels = (_labels_teach(0), _last_teaches(262), _mean_teaches(524))
    return svg(
        "teachers",
        760,
        262,
        "Who teaches whom: the labels alone, the final exit, or the mean of all",
        *panels,
    )


def _panel(left, title, names):
    heading = text(left + 118, 18, title, font_weight="bold") + text(
        left + 118, 37, names, 12, class_="faint"
    )
    at = [left + 28 + 60 * i for i in range(EARLY + 1)]
    drawn = "".join(circle(x, 150, f"z{_low('K' if i == FINAL else i + 1)}") for i, x in enumerate(at))
    labels = box(left + 118, 236, 120, 26, "labels y", soft=False)
    lines = "".join(arrow((left + 118 + (x - left - 118) * 0.4, 222), (x, 170)) for x in at)
    return at, heading + drawn + labels + lines


def _labels_teach(left):
    return _panel(left, "the labels alone", "CrossEntropy")[1]


def _last_teaches(left):
    at, drawn = _panel(left, "the final exit", "DBT, BYOT")
    drawn += _tag("circle", cx=at[FINAL], cy=150, r=20.5, class_="heavy")
    for i, x in enumerate(at[:-1]):
        drawn += curve(
            (at[FINAL] - 2, 128), ((x + at[FINAL]) / 2, 100 - 14 * (FINAL - i)), (x + 2, 130), True
        )
    return drawn


def _mean_teaches(left):
    at, drawn = _panel(left, "the mean of all exits", "EED; BEED: a weighted mean")
    middle = left + 118
    drawn += _tag("circle", cx=middle, cy=74, r=18, class_="heavy") + text(middle, 78.5, "z̄")
    for x in at:
        side = -1 if x < middle else 1
        drawn += arrow((x - 4 * side, 131), (middle + 12 * side + (x - middle) * 0.06, 90))
        drawn += curve((middle + 19 * side, 76), (x + 9 * side, 84), (x + 5 * side, 131), True)
    return drawn


# Row of the batch -> the exit it leaves at.
_LEAVES = {1: 0, 2: 2, 3: 0, 4: 1, 5: 3, 6: 0, 7: 1, 8: 0}


def routing():
    """A batch of eight on its way through the stages."""
    parts, xs = [], (158, 330, 502, 674)
    for i, x in enumerate(xs):
        here = [row for row, leaves in _LEAVES.items() if leaves >= i]
        height = 14 + 20 * len(here)
        parts.append(_rows(x - 92 if i else 34, 106, here))
        parts.append(arrow((x - 78 if i else 48, 106), (x - 38, 106)))
        parts.append(box(x, 106, 72, height, f"stage {i + 1}"))
        if i < FINAL:
            parts.append(arrow((x + 36, 106), (xs[i + 1] - 106, 106)))
        leaving = [row for row in here if _LEAVES[row] == i]
        parts.append(arrow((x, 106 + height / 2), (x, 220)))
        parts.append(_rows(x, 232, leaving, across=True))
        parts.append(text(x, 262, "final" if i == FINAL else f"exit_{i + 1}", font_weight="bold"))
        parts.append(text(x, 278, f"{len(here)} row{'s' * (len(here) > 1)} computed", 12, class_="faint"))
    parts.append(text(34, 14, "batch", class_="faint"))
    for row, leaves in _LEAVES.items():
        x = 230 + 46 * (row - 1)
        parts.append(_row(x, 322, row))
        parts.append(text(x, 348, "final" if leaves == FINAL else f"exit_{leaves + 1}", 12))
    parts.append(text(200, 326, "result, in the order of the batch", anchor="end", class_="faint", size=12))
    title = "Eight rows: four leave at exit 1, two at exit 2, one at exit 3, one at the end"
    return svg("routing", 760, 360, title, *parts)


def _rows(x, y, rows, across=False):
    first = -10 * (len(rows) - 1)
    steps = [first + 20 * i for i in range(len(rows))]
    return "".join(
        _row(x + step, y, row) if across else _row(x, y + step, row)
        for step, row in zip(steps, rows, strict=True)
    )


def _row(x, y, number):
    return box(x, y, 17, 17, soft=False) + text(x, y + 4, number, 11)


PICTURES = {
    "exits": (
        exits,
        "An exit is a small head on an inner feature map. Every head ends in a feature of the same width, "
        "and each exit has a classifier of its own.",
    ),
    "teachers": (
        teachers,
        "Solid lines are what an exit is told, or what a mean is made of; dashed lines are teaching, through "
        "which no gradient flows back to the teacher.",
    ),
    "routing": (
        routing,
        "Rows that an exit is sure of leave; the others are gathered, and the next stage runs on them alone.",
    ),
}

_STYLE = (
    "svg{color:#111;background:#fff;font-family:sans-serif}text{fill:currentColor}"
    ".faint{fill:#555}.line{fill:none;stroke:currentColor}.soft{fill:#e8e8e8;stroke:currentColor}"
    ".heavy{fill:none;stroke:currentColor;stroke-width:2.5}.dot{fill:currentColor}"
    ".flow,.teaches{fill:none;stroke:currentColor;stroke-width:1.3}.teaches{stroke-dasharray:5 4}"
    ".flow-tip,.teaches-tip{fill:currentColor;stroke:none}"
)


def main(folder):
    for name, (drawing, _) in PICTURES.items():
        path = pathlib.Path(folder) / f"{name}.svg"
        path.write_text(drawing().replace("<defs>", f"<style>{_STYLE}</style><defs>", 1))


if __name__ == "__main__":
    main(*sys.argv[1:])

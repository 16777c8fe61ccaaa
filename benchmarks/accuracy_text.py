"""Tables and figures as the accuracy report writes them."""

import math

from accuracy_statistics import interval

__all__ = ["difference", "p_value", "plus_minus", "signed", "table"]


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def plus_minus(values, digits=1):
    mean, half = interval(values)
    return f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def p_value(p):
    return f"p {p:.3f}" if p >= 0.001 else "p < 0.001"


def difference(found):
    """Mean and half-width of a `Paired`."""
    return f"{found.mean:+.2f}" + ("" if math.isnan(found.half) else f" ± {found.half:.2f}")


def signed(found, p=True):
    """A difference, its p unless that is left out, and a mark where the data say which sign it has."""
    if found is None:
        return "–"
    mark = {1: " ▲", -1: " ▼", 0: ""}[found.verdict]
    return difference(found) + (f" ({p_value(found.p)})" if p else "") + mark

"""Reports: what was measured, as fields; the table of it, as text."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self, TypeAlias

__all__ = ["Report", "Rows", "aligned"]

Rows: TypeAlias = Sequence[Sequence[str]]  # the heading first


class Report:
    """Base of the frozen dataclasses of what was measured: `str` gives the table, `to_dict` the figures."""

    def table(self) -> str:
        """The figures as lines of text."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.table()

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dict of numbers, text, lists and dicts, as `json.dumps` takes it."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, figures: dict[str, Any]) -> Self:
        """The report that `to_dict` gave the figures of; keys that it does not know are left out."""
        names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        return cls(**{key: value for key, value in figures.items() if key in names})

    def __getitem__(self, key: Any) -> Any:
        """Refused: reports were dicts once."""
        raise TypeError(
            f"{type(self).__name__} is no dict any more.\n  Expected: an attribute, .{key}, or .to_dict()\n"
            f"  Received: [{key!r}]\n  Fix: write report.{key} in place of report[{key!r}]"
        )


def aligned(rows: Rows, *, numbers: bool = True) -> str:
    """Rows of text as lines: the first column to the left, the others to the right if they hold numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    form = "  ".join(f"{{:{'>' if i and numbers else '<'}{width}}}" for i, width in enumerate(widths))
    return "\n".join(form.format(*row).rstrip() for row in rows)


def _plain(value: Any) -> Any:
    """A value as JSON has it; what has no such form comes as its `repr`."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "get_config"):
        return {"class": type(value).__name__, **_plain(value.get_config())}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return value.tolist() if hasattr(value, "tolist") else repr(value)

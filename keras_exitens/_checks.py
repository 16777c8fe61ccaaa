"""Argument checks with one message form: what, expected, received, and how to fix it."""

import difflib
import importlib
import math
import numbers
import os
import sys
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

__all__ = [
    "OTHER_BYTES",
    "error",
    "keras_file",
    "nearest",
    "needs_tensorflow",
    "number",
    "one_of",
    "optional_import",
    "warn",
    "whole",
]


T = TypeVar("T")

# What zipfile, NumPy and JSON raise where bytes of an archive are missing or other ones. RuntimeError is what
# they say of "encrypted" entries and of other methods of compression.
OTHER_BYTES = (
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
    RuntimeError,
    KeyError,
    TypeError,
    ValueError,
    EOFError,
    OSError,
)


NONE_SIMILAR = "(none is similar)"


def error(
    what: str, *, expected: object, received: object, fix: str, kind: type[Exception] = ValueError
) -> Exception:
    """Returns (does not raise) an exception in the library's one message form."""
    return kind(f"{what}\n  Expected: {expected}\n  Received: {received}\n  Fix: {fix}")


def nearest(name: object, names: Iterable[object], count: int = 3) -> str:
    """Up to `count` of `names` that look most like `name`, as text for an error message."""
    close = difflib.get_close_matches(str(name), [str(n) for n in names], n=count, cutoff=0.3)
    return ", ".join(repr(n) for n in close) or NONE_SIMILAR


def one_of(argument: str, value: T, choices: Sequence[object]) -> T:
    """Returns `value` when it is among `choices`, else raises `ValueError`."""
    if value not in choices:
        similar = nearest(value, choices, 1) if isinstance(value, str) else NONE_SIMILAR
        raise error(
            f"`{argument}` is not one of the known values.",
            expected=" or ".join(repr(c) for c in choices),
            received=f"{argument}={value!r}",
            fix=f"for instance {argument}={choices[0]!r}"
            if similar == NONE_SIMILAR
            else f"did you mean {similar}?",
        )
    return value


def number(
    argument: str,
    value: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """Returns `value` when it is a finite real number within the bounds, else raises `ValueError`.

    `low` and `high` are inclusive bounds, `above` and `below` exclusive ones.
    """
    bounds = [
        (low, "at least", lambda v: v >= low),
        (high, "at most", lambda v: v <= high),
        (above, "above", lambda v: v > above),
        (below, "below", lambda v: v < below),
    ]
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if (
        not real
        or not math.isfinite(value)
        or not all(test(value) for bound, _, test in bounds if bound is not None)
    ):
        wording = " and ".join(f"{word} {bound}" for bound, word, _ in bounds if bound is not None)
        raise error(
            f"`{argument}` is out of range.",
            expected=f"a finite number {wording}".rstrip(),
            received=f"{argument}={value!r}",
            fix=f"pass a value {wording}" if wording else "pass a finite number",
        )
    return value


def whole(argument: str, value: Any, *, low: int, high: int | None = None) -> int:
    """Returns `value` as an int when it is a whole number within the bounds, else raises `ValueError`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise error(
            f"`{argument}` is not a whole number.",
            expected=f"an int of at least {low}",
            received=f"{argument}={value!r}",
            fix=f"pass, for instance, {argument}={max(low, 1)}",
        )
    return int(number(argument, value, low=low, high=high))


def keras_file(path: Any, kind: str) -> None:
    """Raises where Keras would write a model to an HDF5 file, from which it could not read it again."""
    if os.fspath(path).endswith((".h5", ".hdf5")):
        raise error(
            f"An HDF5 file cannot hold this {kind}.",
            expected='a file name that ends in ".keras"',
            received=repr(path),
            fix=f'save("{os.path.splitext(os.fspath(path))[0]}.keras"); weights alone: '
            'save_weights("name.weights.h5")',
        )


def warn(message: str) -> None:
    """Warns at the line of the user's program that called into the library."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("keras_exitens"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def optional_import(module: str, extra: str) -> Any:
    """Imports an optional package, or raises `ImportError` with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        raise error(
            f"`{module}` could not be imported ({cause}).",
            expected=f"the optional package that provides `{module}`",
            received="an environment without it",
            fix=f'pip install "keras-exitens[{extra}]"',
            kind=ImportError,
        ) from cause


def needs_tensorflow(what: str, backend: str, fix: str) -> Exception:
    """The error of what works on Keras's TensorFlow backend alone."""
    return error(
        f"{what} needs Keras's TensorFlow backend.",
        expected="KERAS_BACKEND=tensorflow",
        received=f"KERAS_BACKEND={backend}",
        fix=fix,
        kind=NotImplementedError,
    )

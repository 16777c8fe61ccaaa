"""One file with arrays and facts, written whole or not at all, and read only where it is whole."""

import json
import os
import pathlib
import zipfile
from typing import Any, TypeAlias

import numpy as np

from keras_exitens import _checks as checks

__all__ = ["BackupError", "packed", "previous_of", "read", "unpacked", "write"]

_FORMAT = "keras_exitens backup 1"
_HEADER = "header.json"
Arrays: TypeAlias = dict[str, np.ndarray]


class BackupError(ValueError):
    """A file is not a backup, or not a whole one."""


def write(path: pathlib.Path, facts: dict[str, Any], arrays: Arrays) -> None:
    """Writes a file that holds everything, or leaves the one that is there.

    The bytes go to a file beside it, are forced to the disk, and that file then takes the place of `path` in
    one step of the file system. The file that was there before is kept as `path` + ".previous".

    Args:
        path: `pathlib.Path`.
        facts: dict that JSON can hold.
        arrays: dict from str to array.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, previous = path.with_name(path.name + ".partial"), previous_of(path)
    dtypes = {name: str(array.dtype) for name, array in arrays.items()}
    header = json.dumps({"format": _FORMAT, "facts": facts, "dtypes": dtypes})
    try:
        with open(partial, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:  # with a check sum of each entry
                archive.writestr(_HEADER, header)
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    if path.exists():
        os.replace(path, previous)
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def previous_of(path: pathlib.Path) -> pathlib.Path:
    """Where `write` keeps the file that was at `path` before."""
    return path.with_name(path.name + ".previous")


def read(path: pathlib.Path) -> tuple[dict[str, Any], Arrays]:
    """The facts and the arrays of a file of `write`.

    Raises:
        BackupError: the file is no such file, or bytes of it are missing or other ones.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            header = json.loads(archive.read(_HEADER))
            if header["format"] != _FORMAT:
                raise KeyError(header["format"])
            arrays = {}
            for name, dtype in header["dtypes"].items():
                with archive.open(f"{name}.npy") as entry:
                    array = np.lib.format.read_array(entry, allow_pickle=False)
                    entry.read()  # to the end, where the check sum is compared
                arrays[name] = array.view(np.dtype(dtype)) if array.dtype.kind == "V" else array
    except checks.OTHER_BYTES as cause:
        raise checks.error(
            f"{pathlib.Path(path)} is not a whole backup.",
            expected="a file that StepBackup wrote to its end",
            received=f"{type(cause).__name__}: {cause}",
            fix="delete it, or name the file of another backup",
            kind=BackupError,
        ) from cause
    return header["facts"], arrays


def packed(value: Any, arrays: Arrays) -> Any:
    """A value in the form of JSON; arrays in it go to the dict `arrays`, and their names stay."""
    if hasattr(value, "__array__"):
        name = f"array {len(arrays)}"
        arrays[name] = np.asarray(value)
        return {"array": name}
    if isinstance(value, list | tuple):
        return [packed(item, arrays) for item in value]
    if isinstance(value, dict):
        return {"dict": {key: packed(item, arrays) for key, item in value.items()}}
    return value


def unpacked(value: Any, arrays: Arrays) -> Any:
    """What was given to `packed`; tuples are lists now."""
    if isinstance(value, list):
        return [unpacked(item, arrays) for item in value]
    if isinstance(value, dict):
        if "array" in value:
            return arrays[value["array"]]
        return {key: unpacked(item, arrays) for key, item in value["dict"].items()}
    return value

"""CIFAR-10 and CIFAR-100 as their authors publish them: the binary and the Python layout."""

import io
import pathlib
import pickle
from typing import Any, NamedTuple

import numpy as np

from keras_exitens import _checks as checks
from keras_exitens._types import Path

__all__ = ["LAYOUTS", "find_folder", "read_folder"]

_PIXELS = 32 * 32 * 3


class _Layout(NamedTuple):
    """How one of the two distributions of a set is laid out in its folder."""

    folder: str
    train: tuple[str, ...]
    test: str
    names: str  # the file of the names of the classes
    label_bytes: int = 0  # of a record, the finest label last; 0: files of Python
    labels: bytes = b""  # the keys of a file of Python
    class_names: bytes = b""


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_BINARY_BATCHES = tuple(f"{name}.bin" for name in _BATCHES)
LAYOUTS = {
    "cifar10": (
        _Layout("cifar-10-batches-bin", _BINARY_BATCHES, "test_batch.bin", "batches.meta.txt", 1),
        _Layout("cifar-10-batches-py", _BATCHES, "test_batch", "batches.meta", 0, b"labels", b"label_names"),
    ),
    "cifar100": (
        _Layout("cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", 2),
        _Layout("cifar-100-python", ("train",), "test", "meta", 0, b"fine_labels", b"fine_label_names"),
    ),
}
Part = tuple[np.ndarray, np.ndarray]


def find_folder(name: str, data_dir: Path) -> tuple[pathlib.Path, _Layout] | None:
    """The folder of one of the layouts of `name`: `data_dir` itself or a folder in it; `None` without one."""
    given = pathlib.Path(data_dir).expanduser()
    for layout in LAYOUTS[name]:
        for folder in (given / layout.folder, given):
            if (folder / layout.test).is_file():
                return folder, layout
    return None


def read_folder(folder: pathlib.Path, layout: _Layout) -> tuple[Part, Part, tuple[str, ...]]:
    """Reads the files of one layout.

    Args:
        folder, layout: what `find_folder` gives.

    Returns:
        `(train_images, train_labels), (test_images, test_labels), class_names`: uint8 images
        `(N, 32, 32, 3)` and integer labels `(N,)`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is corrupt: its size is not that of whole records, or it is no such file.

    Reference:
        A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009.
    """
    read = _read_binary if layout.label_bytes else _read_python
    files = [_existing(folder / name) for name in (*layout.train, layout.test, layout.names)]
    *train, test = (read(file, layout) for file in files[:-1])
    images, labels = (np.concatenate(column) for column in zip(*train, strict=True))
    return (images, labels), test, _class_names(files[-1], layout)


def _existing(file: pathlib.Path) -> pathlib.Path:
    if file.is_file():
        return file
    raise checks.error(
        f"{file.name} is missing.",
        expected=f"the file {file.name} in {file.parent}",
        received="a folder without it",
        fix="pass as `data_dir` the folder that the authors' archive makes when it is unpacked",
        kind=FileNotFoundError,
    )


def _read_binary(file: pathlib.Path, layout: _Layout) -> Part:
    """A record is the bytes of the labels, then 1,024 bytes of red, of green and of blue."""
    content = np.fromfile(file, np.uint8)
    record = layout.label_bytes + _PIXELS
    if not len(content) or len(content) % record:
        raise _corrupt(file, f"one or more records of {record:,} bytes", f"{len(content):,} bytes")
    records = content.reshape(-1, record)
    return _images(records[:, layout.label_bytes :]), records[:, layout.label_bytes - 1]


def _read_python(file: pathlib.Path, layout: _Layout) -> Part:
    found = _unpickled(file)
    pixels, labels = found.get(b"data"), np.asarray(found.get(layout.labels))
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.shape[1:] != (_PIXELS,)
        or labels.shape != (len(pixels),)
    ):
        raise _corrupt(
            file,
            f"uint8 rows of {_PIXELS:,} under {b'data'!r}, and as many labels under {layout.labels!r}",
            f"{getattr(pixels, 'dtype', type(pixels).__name__)} of shape {getattr(pixels, 'shape', ())}, and "
            f"labels of shape {labels.shape}",
        )
    return _images(pixels), labels


def _images(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _class_names(file: pathlib.Path, layout: _Layout) -> tuple[str, ...]:
    if layout.label_bytes:
        return tuple(file.read_text().split())
    return tuple(name.decode() for name in _unpickled(file).get(layout.class_names, ()))


class _Arrays(pickle.Unpickler):
    """Reads dicts, lists and NumPy arrays, and refuses whatever could run code."""

    _ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "encode"})

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] in ("numpy", "_codecs") and name in self._ALLOWED:
            # NumPy's module of that name moved, and is not to be asked for under the old one.
            module = module.replace("numpy.core", "numpy._core")
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _unpickled(file: pathlib.Path) -> dict[bytes, Any]:
    try:
        found = _Arrays(io.BytesIO(file.read_bytes()), encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError) as cause:
        raise _corrupt(file, "a pickled dict", f"one that cannot be read ({cause})") from cause
    if not isinstance(found, dict):
        raise _corrupt(file, "a pickled dict", type(found).__name__)
    return found


def _corrupt(file: pathlib.Path, expected: str, received: str) -> Exception:
    return checks.error(
        f"{file} is not a valid file of CIFAR.",
        expected=expected,
        received=received,
        fix="unpack the authors' archive again",
    )

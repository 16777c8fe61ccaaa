"""The IDX format of MNIST and Fashion-MNIST: gzipped or plain files of unsigned bytes."""

import gzip
import math
import pathlib
import struct
import zlib

import numpy as np

from keras_exitens import _checks as checks
from keras_exitens._types import Path

__all__ = ["read", "read_folder"]

_UNSIGNED_BYTE = 0x08


def read_folder(folder: Path) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Reads the four files of an MNIST-like data set.

    Args:
        folder: path of a folder with `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`,
            `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, each gzipped (`.gz`) or plain.

    Returns:
        `(train_images, train_labels), (test_images, test_labels)`: uint8 arrays `(N, height, width)`
        and `(N,)`.

    Raises:
        FileNotFoundError: if the folder or one of its files is missing.
        ValueError: if a file is corrupt, or if images and labels do not belong together.
    """
    folder = pathlib.Path(folder).expanduser()
    parts = []
    for part in ("train", "t10k"):
        image_file = _find(folder, f"{part}-images-idx3-ubyte")
        label_file = _find(folder, f"{part}-labels-idx1-ubyte")
        images, labels = read(image_file, 3), read(label_file, 1)
        if len(images) != len(labels):
            raise checks.error(
                f"{image_file} and {label_file.name} do not belong together.",
                expected="one label for each image",
                received=f"{len(images)} images and {len(labels)} labels",
                fix="fetch the two files again, from the same place",
            )
        parts.append((images, labels))
    (train, _), (test, _) = parts
    if train.shape[1:] != test.shape[1:]:
        raise checks.error(
            f"The training and the test images in {folder} differ in size.",
            expected="one size for all images",
            received=f"{train.shape[1:]} and {test.shape[1:]} pixels",
            fix="fetch the four files again, from the same place",
        )
    return parts[0], parts[1]


def read(file: Path, rank: int) -> np.ndarray:
    """Reads one IDX file of unsigned bytes.

    The format: two zero bytes, the type (`0x08`), the number of axes, one big-endian uint32 for the
    length of each axis, then the values in row-major order.

    Args:
        file: path; a name that ends in `.gz` is decompressed.
        rank: int, the number of axes that the file must have: 3 for images, 1 for labels.

    Returns:
        A uint8 array of that rank.

    Raises:
        ValueError: if the file does not follow the format or is empty.

    Reference:
        Y. LeCun, C. Cortes, C. J. C. Burges, *The MNIST database of handwritten digits*.
    """
    file = pathlib.Path(file)
    try:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as stream:
            content = stream.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as cause:
        raise _corrupt(file, "a complete gzip file", f"one that does not decompress ({cause})") from cause
    magic = bytes([0, 0, _UNSIGNED_BYTE, rank])
    if content[:4] != magic:
        raise _corrupt(
            file, f"the first four bytes {magic.hex(' ')}", content[:4].hex(" ") or "an empty file"
        )
    start = 4 + 4 * rank
    if len(content) < start:
        raise _corrupt(file, f"a header of {start} bytes", f"{len(content)} bytes in all")
    shape = struct.unpack(f">{rank}I", content[4:start])
    size = math.prod(shape)
    if len(content) - start != size or not size:
        raise _corrupt(
            file,
            f"{size} values, as its header says: {' × '.join(map(str, shape))}"
            if size
            else "at least one value",
            f"{len(content) - start} values",
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _find(folder: pathlib.Path, name: str) -> pathlib.Path:
    for file in (folder / f"{name}.gz", folder / name):
        if file.is_file():
            return file
    raise checks.error(
        f"{name} is missing.",
        expected=f"the file {name}.gz or {name} in {folder}",
        received="a folder without it" if folder.is_dir() else "no such folder",
        fix="pass as `data_dir` the folder that holds the four IDX files",
        kind=FileNotFoundError,
    )


def _corrupt(file: pathlib.Path, expected: str, received: str) -> Exception:
    return checks.error(
        f"{file} is not a valid IDX file.", expected=expected, received=received, fix="fetch the file again"
    )

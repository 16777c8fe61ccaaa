"""What every exit said about every image of a set, in memory or in one file."""

import hashlib
import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np

from keras_exitens import _checks as checks
from keras_exitens._inputs.labels import class_ids
from keras_exitens._network.exit_network import ExitNetwork
from keras_exitens._types import Path

__all__ = ["ExitRecords", "fingerprint", "network_of"]

_SCHEMA = 1


class ExitRecords:
    """The logits of all exits for a set of images, with their labels.

    Args:
        logits: float array `(K, N, classes)`, first exit first, finite.
        labels: class ids `(N,)`, or one-hot rows `(N, classes)`.
        names: names of the K exits; by default `exit_1`, ..., `final`.
        ids: array `(N,)` of int or str that says which image a row is, or `None`.
        fingerprint: str that tells the weights the logits came from, or `None` where that is not known.

    Attributes: `logits` (float32), `labels` (int64), `names`, `ids`, `fingerprint`.

    Raises:
        ValueError: shapes that do not belong together, no rows, logits that are not finite, labels out of
            range.
    """

    def __init__(
        self,
        logits: np.ndarray,
        labels: np.ndarray,
        names: Sequence[str] | None = None,
        ids: np.ndarray | None = None,
        fingerprint: str | None = None,
    ) -> None:
        logits = np.asanyarray(logits)
        if logits.ndim != 3 or 0 in logits.shape or logits.dtype.kind not in "fiu":
            raise checks.error(
                "The logits of the exits have the wrong form.",
                expected="numbers of shape (exits, images, classes), at least one of each",
                received=f"shape {logits.shape}, dtype {logits.dtype}",
                fix="records = kx.collect(model, data)",
            )
        self.logits = logits.astype("float32", copy=False)
        self.labels = class_ids(labels, logits.shape[2])
        self.names = tuple(names or (*(f"exit_{i}" for i in range(1, len(logits))), "final"))
        self.ids = None if ids is None else _ids(ids)
        self.fingerprint = fingerprint
        self._check_lengths()
        for name, of_exit in zip(self.names, self.logits, strict=True):
            _check_finite(name, of_exit)

    def _check_lengths(self) -> None:
        exits, rows, _ = self.logits.shape
        lengths = {"labels": (len(self.labels), rows), "names": (len(self.names), exits)}
        if self.ids is not None:
            lengths["ids"] = (len(self.ids), rows)
        for what, (found, wanted) in lengths.items():
            if found != wanted:
                raise checks.error(
                    f"The {what} do not belong to these logits.",
                    expected=f"{wanted} {what} for logits of shape {self.logits.shape}",
                    received=f"{found} {what}",
                    fix="records = kx.collect(model, data)",
                )

    def __repr__(self) -> str:
        exits, rows, classes = self.logits.shape
        return f"<ExitRecords: {rows} images, {exits} exits, {classes} classes>"

    def __len__(self) -> int:
        """Number of images, N."""
        return len(self.labels)

    @property
    def exits(self) -> int:
        """Number of exits, K, the final one included."""
        return len(self.logits)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.logits.shape[2]

    def take(self, rows: Any) -> "ExitRecords":
        """The records of some of the images.

        Args:
            rows: whatever indexes an array of N rows: ids of rows, a mask, a slice.
        """
        ids = None if self.ids is None else self.ids[rows]
        return ExitRecords(self.logits[:, rows], self.labels[rows], self.names, ids, self.fingerprint)

    def check(self, model: keras.Model, *, strict: bool = True) -> None:
        """Raises `ValueError` unless the records come from `model` with the weights it has now.

        Args:
            model: what was given to `collect`.
            strict: bool. `False` warns only.
        """
        network = network_of(model)
        received = {"exits": self.names, "weights": self.fingerprint}
        expected = {"exits": ExitNetwork.of(network).names, "weights": fingerprint(network)}
        if received == expected:
            return
        fault = checks.error(
            "The records are those of another network, or of other weights.",
            expected=expected,
            received=received,
            fix="collect again with this model; strict=False accepts them with a warning",
        )
        if strict:
            raise fault
        checks.warn(str(fault))

    def save(self, path: Path) -> None:
        """Writes one `.npz` file, uncompressed so that it can be mapped; whole, or not at all."""
        path = _npz(path)
        arrays: dict[str, Any] = {
            "schema": _SCHEMA,
            "logits": self.logits,
            "labels": self.labels,
            "names": self.names,
        }
        if self.ids is not None:
            arrays["ids"] = self.ids
        if self.fingerprint is not None:
            arrays["fingerprint"] = self.fingerprint
        partial = path.with_name(f"{path.name}.partial")
        with open(partial, "wb") as file:
            np.savez(file, **arrays)
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path, model: keras.Model | None = None, *, memory_map: bool = False) -> "ExitRecords":
        """Reads what `save` wrote.

        Args:
            path: the file.
            model: where given, the records must be those of this model: see `check`.
            memory_map: bool. Whether the logits stay in the file and are read as they are used; for records
                larger than memory. Their check sum is then not compared.

        Raises:
            ValueError: not such a file, or one of a newer version of the library; records of other weights.
        """
        path = _npz(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                stored = {key: file[key] for key in file.files if not (memory_map and key == "logits")}
            schema = int(stored.get("schema", -1))
            if schema != _SCHEMA:
                raise ValueError(f"schema {schema}")
            if memory_map:
                stored["logits"] = _mapped(path, "logits.npy")
            given: dict[str, Any] = {
                key: str(value) if key == "fingerprint" else value
                for key, value in stored.items()
                if key != "schema"
            }
            given["names"] = given["names"].tolist()
        except FileNotFoundError:
            raise
        except checks.OTHER_BYTES as cause:
            raise _unreadable(path, cause) from cause
        records = cls(**given)
        if model is not None:
            records.check(model)
        return records


def network_of(model: keras.Model) -> keras.Model:
    """The multi-exit network itself, of a network or of a distiller."""
    inner = getattr(model, "model", None)  # of a distiller, or of an `EarlyExit`
    return inner if isinstance(inner, keras.Model) else model


def fingerprint(network: keras.Model) -> str:
    """A hash of all weights: shapes, dtypes and values, in Keras's order of them."""
    digest = hashlib.sha256()
    for variable in network.weights:
        value = np.ascontiguousarray(variable.numpy())
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _ids(ids: Any) -> np.ndarray:
    ids = np.asarray(ids)
    if ids.dtype.kind in "OS":  # strings of TensorFlow are bytes
        ids = np.array([i.decode() if isinstance(i, bytes) else str(i) for i in ids.ravel()])
    return ids.reshape(len(ids))


def _check_finite(name: str, logits: np.ndarray) -> None:
    for start in range(0, len(logits), 4096):
        finite = np.isfinite(logits[start : start + 4096]).all(axis=1)
        if not finite.all():
            raise checks.error(
                f"Logits of {name!r} are not finite.",
                expected="finite logits for every image",
                received=f"NaN or infinity at image {start + int(np.argmin(finite))}",
                fix="look for NaN in the images and in the weights of the network",
            )


def _npz(path: Path) -> pathlib.Path:
    path = pathlib.Path(path)
    if path.suffix != ".npz":
        raise checks.error(
            "Records are kept in .npz files.",
            expected="a path that ends in .npz",
            received=str(path),
            fix=f"pass {path.name + '.npz'!r}",
        )
    return path


def _unreadable(path: pathlib.Path, cause: Exception) -> Exception:
    return checks.error(
        f"{path} could not be read as records ({type(cause).__name__}: {cause}).",
        expected=f"a file that ExitRecords.save wrote, schema {_SCHEMA}",
        received=str(path),
        fix="collect the records again with this version of keras_exitens",
    )


def _mapped(path: pathlib.Path, member: str) -> np.ndarray:
    """An array stored uncompressed in a zip file, mapped read-only where it lies."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member} is compressed and cannot be mapped")
    with open(path, "rb") as file:
        # The name and extra field of the local header may differ in length from those of the directory.
        file.seek(info.header_offset + 26)
        name, extra = np.frombuffer(file.read(4), "<u2")
        file.seek(info.header_offset + 30 + int(name) + int(extra))
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(file)
        order: Literal["F", "C"] = "F" if fortran else "C"
        return np.memmap(path, dtype, "r", file.tell(), shape, order)

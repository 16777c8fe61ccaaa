"""What an export says of itself: `exits.json`."""

import dataclasses
import importlib.metadata
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import keras

from keras_exitens import _scores as scores
from keras_exitens import policies, runtime
from keras_exitens._export.agreement import Agreement
from keras_exitens._tables import Report, aligned

__all__ = ["KINDS", "PACKAGES", "Manifest", "described", "manifest_of"]

# The policies that run without TensorFlow, with the names that the runtime knows them by.
KINDS = {policies.get(name): name for name in (*scores.SCORES, "patience")}
PACKAGES = {
    "tf_saved_model": (),
    "litert": ("ai-edge-litert",),
    "onnx": ("onnx", "onnxruntime", "tf2onnx"),
    "triton": ("onnx", "onnxruntime", "tf2onnx"),
}


@dataclasses.dataclass(frozen=True)
class Manifest(Report):
    """What is in an export, as its `exits.json` has it.

    Attributes:
        made_by: `"keras_exitens"`.
        schema: int, of this list.
        format: `"tf_saved_model"`, `"litert"`, `"onnx"` or `"triton"`.
        model: name of the multi-exit model.
        input: dict, the `name`, `shape` and `dtype` of the images.
        classes: int.
        labels: names of the classes, or `None`.
        exits: names of all exits, first exit first.
        policy: dict, its `kind`, `thresholds` (text where infinite), `temperatures`, `enabled`, `ensemble`.
        quantize: `"int8"`, `"float16"` or `None`.
        agreement: an `Agreement` with the model on the representative data, or `None` without these.
        versions: dict from package to version, of what wrote the export.
        stages: a dict for each file: its `exit`, `file`, `bytes`, `sha256`, `inputs`, `outputs`, `carried`;
            for Triton also its `triton_model`. `None` for a SavedModel.
    """

    made_by: str
    schema: int
    format: str
    model: str
    input: dict[str, Any]
    classes: int
    labels: tuple[str, ...] | None
    exits: tuple[str, ...]
    policy: dict[str, Any]
    quantize: str | None
    agreement: Agreement | None
    versions: dict[str, str | None]
    stages: tuple[dict[str, Any], ...] | None = None

    def table(self) -> str:
        """The format, the files with their sizes, and the agreement with the model."""
        lines = [f"{self.model}: {self.format}, {self.classes} classes, exits {', '.join(self.exits)}"]
        if self.stages:
            files = [(s["file"], s["exit"], f"{s['bytes']:,} bytes") for s in self.stages]
            lines.append(aligned([("file", "exit", "size"), *files]))
        if self.agreement:
            lines.append(f"beside the model:\n{self.agreement}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """What `exits.json` holds."""
        found = super().to_dict()
        if self.stages is None:
            del found["stages"]
        return found

    def write(self, folder: pathlib.Path) -> None:
        """Writes `exits.json`."""
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False)
        (folder / runtime.MANIFEST).write_text(text + "\n", encoding="utf-8")


def manifest_of(
    early: keras.Model, format: str, labels: Sequence[str] | None, quantize: str | None
) -> Manifest:
    """The manifest of an export that is not written yet: stages and agreement are left out."""
    return Manifest(
        made_by="keras_exitens",
        schema=runtime.SCHEMA,
        format=format,
        model=early.model.name,
        input=described("images", early.model.inputs[0]),
        classes=early.model.output[early.exit_names[-1]].shape[-1],
        labels=None if labels is None else tuple(str(label) for label in labels),
        exits=tuple(early.exit_names),
        policy=_settings(early.policy),
        quantize=quantize,
        agreement=None,
        versions=_versions(format),
    )


def described(name: str, tensor: keras.KerasTensor) -> dict[str, Any]:
    """What a manifest says of a tensor."""
    return {"name": name, "shape": list(tensor.shape), "dtype": tensor.dtype}


def _settings(policy: policies.Policy) -> dict[str, Any]:
    """Settings as JSON has them: an infinite threshold becomes `"inf"`, which `float` reads."""
    config = {key: getattr(policy, key) for key in ("thresholds", "temperatures", "enabled", "ensemble")}
    config["thresholds"] = [t if math.isfinite(t) else str(t) for t in config["thresholds"]]
    return {"kind": KINDS.get(type(policy), type(policy).__name__), **config}


def _versions(format: str) -> dict[str, str | None]:
    packages = ("keras-exitens", "keras", "tensorflow", "numpy", *PACKAGES[format])
    return {name.replace("-", "_"): _version(name) for name in packages}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

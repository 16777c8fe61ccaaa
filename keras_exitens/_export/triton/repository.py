"""The folders and `config.pbtxt` files that Triton expects."""

import pathlib
import shutil
from collections.abc import Iterable
from typing import Any

from keras_exitens._export.manifest import Manifest

__all__ = ["BACKENDS", "stage_file", "write_router", "write_stage"]

BACKENDS = ("onnxruntime", "python")
_HERE = pathlib.Path(__file__).parent
_TYPES = {
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "bool": "BOOL",
}
_BATCH = 32  # at most; whoever runs the server may edit it
_DELAY = 2000  # microseconds that a stage waits for more rows
_ROUTERS = 4  # processes: each waits for the stages of what it has taken, while the others take more


def stage_file(model: str, exit_name: str) -> str:
    """Where in the repository the file of a stage stands."""
    return f"{model}_{exit_name}/1/model.onnx"


def write_stage(repository: pathlib.Path, stage: dict[str, Any], backend: str) -> None:
    """Writes what Triton has to know of a stage whose file is there already, and says how it calls it."""
    folder = (repository / stage["file"]).parent
    if backend == "python":
        shutil.copy(_HERE / "stage.py", folder / "model.py")
    stage["triton_model"] = folder.parent.name
    text = _config(stage["triton_model"], backend, stage["inputs"], stage["outputs"], 1)
    (folder.parent / "config.pbtxt").write_text(text, encoding="utf-8")


def write_router(repository: pathlib.Path, manifest: Manifest) -> pathlib.Path:
    """Writes the model that clients ask; gives the folder in which it needs the runtime and the manifest."""
    folder = repository / manifest.model / "1"
    folder.mkdir(parents=True)
    shutil.copy(_HERE / "router.py", folder / "model.py")
    outputs = [
        {"name": "logits", "shape": [None, manifest.classes], "dtype": "float32"},
        {"name": "exit", "shape": [None], "dtype": "int32"},
        {"name": "score", "shape": [None], "dtype": "float32"},
    ]
    text = _config(manifest.model, "python", [manifest.input], outputs, _ROUTERS)
    (folder.parent / "config.pbtxt").write_text(text, encoding="utf-8")
    return folder


def _config(name: str, backend: str, inputs: Iterable[Any], outputs: Iterable[Any], instances: int) -> str:
    """The text of a `config.pbtxt`. A row's shape is without the first axis, which is the batch."""
    kind = "KIND_CPU" if backend == "python" else "KIND_AUTO"
    parts = [
        f'name: "{name}"',
        f'backend: "{backend}"',
        f"max_batch_size: {_BATCH}",
        *(_tensor("input", tensor) for tensor in inputs),
        *(_tensor("output", tensor) for tensor in outputs),
        f"dynamic_batching {{ max_queue_delay_microseconds: {_DELAY} }}",
        f"instance_group [ {{ kind: {kind} count: {instances} }} ]",
    ]
    return "\n".join(parts) + "\n"


def _tensor(direction: str, tensor: dict[str, Any]) -> str:
    row = tensor["shape"][1:]
    # A row that is one number has the shape (1,) for Triton, which takes no empty one.
    sizes = ", ".join(str(-1 if n is None else n) for n in row or [1])
    reshape = "" if row else " reshape: { shape: [ ] }"
    kind = _TYPES[tensor["dtype"]]
    return f'{direction} {{ name: "{tensor["name"]}" data_type: TYPE_{kind} dims: [ {sizes} ]{reshape} }}'

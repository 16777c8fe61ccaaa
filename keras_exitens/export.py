"""Early exit for a server or a device: a SavedModel, or one LiteRT or ONNX file a stage with a manifest."""

import contextlib
import hashlib
import importlib.metadata
import json
import math
import pathlib
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from keras_exitens import agreement, checks, policies, runtime, scores
from keras_exitens.conversion import to_litert, to_onnx
from keras_exitens.hints import Path
from keras_exitens.precision import in_float32
from keras_exitens.stages import handed_on, split

__all__ = ["FORMATS", "export"]

FORMATS = ("tf_saved_model", "litert", "onnx")
_KINDS = {policies.get(name): name for name in (*scores.SCORES, "patience")}
_PACKAGES = {
    "tf_saved_model": (),
    "litert": ("ai-edge-litert",),
    "onnx": ("onnx", "onnxruntime", "tf2onnx"),
}
_ENGINES = {"litert": "ai_edge_litert.interpreter", "onnx": "onnxruntime"}


def export(
    early: keras.Model,
    path: Path,
    format: Literal["tf_saved_model", "litert", "onnx"] = "tf_saved_model",
    *,
    labels: Sequence[str] | None = None,
    quantize: Literal["int8", "float16"] | None = None,
    representative_data: np.ndarray | None = None,
    verify: bool = True,
) -> dict[str, Any]:
    """Writes an `EarlyExit` to a folder, from which it runs without this library.

    - `"tf_saved_model"`: one SavedModel with the routing in it, for TensorFlow Serving and
      `tf.saved_model.load`. Its signatures take batches of any size: `serving_default` (`images`) and
      `with_thresholds` (`images`, `thresholds`, float32 `(K - 1,)`), by which a server trades accuracy for
      load. They give `logits`, `exit` and `score`.
    - `"litert"`, `"onnx"`: one model a stage, and `runtime.py` that routes with NumPy and LiteRT or ONNX
      Runtime alone: see `keras_exitens.runtime`.

    `exits.json` in the folder says what is in it. The folder appears when all of it is written; an export
    that was there before is replaced. Models in half precision run in float32 in LiteRT and ONNX Runtime.

    Args:
        early: an `EarlyExit`.
        path: str or path, the folder. For TensorFlow Serving it ends in a version number: `"name/1"`.
        format: one of `FORMATS`.
        labels: names of the classes, in order; for whoever reads the manifest.
        quantize: for LiteRT, `"float16"` (files of half the size) or `"int8"` (a quarter, and faster on
            devices with integer units).
        representative_data: images as the network will see them, as an array, or an iterable of batches with
            or without labels. `"int8"` reads ranges from them, for which about a hundred are enough; with
            any LiteRT or ONNX export the agreement with this model is measured on them. Figures from images
            that the ranges were read from are flattering.
        verify: bool. Whether the stages are run beside the model on two random images before the folder
            appears; needs the runtime of the format, and is done without quantisation alone.

    Returns:
        The manifest, a dict. Under `"agreement"`, with representative data: `"rows"`, `"same_exit"` and
        `"same_class"` as fractions of them, and `"logit_difference"`, the largest among the rows with the
        same exit.

    Raises:
        ValueError: arguments that do not go together; a policy of one's own, which only a SavedModel can
            hold.
        FileExistsError: `path` is something else than an export.
        RuntimeError: an operation that LiteRT or ONNX has not, or stages that disagree with the model.
        ImportError: the packages of the format are not installed.
    """
    checks.one_of("format", format, FORMATS)
    _check_options(early, format, labels, quantize, representative_data)
    runs = (verify and quantize is None) or representative_data is not None
    if runs and format in _ENGINES:  # the stages are run once written: what that needs is asked for first
        checks.optional_import(_ENGINES[format], "export")
    images = None if representative_data is None else agreement.images_of(representative_data)
    model = early.model if format == "tf_saved_model" else in_float32(early.model)
    with _folder(path) as folder:
        manifest = {
            "made_by": "keras_exitens",
            "schema": runtime.SCHEMA,
            "format": format,
            "model": early.model.name,
            "input": _tensor("images", early.model.inputs[0]),
            "classes": _classes(early),
            "labels": None if labels is None else [str(label) for label in labels],
            "exits": list(early.exit_names),
            "policy": _policy(early.policy),
            "quantize": quantize,
            "agreement": None,
            "versions": _versions(format),
        }
        if format == "tf_saved_model":
            _write_saved_model(early, folder)
        else:
            manifest["stages"] = _write_stages(early, model, folder, format, quantize, images)
            for module in (runtime, scores, checks):
                shutil.copy(str(module.__file__), folder)
        _write_manifest(folder, manifest)
        if format != "tf_saved_model" and verify and quantize is None:
            agreement.verify(runtime.load(folder), model, early.policy)
        if images is not None:
            manifest["agreement"] = agreement.measure(runtime.load(folder), early.model, early.policy, images)
            _write_manifest(folder, manifest)
    return manifest


def _check_options(early, format, labels, quantize, representative_data):
    if labels is not None and (isinstance(labels, str) or len(labels) != _classes(early)):
        raise checks.error(
            "`labels` does not name the classes.",
            expected=f"a list of {_classes(early)} names",
            received=f"labels={labels!r}",
            fix="pass one name a class, in the order of the logits",
        )
    if quantize is not None:
        checks.one_of("quantize", quantize, ("int8", "float16"))
    if (format == "tf_saved_model" and representative_data is not None) or (format != "litert" and quantize):
        raise checks.error(
            "An argument does not go with this format.",
            expected="`quantize` with 'litert', `representative_data` with 'litert' or 'onnx'",
            received=f"format={format!r}, quantize={quantize!r}"
            + (", representative_data" if representative_data is not None else ""),
            fix="leave it out, or use format='litert'",
        )
    if quantize == "int8" and representative_data is None:
        raise checks.error(
            "Eight-bit quantisation needs images to read ranges from.",
            expected="`representative_data`: about a hundred images as the network will see them",
            received="representative_data=None",
            fix="pass representative_data=images, or quantize='float16'",
        )
    if format != "tf_saved_model" and type(early.policy) not in _KINDS:
        raise checks.error(
            f"The policy {type(early.policy).__name__} cannot run without TensorFlow.",
            expected=" or ".join(policy.__name__ for policy in _KINDS) + f" for format={format!r}",
            received=repr(early.policy),
            fix="use format='tf_saved_model', which takes policies of one's own",
        )


@contextlib.contextmanager
def _folder(path):
    """Gives a new folder, which is moved to `path` if nothing is raised, and removed if something is."""
    path = pathlib.Path(path).absolute()
    if path.exists() and not (
        path.is_dir() and (not any(path.iterdir()) or (path / runtime.MANIFEST).exists())
    ):
        raise checks.error(
            f"{str(path)!r} is there already, and is not an export.",
            expected="a path where nothing is, an empty folder, or an export that can be replaced",
            received="a file" if path.is_file() else f"a folder without {runtime.MANIFEST}",
            fix="choose another path, or remove what is there",
            kind=FileExistsError,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as place:
        new = pathlib.Path(place, "new")  # not `place` itself, which nobody else may read
        new.mkdir()
        yield new
        old = pathlib.Path(place, "old")
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise


def _write_saved_model(early, folder):
    (pixels,) = early.model.inputs
    images = tf.TensorSpec((None, *pixels.shape[1:]), pixels.dtype, "images")
    thresholds = tf.TensorSpec((len(early.exit_names) - 1,), "float32", "thresholds")
    route = tf.function(early.route, input_signature=[images, thresholds], autograph=False)

    # Both signatures call one function, so that constants in it are stored once.
    def by_policy(images):
        return route(images, tf.constant(early.policy.thresholds, "float32"))

    archive = keras.export.ExportArchive()
    if not early.optimize:  # else the weights are constants already
        archive.track(early.model)
    archive.add_endpoint("serving_default", by_policy, [images])
    archive.add_endpoint(
        "with_thresholds", lambda images, thresholds: route(images, thresholds), [images, thresholds]
    )
    archive.write_out(str(folder), verbose=False)


def _write_stages(early, model, folder, format, quantize, images):
    """Writes one file a stage; gives what the manifest says of each."""
    exits = early.exit_names
    chain = split(model, [exits[i] for i in early.policy.enabled_exits(len(exits))])
    described = []
    for k, stage in enumerate(chain):
        path = folder / f"stage_{k + 1}.{'tflite' if format == 'litert' else 'onnx'}"
        if format == "onnx":
            to_onnx(stage, path)
        else:
            to_litert(stage, path, quantize, _examples(chain[: k + 1], images))
        content = path.read_bytes()
        described.append(
            {
                "exit": stage.exit,
                "file": path.name,
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "inputs": [_tensor(name, t) for name, t in stage.model.input.items()],
                "outputs": [_tensor(name, t) for name, t in stage.model.output.items()],
                "carried": list(stage.carried),
            }
        )
    return described


def _examples(chain, images):
    """A function that gives, image by image, what the last stage of a chain takes."""

    def batches():
        for image in images:
            values = dict.fromkeys(chain[0].inputs, tf.constant(image[None]))
            for stage in chain[:-1]:
                made = stage(values)
                values = handed_on(values, made, stage.carried)
            yield {name: np.asarray(values[name]) for name in chain[-1].inputs}

    return batches


def _classes(early):
    return early.model.output[early.exit_names[-1]].shape[-1]


def _tensor(name, tensor):
    return {"name": name, "shape": list(tensor.shape), "dtype": tensor.dtype}


def _policy(policy):
    """Settings as JSON has them: an infinite threshold becomes `"inf"`, which `float` reads."""
    config = {key: getattr(policy, key) for key in ("thresholds", "temperatures", "enabled", "ensemble")}
    config["thresholds"] = [t if math.isfinite(t) else str(t) for t in config["thresholds"]]
    return {"kind": _KINDS.get(type(policy), type(policy).__name__), **config}


def _versions(format):
    packages = ("keras", "tensorflow", "numpy", *_PACKAGES[format])
    found = {name: _version(name) for name in ("keras-exitens", *packages)}
    return {name.replace("-", "_"): version for name, version in found.items()}


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _write_manifest(folder, manifest):
    text = json.dumps(manifest, indent=2, allow_nan=False)
    (folder / runtime.MANIFEST).write_text(text + "\n", encoding="utf-8")

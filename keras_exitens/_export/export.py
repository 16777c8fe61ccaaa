"""Early exit for a server or a device: a SavedModel, or a LiteRT or ONNX file a stage, for Triton too."""

import contextlib
import dataclasses
import hashlib
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from keras_exitens import _checks as checks
from keras_exitens import _scores as scores
from keras_exitens import runtime
from keras_exitens._export import agreement
from keras_exitens._export.conversion import to_litert, to_onnx
from keras_exitens._export.manifest import KINDS, Manifest, described, manifest_of
from keras_exitens._export.precision import in_float32
from keras_exitens._export.triton import repository
from keras_exitens._inputs.batches import representative_images
from keras_exitens._network.exit_network import ExitNetwork
from keras_exitens._stages.split import Stage, split
from keras_exitens._types import Data, Path

__all__ = ["FORMATS", "export"]

FORMATS = ("tf_saved_model", "litert", "onnx", "triton")
_ENGINES = {"litert": "ai_edge_litert.interpreter", "onnx": "onnxruntime", "triton": "onnxruntime"}


def export(
    early: keras.Model,
    path: Path,
    format: Literal["tf_saved_model", "litert", "onnx", "triton"] = "tf_saved_model",
    *,
    labels: Sequence[str] | None = None,
    quantize: Literal["int8", "float16"] | None = None,
    representative_data: Data = None,
    verify: bool = True,
    backend: Literal["onnxruntime", "python"] | None = None,
) -> Manifest:
    """See `EarlyExit.export`."""
    checks.one_of("format", format, FORMATS)
    _check_options(early, format, labels, quantize, representative_data)
    chosen: str | None = None
    if format == "triton":
        chosen = checks.one_of("backend", str(backend or repository.BACKENDS[0]), repository.BACKENDS)
    elif backend is not None:
        raise _does_not_go("`backend` with 'triton'", f"format={format!r}, backend={backend!r}")
    runs = (verify and quantize is None) or representative_data is not None
    if runs and format in _ENGINES:  # the stages are run once written: what that needs is asked for first
        checks.optional_import(_ENGINES[format], "export")
    images = None
    if representative_data is not None:
        images = representative_images(representative_data, ExitNetwork.of(early.model).image)
    manifest = manifest_of(early, format, labels, quantize)
    with _folder(path) as folder:
        if format == "tf_saved_model":
            _write_saved_model(early, folder)
            manifest.write(folder)
        else:
            manifest = _export_stages(early, folder, manifest, images, verify and quantize is None, chosen)
    return manifest


def _export_stages(
    early: keras.Model,
    folder: pathlib.Path,
    manifest: Manifest,
    images: np.ndarray | None,
    verify: bool,
    backend: str | None,
) -> Manifest:
    """Writes the stages and the runtime, and compares them with the model."""
    model = in_float32(early.model)
    stages = _write_stages(early, model, folder, manifest.format, manifest.quantize, images)
    # What the first stage takes: float32 where the model itself takes half precision.
    taken = described("images", model.inputs[0])
    manifest = dataclasses.replace(manifest, input=taken, stages=tuple(stages))
    places = [folder]  # of the manifest
    if backend is not None:
        for stage in stages:
            repository.write_stage(folder, stage, backend)
        places.append(repository.write_router(folder, manifest))
    # Triton takes each folder at the top for a model, and may copy that of the router elsewhere.
    _write_runtime(places[-1] / runtime.PACKAGE)
    for place in places:
        manifest.write(place)
    if verify:
        agreement.verify(runtime.load(folder), model, early.policy)
    if images is not None:
        found = agreement.measure(runtime.load(folder), early.model, early.policy, images)
        manifest = dataclasses.replace(manifest, agreement=found)
        for place in places:
            manifest.write(place)
    return manifest


def _check_options(
    early: keras.Model,
    format: str,
    labels: Sequence[str] | None,
    quantize: str | None,
    representative_data: Data,
) -> None:
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
        raise _does_not_go(
            "`quantize` with 'litert', `representative_data` with 'litert', 'onnx' or 'triton'",
            f"format={format!r}, quantize={quantize!r}"
            + (", representative_data" if representative_data is not None else ""),
        )
    if quantize == "int8" and representative_data is None:
        raise checks.error(
            "Eight-bit quantisation needs images to read ranges from.",
            expected="`representative_data`: about a hundred images as the network will see them",
            received="representative_data=None",
            fix="pass representative_data=images, or quantize='float16'",
        )
    if format != "tf_saved_model" and type(early.policy) not in KINDS:
        raise checks.error(
            f"The policy {type(early.policy).__name__} cannot run without TensorFlow.",
            expected=" or ".join(policy.__name__ for policy in KINDS) + f" for format={format!r}",
            received=repr(early.policy),
            fix="use format='tf_saved_model', which takes policies of one's own",
        )


def _does_not_go(expected: str, received: str) -> Exception:
    return checks.error(
        "An argument does not go with this format.",
        expected=expected,
        received=received,
        fix="leave it out, or use the format that it belongs to",
    )


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[pathlib.Path]:
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


def _write_saved_model(early: keras.Model, folder: pathlib.Path) -> None:
    pixels = ExitNetwork.of(early.model).image
    images = tf.TensorSpec((None, *pixels.shape[1:]), pixels.dtype, "images")
    thresholds = tf.TensorSpec((len(early.exit_names) - 1,), "float32", "thresholds")
    route = tf.function(early.route, input_signature=[images, thresholds], autograph=False)

    # Both signatures call one function, so that constants in it are stored once.
    def by_policy(images: tf.Tensor) -> Any:
        return route(images, tf.constant(early.policy.thresholds, "float32"))

    archive = keras.export.ExportArchive()
    if not early.optimize:  # else the weights are constants already
        archive.track(early.model)
    archive.add_endpoint("serving_default", by_policy, [images])
    archive.add_endpoint(
        "with_thresholds", lambda images, thresholds: route(images, thresholds), [images, thresholds]
    )
    archive.write_out(str(folder), verbose=False)


def _write_runtime(package: pathlib.Path) -> None:
    """Writes the runtime as a package of its own, which takes no name but that one from who imports it."""
    (package / "runtime").mkdir(parents=True)
    for module in (scores, checks):
        shutil.copy(str(module.__file__), package)
    for file in pathlib.Path(str(runtime.__file__)).parent.glob("*.py"):
        shutil.copy(file, package / "runtime")
    names = ", ".join(runtime.__all__)
    (package / "__init__.py").write_text(
        f'"""{runtime.__doc__.splitlines()[0]}"""\n\nfrom .runtime import {names}\n\n'
        f"__all__ = {runtime.__all__!r}\n",
        encoding="utf-8",
    )


def _write_stages(
    early: keras.Model,
    model: keras.Model,
    folder: pathlib.Path,
    format: str,
    quantize: str | None,
    images: np.ndarray | None,
) -> list[dict[str, Any]]:
    """Writes one file a stage; gives what the manifest says of each."""
    exits = early.exit_names
    chain = split(model, [exits[i] for i in early.policy.enabled_exits(len(exits))])
    if format == "triton":
        files = [repository.stage_file(early.model.name, stage.exit) for stage in chain]
    else:
        files = [f"stage_{k + 1}.{'tflite' if format == 'litert' else 'onnx'}" for k in range(len(chain))]
    told = []
    for k, (stage, file) in enumerate(zip(chain, files, strict=True)):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if format == "litert":
            to_litert(stage, path, quantize, _examples(chain[: k + 1], images))
        else:
            to_onnx(stage, path)
        content = path.read_bytes()
        told.append(
            {
                "exit": stage.exit,
                "file": file,
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "inputs": [described(name, t) for name, t in stage.model.input.items()],
                "outputs": [described(name, t) for name, t in stage.model.output.items()],
                "carried": list(stage.carried),
            }
        )
    return told


def _examples(
    chain: Sequence[Stage], images: np.ndarray | None
) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
    """A function that gives, image by image, what the last stage of a chain takes."""

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for image in images if images is not None else ():
            values = dict.fromkeys(chain[0].inputs, tf.constant(image[None]))
            for stage in chain[:-1]:
                made = stage(values)
                values = scores.handed_on(values, made, stage.carried)
            yield {name: np.asarray(values[name]) for name in chain[-1].inputs}

    return batches


def _classes(early: keras.Model) -> int:
    return early.model.output[early.exit_names[-1]].shape[-1]

"""Runs an exported multi-exit network without TensorFlow: each image goes as far as it has to, no further.

Needs NumPy, and LiteRT or ONNX Runtime. Every export holds a copy of this file and of the two it imports, so
that it runs where this library is not installed:

```python
import sys

sys.path.insert(0, "serving")
import runtime

network = runtime.load("serving")
network.predict(images)  # {"logits", "exit", "score"}
```
"""

import functools
import hashlib
import json
import os
import pathlib
import typing
from collections.abc import Callable, Sequence

import numpy as np

if typing.TYPE_CHECKING or __package__:
    from . import checks, scores
else:  # the copy in an export
    import checks
    import scores

__all__ = ["MANIFEST", "SCHEMA", "Runtime", "Stage", "load", "read_manifest"]

MANIFEST = "exits.json"
SCHEMA = 1  # of the manifest; a change that an older runtime would misread raises it


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, typing.Any]:
    """The manifest of an export as a dict, once it is known to be whole and of a schema known here.

    Raises:
        ValueError: `folder` holds no manifest, or one that is damaged, incomplete or of a newer schema.
    """
    path = pathlib.Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        made_by, schema = manifest["made_by"], int(manifest["schema"])
        if made_by != "keras_exitens":
            raise ValueError(f"made_by is {made_by!r}")
    except (OSError, ValueError, TypeError, KeyError) as cause:
        raise checks.error(
            f"{str(folder)!r} is not an export, or its manifest is damaged.",
            expected=f"a folder that EarlyExit.export wrote, with {MANIFEST}",
            received=f"{type(cause).__name__}: {cause}",
            fix="export the network again, or copy the whole folder",
        ) from cause
    if schema > SCHEMA:
        raise checks.error(
            f"The export in {str(folder)!r} is newer than this runtime.",
            expected=f"a manifest of schema {SCHEMA} or older",
            received=f"schema {schema}",
            fix=f"use the runtime.py in that folder, or a newer keras_exitens; this file is {__file__}",
        )
    return manifest


def load(folder: str | os.PathLike[str], threads: int | None = None) -> "Runtime":
    """Loads what `EarlyExit.export` wrote with `format="litert"` or `format="onnx"`.

    Args:
        folder: str or path.
        threads: int, how many threads the stages run on; by default one a core.

    Returns:
        A `Runtime`. It holds buffers of its own: give each thread of a server one.

    Raises:
        ValueError: the folder is not such an export, or a file in it is damaged, missing or too new.
        ImportError: LiteRT or ONNX Runtime is not installed.
    """
    folder = pathlib.Path(folder)
    manifest = read_manifest(folder)
    threads = checks.number("threads", os.cpu_count() or 1 if threads is None else threads, low=1)
    engine = _ENGINES.get(manifest.get("format", ""))
    if engine is None:
        raise checks.error(
            f"The export in {str(folder)!r} does not run here.",
            expected=f"one with the format {' or '.join(_ENGINES)}",
            received=f"format {manifest.get('format')!r}",
            fix="load a SavedModel with tf.saved_model.load or TensorFlow Serving",
        )
    try:
        for stage in manifest["stages"]:
            _check_file(folder / stage["file"], stage)
        runners = [engine(folder / stage["file"], int(threads)) for stage in manifest["stages"]]
        return Runtime(manifest, runners)
    except (KeyError, TypeError, IndexError) as cause:
        raise checks.error(
            f"The manifest in {str(folder)!r} is incomplete.",
            expected=f"all that EarlyExit.export writes into {MANIFEST}",
            received=f"{type(cause).__name__}: {cause}",
            fix="export the network again, or copy the whole folder",
        ) from cause


class Runtime:
    """An exported network. Made by `load`.

    Attributes:
        exit_names: names of all exits, first exit first; what `"exit"` counts.
        labels: names of the classes, or `None`.
        manifest: dict, all that is known of the export.
        stages: list of `Stage`s, for a routing of one's own.
    """

    def __init__(self, manifest: dict[str, typing.Any], runners: Sequence[Callable[..., typing.Any]]) -> None:
        policy = manifest["policy"]
        self.manifest = manifest
        self.exit_names = tuple(manifest["exits"])
        self.labels = manifest["labels"] and tuple(manifest["labels"])
        self._classes = int(manifest["classes"])
        self._shape = (None, *manifest["input"]["shape"][1:])
        self._dtype = np.dtype(manifest["input"]["dtype"])
        self._thresholds = _thresholds([float(t) for t in policy["thresholds"]], len(self.exit_names))
        self._temperatures = [float(t) for t in policy["temperatures"]]
        self._ensemble = policy["ensemble"]
        self._scored = _scored(policy["kind"])
        self.stages = [
            Stage(
                run,
                self.exit_names.index(stage["exit"]),
                tuple(tensor["name"] for tensor in stage["inputs"]),
                tuple(stage["carried"]),
            )
            for run, stage in zip(runners, manifest["stages"], strict=True)
        ]
        if self.stages[-1].index != len(self.exit_names) - 1:
            raise KeyError(f"the stage of {self.exit_names[-1]!r}")

    def predict(
        self,
        images: np.ndarray,
        batch_size: int | None = None,
        thresholds: float | Sequence[float] | np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Takes each image as far through the network as the policy asks for.

        Args:
            images: array `(rows, height, width, channels)` of the input's dtype, or of one that NumPy casts
                to it within its kind (any float or integer to float). An image with a pixel that is not
                finite goes to the end and has the score NaN.
            batch_size: int, how many images go through a stage together, 32 by default.
            thresholds: float, or one float per early exit, in place of the thresholds of the export: higher
                ones cost more time and are more accurate.

        Returns:
            A dict of arrays: `"logits"` float32 `(rows, classes)`, `"exit"` int32 `(rows,)`, the index of the
            exit each row left at, and `"score"` float32 `(rows,)`.

        Raises:
            ValueError: images, batch size or thresholds that do not belong to this network.
        """
        images = self._checked(images)
        batch_size = int(checks.number("batch_size", 32 if batch_size is None else batch_size, low=1))
        if thresholds is None:
            thresholds = self._thresholds
        else:
            thresholds = _thresholds(thresholds, len(self.exit_names))
        result = {
            "logits": np.zeros((len(images), self._classes), "float32"),
            "exit": np.zeros(len(images), "int32"),
            "score": np.zeros(len(images), "float32"),
        }
        for start in range(0, len(images), batch_size):
            rows = slice(start, start + batch_size)
            self._route(images[rows], thresholds, {key: value[rows] for key, value in result.items()})
        return result

    def _route(self, images, thresholds, result):
        """Runs the stages on one batch and writes into the arrays of `result`."""
        rows = np.arange(len(images))  # of the batch, those that are still on their way
        values = dict.fromkeys(self.stages[0].inputs, images)
        finite = np.isfinite(images).all(axis=tuple(range(1, images.ndim)))
        state = None
        for count, stage in enumerate(self.stages, start=1):
            made = stage.run({name: values[name] for name in stage.inputs})
            with np.errstate(invalid="ignore", over="ignore"):  # logits that are not finite: the score is NaN
                logits, score, state = scores.observe(
                    self._scored,
                    made["logits"],
                    self._temperatures[stage.index],
                    count if self._ensemble else None,
                    state,
                )
            score = np.where(finite, score, np.float32("nan"))
            result["logits"][rows], result["exit"][rows], result["score"][rows] = logits, stage.index, score
            if count == len(self.stages):
                return
            going_on = scores.goes_on(np, score, thresholds[stage.index])
            if not going_on.any():
                return
            values = {name: made[name] if name in made else values[name] for name in stage.carried}
            if not going_on.all():
                rows, finite = rows[going_on], finite[going_on]
                values = {name: value[going_on] for name, value in values.items()}
                state = {name: value[going_on] for name, value in state.items()}

    def _checked(self, images):
        images = np.asarray(images)
        fits = images.ndim == len(self._shape) and all(
            wanted in (None, size) for wanted, size in zip(self._shape, images.shape, strict=True)
        )
        if not fits or not np.can_cast(images.dtype, self._dtype, "same_kind"):
            wanted = ", ".join("any" if n is None else str(n) for n in self._shape[1:])
            raise checks.error(
                "These are not images for this network.",
                expected=f"an array (rows, {wanted}) of {self._dtype}",
                received=f"shape {images.shape}, {images.dtype}",
                fix="add a first axis to a single image: images[None]"
                if images.ndim == len(self._shape) - 1
                else "resize, convert or reorder the images as for training",
            )
        return np.ascontiguousarray(images, self._dtype)


class Stage(typing.NamedTuple):
    """One stage: what it runs, and the names of tensors around it.

    Attributes:
        run: function from a dict of arrays to a dict of arrays, `"logits"` among them.
        index: int, the exit it ends at.
        inputs: names of the arrays it takes.
        carried: names of all arrays that later stages need, whether this stage made them or one before it.
    """

    run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
    index: int  # type: ignore[assignment]  # in place of `tuple.index`
    inputs: tuple[str, ...]
    carried: tuple[str, ...]


def _scored(kind):
    """What `scores.observe` scores with, by the name of a policy."""
    if kind == "patience":
        return lambda logits, state: scores.agreement(np, logits, state if "label" in state else None)
    score = scores.SCORES[kind]
    return lambda logits, state: (score(np, logits), {})


def _thresholds(value, exits):
    """Float32 `(exits - 1,)`: scores are compared in the precision they have."""
    array = np.asarray(value, "float32")
    if array.shape not in ((), (exits - 1,)) or np.isnan(array).any():
        raise checks.error(
            "These are not thresholds for this network.",
            expected=f"one number, or {exits - 1}, none of them NaN",
            received=f"thresholds={value!r}",
            fix="pass one threshold for all early exits, or one for each",
        )
    return np.broadcast_to(array, exits - 1)


def _litert(path, threads):
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as cause:
        raise _missing("ai-edge-litert") from cause
    run = Interpreter(model_path=str(path), num_threads=threads).get_signature_runner()
    return lambda values: run(**values)


def _onnx(path, threads):
    try:
        import onnxruntime
    except ImportError as cause:
        raise _missing("onnxruntime") from cause
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Each stage has threads of its own. By default those of one stage go on polling for work when it is done,
    # and take the processor from the next stage: that made a chain take nearly three times as long.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    run = functools.partial(session.run, names)
    return lambda values: dict(zip(names, run(values), strict=True))


_ENGINES = {"litert": _litert, "onnx": _onnx}  # a format -> what makes a file of it into a function


def _missing(package):
    return checks.error(
        f"This export runs on {package}.",
        expected=f"{package} to be installed",
        received="an environment without it",
        fix=f"pip install {package}",
        kind=ImportError,
    )


def _check_file(path, stage):
    """Raises unless a stage is to the byte what was exported."""
    content = path.read_bytes() if path.is_file() else b""
    if (len(content), hashlib.sha256(content).hexdigest()) != (stage["bytes"], stage["sha256"]):
        raise checks.error(
            f"The stage {path.name!r} of the export in {str(path.parent)!r} is damaged or missing.",
            expected=f"{stage['bytes']} bytes with sha256 {stage['sha256']}",
            received=f"{len(content)} bytes" if path.is_file() else "no such file",
            fix="copy the file again, or export the network again",
        )

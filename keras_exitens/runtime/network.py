"""`Runtime`: an exported network, routed stage by stage in NumPy."""

import os
import pathlib
import typing
from collections.abc import Sequence

import numpy as np

from .. import _checks as checks
from .. import _scores as scores
from .engines import ENGINES, Run
from .manifest import MANIFEST, check_file, read_manifest

__all__ = ["Runtime", "Stage", "load"]


class Stage(typing.NamedTuple):
    """One stage: what it runs, and the names of tensors around it.

    Attributes:
        run: function from a dict of arrays to a dict of arrays, `"logits"` among them.
        index: int, the exit it ends at.
        inputs: names of the arrays it takes.
        carried: names of all arrays that later stages need, whether this stage made them or one before it.
    """

    run: Run
    index: int  # type: ignore[assignment]  # in place of `tuple.index`
    inputs: tuple[str, ...]
    carried: tuple[str, ...]


class Runtime:
    """An exported network. Made by `load`.

    Attributes:
        exit_names: names of all exits, first exit first; what `"exit"` counts.
        labels: names of the classes, or `None`.
        manifest: dict, all that is known of the export.
        stages: list of `Stage`s, for a routing of one's own.
    """

    def __init__(self, manifest: dict[str, typing.Any], runners: Sequence[Run]) -> None:
        policy = manifest["policy"]
        self.manifest = manifest
        self.exit_names = tuple(manifest["exits"])
        self.labels = manifest["labels"] and tuple(manifest["labels"])
        self._classes = int(manifest["classes"])
        self._image_shape = (None, *manifest["input"]["shape"][1:])
        self._image_dtype = np.dtype(manifest["input"]["dtype"])
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

    def _route(self, images: np.ndarray, thresholds: np.ndarray, result: dict[str, np.ndarray]) -> None:
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
            values = scores.handed_on(values, made, stage.carried)
            if not going_on.all():
                rows, finite = rows[going_on], finite[going_on]
                values = {name: value[going_on] for name, value in values.items()}
                state = {name: value[going_on] for name, value in state.items()}

    def _checked(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        fits = images.ndim == len(self._image_shape) and all(
            wanted in (None, size) for wanted, size in zip(self._image_shape, images.shape, strict=True)
        )
        if not fits or not np.can_cast(images.dtype, self._image_dtype, "same_kind"):
            wanted = ", ".join("any" if n is None else str(n) for n in self._image_shape[1:])
            raise checks.error(
                "These are not images for this network.",
                expected=f"an array (rows, {wanted}) of {self._image_dtype}",
                received=f"shape {images.shape}, {images.dtype}",
                fix="add a first axis to a single image: images[None]"
                if images.ndim == len(self._image_shape) - 1
                else "resize, convert or reorder the images as for training",
            )
        return np.ascontiguousarray(images, self._image_dtype)


def load(folder: str | os.PathLike[str], threads: int | None = None) -> Runtime:
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
    engine = ENGINES.get(manifest.get("format", ""))
    if engine is None:
        raise checks.error(
            f"The export in {str(folder)!r} does not run here.",
            expected=f"one with the format {' or '.join(ENGINES)}",
            received=f"format {manifest.get('format')!r}",
            fix="load a SavedModel with tf.saved_model.load or TensorFlow Serving",
        )
    try:
        for stage in manifest["stages"]:
            check_file(folder / stage["file"], stage)
        runners = [engine(folder / stage["file"], int(threads)) for stage in manifest["stages"]]
        return Runtime(manifest, runners)
    except (KeyError, TypeError, IndexError) as cause:
        raise checks.error(
            f"The manifest in {str(folder)!r} is incomplete.",
            expected=f"all that EarlyExit.export writes into {MANIFEST}",
            received=f"{type(cause).__name__}: {cause}",
            fix="export the network again, or copy the whole folder",
        ) from cause


def _scored(kind: str) -> scores.Scored:
    """What `scores.observe` scores with, by the name of a policy."""
    if kind == "patience":
        return lambda logits, state: scores.agreement(np, logits, state)
    score = scores.SCORES[kind]
    return lambda logits, state: (score(np, logits), {})


def _thresholds(value: float | Sequence[float] | np.ndarray, exits: int) -> np.ndarray:
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

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
from .rows import Answers, Rows

__all__ = ["Runtime", "Stage", "load"]


class Stage(typing.NamedTuple):
    """One stage: what it runs, and the names of tensors around it.

    Attributes:
        run: function from a dict of arrays to a dict of arrays, `"logits"` among them.
        index: int, the exit it ends at.
        inputs: dict from the names of the arrays it takes to their dtypes.
        carried: names of all arrays that later stages need, whether this stage made them or one before it.
    """

    run: Run
    index: int  # type: ignore[assignment]  # in place of `tuple.index`
    inputs: dict[str, str]
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
                {tensor["name"]: tensor.get("dtype", "float32") for tensor in stage["inputs"]},
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
        every = self.start(images)
        rows = len(every.finite)
        batch_size = int(checks.number("batch_size", 32 if batch_size is None else batch_size, low=1))
        if thresholds is not None:
            thresholds = self.thresholds(thresholds)
        answers = self.answers(rows)
        for first in range(0, rows, batch_size):
            here = np.arange(first, min(first + batch_size, rows))
            batch = every.take(slice(first, first + batch_size))
            for number in range(len(self.stages)):
                found, going_on, batch = self.advance(number, batch, thresholds)
                answers.put(here[~going_on], found, ~going_on)
                here = here[going_on]
                if not len(here):
                    break
        return answers.arrays

    def thresholds(self, value: float | Sequence[float] | np.ndarray) -> np.ndarray:
        """A threshold, or one for each early exit, as `advance` takes them: float32 `(exits - 1,)`.

        Raises:
            ValueError: another number of thresholds, or one that is NaN.
        """
        return _thresholds(value, len(self.exit_names))

    def answers(self, rows: int) -> Answers:
        """Room for the answers to so many images, for a routing of one's own."""
        return Answers(rows, self._classes)

    def start(self, images: np.ndarray) -> Rows:
        """Images as the first stage takes them, for a routing of one's own by `advance`.

        Raises:
            ValueError: as `predict`.
        """
        images = self._checked(images)
        if images.dtype.kind == "f":
            finite = np.isfinite(images).all(axis=tuple(range(1, images.ndim)))
        else:
            finite = np.ones(len(images), bool)
        return Rows(dict.fromkeys(self.stages[0].inputs, images), finite, {})

    def advance(
        self, number: int, rows: Rows, thresholds: np.ndarray | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray, Rows]:
        """Runs one stage.

        Args:
            number: int, which of `stages`, 0 for the first.
            rows: at least one, as `start` gave them, or what `advance` of the stage before gave for those
                that go on.
            thresholds: float32 `(exits - 1,)`, or `(exits - 1, rows)` where each row has its own; those of
                the export by default.

        Returns:
            `(result, going_on, rest)`: what `predict` gives, for all these rows, if they left here; a mask
            `(rows,)` of those that go on, none after the last stage; and these as `Rows` for the next stage.
        """
        stage = self.stages[number]
        made = stage.run(
            {name: np.ascontiguousarray(rows.values[name], dtype) for name, dtype in stage.inputs.items()}
        )
        return self.observe(number, rows, made, thresholds)

    def observe(
        self,
        number: int,
        rows: Rows,
        made: dict[str, np.ndarray],
        thresholds: np.ndarray | None = None,
    ) -> tuple[dict[str, np.ndarray], np.ndarray, Rows]:
        """`advance`, for a stage that was run elsewhere.

        Args:
            number, rows, thresholds: as in `advance`.
            made: dict of arrays, what the stage made of the values of `rows`, `"logits"` among them.
        """
        stage = self.stages[number]
        with np.errstate(invalid="ignore", over="ignore"):  # logits that are not finite: the score is NaN
            logits, score, state = scores.observe(
                self._scored,
                made["logits"],
                self._temperatures[stage.index],
                number + 1 if self._ensemble else None,
                rows.state,
            )
        score = np.where(rows.finite, score, np.float32("nan"))
        result = {
            "logits": np.asarray(logits, "float32"),
            "exit": np.full(len(score), stage.index, "int32"),
            "score": np.asarray(score, "float32"),
        }
        if number == len(self.stages) - 1:
            return result, np.zeros(len(score), bool), rows.take(slice(0))
        thresholds = self._thresholds if thresholds is None else thresholds
        going_on = scores.goes_on(np, score, thresholds[stage.index])
        rest = Rows(scores.handed_on(rows.values, made, stage.carried), rows.finite, state)
        return result, going_on, rest if going_on.all() else rest.take(going_on)

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
        # Pixels of one byte stay so until a stage takes them: they may still have to travel.
        return (
            images if images.dtype.itemsize < self._image_dtype.itemsize else images.astype(self._image_dtype)
        )


def load(
    folder: str | os.PathLike[str], threads: int | None = None, stages: Sequence[int] | None = None
) -> Runtime:
    """Loads what `EarlyExit.export` wrote with `format="litert"` or `format="onnx"`.

    Args:
        folder: str or path.
        threads: int, how many threads the stages run on; by default one a core.
        stages: which stages to load, 0 for the first; all by default. Where each has a process of its own,
            it need not hold the others, and `advance` alone can be used.

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
        runners = []
        for number, stage in enumerate(manifest["stages"]):
            file = folder / stage["file"]
            if stages is None or number in stages:
                check_file(file, stage)
                runners.append(engine(file, int(threads)))
            else:
                runners.append(_not_loaded)
        return Runtime(manifest, runners)
    except (KeyError, TypeError, IndexError) as cause:
        raise checks.error(
            f"The manifest in {str(folder)!r} is incomplete.",
            expected=f"all that EarlyExit.export writes into {MANIFEST}",
            received=f"{type(cause).__name__}: {cause}",
            fix="export the network again, or copy the whole folder",
        ) from cause


def _not_loaded(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    raise checks.error(
        "This stage was not loaded.",
        expected="one of those that `load` was asked for",
        received=f"what it takes: {', '.join(values)}",
        fix="load(folder), which loads all stages",
        kind=RuntimeError,
    )


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

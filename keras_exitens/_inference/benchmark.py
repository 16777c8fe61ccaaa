"""What early exit does to a set of labelled images: accuracy, who leaves where, work and time."""

import dataclasses
import math
import statistics
import time

import keras
import numpy as np

from keras_exitens import _checks as checks
from keras_exitens._inputs.batches import check_batch_size, labelled_batches
from keras_exitens._inputs.labels import class_ids
from keras_exitens._network.costs import cost
from keras_exitens._network.exit_network import ExitNetwork
from keras_exitens._tables import Report, aligned
from keras_exitens._types import Data, Tensor
from keras_exitens.policies import MaxProbability

__all__ = ["Benchmark", "benchmark"]


@dataclasses.dataclass(frozen=True)
class Benchmark(Report):
    """Accuracy, shares, work and time of early exit on labelled images.

    Attributes:
        names: names of all exits.
        rows: int, how many images.
        accuracy: float, share of the rows that are classified right where they leave.
        full_accuracy: float, share that the final exit classifies right.
        agreement: float, share for which both predict the same class.
        shares: float per exit, share of the rows that leave there.
        exit_accuracy: float per exit, share right among those that leave there; NaN where nobody does.
        multiply_adds: float, mean of the multiply-adds of a row, heads that ran included.
        full_multiply_adds: int, those of the network without early exits.
        seconds: float, time of a row, median over batches.
        full_seconds: float, the same for the network without early exits, measured in turns.
    """

    names: tuple[str, ...]
    rows: int
    accuracy: float
    full_accuracy: float
    agreement: float
    shares: tuple[float, ...]
    exit_accuracy: tuple[float, ...]
    multiply_adds: float
    full_multiply_adds: float
    seconds: float
    full_seconds: float

    def table(self) -> str:
        """A line for each exit, then accuracy, multiply-adds and time beside the whole network's."""
        rows = [("exit", "rows", "right")]
        for name, share, right in zip(self.names, self.shares, self.exit_accuracy, strict=True):
            rows.append((name, f"{share:.1%}", "" if math.isnan(right) else f"{right:.1%}"))
        return "\n".join(
            [
                aligned(rows),
                f"accuracy {self.accuracy:.2%}, full network {self.full_accuracy:.2%}, the same class for "
                f"{self.agreement:.2%} of {self.rows} rows",
                f"multiply-adds of a row {self.multiply_adds:,.0f}, "
                f"{self.multiply_adds / self.full_multiply_adds:.1%} of the full network's",
                f"time of a row {self.seconds * 1e3:.3g} ms, "
                f"{self.seconds / self.full_seconds:.1%} of the full network's",
            ]
        )


def benchmark(early: keras.Model, data: Data, batch_size: int) -> Benchmark:
    """See `EarlyExit.benchmark`."""
    check_batch_size(batch_size)
    network = ExitNetwork.of(early.model)
    routed = _Timed(early)
    full = _Timed(type(early)(early.model, MaxProbability(0.0, enabled=False), optimize=early.optimize))
    labels = []
    for number, (images, y, counted) in enumerate(labelled_batches(data, batch_size)):
        labels.append(class_ids(y, network.classes)[counted])
        # In turns, and each first in every other batch.
        for timed in (routed, full) if number % 2 else (full, routed):
            timed.run(images, counted)
    if not sum(map(len, labels)):
        raise checks.error(
            "There are no rows to measure.",
            expected="labelled images",
            received="data without a row that counts",
            fix="pass (images, labels), or a tf.data.Dataset of batches of them",
        )
    wanted, exits = np.concatenate(labels), np.concatenate(routed.exits)
    found, by_full = np.concatenate(routed.classes), np.concatenate(full.classes)
    right, at = found == wanted, [exits == i for i in range(len(network.names))]
    costs = cost(early.model)
    enabled = early.policy.enabled_exits(len(network.names))
    cumulative = costs.only([i in enabled for i in range(len(network.names))]).cumulative
    return Benchmark(
        names=network.names,
        rows=len(wanted),
        accuracy=float(np.mean(right)),
        full_accuracy=float(np.mean(by_full == wanted)),
        agreement=float(np.mean(found == by_full)),
        shares=tuple(float(np.mean(here)) for here in at),
        exit_accuracy=tuple(float(np.mean(right[here])) if here.any() else math.nan for here in at),
        multiply_adds=float(np.mean(np.asarray(cumulative)[exits])),
        full_multiply_adds=costs.backbone,
        seconds=statistics.median(routed.seconds),
        full_seconds=statistics.median(full.seconds),
    )


class _Timed:
    """An `EarlyExit`, run and timed batch by batch.

    Attributes:
        exits, classes: lists of arrays `(rows,)`, where each row left and which class it was given.
        seconds: list of float, the time of a row, one a batch.
    """

    def __init__(self, early: keras.Model) -> None:
        self._early = early
        self._shapes: set[tuple[int, ...]] = set()
        self.exits: list[np.ndarray] = []
        self.classes: list[np.ndarray] = []
        self.seconds: list[float] = []

    def run(self, images: Tensor, counted: np.ndarray | slice) -> None:
        """Runs one batch; only the rows `counted` are kept."""
        if tuple(images.shape) not in self._shapes:
            self._shapes.add(tuple(images.shape))
            for _ in range(2):  # the first calls trace and warm up
                self._early.predict_on_batch(images)
        start = time.perf_counter()
        outputs = self._early.predict_on_batch(images)
        self.seconds.append((time.perf_counter() - start) / max(len(images), 1))
        self.exits.append(outputs["exit"][counted])
        self.classes.append(outputs["logits"].argmax(axis=-1)[counted])

"""What early exit does to a set of labelled images: accuracy, who leaves where, work and time."""

import dataclasses
import itertools
import statistics
import time

import keras
import numpy as np
import tensorflow as tf

from keras_exitens import checks
from keras_exitens.costs import cost
from keras_exitens.policies import MaxProbability

__all__ = ["ExitSummary", "measure"]


@dataclasses.dataclass(frozen=True)
class ExitSummary:
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
    full_multiply_adds: int
    seconds: float
    full_seconds: float

    def __str__(self) -> str:
        lines = [f"{'exit':12} {'rows':>7} {'right':>7}"]
        for name, share, right in zip(self.names, self.shares, self.exit_accuracy, strict=True):
            lines.append(f"{name:12} {share:7.1%} {'' if np.isnan(right) else f'{right:.1%}':>7}")
        lines += [
            f"accuracy {self.accuracy:.2%}, full network {self.full_accuracy:.2%}, the same class for "
            f"{self.agreement:.2%} of {self.rows} rows",
            f"multiply-adds of a row {self.multiply_adds:,.0f}, "
            f"{self.multiply_adds / self.full_multiply_adds:.1%} of the full network's",
            f"time of a row {self.seconds * 1e3:.3g} ms, "
            f"{self.seconds / self.full_seconds:.1%} of the full network's",
        ]
        return "\n".join(lines)


def measure(early, data, batch_size):
    """See `EarlyExit.summary`."""
    whole = type(early)(early.model, MaxProbability(0.0, enabled=False), early.optimize)
    signature = None
    labels, exits, found, wanted = [], [], [], []
    for number, (images, y) in enumerate(_batches(data, batch_size)):
        images = tf.convert_to_tensor(images)
        if signature is None:
            signature = [tf.TensorSpec((None, *images.shape[1:]), images.dtype)]
            routed, full = (
                tf.function(model.route, input_signature=signature, autograph=False)
                for model in (early, whole)
            )
            times = {routed: [], full: []}
            for function in 2 * (routed, full):  # the first calls trace and warm up
                function(images)
        outputs = {}
        # In turns, and each first in every other batch.
        for function in (routed, full) if number % 2 else (full, routed):
            start = time.perf_counter()
            outputs[function] = {key: value.numpy() for key, value in function(images).items()}
            times[function].append((time.perf_counter() - start) / max(len(images), 1))
        labels.append(_classes(np.asarray(y), len(images)))
        exits.append(outputs[routed]["exit"])
        found.append(outputs[routed]["logits"].argmax(axis=-1))
        wanted.append(outputs[full]["logits"].argmax(axis=-1))
    if not labels:
        raise checks.error(
            "There are no rows to summarise.",
            expected="labelled images",
            received="data without a batch",
            fix="pass (images, labels), or a tf.data.Dataset of batches of them",
        )
    labels, exits, found, wanted = map(np.concatenate, (labels, exits, found, wanted))
    names = early.exit_names
    at = [exits == i for i in range(len(names))]
    enabled = early.policy.enabled_exits(len(names))
    costs = cost(early.model)
    cumulative = costs.only([i in enabled for i in range(len(names))]).cumulative
    return ExitSummary(
        names=names,
        rows=len(labels),
        accuracy=float(np.mean(found == labels)),
        full_accuracy=float(np.mean(wanted == labels)),
        agreement=float(np.mean(found == wanted)),
        shares=tuple(float(np.mean(here)) for here in at),
        exit_accuracy=tuple(float(np.mean((found == labels)[here])) if here.any() else np.nan for here in at),
        multiply_adds=float(np.mean(np.asarray(cumulative)[exits])),
        full_multiply_adds=costs.backbone,
        seconds=statistics.median(times[routed]),
        full_seconds=statistics.median(times[full]),
    )


def _batches(data, batch_size):
    """Batches `(images, labels)`, whatever the data come as."""
    if isinstance(data, tuple) and len(data) in (2, 3) and hasattr(data[0], "shape"):
        data = tf.data.Dataset.from_tensor_slices(data).batch(batch_size)
    for batch in itertools.islice(data, len(data)) if isinstance(data, keras.utils.PyDataset) else data:
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(batch)
        if labels is None:
            raise checks.error(
                "The data have no labels.",
                expected="batches (images, labels)",
                received=f"{type(batch).__name__} without labels",
                fix="pass labels too, or call predict for images alone",
            )
        yield images, labels


def _classes(labels, rows):
    """Integer labels `(rows,)` of integer or one-hot ones."""
    if labels.ndim == 2 and labels.shape[-1] > 1:
        return labels.argmax(axis=-1)
    return labels.reshape(rows)

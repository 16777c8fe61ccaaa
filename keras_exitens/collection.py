"""`collect`: one pass of a multi-exit network over labelled images."""

import keras
import numpy as np
import tensorflow as tf

from keras_exitens import checks, replicas
from keras_exitens.attach import exit_names
from keras_exitens.hints import Data
from keras_exitens.records import ExitRecords, fingerprint, network_of

__all__ = ["Collector", "collect"]


def collect(
    model: keras.Model, data: Data, batch_size: int | None = None, verbose: str | int = "auto"
) -> ExitRecords:
    """Runs a multi-exit network over labelled images once, and keeps what all exits say.

    Runs in inference mode, in Keras's own `predict`; nothing of the model is changed. Logits and labels are
    held in memory, twice for a moment: 4 bytes for each exit, image and class.

    Args:
        model: the result of `add_exits`, a functional model with a dict of logits, or an
            `ExitEnsembleDistiller`.
        data: what Keras takes for `evaluate`: a pair of arrays `(images, labels)`, or a `tf.data.Dataset`,
            generator or `PyDataset` of batches `(images, labels)`. Labels are class ids or one-hot rows. A
            third entry of whole numbers or text is kept as the ids of the images; one of floats are sample
            weights, which must be 1, or 0 for rows to be left out, such as padding.
        batch_size: int, for arrays. Defaults to 32.
        verbose: as in `predict`: `"auto"`, 0 (silent), 1 (progress bar) or 2.

    Returns:
        `ExitRecords`.

    Raises:
        ValueError: no labels, no rows, an endless data set, labels out of range, logits that are not finite,
            weights other than 0 and 1.

    Example:

    ```python
    records = kx.collect(model, splits.calibration)
    records.save("records.npz")
    kx.ExitRecords.load("records.npz", model=model)  # refused once the model has trained on
    ```
    """
    return Collector(model)(data, batch_size, verbose)


class Collector:
    """`collect` for one model, whose graph is traced once however often it is called.

    Args: as `collect`.
    """

    def __init__(self, model):
        self._network = network_of(model)
        self._names = exit_names(self._network)
        outputs = [self._network.output[name] for name in self._names]
        self._recorder = _Recorder(self._network.input, outputs, name="recorder")

    def __call__(self, data, batch_size=None, verbose="auto"):
        arrays = isinstance(data, tuple | list)
        self._recorder.labels_wanted = not arrays
        if arrays:
            x, labels, third = _arrays(data)
            found = self._recorder.predict(x, batch_size=batch_size, verbose=verbose)
        else:
            _check_ends(data)
            found = _predict(self._recorder, data, verbose)
            if "labels" not in found:  # where arrays had the graph traced for images alone
                raise _no_labels()
            labels, third = found["labels"], found.get("third")
        kept = slice(None)
        if third is not None and third.dtype.kind == "f":
            kept, third = _kept(third), None
        logits = np.stack([np.asarray(z[kept], "float32") for z in keras.tree.flatten(found["logits"])])
        return ExitRecords(logits, labels[kept], self._names, third, fingerprint(self._network))


class _Recorder(keras.Model):
    """The network, whose `predict` gives back the labels and ids beside the logits."""

    labels_wanted = True

    def predict_step(self, data):
        x, y, third = keras.utils.unpack_x_y_sample_weight(data)
        if y is None and self.labels_wanted:
            raise _no_labels()
        x, own_rows = replicas.at_least_one_row(x)
        logits = replicas.gatherable(own_rows(self(x, training=False)), self.distribute_strategy)
        found = {"logits": logits, "labels": y, "third": third}
        return {key: value for key, value in found.items() if value is not None}


def _no_labels():
    return checks.error(
        "The data hold no labels.",
        expected="batches of (images, labels)",
        received="batches of images alone",
        fix="pass (images, labels), or a data set of such pairs",
    )


def _arrays(data):
    data = [part if hasattr(part, "shape") else np.asarray(part) for part in data]
    rows = {part.shape[0] if len(part.shape) else 0 for part in data}
    if len(data) not in (2, 3) or len(rows) > 1 or rows == {0}:
        raise checks.error(
            "The data are not images with their labels.",
            expected="(images, labels) or (images, labels, ids), arrays of one length, at least 1",
            received=f"shapes {', '.join(str(tuple(part.shape)) for part in data)}",
            fix="pass one label an image, or a data set of such pairs",
        )
    x, labels, *third = data
    return x, np.asarray(labels), np.asarray(third[0]) if third else None


def _predict(recorder, data, verbose):
    if data is not None:
        try:
            return recorder.predict(data, verbose=verbose)
        except UnboundLocalError:  # how Keras's `predict` fails on data without a batch
            pass
    raise checks.error(
        "There are no data.",
        expected="at least one batch of (images, labels)",
        received=repr(data),
        fix="pass Splits.calibration, or (images, labels); a generator gives its batches once only",
    )


def _check_ends(data):
    if isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise checks.error(
            "The data set never ends.",
            expected="one pass over the calibration images",
            received=repr(data),
            fix="pass Splits.calibration, or data.take(steps)",
        )


def _kept(weights):
    weights = weights.reshape(len(weights))
    if not np.isin(weights, (0, 1)).all():
        raise checks.error(
            "Sample weights mean nothing here: every image counts once.",
            expected="weights of 1, or 0 for rows to be left out",
            received=f"weights from {weights.min()} to {weights.max()}",
            fix="leave the weights out; ids of images must be whole numbers or text",
        )
    return weights == 1

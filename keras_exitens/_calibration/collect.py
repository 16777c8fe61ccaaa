"""`collect`: one pass of a multi-exit network over labelled images."""

from typing import Any

import keras
import numpy as np

from keras_exitens._backend import tf
from keras_exitens._calibration.records import ExitRecords, fingerprint, network_of
from keras_exitens._inputs import replicas
from keras_exitens._inputs.batches import (
    are_arrays,
    as_arrays,
    check_batch_size,
    check_ends,
    counted,
    no_data,
    no_labels,
    raw_batches,
)
from keras_exitens._inputs.images import as_array, explained_sizes, sized
from keras_exitens._inputs.labels import check_single
from keras_exitens._network.exit_network import ExitNetwork
from keras_exitens._types import Data

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

    def __init__(self, model: keras.Model) -> None:
        self._network = network_of(model)
        self._names = ExitNetwork.of(self._network).names
        outputs = [self._network.output[name] for name in self._names]
        self._recorder = _Recorder(self._network.input, outputs, name="recorder")

    def __call__(self, data: Data, batch_size: int | None = None, verbose: str | int = "auto") -> ExitRecords:
        check_batch_size(batch_size)
        arrays = are_arrays(data)
        if tf is None:
            return self._batch_by_batch(data, batch_size or 32, verbose)
        self._recorder.labels_wanted = not arrays
        if arrays:
            x, labels, third = as_arrays(data)
            with explained_sizes(self._recorder.inputs[0]):
                found = self._recorder.predict(x, batch_size=batch_size, verbose=verbose)
        else:
            check_ends(data)
            data = (batch for batch in data) if isinstance(data, tuple | list) else data
            with explained_sizes(self._recorder.inputs[0]):
                found = _predict(self._recorder, data, verbose)
            if "labels" not in found:  # where arrays had the graph traced for images alone
                raise no_labels()
            labels, third = found["labels"], found.get("third")
        return self._records(keras.tree.flatten(found["logits"]), labels, third)

    def _batch_by_batch(self, data: Data, batch_size: int, verbose: str | int) -> ExitRecords:
        """As `__call__`, where Keras's `predict` cannot hand labels on: they stay on the host."""
        bar = keras.utils.Progbar(None, verbose=0 if verbose == 0 else 1, unit_name="batch")
        logits, labels, thirds = [], [], []
        for number, (images, y, third) in enumerate(raw_batches(data, batch_size), start=1):
            logits.append([as_array(z) for z in self._recorder.predict_on_batch(images)])
            labels.append(y)
            thirds.append(third)
            bar.update(number)
        if not labels:
            raise no_data(data)
        given = [third for third in thirds if third is not None]
        third = np.concatenate(given) if given else None
        columns = zip(*logits, strict=True)
        return self._records([np.concatenate(column) for column in columns], np.concatenate(labels), third)

    def _records(self, logits: list[Any], labels: np.ndarray, third: np.ndarray | None) -> ExitRecords:
        kept = counted(third)
        ids = third if isinstance(kept, slice) else None
        stacked = np.stack([np.asarray(z[kept], "float32") for z in logits])
        return ExitRecords(stacked, labels[kept], self._names, ids, fingerprint(self._network))


class _Recorder(keras.Model):
    """The network, whose `predict` gives back the labels and ids beside the logits."""

    labels_wanted = True

    def predict_step(self, *data: Data) -> Any:
        if tf is None:
            return super().predict_step(*data)
        (data,) = data
        x, y, third = keras.utils.unpack_x_y_sample_weight(data)
        if y is None and self.labels_wanted:
            raise no_labels()
        check_single(y)
        x, own_rows = replicas.at_least_one_row(x)
        outputs = self(sized(x, self.inputs[0]), training=False)
        logits = replicas.gatherable(own_rows(outputs), replicas.of_model(self))
        found = {"logits": logits, "labels": y, "third": third}
        return {key: value for key, value in found.items() if value is not None}


def _predict(recorder: _Recorder, data: Data, verbose: str | int) -> dict[str, Any]:
    if data is not None:
        try:
            return recorder.predict(data, verbose=verbose)
        except (UnboundLocalError, IndexError) as cause:  # how Keras fails on data without a batch
            raise no_data(data) from cause
    raise no_data(data)

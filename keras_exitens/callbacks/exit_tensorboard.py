"""`ExitTensorBoard`: what the exits do during training, in TensorBoard."""

import json
import math
import re
from typing import Any

import keras

from keras_exitens import _checks as checks
from keras_exitens._backend import NAME, tf
from keras_exitens._calibration.collect import Collector
from keras_exitens._network.costs import cost
from keras_exitens._network.exit_network import exit_names
from keras_exitens._reports import figures
from keras_exitens._reports.tradeoff import tradeoff
from keras_exitens._training.distiller import ExitEnsembleDistiller
from keras_exitens._types import Data, Path

__all__ = ["ExitTensorBoard"]

_LEVELS = 32  # thresholds of an exit: finer steps could not be seen in the picture


class ExitTensorBoard(keras.callbacks.TensorBoard):
    """Keras's `TensorBoard`, with the exits beside each other.

    Added to what Keras writes are, in the dashboards of TensorBoard:

    - *Custom Scalars*: each metric with all exits in one chart, and the terms of the loss in another;
    - *Images*: the picture of `tradeoff` on `data`;
    - *Histograms*, *Distributions*: which exit the images of `data` take, by the cheapest policy of the
      trade-off that loses at most 0.01 of accuracy; *Scalars*: its cost and its accuracy;
    - *HParams*: objective, optimizer and exits, with the validation accuracy of the final exit.

    Args:
        log_dir: folder of the run.
        data: labelled images, as for `collect`, but no generator; use the validation images. They are run
            through the network once for each picture, besides `fit`'s validation. Default `None`: no picture
            and no histogram.
        figure_freq: int, epochs between two pictures; one more after the last epoch. Defaults to 10.
        **kwargs: of `keras.callbacks.TensorBoard`, such as `histogram_freq` or `update_freq`.

    Raises:
        ValueError: `figure_freq` is not at least 1; `data` can be read only once; the model that is trained
            is not an `ExitEnsembleDistiller`.
        NotImplementedError: on another backend than TensorFlow.

    Example:

    ```python
    board = kx.callbacks.ExitTensorBoard("logs/run", data=splits.validation)
    distiller.fit(**splits.fit_arguments(epochs=20), callbacks=[board])
    ```
    """

    def __init__(
        self, log_dir: Path = "logs", data: Data = None, figure_freq: int = 10, **kwargs: Any
    ) -> None:
        if tf is None:  # Keras's callback, which this one extends, writes by TensorFlow
            fix = "keras.callbacks.CSVLogger('log.csv') keeps all that `fit` logs"
            raise checks.needs_tensorflow("ExitTensorBoard", NAME, fix)
        checks.optional_import("tensorboard", "tensorboard")
        if data is not None:
            checks.optional_import("matplotlib", "plots")
        checks.number("figure_freq", figure_freq, low=1)
        if hasattr(data, "__next__"):
            raise checks.error(
                "The data can be read only once.",
                expected="arrays, a tf.data.Dataset or a PyDataset",
                received=type(data).__name__,
                fix="make a data set of the generator: tf.data.Dataset.from_generator",
            )
        super().__init__(log_dir, **kwargs)
        self.data = data
        self.figure_freq = figure_freq
        self._epoch, self._laid_out = 0, False
        self._drawn: int | None = None
        self._board: Any = None

    def set_model(self, model: keras.Model) -> None:
        if not isinstance(model, ExitEnsembleDistiller):
            raise checks.error(
                "ExitTensorBoard needs the exits of the model that is trained.",
                expected="an ExitEnsembleDistiller",
                received=type(model).__name__,
                fix="train with ExitEnsembleDistiller, or use keras.callbacks.TensorBoard",
            )
        super().set_model(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self._names = exit_names(self.model.model)
        self._cost = cost(self.model.model)
        self._collect = Collector(self.model)
        self._drawn, self._laid_out = None, False
        self._board = tf.summary.create_file_writer(str(self.log_dir))
        self._write_hparams()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_end(epoch, logs)
        self._epoch = epoch
        if not self._laid_out:
            self._write_layout(logs or {})
            self._laid_out = True
        if (epoch + 1) % self.figure_freq == 0:
            self._draw()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._drawn != self._epoch:
            self._draw()
        self._board.close()
        super().on_train_end(logs)

    def _draw(self) -> None:
        self._drawn = self._epoch
        if self.data is None:
            return
        found = tradeoff(self._collect(self.data, verbose=0), self._cost, levels=_LEVELS)
        with self._board.as_default(step=self._epoch):
            tf.summary.image("tradeoff", figures.pixels(found.plot())[None])
            taken = found.chosen.exit
            tf.summary.histogram("early_exit/exit_taken", taken, buckets=len(self._names))
            tf.summary.scalar("early_exit/cost", found.chosen.cost)
            tf.summary.scalar("early_exit/accuracy", found.chosen.accuracy)

    def _write_layout(self, logs: dict[str, Any]) -> None:
        """Charts for TensorBoard's custom scalars: one a metric that all exits have."""
        from tensorboard.plugins.custom_scalar import layout_pb2
        from tensorboard.plugins.custom_scalar import summary as custom_scalar

        first = f"{self._names[0]}_"
        metrics = [key.removeprefix(first) for key in logs if key.startswith(first)]
        shared = [m for m in metrics if all(f"{name}_{m}" in logs for name in self._names)]
        exits = "|".join(map(re.escape, [*self._names, "ensemble"]))
        charts = [_chart(layout_pb2, metric, f"^epoch_({exits})_{re.escape(metric)}$") for metric in shared]
        terms = "^epoch_(classification_|distillation_|feature_|)loss$"
        layout = layout_pb2.Layout(
            category=[
                layout_pb2.Category(title="Exits", chart=charts),
                layout_pb2.Category(title="Loss", chart=[_chart(layout_pb2, "loss and its terms", terms)]),
            ]
        )
        with self._board.as_default(step=0):
            tf.summary.experimental.write_raw_pb(custom_scalar.pb(layout).SerializeToString())

    def _write_hparams(self) -> None:
        from tensorboard.plugins.hparams import api

        objective = self.model.objective
        optimizer = self.model.optimizer
        values = {
            "objective": type(objective).__name__,
            **{f"objective.{key}": _plain(value) for key, value in objective.get_config().items()},
            "optimizer": type(optimizer).__name__,
            "learning_rate": float(keras.ops.convert_to_numpy(optimizer.learning_rate)),
            "early_exits": len(self._names) - 1,
            "parameters": self.model.model.count_params(),
        }
        metric = api.Metric(f"epoch_{self._names[-1]}_accuracy", group="validation", display_name="accuracy")
        with self._board.as_default(step=0):
            api.hparams_config(hparams=[api.HParam(key) for key in values], metrics=[metric])
            api.hparams(values)


def _chart(layout_pb2: Any, title: str, tag: str) -> Any:
    return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=[tag]))


def _plain(value: Any) -> Any:
    """A value as HParams can hold it: a number, a bool or text."""
    if isinstance(value, bool | str) or (isinstance(value, int | float) and math.isfinite(value)):
        return value
    return json.dumps(value)

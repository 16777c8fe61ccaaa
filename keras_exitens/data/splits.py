"""`Splits`: a data set in four disjoint parts."""

import dataclasses
from collections.abc import Callable
from typing import Any

from keras_exitens import _checks as checks
from keras_exitens._types import Data

__all__ = ["Splits"]


@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
    """A data set in four disjoint parts, and the facts that a model needs about it.

    Each part has one job, so that no number reported is measured on data that helped to choose it:

    - `train` fits the weights;
    - `validation` chooses: early stopping, the best epoch, hyperparameters;
    - `calibration` sets the thresholds and temperatures of a policy;
    - `test` is used once, for the numbers that are reported.

    Each is a `tf.data.Dataset`, or on other backends than TensorFlow a `keras.utils.PyDataset` of NumPy
    arrays, of `(images, labels)`: float32 `(batch, height, width, channels)`, normalised
    per channel, and int32 `(batch,)`. `train` never ends, is shuffled and augmented, and all its batches are
    full. The others are one pass in a fixed order without augmentation, the last batch as small as need be.

    Attributes:
        name: str, the data set.
        validation, calibration, test: finite datasets; `None` for a part of fraction 0.
        sizes: dict from `"train"`, `"validation"`, `"calibration"`, `"test"` to the number of images.
        class_names: tuple of str; the label is the index.
        input_shape: `(height, width, channels)`.
        batch_size: int.
        steps_per_epoch: int, full batches in one pass over the training part.
        augment: `"crop"`, `"crop_flip"` or `None`.
        padding: int, pixels by which the crop moves an image at most; 0 without augmentation.
        mean, std: tuples of floats, one for each channel, of the training part with pixels in [0, 1].
        seed: int, of the order and the augmentation of the training images.
    """

    name: str
    validation: Data = dataclasses.field(repr=False)
    calibration: Data = dataclasses.field(repr=False)
    test: Data = dataclasses.field(repr=False)
    sizes: dict[str, int]
    class_names: tuple[str, ...] = dataclasses.field(repr=False)
    input_shape: tuple[int, int, int]
    batch_size: int
    steps_per_epoch: int
    augment: str | None
    padding: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int
    _stream: Callable[[int], Data] = dataclasses.field(repr=False)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def train(self) -> Data:
        """The training batches from step 0 on: `train_from(0)`."""
        return self.train_from(0)

    def train_from(self, step: int) -> Data:
        """The training batches from a step on, without end.

        Batch `step` is a pure function of the arguments of `load` and of `step`: nothing depends on what was
        read before, so a run that was stopped goes on exactly where it was. Each epoch visits the images in
        an order of its own, none twice, and augments them anew; the images left over after the last full
        batch, other ones in each epoch, are skipped.

        Because the dataset has no end, `fit` must be told `steps_per_epoch`; `fit_arguments` does so. It is
        endless on purpose: `fit` would read a dataset that ends anew in each epoch, and see the same
        batches every time. For a loop of your own, one epoch is
        `train_from(epoch * steps_per_epoch).take(steps_per_epoch)`.

        Args:
            step: int, at least 0; number of training steps done so far, all epochs together.

        Returns:
            Full batches, as a `tf.data.Dataset`, or a `keras.utils.PyDataset` on other backends.

        Raises:
            ValueError: if `step` is not an integer of at least 0.
        """
        return self._stream(checks.whole("step", step, low=0))

    def fit_arguments(self, epochs: int, start: int = 0) -> dict[str, Any]:
        """The arguments with which `fit` trains for `epochs` epochs and validates after each.

        Args:
            epochs: int, at least 1; all of them, those that are done already too.
            start: int, the number of training steps that are done already, such as
                `callbacks.StepBackup.restore` gives. Defaults to 0.

        Returns:
            A dict: `x`, `epochs`, `initial_epoch`, `steps_per_epoch`, `validation_data`; and `shuffle=False`,
            without which Keras warns that it cannot shuffle a dataset (this one is shuffled already).

        Example:

        ```python
        model.fit(**splits.fit_arguments(epochs=200))
        ```
        """
        return {
            "x": self.train_from(start),
            "epochs": checks.whole("epochs", epochs, low=1),
            "initial_epoch": start // self.steps_per_epoch,
            "steps_per_epoch": self.steps_per_epoch,
            "validation_data": self.validation,
            "shuffle": False,
        }

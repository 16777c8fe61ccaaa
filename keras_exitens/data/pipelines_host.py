"""The pipelines over images in memory in NumPy, as Keras's `PyDataset`s: for JAX and PyTorch."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_exitens.data.shared_pipelines import SharedPipelines
from keras_exitens.data.sources import Images

__all__ = ["Batches", "Pipelines"]

_ORDER, _AUGMENTATION = 0, 1  # what a stream of random numbers is for


class Batches(keras.utils.PyDataset):
    """Batches by their numbers.

    Args:
        batch: function from a number to `(images, labels)`.
        number: int, how many there are; `None` for no end.
    """

    def __init__(self, batch: Callable[[int], tuple[np.ndarray, np.ndarray]], number: int | None) -> None:
        super().__init__()
        self._batch = batch
        self._number = number

    @property
    def num_batches(self) -> int | None:
        return self._number

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self._batch(index)


class Pipelines(SharedPipelines):
    """Makes `PyDataset`s; see `SharedPipelines`.

    A batch is a pure function of the seed and the step, as on TensorFlow, but not the same one: the random
    numbers are NumPy's.
    """

    def __init__(self, found: Images, rows: dict[str, np.ndarray], **settings: Any) -> None:
        super().__init__(found, rows, **settings)
        self._training = found.train_images, found.train_labels
        self._test = found.test_images, found.test_labels
        self._order: tuple[int, np.ndarray] = -1, rows["train"]  # of the epoch that was asked for last

    def train_from(self, step: int) -> Batches:
        """The training batches from a step on, without end; see `Splits.train_from`."""
        return Batches(lambda index: self._training_batch(step + index), None)

    def _training_batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        epoch, place = divmod(step, len(self.rows["train"]) // self.batch_size)
        known, order = self._order
        if epoch != known:
            order = _stream(self.seed, _ORDER, epoch).permutation(self.rows["train"])
            self._order = epoch, order
        chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
        images, labels = (values[chosen] for values in self._training)
        if self.augment:
            flip = self.augment == "crop_flip"
            stream = _stream(self.seed, _AUGMENTATION, step)
            images = crop_and_flip(images, stream, padding=self.padding, flip=flip)
        return self._normalised(images), labels

    def one_pass(self, part: str) -> Batches | None:
        """The images of a part in their order, once and as they are; `None` where it has none."""
        source = self._test if part == "test" else self._training
        rows, size = self.rows[part], self.batch_size

        def batch_of(index: int) -> tuple[np.ndarray, np.ndarray]:
            images, labels = (values[rows[index * size : (index + 1) * size]] for values in source)
            return self._normalised(images), labels

        return Batches(batch_of, -(-len(rows) // size)) if len(rows) else None

    def _normalised(self, images: np.ndarray) -> np.ndarray:
        return (images.astype("float32") - np.float32(255 * self.mean)) / np.float32(255 * self.std)


def _stream(seed: int, purpose: int, number: int) -> np.random.RandomState:
    """Random numbers of their own for each epoch and step. NumPy promises never to change `RandomState`."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence((seed, purpose, number))))


def crop_and_flip(
    images: np.ndarray, stream: np.random.RandomState, *, padding: int, flip: bool
) -> np.ndarray:
    """Pads each image with black, crops it back at a random place and mirrors half of them.

    Args:
        images: uint8 `(batch, height, width, channels)`.
        stream: where random numbers come from.
        padding: int, pixels on each side.
        flip: bool, whether to mirror.
    """
    batch, height, width = images.shape[:3]
    shifts = stream.randint(0, 2 * padding + 1, size=(2, batch, 1))
    rows, columns = shifts[0] + np.arange(height), shifts[1] + np.arange(width)
    if flip:
        columns = np.where(stream.random_sample((batch, 1)) < 0.5, columns[:, ::-1], columns)
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return padded[np.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]

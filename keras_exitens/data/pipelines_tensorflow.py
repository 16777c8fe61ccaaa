"""The `tf.data` pipelines over images in memory: endless and augmented for training, else one pass."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_exitens.data import batches
from keras_exitens.data.shared_pipelines import SharedPipelines
from keras_exitens.data.sources import Images

__all__ = ["Pipelines"]


class Pipelines(SharedPipelines):
    """Makes `tf.data.Dataset`s; see `SharedPipelines`."""

    def __init__(self, found: Images, rows: dict[str, np.ndarray], **settings: Any) -> None:
        super().__init__(found, rows, **settings)
        # On the CPU, where tf.data works; the images would otherwise fill a GPU's memory.
        with tf.device("CPU"):
            self._training = tf.constant(found.train_images), tf.constant(found.train_labels)
            self._test = tf.constant(found.test_images), tf.constant(found.test_labels)
            self._train_rows = tf.constant(rows["train"])

    def train_from(self, step: int) -> tf.data.Dataset:
        """The training batches from a step on, without end; see `Splits.train_from`."""
        steps = batches.shuffled_steps(self._train_rows, self.batch_size, self.seed, step)
        return _parallel(steps, self._training_batch)

    def _training_batch(self, step: tf.Tensor, chosen: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images, labels = (tf.gather(values, chosen) for values in self._training)
        if self.augment:
            seed, flip = batches.seed_pair(self.seed, step), self.augment == "crop_flip"
            images = batches.crop_and_flip(images, seed, padding=self.padding, flip=flip)
        return batches.normalise(images, self.mean, self.std), labels

    def one_pass(self, part: str) -> tf.data.Dataset | None:
        """The images of a part in their order, once and as they are; `None` where it has none."""
        source = self._test if part == "test" else self._training

        def batch_of(chosen: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            images, labels = (tf.gather(values, chosen) for values in source)
            return batches.normalise(images, self.mean, self.std), labels

        if not len(self.rows[part]):
            return None
        return _parallel(tf.data.Dataset.from_tensor_slices(self.rows[part]).batch(self.batch_size), batch_of)


def _parallel(data: tf.data.Dataset, function: Callable[..., Any]) -> tf.data.Dataset:
    data = data.map(function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    options = tf.data.Options()
    # The thread that tunes at run time sleeps twice as long each time, up to a minute, and the end of a pass
    # often waits for it (TensorFlow 2.21): 2 seconds after 3. Without it AUTOTUNE means one call a core.
    options.autotune.enabled = False
    # Several workers share each batch by its rows.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return data.prefetch(tf.data.AUTOTUNE).with_options(options)

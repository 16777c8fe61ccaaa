"""A training batch as a pure function of (seed, step): which images, how moved, how scaled."""

import numpy as np
import tensorflow as tf

__all__ = ["crop_and_flip", "normalise", "seed_pair", "shuffled_steps"]


def seed_pair(seed: tf.Tensor | int, number: tf.Tensor | int) -> tf.Tensor:
    """The seed `(2,)` of TensorFlow's stateless operations, from two whole numbers; int64."""
    return tf.stack([tf.cast(seed, tf.int64), tf.cast(number, tf.int64)])


def shuffled_steps(rows: tf.Tensor, batch_size: int, seed: int, start: int = 0) -> tf.data.Dataset:
    """The training steps from `start` on: which images make up each batch.

    An epoch is `len(rows) // batch_size` full batches of one permutation of the rows, which depends on
    `seed` and the number of the epoch. The rows left over are other ones in each epoch.

    Args:
        rows: int64 tensor `(N,)`, N at least `batch_size`.
        batch_size: int.
        seed: int.
        start: int, the first step, all epochs together.

    Returns:
        An endless `tf.data.Dataset` of `(step, rows)`: int64 `()` and `(batch_size,)`.
    """
    steps = len(rows) // batch_size
    first_epoch, skip = divmod(start, steps)

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        # `tf.random.experimental.index_shuffle` would need no list of all rows, but reads the lowest byte
        # of each seed only (TensorFlow 2.21): epoch 256 would repeat the order of epoch 0.
        order_seed = tf.random.split(seed_pair(seed, epoch), 3, alg="philox")[2]
        order = tf.random.experimental.stateless_shuffle(rows, order_seed, alg="philox")
        chosen = tf.reshape(order[: steps * batch_size], (steps, batch_size))
        done = tf.where(epoch == first_epoch, skip, 0)
        numbers = epoch * steps + tf.range(steps, dtype=tf.int64)
        return tf.data.Dataset.from_tensor_slices((numbers[done:], chosen[done:]))

    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    return tf.data.Dataset.counter(first_epoch).flat_map(one_epoch).apply(endless)


def crop_and_flip(images: tf.Tensor, seed: tf.Tensor, *, padding: int, flip: bool) -> tf.Tensor:
    """Pads with black, crops at a random place and mirrors half of the images, a whole batch at once.

    Each image moves by its own whole number of pixels, up to `padding` in each direction. Rows and columns
    are gathered by index, which needs no interpolation and works on the raw bytes.

    Args:
        images: tensor `(batch, height, width, channels)`.
        seed: integer tensor `(2,)`. Equal seeds give equal results.
        padding: int, pixels of black added on each side before the crop; 0 moves nothing.
        flip: bool, whether each image is mirrored left to right with probability one half.

    Returns:
        A tensor of the shape and dtype of `images`.

    Reference:
        The training recipe of H. Lee and J.-S. Lee, arXiv:2104.00299.
    """
    batch, height, width = tf.unstack(tf.shape(images)[:3])
    # One seed for each draw: the same seed would give the same bits to the shift and to the flip.
    # (`shuffled_steps` takes the third.)
    shift_seed, flip_seed = tf.unstack(tf.random.split(seed, 2, alg="philox"))
    shifts = tf.random.stateless_uniform(
        (2, batch, 1), shift_seed, minval=0, maxval=2 * padding + 1, dtype=tf.int32, alg="philox"
    )
    rows = shifts[0] + tf.range(height)
    columns = shifts[1] + tf.range(width)
    if flip:
        mirrored = tf.random.stateless_uniform((batch, 1), flip_seed, alg="philox") < 0.5
        columns = tf.where(mirrored, columns[:, ::-1], columns)
    padded = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
    moved = tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)
    return tf.ensure_shape(moved, images.shape)


def normalise(images: tf.Tensor, mean: np.ndarray, std: np.ndarray) -> tf.Tensor:
    """Bytes `(batch, height, width, channels)` as float32, scaled by `channel_statistics`."""
    return (tf.cast(images, tf.float32) - np.float32(255 * mean)) / np.float32(255 * std)

"""Images for training, validation, calibration and test, as `tf.data` pipelines."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from keras_exitens import batches, checks, parts, sources
from keras_exitens.hints import Path

__all__ = ["Splits", "load"]

# Data sets in which the mirror image of a class may be another class, or none.
_MIRROR_MATTERS = {
    "binarized_mnist",
    "binary_alpha_digits",
    "cmaterdb",
    "digits",
    "emnist",
    "kmnist",
    "mnist",
    "mnist_corrupted",
    "omniglot",
    "svhn_cropped",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
    """A data set in four disjoint parts, and the facts that a model needs about it.

    Each part has one job, so that no number reported is measured on data that helped to choose it:

    - `train` fits the weights;
    - `validation` chooses: early stopping, the best epoch, hyperparameters;
    - `calibration` sets the thresholds and temperatures of a policy;
    - `test` is used once, for the numbers that are reported.

    Each is a `tf.data.Dataset` of `(images, labels)`: float32 `(batch, height, width, channels)`, normalised
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
    validation: tf.data.Dataset | None = dataclasses.field(repr=False)
    calibration: tf.data.Dataset | None = dataclasses.field(repr=False)
    test: tf.data.Dataset = dataclasses.field(repr=False)
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
    _stream: Callable[[int], tf.data.Dataset] = dataclasses.field(repr=False)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def train(self) -> tf.data.Dataset:
        """The training batches from step 0 on: `train_from(0)`."""
        return self.train_from(0)

    def train_from(self, step: int) -> tf.data.Dataset:
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
            A `tf.data.Dataset` of full batches.

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


def load(
    name: str = "digits",
    batch_size: int = 128,
    *,
    augment: Literal["auto", "crop_flip", "crop"] | None = "auto",
    validation: float = 0.1,
    calibration: float = 0.1,
    train_limit: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    data_dir: Path | None = None,
    seed: int = 0,
    split_seed: int = 0,
) -> Splits:
    """Loads an image classification set, cut into training, validation, calibration and test parts.

    The test part is the one that the data set publishes: its split `test`, else `validation`; a set without
    either (`"digits"` is one) gives up a fixed fifth of its images, the same for every seed. Validation and
    calibration parts are drawn at random from the *training* images. They are not stratified by class:
    the statements that calibration makes about new images assume images drawn at random.

    Augmentation is the paper's: images are padded with black by an eighth of their size (4 pixels for 32),
    cropped back at a random place, and mirrored half of the time where a mirror image keeps its class. All
    images are normalised per channel with the mean and standard deviation of the training part.

    The images are held in memory as bytes, so that each batch can be made from its number alone.

    Args:
        name: str. `"digits"` (default; 1,797 images of 8×8 from scikit-learn, no download), `"cifar10"`,
            `"cifar100"`, `"svhn_cropped"`, `"mnist"`, `"fashion_mnist"`, or any other image classification
            set of TensorFlow Datasets, with its config where it has one: `"emnist/letters"`.
        batch_size: int, at least 1 and at most the size of the training part. Defaults to `128`.
        augment: `"crop_flip"`, `"crop"`, `None` for no augmentation, or `"auto"` (default): `"crop"` for
            digits and letters, `"crop_flip"` for all else.
        validation: float in [0, 1), fraction of the training images for choosing between models.
            Defaults to `0.1`; 0 makes no such part.
        calibration: float in [0, 1), fraction of the training images for setting thresholds.
            Defaults to `0.1`; 0 makes no such part. Drawn first: it does not change with `validation`.
        train_limit: int or `None`; trains on so many images only, and leaves the other parts as they are.
        image_size: int, `(height, width)` or `None`, pixels to which all images are resized. Needed for
            sets whose images differ in size. Defaults to `None`: as they are.
        data_dir: path or `None`. For `"mnist"` and `"fashion_mnist"` a folder with the four IDX files,
            gzipped or not; for every set but `"digits"` a data folder of TensorFlow Datasets. Without it,
            `"fashion_mnist"` comes from Debian's package dataset-fashion-mnist where that is installed,
            and everything else from TensorFlow Datasets' usual folder, downloaded at need.
        seed: int in [0, 2³²), of the order and the augmentation. Defaults to `0`.
        split_seed: int in [0, 2³²), of the cut into parts. It is not `seed`, so that runs with several
            seeds, and a script that calibrates later, keep the same parts. Defaults to `0`.

    Returns:
        A `Splits`.

    Raises:
        ValueError: if an argument is out of range, the data set is unknown, not an image classification set
            or larger than memory allows, or a file is corrupt.
        FileNotFoundError: if the IDX files are not in `data_dir`.
        ImportError: if the package that provides the set is not installed.
        RuntimeError: if TensorFlow Datasets cannot download or prepare the set.

    Example:

    ```python
    splits = load("digits", batch_size=64)
    model = keras.Sequential([keras.Input(splits.input_shape), keras.layers.Flatten(),
                              keras.layers.Dense(splits.classes)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    model.fit(**splits.fit_arguments(epochs=2))
    model.evaluate(splits.test)
    ```

    Reference:
        The augmentation: H. Lee and J.-S. Lee, *Students are the Best Teacher: Exit-Ensemble Distillation
        with Multi-Exits*, arXiv:2104.00299.
    """
    if not isinstance(name, str):
        raise checks.error(
            "`name` is not the name of a data set.",
            expected="a str",
            received=f"name={name!r}",
            fix="pass, for instance, name='cifar100'",
        )
    checks.whole("batch_size", batch_size, low=1)
    checks.one_of("augment", augment, ("auto", "crop_flip", "crop", None))
    parts.check_fractions(validation, calibration)
    if train_limit is not None:
        checks.whole("train_limit", train_limit, low=1)
    image_size = _pair(image_size)
    checks.whole("seed", seed, low=0, high=2**32 - 1)
    checks.whole("split_seed", split_seed, low=0, high=2**32 - 1)

    found = sources.read(name, data_dir, image_size)
    rows = parts.cut(len(found.train_images), validation=validation, calibration=calibration, seed=split_seed)
    rows["train"] = rows["train"][:train_limit]
    rows["test"] = np.arange(len(found.test_images))
    if len(rows["train"]) < batch_size:
        raise checks.error(
            "A batch is larger than the training part.",
            expected=f"at most {len(rows['train'])} images a batch: the training part of {name!r}",
            received=f"batch_size={batch_size}",
            fix="pass a smaller batch_size" + (", or a larger train_limit" if train_limit else ""),
        )
    if augment == "auto":
        augment = "crop" if sources.base_name(name) in _MIRROR_MATTERS else "crop_flip"
    input_shape = found.train_images.shape[1:]
    padding = max(1, (min(input_shape[:2]) + 4) // 8) if augment else 0
    mean, std = batches.channel_statistics(found.train_images, rows["train"])
    # On the CPU, where tf.data works; the images would otherwise fill a GPU's memory.
    with tf.device("CPU"):
        images, labels = tf.constant(found.train_images), tf.constant(found.train_labels)
        test_images, test_labels = tf.constant(found.test_images), tf.constant(found.test_labels)
        train_rows = tf.constant(rows["train"])

    def training_batch(step, chosen):
        batch = tf.gather(images, chosen)
        if augment:
            step_seed = batches.seed_pair(seed, step)
            batch = batches.crop_and_flip(batch, step_seed, padding=padding, flip=augment == "crop_flip")
        return batches.normalise(batch, mean, std), tf.gather(labels, chosen)

    def stream(start):
        return _parallel(batches.shuffled_steps(train_rows, batch_size, seed, start), training_batch)

    def one_pass(images, labels, rows):
        def batch_of(chosen):
            return batches.normalise(tf.gather(images, chosen), mean, std), tf.gather(labels, chosen)

        return _parallel(tf.data.Dataset.from_tensor_slices(rows).batch(batch_size), batch_of)

    return Splits(
        name=name,
        validation=one_pass(images, labels, rows["validation"]) if validation else None,
        calibration=one_pass(images, labels, rows["calibration"]) if calibration else None,
        test=one_pass(test_images, test_labels, rows["test"]),
        sizes={part: len(chosen) for part, chosen in rows.items()},
        class_names=found.class_names,
        input_shape=input_shape,
        batch_size=batch_size,
        steps_per_epoch=len(rows["train"]) // batch_size,
        augment=augment,
        padding=padding,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        seed=seed,
        _stream=stream,
    )


def _parallel(data, function):
    data = data.map(function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    options = tf.data.Options()
    # The thread that tunes at run time sleeps twice as long each time, up to a minute, and the end of a pass
    # often waits for it (TensorFlow 2.21): 2 seconds after 3. Without it AUTOTUNE means one call a core.
    options.autotune.enabled = False
    # Several workers share each batch by its rows.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return data.prefetch(tf.data.AUTOTUNE).with_options(options)


def _pair(image_size):
    if image_size is None:
        return None
    pair = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    if len(pair) != 2:
        raise checks.error(
            "`image_size` is not a size in pixels.",
            expected="an int, or (height, width)",
            received=f"image_size={image_size!r}",
            fix="pass, for instance, image_size=32",
        )
    return tuple(checks.whole("image_size", pixels, low=1) for pixels in pair)

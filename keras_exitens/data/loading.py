"""`load`: from the name of a data set to its `Splits`."""

from typing import Any, Literal

import numpy as np

from keras_exitens import _checks as checks
from keras_exitens._types import Path
from keras_exitens.data import parts, sources
from keras_exitens.data.pipelines import Pipelines
from keras_exitens.data.splits import Splits

__all__ = ["load"]

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
            gzipped or not; for `"cifar10"` and `"cifar100"` the folder that the authors' archive makes
            (binary or Python version; CIFAR-100 with its 100 fine labels), or the one above; for every set
            but `"digits"` a data folder of TensorFlow Datasets. Without it,
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
        FileNotFoundError: if files of the set are missing in `data_dir`.
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
    _check_arguments(name, batch_size, augment, validation, calibration, train_limit, seed, split_seed)
    found = sources.read(name, data_dir, _pair(image_size))
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
    chosen: str | None = augment
    if augment == "auto":
        chosen = "crop" if sources.base_name(name) in _MIRROR_MATTERS else "crop_flip"
    made = Pipelines(found, rows, batch_size=batch_size, augment=chosen, seed=seed)
    return Splits(
        name=name,
        validation=made.one_pass("validation"),
        calibration=made.one_pass("calibration"),
        test=made.one_pass("test"),
        sizes={part: len(some) for part, some in rows.items()},
        class_names=found.class_names,
        input_shape=found.train_images.shape[1:],
        batch_size=batch_size,
        steps_per_epoch=len(rows["train"]) // batch_size,
        augment=chosen,
        padding=made.padding,
        mean=tuple(made.mean.tolist()),
        std=tuple(made.std.tolist()),
        seed=seed,
        _stream=made.train_from,
    )


def _check_arguments(
    name: Any,
    batch_size: Any,
    augment: Any,
    validation: Any,
    calibration: Any,
    train_limit: Any,
    seed: Any,
    split_seed: Any,
) -> None:
    """Raises unless the arguments of `load` are ones that it takes."""
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
    checks.whole("seed", seed, low=0, high=2**32 - 1)
    checks.whole("split_seed", split_seed, low=0, high=2**32 - 1)


def _pair(image_size: Any) -> tuple[int, int] | None:
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
    height, width = (checks.whole("image_size", pixels, low=1) for pixels in pair)
    return height, width

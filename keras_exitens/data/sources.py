"""Where images come from: TensorFlow Datasets, scikit-learn, files of MNIST or CIFAR; all the same arrays."""

import importlib.util
import math
import pathlib
import typing
from typing import Any

import keras
import numpy as np

from keras_exitens import _checks as checks
from keras_exitens._backend import tf
from keras_exitens._types import Path, Tensor
from keras_exitens.data import cifar, idx

__all__ = ["Images", "base_name", "read"]

# What `read` holds in memory at most, as unsigned bytes: training and test images together.
MAX_BYTES = 4 * 2**30

# Where Debian's package dataset-fashion-mnist puts the IDX files.
DEBIAN_FASHION_MNIST = pathlib.Path("/usr/share/datasets/fashion-mnist")

_KNOWN = ("cifar10", "cifar100", "digits", "fashion_mnist", "mnist", "svhn_cropped")
_DIGITS = tuple("0123456789")
_IDX_CLASSES = {
    "mnist": _DIGITS,
    "fashion_mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
}
_TEST_FRACTION = 0.2


class Images(typing.NamedTuple):
    """A data set in memory: uint8 images `(N, height, width, channels)`, int32 labels `(N,)`."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]


def base_name(name: str) -> str:
    """The name without the config and version that TensorFlow Datasets allows: `set/config:version`."""
    return name.split("/")[0].split(":")[0]


def read(name: str, data_dir: Path | None = None, image_size: tuple[int, int] | None = None) -> Images:
    """Reads a data set into memory.

    Args:
        name: str, see `data.load`.
        data_dir: path or `None`, see `data.load`.
        image_size: `(height, width)` to which every image is resized (bilinear, antialiased), or `None`.

    Returns:
        `Images`. The test images are those of the data set itself; where it has none, one fifth of its
        images, always the same ones.

    Raises:
        See `data.load`.
    """
    if name == "digits":
        found = _scikit_learn_digits(data_dir)
    elif name in _IDX_CLASSES and (folder := _idx_folder(name, data_dir)):
        (train, train_labels), (test, test_labels) = idx.read_folder(folder)
        found = Images(train[..., None], train_labels, test[..., None], test_labels, _IDX_CLASSES[name])
    elif name in cifar.LAYOUTS and data_dir is not None and (place := cifar.find_folder(name, data_dir)):
        train_part, test_part, class_names = cifar.read_folder(*place)
        found = Images(*train_part, *test_part, class_names)
    else:
        # Resized while it is read: its images may all have different sizes.
        return _checked(name, _tensorflow_datasets(name, data_dir, image_size))
    if image_size is not None:
        found = found._replace(
            train_images=_resize_all(found.train_images, image_size),
            test_images=_resize_all(found.test_images, image_size),
        )
    return _checked(name, found)


def _checked(name: str, found: Images) -> Images:
    classes = len(found.class_names)
    labels = {"training": found.train_labels, "test": found.test_labels}
    for part, values in labels.items():
        if not len(values):
            raise checks.error(
                f"The {part} part of {name!r} is empty.",
                expected="at least one image",
                received="none",
                fix="prepare the data set again",
            )
        if values.min() < 0 or values.max() >= classes:
            raise checks.error(
                f"Labels of the {part} images of {name!r} are out of range.",
                expected=f"labels from 0 to {classes - 1}",
                received=f"labels from {values.min()} to {values.max()}",
                fix="use a data set that publishes its test labels"
                if values.min() < 0
                else "fetch the label file again",
            )
    return found._replace(
        train_labels=found.train_labels.astype(np.int32), test_labels=found.test_labels.astype(np.int32)
    )


def _cut_test(images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> Images:
    # The cut depends on no seed, so that test images stay test images whatever the user varies.
    # RandomState, because NumPy promises never to change its stream.
    order = np.random.RandomState(0).permutation(len(images))
    test, train = np.split(order, [round(_TEST_FRACTION * len(order))])
    return Images(images[train], labels[train], images[test], labels[test], class_names)


def _scikit_learn_digits(data_dir: Path | None) -> Images:
    if data_dir is not None:
        raise checks.error(
            "'digits' is part of scikit-learn and reads no folder.",
            expected="data_dir=None",
            received=f"data_dir={str(data_dir)!r}",
            fix="leave `data_dir` out, or name another data set",
        )
    found = checks.optional_import("sklearn.datasets", extra="data").load_digits()
    # Grey levels 0 … 16 become 0 … 255, so that every source gives bytes.
    images = np.round(found.images * (255 / 16)).astype(np.uint8)
    return _cut_test(images[..., None], found.target, _DIGITS)


def _idx_folder(name: str, data_dir: Path | None) -> pathlib.Path | None:
    """The folder with the IDX files, or `None` where TensorFlow Datasets is to be asked."""
    if data_dir is not None:
        folder = pathlib.Path(data_dir).expanduser()
        return None if (folder / name).is_dir() else folder
    if name == "fashion_mnist" and DEBIAN_FASHION_MNIST.is_dir():
        return DEBIAN_FASHION_MNIST
    return None


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images of bytes, bilinear and antialiased, in a `tf.data` pipeline."""
    import tensorflow as tf

    resized = tf.image.resize(images, size, antialias=True)
    return tf.saturate_cast(tf.round(resized), tf.uint8)


def _resize_all(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    some = (images[start : start + 1024] for start in range(0, len(images), 1024))
    return np.concatenate([_resize_some(part, size) for part in some])


def _resize_some(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if tf is not None:
        return _resize(images, size).numpy()
    resized = keras.ops.image.resize(
        images.astype("float32"), size, antialias=True, data_format="channels_last"
    )
    return np.clip(np.round(keras.ops.convert_to_numpy(resized)), 0, 255).astype(np.uint8)


def _tensorflow_datasets(name: str, data_dir: Path | None, image_size: tuple[int, int] | None) -> Images:
    _require_tensorflow(name)
    import tensorflow as tf

    tfds = checks.optional_import("tensorflow_datasets", extra="data")
    builder = _builder(tfds, name, data_dir)
    image_key, label_key = _keys(tfds, name, builder.info)
    features = builder.info.features
    shape = features[image_key].shape
    if image_size is not None:
        shape = (*image_size, shape[-1])
    if None in shape:
        raise checks.error(
            f"The images of {name!r} have no common size.",
            expected="`image_size`, the size in pixels to which all images are brought",
            received="image_size=None",
            fix="pass, for instance, image_size=64 or image_size=(64, 96)",
        )
    _prepare(builder, name)
    # TFDS's own test helper `mock_data` lists no splits at all but serves any.
    train, test = _split_names(name, set(builder.info.splits) or {"train", "test"})
    _refuse_too_large(name, builder.info.splits, (train, test), shape)

    def arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
        def pick(example: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            image = example[image_key]
            return image if image_size is None else _resize(image, image_size), example[label_key]

        data = builder.as_dataset(split=split, shuffle_files=False)
        batches = list(data.map(pick, num_parallel_calls=tf.data.AUTOTUNE).batch(1024).as_numpy_iterator())
        if not batches:
            return np.zeros((0, *shape), np.uint8), np.zeros(0, np.int32)
        images, labels = (np.concatenate(column) for column in zip(*batches, strict=True))
        return images, labels

    label = features[label_key]
    class_names = tuple(label.names or map(str, range(label.num_classes)))
    if test is None:
        return _cut_test(*arrays(train), class_names)
    return Images(*arrays(train), *arrays(test), class_names)


def _require_tensorflow(name: str) -> None:
    """TensorFlow Datasets reads by TensorFlow, whatever backend Keras runs on."""
    if importlib.util.find_spec("tensorflow") is None:
        ways = _ways_without_tfds(name)
        raise checks.error(
            f"{name!r} comes from TensorFlow Datasets, which needs TensorFlow.",
            expected="TensorFlow installed, beside the backend that Keras runs on",
            received="an environment without it",
            fix="; or ".join(["pip install tensorflow", *ways]),
            kind=ImportError,
        )


def _ways_without_tfds(name: str) -> list[str]:
    """How else a data set can be had, in words for an error."""
    ways = []
    if name == "fashion_mnist":
        ways.append("install Debian's package dataset-fashion-mnist")
    if name in _IDX_CLASSES:
        ways.append("pass as `data_dir` a folder with the four IDX files")
    if name in cifar.LAYOUTS:
        folders = " or ".join(repr(layout.folder) for layout in cifar.LAYOUTS[name])
        ways.append(f"pass as `data_dir` the folder {folders} of the authors' archive, unpacked")
    return [*ways, "use 'digits', which needs no download"]


def _builder(tfds: Any, name: str, data_dir: Path | None) -> Any:
    try:
        return tfds.builder(name, data_dir=data_dir and str(data_dir))
    except Exception as cause:
        if isinstance(cause, tfds.core.DatasetNotFoundError) or not base_name(name).isidentifier():
            names = {*_KNOWN, *tfds.list_builders(with_community_datasets=False)}
            raise checks.error(
                f"There is no data set {name!r}.",
                expected=f"one of {', '.join(map(repr, _KNOWN))}, or an image classification set of "
                "TensorFlow Datasets",
                received=f"name={name!r}",
                fix=f"did you mean {checks.nearest(name.lower(), sorted(names))}?",
            ) from cause
        raise checks.error(
            f"TensorFlow Datasets cannot open {name!r}.",
            expected="a name of the form 'set', 'set/config' or 'set/config:version' that exists",
            received=f"{name!r}: {cause}",
            fix=f"correct the part after {base_name(name)!r}, or see the error that caused this one",
        ) from cause


def _keys(tfds: Any, name: str, info: Any) -> tuple[str, str]:
    """The names of the image and of its class among the features."""
    features = info.features
    keys = info.supervised_keys if len(info.supervised_keys or ()) == 2 else ("image", "label")
    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    usable = isinstance(features, tfds.features.FeaturesDict) and all(
        key in features and isinstance(features[key], kind) for key, kind in zip(keys, kinds, strict=True)
    )
    if not usable or features[keys[0]].np_dtype != np.uint8:
        raise checks.error(
            f"{name!r} is not an image classification set.",
            expected="one feature that is an image of 8-bit values and one that is its class",
            received=" ".join(str(features).split()),
            fix="choose a set listed under 'Image classification' in the TensorFlow Datasets catalogue",
        )
    return keys


def _prepare(builder: Any, name: str) -> None:
    try:
        builder.download_and_prepare()
    except Exception as cause:
        ways = [
            f"on a machine with network access run `tfds build {name}`, copy its data folder here, and pass "
            "that folder as `data_dir`",
            *_ways_without_tfds(name),
        ]
        raise checks.error(
            f"TensorFlow Datasets could not download or prepare {name!r}.",
            expected="network access, or a prepared copy on this machine",
            received=f"{type(cause).__name__}: {cause}",
            fix="; or ".join(ways),
            kind=RuntimeError,
        ) from cause


def _split_names(name: str, splits: set[str]) -> tuple[str, str | None]:
    """`(train, test)`; test is `None` where the data set has one part only."""
    if "train" not in splits:
        raise checks.error(
            f"{name!r} has no training part.",
            expected="a split called 'train'",
            received=f"splits {sorted(splits)}",
            fix="choose a data set with training images",
        )
    return "train", next((s for s in ("test", "validation") if s in splits), None)


def _refuse_too_large(name: str, splits: Any, parts: tuple[str | None, ...], shape: tuple[int, ...]) -> None:
    images = sum(info.num_examples for part, info in splits.items() if part in parts)
    size = images * math.prod(shape)
    if size > MAX_BYTES:
        pixels = math.sqrt(MAX_BYTES / (images * shape[-1]))
        raise checks.error(
            f"{name!r} is too large to be held in memory.",
            expected=f"at most {MAX_BYTES / 2**30:.3g} GiB of image bytes",
            received=f"{images:,} images of {' × '.join(map(str, shape))}: {size / 2**30:.3g} GiB",
            fix=f"pass image_size={int(pixels)} or smaller, or build your own tf.data pipeline with "
            "`tfds.load`: the rest of the library takes any tf.data.Dataset of (images, labels)",
        )

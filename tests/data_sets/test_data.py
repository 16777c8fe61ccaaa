import gzip
import itertools
import pathlib
import re
import struct
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_exitens import data
from keras_exitens.data import batches, idx, parts, sources, statistics

tfds = pytest.importorskip("tensorflow_datasets")

DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")
FILES = {
    "train-images": "train-images-idx3-ubyte",
    "train-labels": "train-labels-idx1-ubyte",
    "test-images": "t10k-images-idx3-ubyte",
    "test-labels": "t10k-labels-idx1-ubyte",
}


@pytest.fixture(autouse=True)
def fresh_keras():
    """Replaces the fixture of that name: clearing the Keras session takes longer than most of these tests."""


def words(*texts):
    """A pattern for these texts in this order, with anything between them."""
    return "(?s)" + ".*".join(map(re.escape, texts))


def numbered(count, first=0, size=12):
    """Images that differ: pixels (0, 0) and (0, 1) spell the image's number, the rest is noise."""
    images = np.random.RandomState(first).randint(0, 256, (count, size, size)).astype(np.uint8)
    numbers = np.arange(first, first + count)
    images[:, 0, 0], images[:, 0, 1] = numbers // 256, numbers % 256
    return images, (numbers % 10).astype(np.uint8)


def idx_bytes(values):
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write_idx(folder, train=600, test=70, size=12, gzipped=True):
    arrays = {}
    arrays["train-images"], arrays["train-labels"] = numbered(train, size=size)
    arrays["test-images"], arrays["test-labels"] = numbered(test, first=train, size=size)
    folder.mkdir(exist_ok=True)
    for part, values in arrays.items():
        content = idx_bytes(values)
        name = FILES[part] + (".gz" if gzipped else "")
        (folder / name).write_bytes(gzip.compress(content, 1) if gzipped else content)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_idx(tmp_path_factory.mktemp("idx"))


def original(splits, images):
    """The bytes that a normalised batch was made from."""
    return np.round((np.asarray(images) * splits.std + splits.mean) * 255).astype(np.uint8)


def numbers(splits, dataset):
    """The numbers of all `numbered` images of a dataset, in its order."""
    found = [original(splits, images)[:, 0, :2, 0].astype(int) for images, _ in dataset]
    return (np.concatenate(found) @ [256, 1]).tolist()


def take(dataset, count):
    return [(x.numpy(), y.numpy()) for x, y in dataset.take(count)]


def same(first, second):
    return all(
        np.array_equal(a, b) for pair in zip(first, second, strict=True) for a, b in zip(*pair, strict=True)
    )


# Parts


def test_parts_are_disjoint_and_complete(folder):
    splits = data.load("mnist", 16, data_dir=folder, augment=None)
    assert splits.sizes == {"train": 480, "validation": 60, "calibration": 60, "test": 70}
    assert splits.steps_per_epoch == 30
    found = {part: numbers(splits, getattr(splits, part)) for part in ("validation", "calibration", "test")}
    found["train"] = numbers(splits, splits.train.take(30))
    assert {part: len(found[part]) for part in splits.sizes} == splits.sizes
    assert sorted(itertools.chain(*found.values())) == list(range(670))
    assert found["test"] == list(range(600, 670))


def test_parts_depend_on_split_seed_only(folder):
    def calibration(**arguments):
        splits = data.load("mnist", data_dir=folder, **{"batch_size": 16, **arguments})
        return numbers(splits, splits.calibration)

    assert calibration() == calibration(seed=5, validation=0.4, train_limit=20, batch_size=8, augment="crop")
    assert set(calibration()) != set(calibration(split_seed=1))


def test_the_cut_never_changes():
    # These numbers are a promise: with other ones, yesterday's calibration images are trained on today.
    rows = parts.cut(10, validation=0.2, calibration=0.2, seed=0)
    assert {part: chosen.tolist() for part, chosen in rows.items()} == {
        "train": [1, 6, 7, 3, 0, 5],
        "validation": [4, 9],
        "calibration": [2, 8],
    }


def test_fraction_zero_makes_no_part(folder):
    splits = data.load("mnist", 16, data_dir=folder, validation=0, calibration=0)
    assert splits.validation is None and splits.calibration is None
    assert splits.sizes == {"train": 600, "validation": 0, "calibration": 0, "test": 70}


def test_train_limit_is_nested_and_leaves_the_other_parts(folder):
    some = data.load("mnist", 16, data_dir=folder, augment=None, train_limit=32)
    more = data.load("mnist", 16, data_dir=folder, augment=None, train_limit=64)
    assert set(numbers(some, some.train.take(2))) < set(numbers(more, more.train.take(4)))
    assert numbers(some, some.validation) == numbers(more, more.validation)
    assert some.sizes == {"train": 32, "validation": 60, "calibration": 60, "test": 70}


def test_evaluation_parts_are_one_plain_pass(folder):
    splits = data.load("mnist", 32, data_dir=folder, augment="crop_flip")
    for part in ("validation", "calibration", "test"):
        dataset = getattr(splits, part)
        assert same(take(dataset, -1), take(dataset, -1))
        sizes = [len(labels) for _, labels in dataset]
        assert sum(sizes) == splits.sizes[part] and sizes[-1] == splits.sizes[part] % 32
        assert int(dataset.cardinality()) == len(sizes)
    images, labels = numbered(70, first=600)
    np.testing.assert_array_equal(np.concatenate([y for _, y in splits.test]), labels)
    np.testing.assert_array_equal(
        np.concatenate([original(splits, x) for x, _ in splits.test])[..., 0], images
    )


# Steps


def test_a_batch_depends_on_seed_and_step_only(folder):
    splits = data.load("mnist", 16, data_dir=folder, augment="crop_flip", seed=3)
    again = data.load("mnist", 16, data_dir=folder, augment="crop_flip", seed=3)
    from_zero = take(splits.train, 96)
    assert same(from_zero, take(again.train, 96))
    for step in (1, 29, 30, 31, 94):  # an epoch has 30 steps
        assert same(from_zero[step : step + 2], take(again.train_from(step), 2))


def test_epochs_and_seeds_differ(folder):
    splits = data.load("mnist", 16, data_dir=folder, augment=None)
    other = data.load("mnist", 16, data_dir=folder, augment=None, seed=1)
    first, second = (numbers(splits, splits.train_from(step).take(30)) for step in (0, 30))
    assert sorted(first) == sorted(second) and first != second
    assert sorted(first) == sorted(numbers(other, other.train.take(30)))
    assert first != numbers(other, other.train.take(30))


def test_an_epoch_repeats_no_image_and_leaves_out_other_ones_each_time(folder):
    splits = data.load("mnist", 100, data_dir=folder, augment=None)
    assert splits.steps_per_epoch == 4
    epochs = [set(numbers(splits, splits.train_from(4 * e).take(4))) for e in range(4)]
    assert [len(epoch) for epoch in epochs] == [400] * 4
    assert len(set.union(*epochs)) > 470


def test_the_order_favours_no_row_and_does_not_come_back():
    steps = batches.shuffled_steps(tf.range(16, dtype=tf.int64), 16, seed=0).batch(1600)
    orders = next(iter(steps))[1].numpy()
    assert len(np.unique(orders, axis=0)) == 1600
    for values in (orders[:, 0], orders[:, 9], (orders[1:, 0] - orders[:-1, 0]) % 16):
        counts = np.bincount(values, minlength=16)
        # Chi-squared of 15 degrees of freedom: above 38 once in 1,000 draws.
        assert ((counts - 100) ** 2 / 100).sum() < 38


def test_augmentation_is_anew_in_each_epoch(folder):
    splits = data.load("mnist", 60, data_dir=folder, augment="crop_flip", train_limit=60)
    plain = data.load("mnist", 60, data_dir=folder, augment=None, train_limit=60)
    order = [np.argsort(numbers(plain, plain.train_from(step).take(1))) for step in (0, 1)]
    images = [take(splits.train_from(step), 1)[0][0][rows] for step, rows in zip((0, 1), order, strict=True)]
    moved = [not np.array_equal(a, b) for a, b in zip(*images, strict=True)]
    assert sum(moved) > 45


def test_training_resumes_bit_for_bit(folder):
    splits = data.load("mnist", 16, data_dir=folder)

    def weights(*runs):
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [keras.Input(splits.input_shape), keras.layers.Flatten(), keras.layers.Dense(10)]
        )
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        for start, steps in runs:
            model.fit(splits.train_from(start), steps_per_epoch=steps, shuffle=False, verbose=0)
        return model.get_weights()

    for a, b in zip(weights((0, 45)), weights((0, 17), (17, 28)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_fit_arguments_fit(folder):
    splits = data.load("mnist", 16, data_dir=folder, train_limit=64)
    model = keras.Sequential([keras.Input(splits.input_shape), keras.layers.Flatten()])
    model.add(keras.layers.Dense(splits.classes))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    history = model.fit(**splits.fit_arguments(epochs=3), verbose=0).history
    assert len(history["val_accuracy"]) == 3
    assert int(model.optimizer.iterations) == 3 * 4


def test_the_training_stream_says_that_it_is_endless(folder):
    splits = data.load("mnist", 16, data_dir=folder)
    assert splits.train.cardinality() == tf.data.INFINITE_CARDINALITY
    assert splits.train.element_spec == (
        tf.TensorSpec((16, 12, 12, 1), tf.float32),
        tf.TensorSpec((16,), tf.int32),
    )


# Augmentation


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_crop_and_flip_against_every_possible_result(padding, flip):
    images = np.random.RandomState(0).randint(1, 256, (500, 7, 6, 3)).astype(np.uint8)
    results = batches.crop_and_flip(images, [1, 2], padding=padding, flip=flip).numpy()
    padded = np.pad(images, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    seen = set()
    for image, result in zip(padded, results, strict=True):
        possible = {}
        for y in range(2 * padding + 1):
            for x in range(2 * padding + 1):
                crop = image[y : y + 7, x : x + 6]
                possible[crop.tobytes()] = (y, x, False)
                if flip:
                    possible[crop[:, ::-1].tobytes()] = (y, x, True)
        seen.add(possible[result.tobytes()])  # KeyError where it is none of them
    assert len(seen) > 0.9 * (2 * padding + 1) ** 2 * (1 + flip)
    assert {f for _, _, f in seen} == ({False, True} if flip else {False})


def test_crop_and_flip_draws_shift_and_flip_apart():
    # A ramp tells where each pixel came from.
    ramp = np.broadcast_to(np.arange(1, 10, dtype=np.int32)[:, None], (5000, 5, 9, 1))
    out = batches.crop_and_flip(ramp, [0, 0], padding=2, flip=True).numpy()[:, 2, :, 0]
    middle, mirrored = out[:, 4] - 5, out[:, 4] > out[:, 5]
    assert abs(np.corrcoef(middle, mirrored)[0, 1]) < 0.05
    assert abs(mirrored.mean() - 0.5) < 0.03
    assert np.all(np.abs(np.bincount(middle + 2, minlength=5) - 1000) < 130)


@pytest.mark.parametrize(
    ("name", "augment"),
    [("mnist", "crop"), ("digits", "crop"), ("fashion_mnist", "crop_flip"), ("svhn_cropped", "crop")],
)
def test_auto_flips_only_where_the_mirror_image_keeps_its_class(name, augment, folder):
    with tfds.testing.mock_data(num_examples=20):
        splits = data.load(name, 8, data_dir=folder if "mnist" in name else None)
    assert splits.augment == augment


@pytest.mark.parametrize(("size", "padding"), [(8, 1), (28, 4), (32, 4), (3, 1)])
def test_padding_is_an_eighth_of_the_size(size, padding):
    assert data.load("digits", 8, image_size=size).padding == padding


def test_without_augmentation_nothing_moves(folder):
    splits = data.load("mnist", 16, data_dir=folder, augment=None)
    assert splits.padding == 0
    images, _ = numbered(600)
    for batch, _ in splits.train.take(3):
        batch = original(splits, batch)[..., 0]
        np.testing.assert_array_equal(batch, images[batch[:, 0, :2].astype(int) @ [256, 1]])


# Normalisation


def test_statistics_come_from_the_training_part_only(folder):
    splits = data.load("mnist", 48, data_dir=folder, augment=None, train_limit=48)
    ((images, _),) = take(splits.train, 1)
    assert abs(images.mean()) < 1e-5 and abs(images.std() - 1) < 1e-5
    rows = parts.cut(600, validation=0.1, calibration=0.1, seed=0)["train"][:48]
    pixels = numbered(600)[0][rows] / 255
    np.testing.assert_allclose(splits.mean, [pixels.mean()], rtol=1e-12)
    np.testing.assert_allclose(splits.std, [pixels.std()], rtol=1e-12)


def test_statistics_are_per_channel_and_a_constant_channel_is_kept_finite():
    images = np.random.RandomState(0).randint(0, 256, (3000, 4, 4, 3)).astype(np.uint8)
    images[..., 1] //= 2
    images[..., 2] = 7
    mean, std = statistics.channel_statistics(images, np.arange(3000))
    np.testing.assert_allclose(mean, images.mean(axis=(0, 1, 2)) / 255, rtol=1e-12)
    np.testing.assert_allclose(std[:2], images.std(axis=(0, 1, 2))[:2] / 255, rtol=1e-12)
    assert std[2] == 1


# Sources


def test_digits():
    splits = data.load()
    assert splits.name == "digits" and splits.classes == 10 and splits.input_shape == (8, 8, 1)
    assert splits.sizes == {"train": 1150, "validation": 144, "calibration": 144, "test": 359}
    test = {x.tobytes() for images, _ in splits.test for x in images.numpy()}
    for other in (data.load(augment=None), data.load(augment=None, seed=9, split_seed=9)):
        assert test == {x.tobytes() for x in _restored(splits, other, other.test)}
        for dataset in (other.validation, other.calibration, other.train.take(other.steps_per_epoch)):
            assert not test & {x.tobytes() for x in _restored(splits, other, dataset)}


def _restored(splits, other, dataset):
    """Images of `other`, normalised as those of `splits`."""
    for images, _ in dataset:
        yield from batches.normalise(
            original(other, images), np.array(splits.mean), np.array(splits.std)
        ).numpy()


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_fashion_mnist_from_debian():
    splits = data.load("fashion_mnist", 1000)
    assert splits.sizes == {"train": 48000, "validation": 6000, "calibration": 6000, "test": 10000}
    assert splits.input_shape == (28, 28, 1) and splits.class_names[9] == "Ankle boot"
    np.testing.assert_allclose(splits.mean + splits.std, [0.2860, 0.3530], atol=2e-3)
    labels = np.concatenate([y for _, y in splits.test])
    assert np.bincount(labels).tolist() == [1000] * 10
    ((images, _),) = take(splits.test, 1)
    ((again, _),) = take(data.load("fashion_mnist", 1000, data_dir=DEBIAN).test, 1)
    np.testing.assert_array_equal(images, again)


def test_fashion_mnist_looks_in_data_dir_then_debian_then_tfds(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", write_idx(tmp_path / "debian", train=100, test=10))
    assert data.load("fashion_mnist", 8).sizes["test"] == 10
    assert data.load("fashion_mnist", 8, data_dir=folder).sizes["test"] == 70
    with tfds.testing.mock_data(num_examples=20):
        (tmp_path / "tfds" / "fashion_mnist").mkdir(parents=True)
        assert data.load("fashion_mnist", 8, data_dir=tmp_path / "tfds").sizes["test"] == 20
        monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "nothing")
        assert data.load("fashion_mnist", 8).sizes["test"] == 20


def test_plain_idx_files_equal_gzipped_ones(folder, tmp_path):
    plain = idx.read_folder(write_idx(tmp_path / "plain", gzipped=False))
    for (x, y), (a, b) in zip(plain, idx.read_folder(folder), strict=True):
        np.testing.assert_array_equal(x, a)
        np.testing.assert_array_equal(y, b)


@pytest.mark.parametrize(
    ("name", "classes", "shape"), [("cifar100", 100, (32, 32, 3)), ("emnist/letters", 37, (28, 28, 1))]
)
def test_tensorflow_datasets(name, classes, shape):
    with tfds.testing.mock_data(num_examples=50):
        splits = data.load(name, 16)
    assert splits.sizes == {"train": 40, "validation": 5, "calibration": 5, "test": 50}
    assert splits.classes == classes and splits.input_shape == shape and len(splits.mean) == shape[-1]
    images, labels = take(splits.train, 1)[0]
    assert images.shape == (16, *shape) and images.dtype == np.float32
    assert labels.shape == (16,) and labels.dtype == np.int32


def test_images_of_many_sizes_need_image_size():
    with tfds.testing.mock_data(num_examples=20):
        assert data.load("tf_flowers", 4, image_size=(16, 24)).input_shape == (16, 24, 3)
        with pytest.raises(ValueError, match=words("no common size", "image_size=64")):
            data.load("tf_flowers", 4)


def test_image_size_resizes_every_source(folder):
    splits = data.load("mnist", 8, data_dir=folder, image_size=24, augment=None)
    assert splits.input_shape == (24, 24, 1)
    ((images, _),) = take(splits.test, 1)
    expected = tf.image.resize(numbered(70, first=600)[0][:8, ..., None], (24, 24))
    np.testing.assert_allclose(original(splits, images), expected, atol=0.51)


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """A data set prepared for real, without network: 50 images, one split, or as the config says."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (
        tfds.core.BuilderConfig(name="one_part"),
        tfds.core.BuilderConfig(name="validation"),
        tfds.core.BuilderConfig(name="hidden"),
        tfds.core.BuilderConfig(name="no_train"),
    )

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(6, 6, 3)),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager):
        kinds = {"one_part": ["train"], "no_train": ["test"], "hidden": ["train", "test"]}
        return {
            kind: self._generate_examples(kind)
            for kind in kinds.get(self.builder_config.name, ["train", "validation"])
        }

    def _generate_examples(self, kind):
        hidden = kind == "test" and self.builder_config.name == "hidden"
        for i in range(50 if kind == "train" else 20):
            yield i, {"image": np.full((6, 6, 3), i, np.uint8), "label": -1 if hidden else i % 2}


def test_a_set_without_test_part_gives_up_a_fixed_fifth(tmp_path):
    splits = data.load("tiny_pictures/one_part", 8, data_dir=tmp_path, augment=None)
    assert splits.sizes == {"train": 32, "validation": 4, "calibration": 4, "test": 10}
    assert splits.class_names == ("cat", "dog")

    def values(splits, dataset):
        return np.concatenate([original(splits, x)[:, 0, 0, 0] for x, _ in dataset]).tolist()

    found = [values(splits, part) for part in (splits.validation, splits.calibration, splits.test)]
    found.append(values(splits, splits.train.take(splits.steps_per_epoch)))
    assert sorted(itertools.chain(*found)) == list(range(50))
    other = data.load("tiny_pictures/one_part", 8, data_dir=tmp_path, seed=4, split_seed=4)
    assert values(other, other.test) == found[2]


def test_a_published_validation_part_is_the_test_part_where_there_is_no_other(tmp_path):
    splits = data.load("tiny_pictures/validation", 8, data_dir=tmp_path)
    assert splits.sizes == {"train": 40, "validation": 5, "calibration": 5, "test": 20}


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": 5}, "`name` is not the name"),
        ({"batch_size": 0}, "`batch_size` is out of range"),
        ({"batch_size": 8.0}, "`batch_size` is not a whole number"),
        ({"batch_size": True}, "`batch_size` is not a whole number"),
        ({"augment": "flip"}, "`augment` is not one of"),
        ({"validation": 1}, "`validation` is out of range"),
        ({"calibration": -0.1}, "`calibration` is out of range"),
        ({"calibration": float("nan")}, "`calibration` is out of range"),
        ({"validation": 0.5, "calibration": 0.5}, "leave nothing to train on"),
        ({"train_limit": 0}, "`train_limit` is out of range"),
        ({"image_size": (8, 8, 3)}, "`image_size` is not a size"),
        ({"image_size": 0}, "`image_size` is out of range"),
        ({"seed": -1}, "`seed` is out of range"),
        ({"split_seed": 2**32}, "`split_seed` is out of range"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_read(arguments, message, monkeypatch):
    monkeypatch.setattr(sources, "read", lambda *_: pytest.fail("it read the data set"))
    with pytest.raises(ValueError, match=message):
        data.load(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 1151}, "at most 1150 images a batch"),
        ({"batch_size": 33, "train_limit": 32}, "larger train_limit"),
        ({"validation": 1e-4}, "The validation part would be empty"),
        ({"data_dir": "somewhere"}, "reads no folder"),
        ({"name": "cifer10"}, words("no data set 'cifer10'", "did you mean 'cifar10'")),
        ({"name": "CIFAR-100"}, "did you mean 'cifar100'"),
        ({"name": "emnist/leters"}, "cannot open 'emnist/leters'"),
        ({"name": "imdb_reviews"}, "not an image classification set"),
        ({"name": "coco"}, "not an image classification set"),
    ],
)
def test_what_does_not_fit_the_data_set_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load(**arguments)


def test_wrong_steps_and_epochs_are_refused():
    splits = data.load()
    for step in (-1, 1.0, None):
        with pytest.raises(ValueError, match="`step` is"):
            splits.train_from(step)
    with pytest.raises(ValueError, match="`epochs` is"):
        splits.fit_arguments(0)


@pytest.mark.parametrize(
    ("part", "spoil", "message"),
    [
        ("train-images", lambda raw: gzip.compress(raw)[:-20], "does not decompress"),
        ("train-images", lambda raw: b"<html>404 Not Found</html>", "does not decompress"),
        ("train-images", lambda raw: gzip.compress(raw[:-1]), "86400 values, as its header says"),
        ("train-images", lambda raw: gzip.compress(raw + b"x"), "86401 values"),
        ("train-labels", lambda raw: gzip.compress(b""), "an empty file"),
        ("train-labels", lambda raw: gzip.compress(raw[:6]), "a header of 8 bytes"),
        ("test-images", lambda raw: gzip.compress(b"\0\0\x0d\3" + raw[4:]), "first four bytes 00 00 08 03"),
        ("test-labels", lambda raw: gzip.compress(idx_bytes(np.zeros((70, 1), np.uint8))), "00 00 08 01"),
        ("test-labels", lambda raw: gzip.compress(idx_bytes(np.zeros(0, np.uint8))), "at least one value"),
    ],
)
def test_a_corrupt_idx_file_is_named(part, spoil, message, tmp_path):
    folder = write_idx(tmp_path / "idx")
    file = folder / (FILES[part] + ".gz")
    file.write_bytes(spoil(gzip.decompress(file.read_bytes())))
    with pytest.raises(ValueError, match=message) as caught:
        data.load("mnist", data_dir=folder)
    assert str(file) in str(caught.value)


def test_idx_files_that_do_not_belong_together(tmp_path):
    folder = write_idx(tmp_path / "idx")
    labels = folder / (FILES["test-labels"] + ".gz")
    labels.write_bytes(gzip.compress(idx_bytes(np.zeros(69, np.uint8))))
    with pytest.raises(ValueError, match=words("t10k-images", "70 images and 69 labels")):
        data.load("mnist", data_dir=folder)
    labels.write_bytes(gzip.compress(idx_bytes(np.full(70, 10, np.uint8))))
    with pytest.raises(ValueError, match=words("Labels of the test images", "from 10 to 10")):
        data.load("mnist", data_dir=folder)
    images = folder / (FILES["test-images"] + ".gz")
    images.write_bytes(gzip.compress(idx_bytes(np.zeros((70, 9, 12), np.uint8))))
    with pytest.raises(ValueError, match="differ in size"):
        data.load("mnist", data_dir=folder)


def test_missing_idx_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        data.load("mnist", data_dir=tmp_path / "nowhere")
    folder = write_idx(tmp_path / "idx")
    (folder / (FILES["test-labels"] + ".gz")).unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte is missing"):
        data.load("mnist", data_dir=folder)


@pytest.mark.parametrize(
    ("name", "module"), [("digits", "sklearn.datasets"), ("cifar10", "tensorflow_datasets")]
)
def test_a_missing_package_is_named_with_its_remedy(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=words(module, 'pip install "keras-exitens[data]"')):
        data.load(name)


def test_a_failed_download_says_what_to_do_and_keeps_its_cause(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "nothing")
    with pytest.raises(RuntimeError, match=words("no route to host", "`data_dir`", "'digits'")) as caught:
        data.load("cifar10", data_dir=tmp_path)
    assert isinstance(caught.value.__cause__, ConnectionError)
    with pytest.raises(RuntimeError, match="dataset-fashion-mnist"):
        data.load("fashion_mnist")


def test_a_set_larger_than_memory_is_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_BYTES", 60 * 6 * 6 * 3)
    assert data.load("tiny_pictures/one_part", 8, data_dir=tmp_path).input_shape == (6, 6, 3)
    with pytest.raises(ValueError, match=words("too large", "70 images", "image_size=5 or smaller")):
        data.load("tiny_pictures/validation", 8, data_dir=tmp_path)
    assert data.load("tiny_pictures/validation", 8, data_dir=tmp_path, image_size=5).input_shape == (5, 5, 3)


@pytest.mark.parametrize(
    ("config", "message"), [("hidden", "publishes its test labels"), ("no_train", "no training part")]
)
def test_unusable_sets_are_refused(config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        data.load(f"tiny_pictures/{config}", 8, data_dir=tmp_path)

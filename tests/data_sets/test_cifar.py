"""CIFAR-10 and CIFAR-100 from the files of their authors, in both layouts."""

import pickle

import numpy as np
import pytest

from keras_exitens import data
from keras_exitens.data import sources


@pytest.fixture(autouse=True)
def fresh_keras():
    """Replaces the fixture of that name: clearing the Keras session takes longer than most of these tests."""


CLASSES = {"cifar10": 10, "cifar100": 100}
# (layout, name) -> its folder, its training files, test file and file of names
FILES = {
    ("binary", "cifar10"): (
        "cifar-10-batches-bin",
        [f"data_batch_{i}.bin" for i in range(1, 6)],
        "test_batch.bin",
        "batches.meta.txt",
    ),
    ("binary", "cifar100"): ("cifar-100-binary", ["train.bin"], "test.bin", "fine_label_names.txt"),
    ("python", "cifar10"): (
        "cifar-10-batches-py",
        [f"data_batch_{i}" for i in range(1, 6)],
        "test_batch",
        "batches.meta",
    ),
    ("python", "cifar100"): ("cifar-100-python", ["train"], "test", "meta"),
}


def part(count, classes, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32, 32, 3), "uint8"), rng.integers(0, classes, count).astype("uint8")


def records(name, x, y):
    found = []
    for image, label in zip(x, y, strict=True):
        labels = [label] if name == "cifar10" else [label // 5, label]  # coarse, then fine
        planes = [image[:, :, channel].tobytes() for channel in range(3)]
        found.append(bytes(labels) + b"".join(planes))
    return b"".join(found)


def pickled_part(name, x, y):
    rows = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    key = b"labels" if name == "cifar10" else b"fine_labels"
    return pickled({b"data": rows, key: y.tolist(), b"filenames": [b"a.png"] * len(x)})


def names_of(layout, name):
    names = [f"class_{i}" for i in range(CLASSES[name])]
    if layout == "binary":
        return "".join(f"{n}\n" for n in names).encode() + b"\n"
    key = b"label_names" if name == "cifar10" else b"fine_label_names"
    return pickled({key: [n.encode() for n in names]})


def pickled(content):
    return pickle.dumps(content, protocol=2)


def write(layout, folder, name, images=120):
    """The files; returns the images and labels, training files in their order, then the test file's."""
    place, train, test, names = FILES[layout, name]
    folder = folder / place
    folder.mkdir(parents=True)
    parts = [part(images, CLASSES[name], seed) for seed in range(len(train) + 1)]
    content = records if layout == "binary" else pickled_part
    for file, (x, y) in zip([*train, test], parts, strict=True):
        (folder / file).write_bytes(content(name, x, y))
    (folder / names).write_bytes(names_of(layout, name))
    return parts


LAYOUTS = ("binary", "python")


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_and_labels_are_those_of_the_files(layout, name, inside, tmp_path):
    *train, test = write(layout, tmp_path, name)
    (folder,) = tmp_path.iterdir()
    found = sources.read(name, folder if inside else tmp_path)
    np.testing.assert_array_equal(found.train_images, np.concatenate([x for x, _ in train]))
    np.testing.assert_array_equal(found.train_labels, np.concatenate([y for _, y in train]))
    np.testing.assert_array_equal(found.test_images, test[0])
    np.testing.assert_array_equal(found.test_labels, test[1])
    assert found.train_images.dtype == "uint8" and found.train_labels.dtype == "int32"
    assert found.class_names == tuple(f"class_{i}" for i in range(CLASSES[name]))
    splits = data.load(name, 16, data_dir=tmp_path)
    assert splits.input_shape == (32, 32, 3) and splits.classes == CLASSES[name]


@pytest.mark.parametrize("size", [0, 1, 3074 * 2 - 1, 3074 + 3073])
def test_a_binary_file_that_is_cut_is_named(size, tmp_path):
    write("binary", tmp_path, "cifar100")
    file = tmp_path / "cifar-100-binary" / "train.bin"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(
        ValueError, match=rf"(?s){file} is not a valid file of CIFAR.*3,074 bytes.*{size:,} bytes"
    ):
        sources.read("cifar100", tmp_path)


def test_labels_out_of_range_are_named(tmp_path):
    write("binary", tmp_path, "cifar10")
    file = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    file.write_bytes(b"\x0a" + file.read_bytes()[1:])
    with pytest.raises(ValueError, match=r"(?s)training images of 'cifar10' are out of range.*0 to 9.*to 10"):
        sources.read("cifar10", tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_file_is_named(layout, tmp_path):
    write(layout, tmp_path, "cifar10")
    (folder,) = tmp_path.iterdir()
    (file,) = folder.glob("data_batch_4*")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"(?s){file.name} is missing.*{folder}"):
        sources.read("cifar10", tmp_path)


class Harmful:
    def __reduce__(self):
        return print, ("this ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickled({b"data": Harmful(), b"fine_labels": []}), "asks for"),
        (b"", "cannot be read"),
        (b"no pickle", "cannot be read"),
        (pickled([1, 2]), "list"),
        (pickled({}), "NoneType"),
        (pickled({b"data": np.zeros((3, 3072)), b"fine_labels": [0, 0, 0]}), "float64"),
        (pickled({b"data": np.zeros((3, 3071), "uint8"), b"fine_labels": [0, 0, 0]}), "3071"),
        (pickled({b"data": np.zeros((3, 3072), "uint8"), b"fine_labels": [0, 0]}), r"labels of shape \(2,\)"),
        (pickled({b"data": np.zeros((3, 3072), "uint8")}), r"labels of shape \(\)"),
    ],
)
def test_a_python_file_that_is_none_is_named_and_runs_nothing(content, message, tmp_path, capsys):
    write("python", tmp_path, "cifar100")
    file = tmp_path / "cifar-100-python" / "train"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s){file} is not a valid file of CIFAR.*{message}"):
        sources.read("cifar100", tmp_path)
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize("size", [100, 1000])
def test_a_python_file_that_is_cut_is_named(size, tmp_path):
    write("python", tmp_path, "cifar100")
    file = tmp_path / "cifar-100-python" / "test"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{file} is not a valid file"):
        sources.read("cifar100", tmp_path)

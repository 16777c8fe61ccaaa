"""`data.load` on every backend: parts, order, augmentation."""

import numpy as np
import parity
import pytest
from contracts import BACKEND

import keras_exitens as kx


def batches(data, number=None):
    found = []
    for images, labels in data:
        found.append((np.asarray(images), np.asarray(labels)))
        if len(found) == number:
            break
    return found


def test_a_batch_is_a_function_of_seed_and_step():
    splits = kx.data.load("digits", batch_size=64, seed=3)
    whole = batches(splits.train, 2 * splits.steps_per_epoch + 3)
    for start in (1, splits.steps_per_epoch - 1, splits.steps_per_epoch + 2):
        later = batches(kx.data.load("digits", batch_size=64, seed=3).train_from(start), 3)
        for (x, y), (u, v) in zip(later, whole[start:], strict=False):
            assert (x == u).all() and (y == v).all()
    other = batches(kx.data.load("digits", batch_size=64, seed=4).train, 1)
    assert not (other[0][1] == whole[0][1]).all()


def test_each_epoch_sees_each_image_once_in_another_order():
    splits = kx.data.load("digits", batch_size=10, train_limit=200, augment=None)
    found = batches(splits.train, 40)
    epochs = [np.concatenate([x for x, _ in part]) for part in (found[:20], found[20:])]
    keys = [[image.tobytes() for image in epoch] for epoch in epochs]
    assert len({*keys[0]}) == 200 and {*keys[0]} == {*keys[1]} and keys[0] != keys[1]


def test_other_parts_are_one_pass_and_disjoint():
    splits = kx.data.load("digits", batch_size=100, augment=None)
    parts = {name: batches(getattr(splits, name)) for name in ("validation", "calibration", "test")}
    for name, found in parts.items():
        assert sum(len(y) for _, y in found) == splits.sizes[name]
        again = batches(getattr(splits, name))
        assert all((x == u).all() for (x, _), (u, _) in zip(found, again, strict=True))
    train = batches(splits.train, splits.steps_per_epoch)
    images = np.concatenate([x for x, _ in train])
    assert images.dtype == np.float32
    # Of the whole training part, of which the last images of the epoch are left over.
    assert abs(images.mean()) < 0.02 and abs(images.std() - 1) < 0.02


@pytest.mark.skipif(BACKEND == "tensorflow", reason="see tests/data_sets")
@pytest.mark.parametrize("flip", [False, True])
def test_crop_and_flip_against_every_possible_result(flip):
    from keras_exitens.data.pipelines_host import crop_and_flip

    image = np.random.default_rng(0).integers(1, 255, (1, 5, 4, 2), dtype=np.uint8)
    results = crop_and_flip(np.repeat(image, 600, axis=0), np.random.RandomState(0), padding=1, flip=flip)
    padded = np.pad(image[0], ((1, 1), (1, 1), (0, 0)))
    windows = [padded[i : i + 5, j : j + 4] for i in range(3) for j in range(3)]
    possible = {w.tobytes() for w in windows} | ({w[:, ::-1].tobytes() for w in windows} if flip else set())
    assert {result.tobytes() for result in results} == possible
    assert len(possible) == (18 if flip else 9)


@pytest.mark.parametrize("size", parity.SIZES, ids=str)
def test_images_are_resized_as_tensorflow_does(size):
    stored = np.load(parity.FILE)[f"resized {size}"].astype(int)
    assert stored.std() > 50
    assert np.abs(parity.resized(size).astype(int) - stored).max() <= 1


@pytest.mark.skipif(BACKEND == "tensorflow", reason="it has TensorFlow")
def test_sets_of_tensorflow_datasets_say_what_they_need():
    with pytest.raises(ImportError, match=r"(?s)needs TensorFlow.*pip install tensorflow.*authors' archive"):
        kx.data.load("cifar10")

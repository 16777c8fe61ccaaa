"""A small network with spread thresholds, exported, and what it says of some images."""

import typing

import numpy as np
from leaving import leaving

import keras_exitens as kx

MODEL = "served"


class Exported(typing.NamedTuple):
    """An export and what it was made from: the folder, images, outputs and thresholds of `EarlyExit`."""

    folder: str
    images: np.ndarray
    outputs: dict
    policy: kx.policies.Policy
    records: kx.ExitRecords


def exported(folder, format, shares=(0.4, 0.3, 0.2, 0.1), rows=240, backbone=None, **options):
    """Exports a network whose rows leave at its exits in the given shares.

    Args:
        folder: path.
        format: as `EarlyExit.export`.
        shares: of the rows that leave at each exit, the final one last.
        rows: int, images; float32 noise.
        backbone: a Keras CNN; by default a small ResNet18 for 32 × 32 pixels.
        **options: as `EarlyExit.export`.
    """
    backbone = backbone or kx.applications.ResNet18(input_shape=(32, 32, 3), classes=10, width=0.125)
    model = kx.add_exits(backbone, len(shares) - 1, name=MODEL)
    images = np.random.default_rng(0).normal(size=(rows, *backbone.input_shape[1:])).astype("float32")
    records = kx.collect(model, (images, np.zeros(rows, int)), verbose=0)
    thresholds, _ = leaving(records.logits, shares)
    policy = kx.policies.MaxProbability(thresholds)
    early = kx.EarlyExit(model, policy)
    outputs = early.predict(images, verbose=0)
    early.export(folder, format=format, **options)
    return Exported(str(folder), images, outputs, policy, records)


def check(found, wanted, policy, rows=slice(None), tolerance=2e-6):
    """Asserts the exits and logits of `EarlyExit.predict`, image for image; gives the number left out.

    A row whose score is within the tolerance of a threshold may leave elsewhere.
    """
    wanted = {key: value[rows] for key, value in wanted.items()}
    thresholds = np.asarray(policy.thresholds)
    near = np.abs(wanted["score"][:, None] - thresholds).min(axis=1) < tolerance
    assert near.sum() <= max(1, 0.02 * len(near))
    same = found["exit"] == wanted["exit"]
    assert same[~near].all()
    np.testing.assert_allclose(found["logits"][same], wanted["logits"][same], atol=1e-3, rtol=1e-4)
    np.testing.assert_allclose(found["score"][same], wanted["score"][same], atol=1e-4)
    return int(near.sum())

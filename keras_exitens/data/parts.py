"""Which training images belong to which part: disjoint parts, drawn at random."""

import numpy as np

from keras_exitens import _checks as checks

__all__ = ["check_fractions", "cut"]


def check_fractions(validation: float, calibration: float) -> None:
    """Raises `ValueError` unless both are fractions that together leave something to train on."""
    checks.number("validation", validation, low=0, below=1)
    checks.number("calibration", calibration, low=0, below=1)
    if validation + calibration >= 1:
        raise checks.error(
            "Validation and calibration leave nothing to train on.",
            expected="validation + calibration below 1",
            received=f"validation={validation}, calibration={calibration}",
            fix="pass smaller fractions, such as validation=0.1, calibration=0.1",
        )


def cut(images: int, *, validation: float, calibration: float, seed: int) -> dict[str, np.ndarray]:
    """Cuts `images` rows into three parts, in the order of one random permutation.

    Calibration comes first, then validation, so that another validation fraction leaves the calibration
    part as it is.

    Args:
        images: int, how many there are.
        validation, calibration: fractions of them.
        seed: int in [0, 2³²).

    Returns:
        A dict from `"train"`, `"validation"` and `"calibration"` to int arrays of rows.

    Raises:
        ValueError: if a fraction above 0 is too small to give one image.
    """
    sizes = {"calibration": round(calibration * images), "validation": round(validation * images)}
    for part, fraction in (("calibration", calibration), ("validation", validation)):
        if fraction and not sizes[part]:
            raise checks.error(
                f"The {part} part would be empty.",
                expected="a fraction that gives at least one image, or 0 for no such part",
                received=f"{part}={fraction} of {images} images",
                fix=f"pass a larger fraction, such as {part}=0.5",
            )
    # RandomState, because NumPy promises never to change its stream: a calibration image of today must not
    # be a training image after an upgrade.
    order = np.random.RandomState(seed).permutation(images)
    ends = [sizes["calibration"], sizes["calibration"] + sizes["validation"]]
    rows = dict(zip(("calibration", "validation", "train"), np.split(order, ends), strict=True))
    return {part: rows[part] for part in ("train", "validation", "calibration")}

"""Temperatures that make the probabilities of an exit fit the labels."""

import numpy as np

__all__ = ["fit_temperature"]

_RANGE = (0.01, 100.0)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T that minimises the mean of `-log softmax(z / T)[y]`.

    Newton's method on `b = 1 / T`, in which the mean is convex: its derivative is the mean of
    `E_p[z] - z_y`, its second derivative the mean variance of z under `p = softmax(b z)`. A step that leaves
    the bracket, or is not half as long as the one before, is replaced by the geometric middle.

    Args:
        logits: `(N, classes)`.
        labels: class ids `(N,)`.

    Returns:
        float in [0.01, 100]; 1 where no temperature changes anything.

    Reference: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599.
    """
    z = np.asarray(logits, "float64")
    z = z - z.max(axis=1, keepdims=True)
    own = z[np.arange(len(z)), labels].mean()
    low, high = 1 / _RANGE[1], 1 / _RANGE[0]
    inverse, last = 1.0, np.inf
    slope, curvature = _derivatives(z, own, inverse)
    if slope == 0:
        return 1.0
    if _derivatives(z, own, low)[0] >= 0:
        return _RANGE[1]
    if _derivatives(z, own, high)[0] <= 0:
        return _RANGE[0]
    while abs(last) > 1e-6 * inverse:
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        move = -slope / curvature if curvature > 0 else np.inf
        if not low < inverse + move < high or abs(move) > abs(last) / 2:
            move = np.sqrt(low * high) - inverse
        inverse, last = inverse + move, move
        slope, curvature = _derivatives(z, own, inverse)
    return float(1 / inverse)


def _derivatives(z: np.ndarray, own: float, inverse: float) -> tuple[float, float]:
    p = np.exp(inverse * z)
    p /= p.sum(axis=1, keepdims=True)
    mean = (p * z).sum(axis=1)
    return mean.mean() - own, ((p * z**2).sum(axis=1) - mean**2).mean()

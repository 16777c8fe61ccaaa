"""What the pixels of a data set are like."""

import numpy as np

__all__ = ["channel_statistics"]


def channel_statistics(images: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel over some of the images, with pixels in [0, 1].

    Counts the 256 values of a byte, which is exact and reads a few images at a time.

    Args:
        images: uint8 array `(N, height, width, channels)`.
        rows: int array, the images to count.

    Returns:
        Two float64 arrays `(channels,)`. A constant channel has standard deviation 1: nothing to scale.
    """
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(rows), 1024):
        some = images[rows[start : start + 1024]]
        for channel in range(channels):
            counts[channel] += np.bincount(some[..., channel].ravel(), minlength=256)
    levels = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ levels
    std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(axis=1))
    return mean, np.where(std > 0, std, 1.0)

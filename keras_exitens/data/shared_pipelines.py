"""What the pipelines of all backends have in common."""

import numpy as np

from keras_exitens.data.sources import Images
from keras_exitens.data.statistics import channel_statistics

__all__ = ["SharedPipelines"]


class SharedPipelines:
    """Base of each backend's `Pipelines`: makes data of `(images, labels)` from the parts of one data set.

    Args:
        found: `Images`.
        rows: dict from the name of a part to an int array of rows: of the test images for `"test"`, of the
            training images for all other parts.
        batch_size: int.
        augment: `"crop"`, `"crop_flip"` or `None`.
        seed: int, of the order and the augmentation of the training part.

    Attributes:
        padding: int, pixels by which the crop moves an image at most.
        mean, std: float64 arrays `(channels,)`, of the training part with pixels in [0, 1].
    """

    def __init__(
        self, found: Images, rows: dict[str, np.ndarray], *, batch_size: int, augment: str | None, seed: int
    ) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.augment = augment
        self.seed = seed
        smaller_side = min(found.train_images.shape[1:3])
        self.padding = max(1, (smaller_side + 4) // 8) if augment else 0
        self.mean, self.std = channel_statistics(found.train_images, rows["train"])

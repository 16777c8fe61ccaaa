"""The rows of one batch: how many count, and means over them on all replicas."""

from keras import ops

from keras_exitens._inputs import replicas
from keras_exitens._inputs.labels import counted_rows, in_range, valid
from keras_exitens._types import Tensor

__all__ = ["Rows"]


class Rows:
    """This replica's rows of a batch.

    Args:
        y: their labels, as `standard_labels` gives them.
        classes: number of logits.
        ignored: id of the rows that have no label, or `None`.

    Attributes:
        labels: the labels, in range.
        counted: bool tensor `(batch,)`, the rows that have a label; `None` where all have.
        share: float32 scalar, this replica's share of the rows of all replicas.
    """

    def __init__(self, y: Tensor, classes: int, ignored: int | None) -> None:
        labels, self.counted = counted_rows(y, ignored)
        self.labels = in_range(labels, classes)
        self._valid = valid(y, classes, ignored)
        own = ops.cast(ops.shape(y)[0], "float32")
        everywhere = replicas.all_sum(own)
        self.share = own / everywhere
        self._number = everywhere
        if self.counted is not None:
            self._number = replicas.all_sum(ops.sum(ops.cast(self.counted, "float32")))

    def part_of_mean(self, values: Tensor) -> Tensor:
        """What this replica adds to the mean of `(batch,)` values over all rows that count."""
        return self._divided(self._sum(values))

    def mean(self, values: Tensor) -> Tensor:
        """The mean of `(batch,)` values over all rows that count; 0 where there are none."""
        return self._divided(replicas.all_sum(self._sum(values)))

    def checked(self, values: Tensor) -> Tensor:
        """`(batch,)` losses; NaN where a label is wrong and the graph cannot raise: `guards` says so."""
        return values if self._valid is None else ops.where(self._valid, values, float("nan"))

    def unless_none(self, value: Tensor, otherwise: Tensor) -> Tensor:
        """`value`, or `otherwise` where no row counts: such a batch says nothing."""
        return value if self.counted is None else ops.where(self._number > 0, value, otherwise)

    def _sum(self, values: Tensor) -> Tensor:
        return ops.sum(values if self.counted is None else ops.where(self.counted, values, 0))

    def _divided(self, total: Tensor) -> Tensor:
        number = self._number if self.counted is None else ops.maximum(self._number, 1)
        return total / ops.cast(number, total.dtype)

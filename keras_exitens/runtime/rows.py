"""`Rows`: images on their way from one stage to the next; `Answers`: what is said of them, as it comes."""

import typing
from collections.abc import Sequence

import numpy as np

__all__ = ["Answers", "Rows"]


class Rows(typing.NamedTuple):
    """What is known of some images between two stages, one entry a row in every array.

    Attributes:
        values: dict from name to array, what the stages made and a later one needs.
        finite: bool `(rows,)`, which images have finite pixels alone.
        state: dict from name to array, what the policy remembers of the exits before.
    """

    values: dict[str, np.ndarray]
    finite: np.ndarray
    state: dict[str, np.ndarray]

    def take(self, chosen: np.ndarray | slice) -> "Rows":
        """The rows that a mask, indices or a slice choose."""
        values, state = ({k: v[chosen] for k, v in part.items()} for part in (self.values, self.state))
        return Rows(values, self.finite[chosen], state)

    def fits(self, other: "Rows") -> bool:
        """Whether rows of another request can stand in one batch with these: images of one size."""
        return all(value.shape[1:] == other.values[name].shape[1:] for name, value in self.values.items())

    @staticmethod
    def joined(groups: Sequence["Rows"]) -> "Rows":
        """Rows of several requests as one batch, in their order."""
        if len(groups) == 1:
            return groups[0]
        values, state = (
            {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            for parts in ([g.values for g in groups], [g.state for g in groups])
        )
        return Rows(values, np.concatenate([g.finite for g in groups]), state)


class Answers:
    """What `Runtime.predict` gives for some images, gathered as rows leave. Made by `Runtime.answers`.

    Attributes:
        arrays: dict of `"logits"`, `"exit"` and `"score"`, zeros where nothing has come yet.
        left: int, how many rows have not been answered.
    """

    def __init__(self, rows: int, classes: int) -> None:
        self.arrays = {
            "logits": np.zeros((rows, classes), "float32"),
            "exit": np.zeros(rows, "int32"),
            "score": np.zeros(rows, "float32"),
        }
        self.left = rows

    def put(self, rows: typing.Any, found: dict[str, np.ndarray], which: typing.Any = slice(None)) -> None:
        """Takes answers.

        Args:
            rows: index of a row, or indices `(n,)` of rows that leave.
            found: dict of arrays, as `Runtime.advance` gives it.
            which: index or indices in `found`, of the same rows; all by default.
        """
        for key, array in self.arrays.items():
            array[rows] = found[key][which]
        self.left -= np.size(rows)

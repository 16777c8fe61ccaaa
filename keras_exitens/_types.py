"""Names for what the signatures take that has no type of its own: Keras and TensorFlow come without types."""

import os
from typing import Any, TypeAlias

__all__ = ["Data", "Logs", "Path", "Tensor"]

Tensor: TypeAlias = Any
"""A tensor of TensorFlow, a `KerasTensor` or a NumPy array; its shape and dtype stand in the docstring."""

Data: TypeAlias = Any
"""What Keras takes for `fit` or `predict`: arrays, a `tf.data.Dataset`, a `PyDataset`, a generator."""

Logs: TypeAlias = dict[str, Any] | None
"""What Keras hands to the hooks of callbacks: the name of a metric to its value so far."""

Path: TypeAlias = str | os.PathLike[str]
"""The path of a file or a folder."""

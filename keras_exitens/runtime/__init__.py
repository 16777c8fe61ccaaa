"""Runs an exported multi-exit network without TensorFlow: each image goes as far as it has to, no further.

Needs NumPy, and LiteRT or ONNX Runtime. Every export holds a copy of it, the package `exitens_runtime`, so
that it runs where neither this library nor Keras is installed:

```python
import sys

sys.path.insert(0, "serving")
import exitens_runtime

network = exitens_runtime.load("serving")
network.predict(images)  # {"logits", "exit", "score"}
```
"""

# Relative, as everything in this folder: it stands in the copy too.
from .drift import DriftReport, Monitor
from .manifest import MANIFEST, PACKAGE, SCHEMA, read_manifest
from .network import Runtime, Stage, load
from .rows import Answers, Rows

__all__ = [
    "MANIFEST",
    "PACKAGE",
    "SCHEMA",
    "Answers",
    "DriftReport",
    "Monitor",
    "Rows",
    "Runtime",
    "Stage",
    "load",
    "read_manifest",
]

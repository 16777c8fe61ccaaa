"""Serving an export by engines that queue each stage on its own: `ray_app` for Ray Serve.

For Triton Inference Server see `EarlyExit.export(path, format="triton")`; for a process of one's own,
`keras_exitens.runtime`.
"""

from keras_exitens._calibration.drift import DriftMonitor
from keras_exitens.serving.ray_app import ray_app

__all__ = ["DriftMonitor", "ray_app"]

"""What `EarlyExit` has in common on all backends, below what its users see."""

from typing import Any

import keras
import numpy as np

from keras_exitens._keras import inner_layers
from keras_exitens._stages.settings import Settings
from keras_exitens.policies import Policy

__all__ = ["SharedRunner"]


class SharedRunner:
    """Base of each backend's `Runner`. The attributes are those of `EarlyExit`."""

    model: keras.Model
    policy: Policy
    optimize: bool
    _names: tuple[str, ...]
    _image: keras.KerasTensor
    _chain: Any  # the stages of the network to the exits that are enabled, or None
    _settings: Settings

    def _as_now(self) -> Settings:
        """What network and policy are like now."""
        layers = [layer for layer in inner_layers(self.model) if not isinstance(layer, keras.Model)]
        return Settings([*layers, self.policy])

    def _nothing(self) -> dict[str, np.ndarray]:
        """The answer for no images."""
        classes = self.model.output[self._names[-1]].shape[-1]
        return {
            "logits": np.zeros((0, classes), "float32"),
            "exit": np.zeros(0, "int32"),
            "score": np.zeros(0, "float32"),
        }

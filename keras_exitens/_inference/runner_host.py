"""`EarlyExit` on JAX and PyTorch: stages compiled one by one, rows gathered between them."""

import itertools
from typing import Any

import keras
import numpy as np

from keras_exitens import _checks as checks
from keras_exitens._inference.routing_host import CompiledChain, route
from keras_exitens._inference.shared_runner import SharedRunner
from keras_exitens._inputs.batches import image_batches
from keras_exitens._inputs.images import as_array, check_images, single
from keras_exitens._types import Data, Tensor

__all__ = ["Runner"]


class Runner(SharedRunner):
    """What `EarlyExit` runs; see `runner.py`."""

    def _trace_again(self) -> None:
        """Forgets the compiled stages, and remembers what the network and the policy are like now."""
        self._settings = self._as_now()
        self._chain = None

    def _stages(self) -> CompiledChain:
        """The stages to the exits that the policy enables now."""
        if self._settings.changed():
            self._trace_again()
        exits = tuple(self._names[i] for i in self.policy.enabled_exits(len(self._names)))
        if self._chain is None or self._chain.exits != exits:
            self._chain = CompiledChain(self.model, exits)
        return self._chain

    def call(self, images: Tensor) -> dict[str, Tensor]:
        found = self.route(images)
        return {key: keras.ops.convert_to_tensor(value) for key, value in found.items()}

    def route(self, images: Tensor, thresholds: Tensor = None) -> dict[str, np.ndarray]:
        """What `predict` runs for a batch.

        Args:
            images: tensor or array `(batch, height, width, channels)`.
            thresholds: `(K - 1,)` numbers, in place of those of the policy.

        Returns:
            As `predict`.
        """
        given = as_array(single(images))
        check_images(given, self._image)
        if not len(given):
            return self._nothing()
        indices = self.policy.enabled_exits(len(self._names))
        return route(self._stages().stages, self.policy, indices, given, self._image.dtype, thresholds)

    def predict(
        self,
        x: Data,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        steps: int | None = None,
        callbacks: list[keras.callbacks.Callback] | None = None,
    ) -> dict[str, np.ndarray]:
        """As `keras.Model.predict`, of all that it takes, and of arrays without rows."""
        batches, number = image_batches(x, batch_size or 32)
        if number == 0:
            return self.route(single(x))
        if steps is None and number is None and isinstance(x, keras.utils.PyDataset):
            raise checks.error(
                "The data never end.",
                expected="`steps`, how many batches to take of them",
                received="steps=None",
                fix="predict(x, steps=100)",
            )
        # Not Keras's own loop: on JAX that empties the variables, which the stages read.
        loop: Any = callbacks
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            loop = keras.callbacks.CallbackList(
                callbacks,
                add_progbar=verbose != 0,
                verbose=verbose,
                epochs=1,
                steps=steps or number,
                model=self,
            )
        found = []
        self.stop_predicting = False
        loop.on_predict_begin()
        for step, images in enumerate(itertools.islice(batches, steps)):
            loop.on_predict_batch_begin(step)
            found.append(self.route(images))
            loop.on_predict_batch_end(step, {"outputs": found[-1]})
            if self.stop_predicting:
                break
        loop.on_predict_end()
        if not found:
            return self._nothing()
        return {key: np.concatenate([part[key] for part in found]) for key in found[0]}

    def predict_on_batch(self, x: Data) -> dict[str, np.ndarray]:
        """As `keras.Model.predict_on_batch`."""
        return self.route(x)

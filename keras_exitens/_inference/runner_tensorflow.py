"""`EarlyExit` on TensorFlow: routing in one graph, with the weights as constants in it where asked."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_exitens._inference.routing_tensorflow import finite_rows, route
from keras_exitens._inference.shared_runner import SharedRunner
from keras_exitens._inputs import replicas
from keras_exitens._inputs.images import as_taken, check_images, explained_sizes, single, sized
from keras_exitens._keras import trace_predict_again
from keras_exitens._stages.chain import Chain
from keras_exitens._types import Data, Tensor

__all__ = ["Runner"]


class Runner(SharedRunner):
    """What `EarlyExit` runs; see `runner.py`."""

    run_eagerly: bool

    def _trace_again(self) -> None:
        """Has Keras trace its graph anew, and remembers what the network and the policy are like now."""
        self._settings = self._as_now()
        self._on_batch: Any = None  # the graph of `predict_on_batch`, beside Keras's of `predict`
        trace_predict_again(self)

    def _stages(self) -> Chain:
        """The stages to the exits that the policy enables now."""
        exits = tuple(self._names[i] for i in self.policy.enabled_exits(len(self._names)))
        if self._chain is None or self._chain.exits != exits:
            self._chain = Chain(self.model, exits)
        return self._chain

    def call(self, images: Tensor) -> dict[str, Tensor]:
        return self._route(self._stages().live, images)

    def route(self, images: Tensor, thresholds: Tensor = None) -> dict[str, Tensor]:
        """What `predict` runs, for use in a `tf.function`: with `optimize=True`, weights are constants in it.

        Args:
            images: tensor `(batch, height, width, channels)`.
            thresholds: float tensor `(K - 1,)`, in place of those of the policy.

        Returns:
            As calling the model.
        """
        optimized = self.optimize and not tf.executing_eagerly()
        with tf.init_scope():
            chain = self._stages().current() if optimized else self._stages().live
        return self._route(chain, images, thresholds)

    def _route(self, chain: Sequence[Any], images: Tensor, thresholds: Tensor = None) -> dict[str, Tensor]:
        given = sized(tf.convert_to_tensor(single(images)), self._image)
        indices = self.policy.enabled_exits(len(self._names))
        finite = finite_rows(given)
        return route(chain, self.policy, indices, as_taken(given, self._image), thresholds, finite)

    def predict_step(self, data: Data) -> dict[str, Tensor]:
        images, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return self.route(images)

    def predict(
        self,
        x: Data,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        steps: int | None = None,
        callbacks: list[keras.callbacks.Callback] | None = None,
    ) -> dict[str, np.ndarray]:
        """As `keras.Model.predict`, of all that it takes, and of arrays without rows."""
        if hasattr(x, "__array__") and len(x.shape) and x.shape[0] == 0:
            check_images(x, self._image)
            return self._nothing()
        self._renew()
        with explained_sizes(self._image):
            return super().predict(  # type: ignore[misc]
                x, batch_size=batch_size, verbose=verbose, steps=steps, callbacks=callbacks
            )

    def predict_on_batch(self, x: Data) -> dict[str, np.ndarray]:
        """As `keras.Model.predict_on_batch`."""
        x = single(x)
        check_images(x, self._image)
        self._renew(values=self._chain is None)
        found, first = self._run(x)
        # Only the stages that ran need the weights of now.
        if self.optimize and self._stages().outdated(self._stages_run(found["exit"]), first):
            self._renew()
            found, _ = self._run(x)
        return found

    def _run(self, x: Tensor) -> tuple[dict[str, np.ndarray], list[Tensor] | None]:
        """What is found for one batch, and the weights of the first stage that one graph read with it."""
        if self.run_eagerly or replicas.of_model(self).num_replicas_in_sync > 1:
            found = super().predict_on_batch(x)  # type: ignore[misc]
            return replicas.of_one(found, rows=len(x)), None
        if self._on_batch is None:
            chain = self._stages()
            read = chain.read_first if self.optimize else None
            # A partial: TensorFlow takes the functions of all objects of a class for one, and warns that it
            # is traced again and again.
            self._on_batch = tf.function(
                functools.partial(self._route_and_read, read), autograph=False, reduce_retracing=True
            )
        with replicas.of_model(self).scope():
            found, first = self._on_batch(tf.convert_to_tensor(x))
        return {key: value.numpy() for key, value in found.items()}, first

    def _route_and_read(self, read: Callable[[], list[Tensor]] | None, images: Tensor) -> Any:
        return self.route(images), None if read is None else read()

    def _stages_run(self, exits: np.ndarray) -> int:
        """How many stages ran for rows that left at these exits."""
        enabled = self.policy.enabled_exits(len(self._names))
        return 1 + enabled.index(int(exits.max())) if len(exits) else 0

    def _renew(self, *, values: bool = True) -> None:
        """Has Keras trace its graph again where it would not give what calling the model gives.

        Args:
            values: whether to look at the values of the weights too, where the graph holds a copy of them.
        """
        if self._settings.changed():
            self._chain = None
            self._trace_again()
        if self.optimize and (self._chain is None or (values and self._stages().outdated())):
            self._stages().current()
            self._trace_again()

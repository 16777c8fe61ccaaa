"""`EarlyExit`: a multi-exit model that lets each image leave as soon as a policy is sure of it."""

from typing import Any, Literal, NoReturn, Self

import keras
import numpy as np
import tensorflow as tf

from keras_exitens import checks, exit_summary
from keras_exitens import export as exporting
from keras_exitens.attach import exit_names
from keras_exitens.classifier import check_logits
from keras_exitens.freezing import Chain
from keras_exitens.hints import Data, Path, Tensor
from keras_exitens.policies import Policy
from keras_exitens.routing import route

__all__ = ["EarlyExit"]


@keras.saving.register_keras_serializable(package="keras_exitens")
class EarlyExit(keras.Model):
    """Runs a multi-exit model so that each row of a batch leaves at the exit where the policy lets it.

    The rows that go on are gathered, later stages run for them alone, and the results come back in the order
    of the batch, all in one graph. A stage that nobody reaches is not run, nor is the head of a disabled
    exit. Labels play no part.

    Calling it, and `predict`, give a dict: `"logits"` float32 `(batch, classes)` of the exit that the row
    left at (with `policy.ensemble` the mean up to there); `"exit"` int32 `(batch,)`, the index of that exit,
    0 for the first of all exits; `"score"` float32 `(batch,)`, what the policy saw there. A row with a pixel,
    or with logits, that are not finite goes on to the end and has the score NaN; it does not disturb its
    neighbours.

    Rows are computed in batches whose size depends on how many go on. Kernels differ by batch size, so that
    the logits of a row may depend on its neighbours by about 1e-6 of the largest.

    Args:
        model: the result of `add_exits`, or a functional model with a dict of logits. Its layers are shared:
            train it, and this model changes with it.
        policy: a policy of `keras_exitens.policies`.
        optimize: bool. Whether `predict`, `predict_on_batch`, `summary` and `export` use a copy of the
            weights as constants, with batch normalisation folded into the convolutions where that changes no
            logit by more than 1e-5 of the largest. The copy is made at the first use, and anew when any
            weight has changed. Calling the model always uses the weights themselves.
        name: str, name of the model.

    Raises:
        TypeError: `policy` is not a policy.
        ValueError: `model` is not a multi-exit model or its outputs are not logits, or the policy has
            settings for another number of exits.

    Example:

    ```python
    policy = kx.policies.MaxProbability([0.9, 0.9, 0.8])
    early = kx.EarlyExit(model, policy)
    early.predict(images)["exit"]
    ```
    """

    def __init__(
        self,
        model: keras.Model,
        policy: Policy,
        optimize: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        names = exit_names(model)
        check_logits(model, names)
        if not isinstance(policy, Policy):
            raise checks.error(
                "`policy` is not a policy.",
                expected="a policy of keras_exitens.policies, such as MaxProbability(0.9), or "
                "the result of calibrate",
                received=f"policy={policy!r}",
                fix="make one, or subclass keras_exitens.policies.Policy",
                kind=TypeError,
            )
        policy = policy.for_exits(len(names))
        # Images go on to `model` as they are: it casts them where it wants to.
        super().__init__(name=name, dtype="float32", autocast=False, **kwargs)
        self.supports_jit = False  # XLA wants shapes that do not depend on the data
        self.model = model
        self.policy = policy
        self.optimize = optimize
        self._names = tuple(names)
        self._chain = Chain(model, [names[i] for i in policy.enabled_exits(len(names))])
        self.built = True

    @property
    def exit_names(self) -> tuple[str, ...]:
        """Names of all exits of the model, in the order that `"exit"` counts them in."""
        return self._names

    def call(self, images: Tensor) -> dict[str, Tensor]:
        return self._route(self._chain.live, images)

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
            chain = self._chain.current() if optimized else self._chain.live
        return self._route(chain, images, thresholds)

    def _route(self, chain, images, thresholds=None):
        images = tf.convert_to_tensor(images)
        _check_images(images, self.model.inputs[0])
        indices = self.policy.enabled_exits(len(self._names))
        return route(chain, self.policy, indices, images, thresholds)

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
        if len(getattr(x, "shape", ())) and x.shape[0] == 0:
            _check_images(x, self.model.inputs[0])
            return self._nothing()
        self._renew()
        return super().predict(x, batch_size=batch_size, verbose=verbose, steps=steps, callbacks=callbacks)

    def predict_on_batch(self, x: Data) -> dict[str, np.ndarray]:
        self._renew()
        return super().predict_on_batch(x)

    def _renew(self):
        """Makes Keras trace the optimized graph again where its constants are out of date."""
        if self.optimize and self._chain.outdated():
            self.predict_function = None

    def _nothing(self):
        classes = self.model.output[self._names[-1]].shape[-1]
        return {
            "logits": np.zeros((0, classes), "float32"),
            "exit": np.zeros(0, "int32"),
            "score": np.zeros(0, "float32"),
        }

    def compute_output_spec(self, images: keras.KerasTensor) -> dict[str, keras.KerasTensor]:
        rows = images.shape[0]
        classes = self.model.output[self._names[-1]].shape[-1]
        return {
            "logits": keras.KerasTensor((rows, classes), "float32"),
            "exit": keras.KerasTensor((rows,), "int32"),
            "score": keras.KerasTensor((rows,), "float32"),
        }

    def summary(
        self, data: Data = None, *args: Any, batch_size: int = 32, **kwargs: Any
    ) -> exit_summary.ExitSummary | None:
        """Without data, Keras's summary of the layers. With data, what early exit does to them.

        Args:
            data: `(images, labels)` as arrays, or a `tf.data.Dataset` or other iterable of batches `(images,
            labels)`. batch_size: int, for arrays.

        Returns:
            With data an `ExitSummary`: accuracy, the share of rows at each exit, mean multiply-adds, and the
            time beside that of the full network, measured in turns; print it for a table.
        """
        if data is None or isinstance(data, int):
            positional = args if data is None else (data, *args)
            return super().summary(*positional, **kwargs)
        return exit_summary.measure(self, data, batch_size)

    def export(
        self,
        filepath: Path,
        format: Literal["tf_saved_model", "litert", "onnx"] = "tf_saved_model",
        **options: Any,
    ) -> dict[str, Any]:
        """Writes a folder from which early exit runs without this library.

        Args:
            filepath: str or path, the folder.
            format: `"tf_saved_model"`, `"litert"` or `"onnx"`.
            **options: `labels`, `quantize`, `representative_data`, `verify`: see
                `keras_exitens.export.export`.

        Returns:
            What stands in the manifest of the export, a dict.
        """
        return exporting.export(self, filepath, format, **options)

    def train_step(self, data: Data) -> NoReturn:
        raise _inference_only("fit", "train the model with keras_exitens.ExitEnsembleDistiller(early.model)")

    def test_step(self, data: Data) -> NoReturn:
        raise _inference_only("evaluate", "call early.summary((images, labels))")

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "model": keras.saving.serialize_keras_object(self.model),
            "policy": keras.saving.serialize_keras_object(self.policy),
            "optimize": self.optimize,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = {**config}
        for key in ("model", "policy"):
            config[key] = keras.saving.deserialize_keras_object(config[key])
        return cls(**config)


def _check_images(images, wanted):
    shape = tuple(images.shape)
    fits = len(shape) == 4 and all(
        have is None or want is None or have == want
        for have, want in zip(shape[1:], wanted.shape[1:], strict=True)
    )
    kind = getattr(images.dtype, "name", str(images.dtype))
    if not fits or not kind.startswith(("float", "bfloat", "int", "uint")):
        sizes = ", ".join("any" if size is None else str(size) for size in wanted.shape[1:])
        raise checks.error(
            "These are not images that the network can take.",
            expected=f"numbers of shape (batch, {sizes})",
            received=f"shape {shape} of {kind}",
            fix="bring them to that shape; a single image is images[None], a batch of one",
        )


def _inference_only(method, fix):
    return checks.error(
        f"EarlyExit is for inference: it has no `{method}`.",
        expected="predict, predict_on_batch, summary(data) or a call",
        received=f"{method}()",
        fix=fix,
        kind=NotImplementedError,
    )

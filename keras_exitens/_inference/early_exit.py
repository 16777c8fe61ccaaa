"""`EarlyExit`: a multi-exit model that lets each image leave as soon as a policy is sure of it."""

from collections.abc import Sequence
from typing import Any, Literal, NoReturn, Self

import keras

from keras_exitens import _checks as checks
from keras_exitens._backend import NAME, tf
from keras_exitens._export.manifest import Manifest
from keras_exitens._inference import benchmark as measuring
from keras_exitens._inference.benchmark import Benchmark
from keras_exitens._inference.runner import Runner
from keras_exitens._network.exit_network import ExitNetwork
from keras_exitens._types import Data, Path
from keras_exitens.policies import Policy

__all__ = ["EarlyExit"]

_EXPORT = """early.save("early.keras"), and then, where TensorFlow is installed:
    KERAS_BACKEND=tensorflow python -c "import keras, keras_exitens; \
    keras.saving.load_model('early.keras').export('{path}', format='{format}')\""""


@keras.saving.register_keras_serializable(package="keras_exitens")
class EarlyExit(Runner, keras.Model):
    """Runs a multi-exit model so that each row of a batch leaves at the exit where the policy lets it.

    The rows that go on are gathered, later stages run for them alone, and the results come back in the order
    of the batch. On TensorFlow all of it is one graph; on JAX each stage is compiled on its own, for batches
    of a few sizes; on PyTorch stages run one after another. A stage that nobody reaches is not run, nor is
    the head of a disabled exit. Labels play no part.

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
        optimize: bool. Whether `predict`, `predict_on_batch`, `benchmark` and `export` use a copy of the
            weights as constants, with batch normalisation folded into the convolutions where that changes no
            logit by more than 1e-5 of the largest. The copy is made at the first use, and anew when any
            weight has changed. Calling the model always uses the weights themselves. On TensorFlow alone.
        name: str, name of the model.

    Raises:
        TypeError: `policy` is not a policy.
        ValueError: `model` is not a multi-exit model or its outputs are not logits, or the policy has
            settings for another number of exits.
        NotImplementedError: `optimize=True` on another backend than TensorFlow.

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
        *,
        optimize: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        network = ExitNetwork.of(model)
        network.check_logits()
        image = network.image
        # Images go on to `model` as they are: it casts them where it wants to.
        super().__init__(name=name, dtype="float32", autocast=False, **kwargs)
        self.supports_jit = False  # XLA wants shapes that do not depend on the data
        self.model = model
        self._names, self._image = network.names, image
        self._chain: Any = None
        self.policy = policy
        self.optimize = optimize
        self.built = True

    def _fitting(self, policy: Any) -> Policy:
        if not isinstance(policy, Policy):
            raise checks.error(
                "`policy` is not a policy.",
                expected="a policy of keras_exitens.policies, such as MaxProbability(0.9), or "
                "the result of calibrate",
                received=f"policy={policy!r}",
                fix="make one, or subclass keras_exitens.policies.Policy",
                kind=TypeError,
            )
        return policy.for_exits(len(self._names))

    @property
    def exit_names(self) -> tuple[str, ...]:
        """Names of all exits of the model, in the order that `"exit"` counts them in."""
        return self._names

    @property
    def policy(self) -> Policy:
        """The policy, with settings for each exit. Another one may be assigned; the next call follows it."""
        return self._followed

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self._followed = self._fitting(policy)
        self._trace_again()

    @property
    def optimize(self) -> bool:
        """Whether `predict` runs a copy of the weights as constants. May be assigned to."""
        return self._optimized

    @optimize.setter
    def optimize(self, optimize: bool) -> None:
        if optimize and tf is None:
            raise checks.needs_tensorflow(
                "optimize=True", NAME, fix="leave `optimize` out: EarlyExit(model, policy)"
            )
        self._optimized = bool(optimize)
        self._chain = None  # the copy, if there is one, goes
        self._trace_again()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "model" and "model" in vars(self) and value is not self.model:
            raise checks.error(
                "The network of an EarlyExit cannot be exchanged.",
                expected="the network that it was made for",
                received=repr(value),
                fix="make another one: EarlyExit(model, early.policy)",
                kind=AttributeError,
            )
        super().__setattr__(name, value)

    def compute_output_spec(self, images: keras.KerasTensor) -> dict[str, keras.KerasTensor]:
        rows = images.shape[0]
        classes = self.model.output[self._names[-1]].shape[-1]
        return {
            "logits": keras.KerasTensor((rows, classes), "float32"),
            "exit": keras.KerasTensor((rows,), "int32"),
            "score": keras.KerasTensor((rows,), "float32"),
        }

    def benchmark(self, data: Data, batch_size: int = 32) -> Benchmark:
        """Measures what early exit does to labelled images: accuracy, who leaves where, work and time.

        Each batch runs through early exit and through the whole network in turns, so that a change in the
        load of the machine falls on both.

        Args:
            data: `(images, labels)` as arrays, or a `tf.data.Dataset` or other iterable of batches `(images,
                labels)`. A third entry of floats are sample weights, 1, or 0 for rows that do not count, such
                as padding.
            batch_size: int, for arrays.

        Returns:
            A `Benchmark`: accuracy, the share of rows at each exit, mean multiply-adds, and the time beside
            that of the full network; print it for a table.

        Raises:
            ValueError: no labels, no rows, an endless data set, labels out of range, weights other than 0
                and 1.
        """
        return measuring.benchmark(self, data, batch_size)

    def summary(self, *args: Any, **kwargs: Any) -> None:
        """Keras's summary of the layers; see `keras.Model.summary`."""
        if "data" in kwargs or (args and not isinstance(args[0], int | None)):
            raise checks.error(
                "`summary` shows the layers, as in Keras: it measures nothing any more.",
                expected="no data",
                received="data",
                fix="early.benchmark(data)",
                kind=TypeError,
            )
        super().summary(*args, **kwargs)

    def export(
        self,
        filepath: Path,
        format: Literal["tf_saved_model", "litert", "onnx", "triton"] = "tf_saved_model",
        *,
        labels: Sequence[str] | None = None,
        quantize: Literal["int8", "float16"] | None = None,
        representative_data: Data = None,
        verify: bool = True,
        backend: Literal["onnxruntime", "python"] | None = None,
    ) -> Manifest:
        """Writes a folder from which early exit runs without this library.

        - `"tf_saved_model"`: one SavedModel with the routing in it, for TensorFlow Serving and
          `tf.saved_model.load`. Its signatures take batches of any size: `serving_default` (`images`) and
          `with_thresholds` (`images`, `thresholds`, float32 `(K - 1,)`), by which a server trades accuracy
          for load. They give `logits`, `exit` and `score`.
        - `"litert"`, `"onnx"`: one model a stage, and a package `exitens_runtime` that routes with NumPy and
          LiteRT or ONNX Runtime alone: see `keras_exitens.runtime`, and `serving.ray_app` for Ray Serve.
        - `"triton"`: a model repository for Triton Inference Server: an ONNX model a stage, each with batches
          of its own, and a router, the model that clients ask, which has the name of `early.model`.

        `exits.json` in the folder says what is in it. The folder appears when all of it is written; an export
        that was there before is replaced. Models in half precision run in float32 in LiteRT and ONNX Runtime.

        Args:
            filepath: str or path, the folder. For TensorFlow Serving it ends in a version number:
                `"name/1"`.
            format: `"tf_saved_model"` (default), `"litert"`, `"onnx"` or `"triton"`.
            labels: names of the classes, in order; for whoever reads the manifest.
            quantize: for LiteRT, `"float16"` (files of half the size) or `"int8"` (a quarter, and faster on
                devices with integer units).
            representative_data: images as the network will see them, as an array, or an iterable of batches
                with or without labels. `"int8"` reads ranges from them, for which about a hundred are enough;
                with any LiteRT or ONNX export the agreement with this model is measured on them. Figures from
                images that the ranges were read from are flattering.
            verify: bool. Whether the stages are run beside the model on two random images before the folder
                appears; needs the runtime of the format, and is done without quantisation alone.
            backend: for Triton, what runs the stages: `"onnxruntime"` (default), Triton's own backend, or
                `"python"`, where a server has the Python backend alone, with `onnxruntime` installed.

        Returns:
            A `Manifest`, what `exits.json` says. Its `agreement` says, with representative data, how the
            export compares with this model.

        Raises:
            ValueError: arguments that do not go together; a policy of your own, which only a SavedModel can
                hold.
            FileExistsError: `filepath` is something else than an export.
            RuntimeError: an operation that LiteRT or ONNX has not, or stages that disagree with the model.
            ImportError: the packages of the format are not installed.
            NotImplementedError: on another backend than TensorFlow; the error has the command that exports.
        """
        if tf is None:
            raise checks.needs_tensorflow(
                "Writing an export", NAME, fix=_EXPORT.format(path=filepath, format=format)
            )
        from keras_exitens._export import export as exporting

        return exporting.export(
            self,
            filepath,
            format,
            labels=labels,
            quantize=quantize,
            representative_data=representative_data,
            verify=verify,
            backend=backend,
        )

    def save(self, filepath: Path, *args: Any, **kwargs: Any) -> None:
        """Saves network, policy and weights to a `.keras` file; see `keras.Model.save`."""
        checks.keras_file(filepath, "model")
        super().save(filepath, *args, **kwargs)

    def train_step(self, data: Data) -> NoReturn:
        raise _inference_only(
            "fit", "keras_exitens.ExitEnsembleDistiller(early.model).fit(...), which trains the same layers"
        )

    def test_step(self, data: Data) -> NoReturn:
        raise _inference_only("evaluate", "early.benchmark((images, labels))")

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
        if config.get("optimize") and tf is None:
            checks.warn(f"optimize=True needs TensorFlow: without it on {NAME}, the answers are the same.")
            config["optimize"] = False
        for key in ("model", "policy"):
            config[key] = keras.saving.deserialize_keras_object(config[key])
        return cls(**config)


def _inference_only(method: str, fix: str) -> Exception:
    return checks.error(
        f"EarlyExit is for inference: it has no `{method}`.",
        expected="predict, predict_on_batch, benchmark or a call",
        received=f"{method}()",
        fix=fix,
        kind=NotImplementedError,
    )

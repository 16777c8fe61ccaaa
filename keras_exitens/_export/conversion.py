"""One stage as a file for LiteRT or for ONNX Runtime."""

import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_exitens import _checks as checks
from keras_exitens._stages.freezing import FrozenStage
from keras_exitens._stages.split import Stage

__all__ = ["to_litert", "to_onnx"]


def to_litert(
    stage: Stage,
    path: pathlib.Path,
    quantize: str | None = None,
    examples: Callable[[], Iterator[dict[str, np.ndarray]]] | None = None,
) -> None:
    """Writes a stage as a LiteRT model whose signature has the names of the stage's tensors.

    Args:
        stage: a `Stage` in float32.
        path: where to, ending in `.tflite`.
        quantize: `None`; `"float16"`: weights of half the size; `"int8"`: weights and activations of eight
            bits, while what goes in and comes out stays float32.
        examples: for `"int8"`, a function without arguments that gives an iterator over dicts of arrays,
            batches of what the stage takes, from which the ranges of the activations are read.

    Raises:
        RuntimeError: LiteRT has no operation for something in the stage.
    """
    builtins = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}  # others need TensorFlow on the device
    options: dict[str, Any] = {"target_spec": builtins}
    if quantize is not None:
        options["optimizations"] = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        builtins["supported_types"] = [tf.float16]
    if quantize == "int8":
        options["representative_dataset"] = examples
    try:
        # Through Keras: from a tf.Module the converter lost the weights, and said nothing.
        stage.model.export(str(path), format="litert", verbose=False, **options)
    except Exception as cause:
        raise _failed(stage, "LiteRT", cause) from cause


def to_onnx(stage: Stage, path: pathlib.Path) -> None:
    """Writes a stage as an ONNX model whose inputs and outputs have the names of the stage's tensors.

    The stage's graph with constants for its weights is converted, not the model: from a model, Keras's
    `Normalization` came out as inputs that nobody fills, and grouped convolutions as calls of functions that
    ONNX does not know.

    Args:
        stage: a `Stage` in float32.
        path: where to.

    Raises:
        RuntimeError: ONNX has no operation for something in the stage.
    """
    tf2onnx = checks.optional_import("tf2onnx", "export")
    onnx = checks.optional_import("onnx", "export")
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    # Its optimizer logs the traceback of every step it leaves out, although the result is right without it.
    logger.setLevel(logging.CRITICAL)
    try:
        frozen = _without_functions(stage)
        tf2onnx.convert.from_graph_def(
            frozen.graph,
            input_names=list(frozen.given.values()),
            output_names=list(frozen.made.values()),
            tensors_to_rename={key: name for name, key in [*frozen.given.items(), *frozen.made.items()]},
            custom_op_handlers={"Erfc": (_erfc, [])},
            output_path=str(path),
        )
        onnx.checker.check_model(str(path))  # what could not be converted is left in the file as it was
    except Exception as cause:
        raise _failed(stage, "ONNX", cause) from cause
    finally:
        logger.setLevel(level)


def _without_functions(stage: Stage) -> FrozenStage:
    """A `FrozenStage` in whose graph no function is called.

    Keras compiles grouped convolutions by XLA, as functions that are never inlined; where functions run
    eagerly, their operations enter the graph that is being made.
    """
    eagerly = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        return FrozenStage(stage.model, stage.carried)
    finally:
        tf.config.run_functions_eagerly(eagerly)


def _erfc(context: Any, node: Any, name: str, _: Any) -> None:
    """`erfc(x) = 1 - erf(x)`, for which ONNX has an operation; tf2onnx knows the second alone."""
    (given,), (made,) = node.input, node.output
    shapes, dtypes = node.output_shapes, node.output_dtypes
    one = context.make_const(f"{name}_one", np.array(1, "float32"))
    erf = context.make_node("Erf", [given])
    context.remove_node(node.name)
    context.make_node(
        "Sub", [one.output[0], erf.output[0]], outputs=[made], name=name, shapes=shapes, dtypes=dtypes
    )


def _failed(stage: Stage, target: str, cause: Exception) -> Exception:
    kinds = sorted({type(op).__name__ for op in stage.model.operations if not _is_keras_layer(op)})
    return checks.error(
        f"The stage that ends at {stage.exit!r} of {stage.model.name!r} cannot be converted to {target}.",
        expected=f"operations that {target} knows",
        received="\n".join([type(cause).__name__, *str(cause).strip().splitlines()[-8:]]),
        fix="use format='tf_saved_model', which takes anything, or another layer in place of the one named"
        + (f"; layers and operations of your own: {', '.join(kinds)}" if kinds else ""),
        kind=RuntimeError,
    )


def _is_keras_layer(operation: keras.Operation) -> bool:
    return type(operation).__module__.startswith(("keras.", "keras_exitens."))

"""Folds batch normalisation into the layers before it: fewer operations, the same numbers, for inference
only."""

import collections
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_exitens._graph.dag import Graph, Step, rebuilt
from keras_exitens._types import Tensor
from keras_exitens.applications.grouped import GroupedConv2D

__all__ = ["fold"]


def fold(model: keras.Model) -> keras.Model:
    """A copy of a functional model for inference, with batch normalisation folded into what comes before it.

    A normalisation that follows a convolution or dense layer without activation is an affine map of its
    output, `y = (x - mean) · s + beta` with `s = gamma / sqrt(variance + epsilon)`: the kernel times `s`, and
    the bias `(bias - mean) · s + beta`, give the same. Folded is where the layer's output goes nowhere else,
    and where both compute in float32 or float64 (in half precision the rounding of the kernel would show).

    Args:
        model: a functional `keras.Model` without nested models.

    Returns:
        A functional `keras.Model` with the same inputs and outputs, for `training=False` only. The folded
        layers have weights of their own, as they are now; all others are shared with `model`.
    """
    graph = Graph.of(model)
    readers = collections.Counter(id(t) for step in graph.steps for t in step.inputs)
    readers.update(id(t) for t in graph.outputs)
    folded: dict[
        int, keras.layers.Layer | None
    ] = {}  # index of a step -> the layer that does its work and that of the normalisation after it
    for step in graph.steps:
        before = graph.producer(step.inputs[0]) if step.inputs else None
        if before is not None and readers[id(step.inputs[0])] == 1 and _foldable(before, step):
            folded[before.index] = _folded(before, step.unwrapped, len(folded))
            folded[step.index] = None

    def call(step: Step, values: dict[int, Tensor]) -> Any:
        if step.index not in folded:
            return step.call(values)
        given, layer = values[id(step.inputs[0])], folded[step.index]
        return given if layer is None else layer(given)

    return rebuilt(graph, model.input, model.output, call, model.name)


# Exact types: a subclass may do something else with its kernel.
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_FOLDABLE = (layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.Dense, GroupedConv2D, *_DEPTHWISE)


def _foldable(before: Step, step: Step) -> bool:
    layer, norm = before.unwrapped, step.unwrapped
    return (
        type(norm) is layers.BatchNormalization
        and type(layer) in _FOLDABLE
        and layer.activation is keras.activations.linear
        and not getattr(layer, "lora_enabled", False)
        and layer.quantization_mode is None
        and {layer.compute_dtype, norm.compute_dtype} <= {"float32", "float64"}
        and norm.axis % len(step.inputs[0].shape) == _channel_axis(layer, step.inputs[0])
        and step.keywords.get("training") is not True
        and len(step.inputs) == len(before.inputs) == 1
    )


def _channel_axis(layer: keras.layers.Layer, output: keras.KerasTensor) -> int:
    return 1 if getattr(layer, "data_format", None) == "channels_first" else len(output.shape) - 1


def _folded(step: Step, norm: keras.layers.Layer, count: int) -> keras.layers.Layer:
    """The layer of `step`, with the normalisation `norm` in its kernel and bias."""
    layer = step.unwrapped
    mean, variance, beta, gamma, bias, kernel = (
        np.float64(0) if v is None else np.asarray(v, "float64")
        for v in (norm.moving_mean, norm.moving_variance, norm.beta, norm.gamma, layer.bias, layer.kernel)
    )
    scale = (gamma if norm.scale else 1.0) / np.sqrt(variance + norm.epsilon)
    bias = (bias - mean) * scale + beta
    # A depthwise kernel ends in (channels, multiplier), any other one in the output channels.
    kernel = kernel * (scale.reshape(kernel.shape[-2:]) if isinstance(layer, _DEPTHWISE) else scale)
    config = {**layer.get_config(), "use_bias": True, "name": f"folded_{count}_{layer.name}"}
    made = type(layer).from_config(config)
    made.build(step.inputs[0].shape)
    made.set_weights([kernel, bias])
    return made

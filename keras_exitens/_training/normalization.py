"""Batch normalisation by TensorFlow's own kernel in training: fewer passes over the maps, the same numbers.

Keras 3 writes batch normalisation as a chain of operations (mean, squared differences, their mean, scale and
shift), each of which reads or writes the whole map, in float32 also where the network is in half precision.
TensorFlow has one kernel for the forward pass and one for the gradient.
"""

from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from keras_exitens._graph.dag import Step, Values, rebuilt
from keras_exitens._graph.flattening import flatten
from keras_exitens._types import Tensor

__all__ = ["Normalization", "with_fused_normalization"]

_DTYPES = ("float32", "bfloat16", "float16")


class Normalization(layers.Layer):
    """Does the work of a `BatchNormalization` layer, on that layer's variables.

    In training the kernel normalises and gives mean and variance of the batch; the moving averages are
    updated as Keras does, by the biased variance. At inference, and where the layer is frozen, the layer
    itself runs.

    Args:
        source: a built `BatchNormalization` layer, of a step for which `can_fuse` holds.
        name: str.
    """

    def __init__(self, source: layers.BatchNormalization, name: str) -> None:
        super().__init__(name=name, dtype=source.dtype_policy)
        self.source = source
        self.built = True

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor = None) -> Tensor:
        source = self.source
        if not (training and source.trainable) or mask is not None:
            return source(inputs, training=training, mask=mask)
        channels = inputs.shape[-1]
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=ops.convert_to_tensor(source.gamma) if source.scale else tf.ones([channels]),
            offset=ops.convert_to_tensor(source.beta) if source.center else tf.zeros([channels]),
            mean=tf.zeros([0]),
            variance=tf.zeros([0]),
            epsilon=source.epsilon,
            is_training=True,
        )
        # The kernel gives the unbiased variance.
        count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:-1]), "float32")
        variance = variance * tf.maximum(count - 1, 1) / count
        for moving, value in ((source.moving_mean, mean), (source.moving_variance, variance)):
            moving.assign(moving * source.momentum + tf.stop_gradient(value) * (1 - source.momentum))
        return outputs

    def compute_output_spec(
        self, inputs: Tensor, training: bool | None = None, mask: Tensor = None
    ) -> Tensor:
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)


def can_fuse(step: Step) -> bool:
    """Whether a step of a graph is a batch normalisation that the kernel can do."""
    layer = step.unwrapped
    return (
        type(layer) is layers.BatchNormalization
        and len(step.inputs) == 1
        and len(step.inputs[0].shape) == 4
        and layer.axis in (-1, 3)
        and layer.compute_dtype in _DTYPES
        and layer.variable_dtype == "float32"
        and not layer.synchronized
        and not getattr(layer, "renorm", False)  # since Keras 3.14
        and layer.activity_regularizer is None
    )


def with_fused_normalization(model: keras.Model) -> keras.Model:
    """The same network with the kernel's batch normalisation in training; all weights are shared.

    Args:
        model: a functional `keras.Model`; nested models are opened.

    Returns:
        A functional `keras.Model`; `model` itself where there is nothing to replace.
    """
    flat = flatten(model)
    made = {}  # id of a layer -> what does its work; a shared layer is called several times
    for step in filter(can_fuse, flat.graph.steps):
        if id(step.operation) not in made:
            made[id(step.operation)] = Normalization(step.unwrapped, step.operation.name)
    if not made:
        return model

    def call(step: Step, values: Values) -> Any:
        return step.call(values, made.get(id(step.operation)) if can_fuse(step) else None)

    return rebuilt(flat.graph, flat.inputs, flat.outputs, call)

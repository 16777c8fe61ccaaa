"""The layer that turns a classifier into the logits of an exit."""

import math
from typing import Any, Self

import keras
from keras import layers

from keras_exitens._graph.calls import Call
from keras_exitens._graph.counting import COMPOSITES, NotKnown, Operations, count_call
from keras_exitens._graph.dag import Shape
from keras_exitens._graph.elementwise import activation_operations
from keras_exitens._keras import activity_loss
from keras_exitens._types import Tensor

__all__ = ["ExitLogits", "data_format_of"]


@keras.saving.register_keras_serializable(package="keras_exitens")
class ExitLogits(layers.Layer):
    """Float32 logits of one exit: a classifier layer, run without its activation.

    The classifier layer is shared, not copied: it keeps its own activation for everybody else. A classifier
    that is a convolution gives a map, which is averaged over height and width. A classifier with a single
    unit, `z`, gives the two logits `[0, z]`, whose softmax is `[1 - sigmoid(z), sigmoid(z)]`.

    Args:
        classifier: a `Dense` or convolution layer with one unit (binary) or one a class.
        activation: the activation that turns these logits into the user's output, kept for `strip_exits`.

    Input: the feature `(batch, D)`, or the map `(batch, height, width, D)` for a convolution.
    Output: logits `(batch, classes)`, float32.
    """

    def __init__(self, classifier: keras.layers.Layer, activation: Any = "softmax", **kwargs: Any) -> None:
        # Inputs reach the classifier in the dtype they have: its own policy decides.
        super().__init__(autocast=False, **kwargs)
        self.classifier = classifier
        self.activation = keras.activations.get(activation)

    def build(self, input_shape: Shape) -> None:
        if not self.classifier.built:
            self.classifier.build(input_shape)
        self.built = True

    def call(self, inputs: Tensor) -> Tensor:
        scores = _without_activation(self.classifier)(inputs)
        if self.classifier.activity_regularizer is not None:
            # Of what the classifier gives to everybody else, as Keras counts it.
            self.add_loss(activity_loss(self.classifier, self.classifier.activation(scores)))
        logits = keras.ops.cast(scores, "float32")
        if len(logits.shape) == 4:
            axes = (2, 3) if data_format_of(self.classifier) == "channels_first" else (1, 2)
            logits = keras.ops.mean(logits, axis=axes)
        if logits.shape[-1] == 1:
            logits = keras.ops.concatenate([keras.ops.zeros_like(logits), logits], axis=-1)
        return logits

    def compute_output_spec(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        units = self.classifier.units if hasattr(self.classifier, "units") else self.classifier.filters
        return keras.KerasTensor((inputs.shape[0], max(units, 2)), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "classifier": keras.saving.serialize_keras_object(self.classifier),
            "activation": keras.activations.serialize(self.activation),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        classifier = keras.saving.deserialize_keras_object(config.pop("classifier"))
        return cls(classifier, **config)


def _without_activation(layer: keras.layers.Layer) -> Any:
    """A view of a built layer: the same variables and settings, but no activation and no penalty on it.

    The user's layer is left alone even while it is called: it may run in another thread.
    """
    view = object.__new__(type(layer))
    vars(view).update(vars(layer), activation=keras.activations.linear, activity_regularizer=None)
    return view


def data_format_of(layer: keras.layers.Layer) -> str:
    """`"channels_last"` or `"channels_first"`; a Dense layer works on the last axis."""
    return getattr(layer, "data_format", "channels_last")


def _operations(call: Call, not_known: NotKnown) -> Operations:
    """A classifier without its activation, and the mean over the map that a convolution gives."""
    classifier = call.operation.classifier
    inner = Call.of_layer(classifier, call.inputs[0])
    made = count_call(inner, not_known)
    numbers = math.prod(inner.output)
    activated = activation_operations(classifier.activation, numbers)
    averaged = numbers if len(inner.output) > 2 else 0
    return Operations(made.multiply_adds, made.other - activated + averaged)


COMPOSITES[ExitLogits] = _operations

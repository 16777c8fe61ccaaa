"""Finds the classifier at the end of a network: its layer, its feature and the last feature map."""

import dataclasses

import keras
from keras import layers

from keras_exitens import checks
from keras_exitens.graph import is_map, spatial_size
from keras_exitens.layers import ExitLogits

__all__ = ["Classifier", "find_classifier", "last_map"]


@dataclasses.dataclass(frozen=True)
class Classifier:
    """The layer that makes the logits, the tensor that enters it, and the activation of the output."""

    layer: keras.layers.Layer
    feature: keras.KerasTensor
    activation: object

    @property
    def units(self):
        """Width of the classifier layer: the number of classes, or 1 for a binary one."""
        return self.layer.units if hasattr(self.layer, "units") else self.layer.filters

    @property
    def classes(self):
        """Number of logits: a single unit stands for two classes."""
        return max(self.units, 2)

    @property
    def features(self):
        """D, the width of the feature that enters the classifier."""
        axis = 1 if getattr(self.layer, "data_format", None) == "channels_first" else -1
        return self.feature.shape[axis]


# What may stand between the classifier layer and the output without changing which class wins.
_PASSES = (layers.Reshape, layers.Flatten, layers.GlobalAveragePooling2D, layers.Dropout, layers.Identity)
_POOLS = (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)
_LINEAR = keras.activations.linear


def find_classifier(graph, output):
    """Walks back from `output` to the `Dense` or convolution layer that makes the logits.

    Args:
        graph: the `Graph` that `output` belongs to.
        output: KerasTensor, an output of the network.

    Returns:
        A `Classifier`.

    Raises:
        ValueError: the network does not end in a single-label classifier.
    """
    activation, tensor = _LINEAR, output
    while True:
        step = graph.producer(tensor)
        operation = None if step is None else step.operation
        if isinstance(operation, ExitLogits):
            return Classifier(operation.classifier, step.inputs[0], operation.activation)
        if isinstance(operation, layers.Dense | layers.Conv2D):
            if operation.activation is not _LINEAR:
                activation = _single(activation, operation.activation, operation)
            found = Classifier(operation, step.inputs[0], activation)
            _check_single_label(found, output)
            return found
        if isinstance(operation, layers.Activation):
            activation = _single(activation, operation.activation, operation)
        elif type(operation).__name__ in ("Softmax", "Sigmoid"):  # the layer, or keras.ops in the graph
            activation = _single(
                activation, getattr(keras.activations, type(operation).__name__.lower()), operation
            )
        elif not isinstance(operation, _PASSES):
            raise checks.error(
                "The network does not end in a classifier.",
                expected="a Dense or Conv2D layer with one unit a class, then at most an activation, "
                "reshaping, global average pooling or dropout",
                received="an input of the model"
                if operation is None
                else f"layer {operation.name!r} ({type(operation).__name__})",
                fix="end the model in keras.layers.Dense(classes, activation='softmax')",
            )
        tensor = step.inputs[0]


def _single(outer, inner, operation):
    if outer is _LINEAR or inner is _LINEAR:
        return inner if outer is _LINEAR else outer
    raise checks.error(
        "The network ends in two activations, one on the other.",
        expected="one activation between the logits and the output",
        received=f"{_name(inner)} at layer {operation.name!r}, then {_name(outer)}",
        fix="remove one of the two",
    )


def _name(activation):
    return getattr(activation, "__name__", type(activation).__name__)


def _check_single_label(classifier, output):
    name, units = _name(classifier.activation), classifier.units
    received = f"layer {classifier.layer.name!r} with {units} unit(s) and activation {name!r}"
    if name == "sigmoid" and units > 1:
        raise checks.error(
            "This is a multi-label network: exits need one label an image.",
            expected="Dense(classes, 'softmax'), Dense(classes) or Dense(1, 'sigmoid')",
            received=received,
            fix="give it a softmax if each image has exactly one label; multi-label networks cannot be taken",
        )
    if units == 1 and name != "sigmoid":
        raise checks.error(
            "This looks like a regression network, or a classifier with fewer than two classes.",
            expected="at least two classes, or a binary classifier Dense(1, 'sigmoid')",
            received=received,
            fix="end a binary network in Dense(1, activation='sigmoid'); regression cannot be taken",
        )
    if name not in ("softmax", "log_softmax", "linear", "sigmoid"):
        raise checks.error(
            "The activation of the classifier is not one of a classification network.",
            expected="softmax, log_softmax or linear (logits); sigmoid for a single unit",
            received=received,
            fix="end the model in keras.layers.Dense(classes, activation='softmax')",
        )
    if len(output.shape) != 2:
        raise checks.error(
            "The output is not one row of class scores an image.",
            expected="an output of shape (batch, classes)",
            received=f"shape {tuple(output.shape)}",
            fix="flatten or pool before the output; segmentation and sequence outputs cannot be taken",
        )


def last_map(graph, classifier, data_format):
    """The last feature map of the network: what global pooling or flattening takes in.

    Args:
        graph: the `Graph` of the network.
        classifier: its `Classifier`.
        data_format: `"channels_last"` or `"channels_first"`.

    Returns:
        KerasTensor of rank 4.

    Raises:
        ValueError: the network has no feature map.
    """
    shapes = graph.shapes()
    live = graph.live_after()
    ancestors = graph.ancestors(classifier.feature)
    for step in reversed(graph.steps):
        # Only where all passes through one tensor: squeeze-and-excite blocks pool too, beside the path.
        if step.index not in ancestors or len(live[step.index]) != 1 or not step.inputs:
            continue
        before, after = step.inputs[0], step.outputs[0]
        if is_map(before) and (
            not is_map(after)
            or isinstance(step.operation, _POOLS)
            or _collapses(shapes[id(before)], shapes[id(after)], step.operation, data_format)
        ):
            return before
    if is_map(classifier.feature):
        return classifier.feature
    raise checks.error(
        "The network has no feature map that an exit could be attached to.",
        expected="a convolutional network: a tensor (batch, height, width, channels) before the classifier",
        received=f"layer {classifier.layer.name!r} fed by vectors only",
        fix="pass an image classification network",
    )


def _collapses(before, after, operation, data_format):
    """Whether an ordinary pooling layer does the work of a global one: its window is the whole map."""
    return (
        isinstance(operation, layers.AveragePooling2D | layers.MaxPooling2D)
        and spatial_size(after, data_format) == (1, 1)
        and tuple(operation.pool_size) == spatial_size(before, data_format)
    )

"""Finds the classifier at the end of a network: its layer, its feature and the last feature map."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import keras
from keras import layers

from keras_exitens import _checks as checks
from keras_exitens._graph.dag import Graph, Shape, Step, is_map, spatial_size
from keras_exitens._keras import is_functional
from keras_exitens._network.exit_logits import ExitLogits, data_format_of

__all__ = ["Classifier", "check_logits", "find_classifier", "last_map", "output_activation"]


@dataclasses.dataclass(frozen=True)
class Classifier:
    """The layer that makes the logits, the tensor that enters it, and the activation of the output."""

    layer: keras.layers.Layer
    feature: keras.KerasTensor
    activation: Any

    @property
    def units(self) -> int:
        """Width of the classifier layer: the number of classes, or 1 for a binary one."""
        return self.layer.units if hasattr(self.layer, "units") else self.layer.filters

    @property
    def classes(self) -> int:
        """Number of logits: a single unit stands for two classes."""
        return max(self.units, 2)

    @property
    def features(self) -> int:
        """D, the width of the feature that enters the classifier."""
        axis = 1 if data_format_of(self.layer) == "channels_first" else -1
        return self.feature.shape[axis]


_POOLS = (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)
# What may stand between the classifier layer and the output without changing which class wins. Operations of
# keras.ops have no public classes: they are known by name.
_PASSES = (layers.Reshape, layers.Flatten, layers.GlobalAveragePooling2D, layers.Dropout, layers.Identity)
_PASSING_OPERATIONS = ("Cast", "Identity", "Reshape", "Squeeze")
_ACTIVATIONS = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}
_CLASSIFIERS = (layers.Dense, layers.Conv2D)
_LINEAR = "linear"
# Its name, the operation that applies it, and the tensor that comes out.
Activated: TypeAlias = tuple[str, keras.Operation, keras.KerasTensor]


def find_classifier(graph: Graph, output: keras.KerasTensor) -> Classifier:
    """Walks back from `output` to the `Dense` or convolution layer that makes the logits.

    Args:
        graph: the `Graph` that `output` belongs to.
        output: KerasTensor, an output of the network.

    Returns:
        A `Classifier`.

    Raises:
        ValueError: the network does not end in a single-label classifier.
    """
    activated: list[Activated] = []
    pooled = operation = None
    for step, name in _tail(graph, output):
        operation = step.unwrapped
        if isinstance(operation, ExitLogits):
            return Classifier(operation.classifier, step.inputs[0], operation.activation)
        if name != _LINEAR:
            activated.append((name, operation, step.outputs[0]))
        elif isinstance(operation, _POOLS) and not activated:
            pooled = operation
    if not isinstance(operation, _CLASSIFIERS):
        raise checks.error(
            "The network does not end in a classifier.",
            expected="a Dense or Conv2D layer with one unit a class, then at most an activation, "
            "reshaping, global average pooling or dropout",
            received="an input of the model"
            if operation is None
            else f"layer {operation.name!r} ({type(operation).__name__})",
            fix="end the model in keras.layers.Dense(classes, activation='softmax')",
        )
    _check_activations(activated, pooled)
    _check_axis(activated, operation)
    name = activated[0][0] if activated else _LINEAR
    found = Classifier(operation, step.inputs[0], getattr(keras.activations, name, name))
    _check_single_label(found, name, output, [t for _, _, t in activated])
    return found


def output_activation(graph: Graph, output: keras.KerasTensor) -> str:
    """Keras's name of the activation that an output of a network ends in; `"linear"` for logits."""
    names = [name for _, name in _tail(graph, output) if name != _LINEAR]
    return names[0] if names else _LINEAR


def check_logits(graph: Graph, output: keras.KerasTensor, name: str) -> None:
    """Raises `ValueError` where the output `name` of a network is the output of an activation."""
    step = graph.producer(output)
    activation = output_activation(graph, output)
    if activation != _LINEAR and not (step and isinstance(step.operation, ExitLogits)):
        raise checks.error(
            f"The output {name!r} is not logits.",
            expected="the values before softmax",
            received=f"the output of an activation, {activation!r}",
            fix="build the classifier of that exit with activation=None",
        )


def _tail(graph: Graph, output: keras.KerasTensor) -> Iterator[tuple[Step, str]]:
    """The steps from `output` back to the classifier layer, or to the first layer that cannot come after one.

    Yields:
        `(step, name)`, the name being that of the activation that the step applies, `"linear"` for none.
    """
    tensor = output
    while (step := graph.producer(tensor)) is not None:
        operation, kind = step.unwrapped, type(step.unwrapped).__name__
        if is_functional(operation):
            inner = Graph.of(operation)
            yield step, output_activation(inner, inner.outputs[0])
            return
        yield step, _ACTIVATIONS.get(kind) or activation_name(getattr(operation, "activation", None))
        passes = isinstance(operation, (*_PASSES, layers.Activation))
        if not passes and kind not in (*_PASSING_OPERATIONS, *_ACTIVATIONS):
            return
        tensor = step.inputs[0]


def activation_name(activation: Any) -> str:
    """Keras's name of an activation: a function, a layer such as `Softmax()`, or TensorFlow's own."""
    if activation is None:
        return _LINEAR
    name = getattr(activation, "__name__", type(activation).__name__)
    return _ACTIVATIONS.get(name, name.removesuffix("_v2"))


def _check_activations(activated: list[Activated], pooled: keras.layers.Layer | None) -> None:
    if len(activated) > 1:
        (outer, *_), (inner, layer, _) = activated[:2]
        raise checks.error(
            "The network ends in two activations, one on the other.",
            expected="one activation between the logits and the output",
            received=f"{inner} at layer {layer.name!r}, then {outer}",
            fix="remove one of the two",
        )
    if activated and pooled is not None:
        name, layer, _ = activated[0]
        raise checks.error(
            "The network averages probabilities, not logits.",
            expected="pooling before the activation",
            received=f"{name} at layer {layer.name!r}, then {pooled.name!r}",
            fix=f"put the activation after {pooled.name!r}",
        )


def _check_axis(activated: list[Activated], classifier: keras.layers.Layer) -> None:
    """A softmax is one of class scores where it runs over the classes, and over nothing else."""
    units = classifier.units if hasattr(classifier, "units") else classifier.filters
    for name, operation, tensor in activated:
        axis = getattr(operation, "axis", -1) if not isinstance(operation, _CLASSIFIERS) else -1
        axes = axis if isinstance(axis, list | tuple) else [axis]
        if name in ("softmax", "log_softmax") and [tensor.shape[a] for a in axes] != [units]:
            raise checks.error(
                "The softmax does not run over the classes.",
                expected=f"{name} over an axis of {units} scores",
                received=f"layer {operation.name!r} over axis {axis} of shape {tuple(tensor.shape)}",
                fix="give it the axis of the classes: keras.layers.Softmax() takes the last one",
            )


def _check_single_label(
    classifier: Classifier, name: str, output: keras.KerasTensor, activated: Sequence[keras.KerasTensor]
) -> None:
    units = classifier.units
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
    # The activation must see all scores of an image at once: nothing but ones beside the classes.
    for tensor in (output, *activated):
        if tuple(size for size in tensor.shape[1:] if size != 1) != ((units,) if units > 1 else ()):
            break
    else:
        tensor = output if len(output.shape) != 2 else classifier.feature
        if len(tensor.shape) in (2, 4):
            return
    raise checks.error(
        "The output is not one row of class scores an image.",
        expected=f"{units} scores an image, an output of shape (batch, {units})",
        received=f"shape {tuple(tensor.shape)} from {received}",
        fix="pool or flatten before the classifier; segmentation and sequence outputs cannot be taken",
    )


def last_map(graph: Graph, classifier: Classifier, data_format: str) -> keras.KerasTensor:
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
    shapes = graph.nominal_shapes
    live = graph.live_after
    ancestors = graph.ancestors(classifier.feature)
    # Only where all passes through one tensor: squeeze-and-excite blocks pool too, beside the path.
    path = [s for s in reversed(graph.steps) if s.index in ancestors and len(live[s.index]) == 1 and s.inputs]
    for step in path:
        before, after = step.inputs[0], step.outputs[0]
        if is_map(before) and (
            not is_map(after)
            or isinstance(step.unwrapped, _POOLS)
            or _collapses(shapes[id(before)], shapes[id(after)], step.unwrapped, data_format)
        ):
            break
    else:
        # Pooled in several ways side by side, or not at all: the last map that everything after depends on.
        candidates = [classifier.feature, *(step.outputs[0] for step in path)]
        before = next((t for t in candidates if is_map(t)), None)
    if before is not None and graph.producer(before) is not None:
        return before
    raise checks.error(
        "The network has no feature map that an exit could be attached to.",
        expected="a convolutional network: a tensor (batch, height, width, channels) before the classifier",
        received=f"layer {classifier.layer.name!r} with no such tensor before it",
        fix="pass an image classification network",
    )


def _collapses(before: Shape, after: Shape, operation: keras.Operation, data_format: str) -> bool:
    """Whether an ordinary pooling layer does the work of a global one: its window is the whole map."""
    return (
        isinstance(operation, layers.AveragePooling2D | layers.MaxPooling2D)
        and spatial_size(after, data_format) == (1, 1)
        and tuple(operation.pool_size) == spatial_size(before, data_format)
    )

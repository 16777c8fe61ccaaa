"""Attaches exits to a network, and takes them off again."""

import inspect
import itertools
import math
import os
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import keras
from keras import layers

from keras_exitens import _checks as checks
from keras_exitens._attach.heads import HEADS, apply_head, multiply_adds
from keras_exitens._attach.placement import place
from keras_exitens._graph.dag import Graph, Shape, Step, Values, is_map, rebuilt, spatial_size
from keras_exitens._graph.flattening import flatten
from keras_exitens._keras import is_functional, seen_as
from keras_exitens._network.classifier import Classifier, find_classifier, last_map
from keras_exitens._network.costs import cost
from keras_exitens._network.exit_logits import ExitLogits, data_format_of
from keras_exitens._network.exit_network import FINAL, ExitNetwork
from keras_exitens.applications.grouped import GroupedConv2D

__all__ = ["add_exits", "strip_exits"]


def add_exits(
    model: keras.Model,
    exits: int | list[str] | tuple[str, ...] = 3,
    *,
    placement: Literal["compute", "stage"] = "compute",
    head: Literal["light", "conv", "bottleneck", "separable", "linear"] | Callable[..., Any] = "light",
    name: str | None = None,
) -> keras.Model:
    """Turns an image classification network into a multi-exit network.

    The layers of `model` are shared, not copied: building changes nothing in `model`, and training the
    result trains `model`. Each exit is a small head on an inner feature map that leads to a feature of the
    same width D as the one that enters the network's own classifier, and a classifier of its own. What
    changes layers, such as `quantize("int8")`, changes those of `model` too: save the result, and change
    a copy that was loaded.

    Args:
        model: a functional or built Sequential `keras.Model` with one image input and one output of class
            scores: softmax, log-softmax or logits, or a single sigmoid unit (taken as the two logits
            `[0, z]`). Nested models are made flat.
        exits: int, the number of early exits, 0 for the network alone (a baseline that is trained in the
            same way); or a list of layer names, in order. Layer `b` of a nested model `a` is `"a/b"`.
        placement: where a number of exits go. `"compute"` (default): at the cuts that split the cumulative
            multiply-adds of the network and its heads most evenly, none of which costs more than the network
            alone; of cuts within 2 % of each other, where the tensors are few and small. What a callable
            head costs is not known beforehand, and counts as nothing. `"stage"`: at the last map of each
            spatial resolution.
        head: `"light"` (default: `"separable"` without a 1×1 convolution on the largest map, nor one of more
            than an eighth of the squared width of the last map in weights, but of 64 channels at least; three
            of them cost at most 5% of common networks), `"conv"` (3×3 convolutions, as in the paper),
            `"bottleneck"` (1×1, strided 3×3 and 1×1 convolution with an inner width of a quarter),
            `"separable"` (depthwise 3×3 and 1×1), `"linear"` (global pooling and a Dense layer), or a
            callable `(tensor, width, name)` that gives a map or a vector as KerasTensor, where `width` is the
            channel count of the last feature map. Convolutional heads have one stride-2 block for each
            halving of the resolution that remains.
        name: str, name of the result; by default the name of `model` with `_exits` added.

    Returns:
        A functional `keras.Model` whose output is a dict `{"exit_1", ..., "final"}` of float32 logits, each
        `(batch, classes)`.

    Raises:
        TypeError: `model` is not a functional model.
        ValueError: `model` is not a single-label image classifier; there is no such layer, or no exit can
            stand there; exits repeated or out of order; more exits than the network has places for; an
            unknown `placement` or `head`.

    Example:

    ```python
    backbone = keras.applications.ResNet50(weights=None, classes=100, input_shape=(64, 64, 3))
    model = kx.add_exits(backbone, exits=3)
    model(images)["exit_1"]
    ```

    Reference: Lee & Lee, Students are the Best Teacher: Exit-Ensemble Distillation with Multi-Exits,
    arXiv 2104.00299.
    """
    _check_backbone(model)
    if callable(head):
        _check_callable(head)
    else:
        checks.one_of("head", head, tuple(HEADS))
    flat = flatten(model)
    graph = flat.graph
    classifier = find_classifier(graph, graph.outputs[0])
    data_format = _data_format(graph)
    end = last_map(graph, classifier, data_format)
    heads = _Heads(head, graph, classifier, end, data_format)
    tensors = place(
        graph, flat.named, exits, placement, end, classifier.feature, data_format, heads.multiply_adds
    )
    _check_free_names([*flat.named, *(t.name for t in graph.inputs)], len(tensors))
    outputs = {f"exit_{i}": heads.attach(tensor, f"exit_{i}") for i, tensor in enumerate(tensors, 1)}
    outputs[FINAL] = ExitLogits(classifier.layer, classifier.activation, name=FINAL)(classifier.feature)
    result = keras.Model(flat.inputs, outputs, name=name or f"{model.name}_exits")
    ExitNetwork.of(result, known=graph)
    _warn_of_costly_heads(result)
    return result


class _Heads(NamedTuple):
    """The heads of one network: how one is attached, and what one costs."""

    head: str | Callable[..., Any]
    graph: Graph
    classifier: Classifier
    end: keras.KerasTensor  # the last feature map
    data_format: str

    def _channels(self, shape: Shape) -> int:
        return shape[1 if self.data_format == "channels_first" else -1]

    def _leads_to(self, tensor: keras.KerasTensor) -> dict[str, int]:
        shapes, end = self.graph.nominal_shapes, self.graph.nominal_shapes[id(self.end)]
        return {
            "width": self._channels(end),
            "features": self.classifier.features,
            "halvings": _halvings(shapes[id(tensor)], end, self.data_format),
        }

    def multiply_adds(self, tensor: keras.KerasTensor) -> int:
        """What an exit at `tensor` adds to the cost of one image; 0 where the head is a callable."""
        if callable(self.head):
            return 0
        shape = self.graph.nominal_shapes[id(tensor)]
        size, channels = spatial_size(shape, self.data_format), self._channels(shape)
        counted = multiply_adds(self.head, size, channels, **self._leads_to(tensor))
        return counted + self.classifier.features * self.classifier.units

    def attach(self, tensor: keras.KerasTensor, name: str) -> keras.KerasTensor:
        """The logits of an exit at `tensor`."""
        feature = apply_head(
            self.head, tensor, data_format=self.data_format, name=name, **self._leads_to(tensor)
        )
        # Logits are float32 under any precision policy.
        dense = layers.Dense(self.classifier.units, dtype="float32", name=f"{name}_classifier")
        return ExitLogits(dense, self.classifier.activation, name=name)(feature)


def strip_exits(
    model: keras.Model, exit: str = "final", activation: Literal["restore"] | None = "restore"
) -> keras.Model:
    """The plain single-output network that ends at one exit, its layers shared with `model`.

    Args:
        model: the result of `add_exits`.
        exit: name of the exit to end at; `"final"` (default) gives the user's own network back.
        activation: `"restore"` (default): the output is activated as in the user's model, and the result
            holds only Keras's own layers (and those of the user): a saved file of it loads without this
            library. The grouped convolutions of `applications` become `keras.layers.Conv2D`, with the same
            variables. `None`: the output is the logits.

    Returns:
        A functional `keras.Model` with one output, `(batch, classes)`; `(batch, 1)` where the activation of
        a single-unit sigmoid classifier is restored.

    Raises:
        ValueError: there is no such exit, or `activation` is neither `"restore"` nor `None`.
    """
    network = ExitNetwork.of(model)
    checks.one_of("exit", exit, network.names)
    checks.one_of("activation", activation, ("restore", None))
    if activation is None:
        return keras.Model(network.inputs, network.logits[exit], name=model.name)
    found = network.classifier(exit)
    output = found.layer(found.feature)
    if len(output.shape) > 2:
        output = layers.GlobalAveragePooling2D(data_format=data_format_of(found.layer))(output)
    if (
        found.layer.activation is keras.activations.linear
        and found.activation is not keras.activations.linear
    ):
        output = layers.Activation(found.activation, dtype="float32", name=f"{exit}_activation")(output)
    plain = keras.Model(network.inputs, output, name=model.name)
    if any(isinstance(step.unwrapped, GroupedConv2D) for step in network.graph.steps):
        return _with_kerass_own(plain)
    return plain


def _with_kerass_own(model: keras.Model) -> keras.Model:
    """The model with Keras's convolutions in place of our grouped ones, variables shared."""
    graph = Graph.of(model)
    plain = {
        id(step.operation): seen_as(step.unwrapped, layers.Conv2D, step.operation.name)
        for step in graph.steps
        if isinstance(step.unwrapped, GroupedConv2D)
    }

    def call(step: Step, values: Values) -> Any:
        layer = plain.get(id(step.operation))
        return step.call(values) if layer is None else layer(values[id(step.inputs[0])])

    return rebuilt(graph, model.input, model.output, call, model.name)


def _check_callable(head: Callable[..., Any]) -> None:
    try:
        inspect.signature(head).bind("tensor", "width", "name")
    except ValueError:  # has no signature that could be read
        return
    except TypeError as cause:
        raise checks.error(
            f"`head` cannot be called as a head ({cause}).",
            expected="a callable (tensor, width, name) that returns a feature map or a vector",
            received=f"head={head!r}",
            fix="def head(tensor, width, name): return keras.layers.Conv2D(width, 3, name=name)(tensor)",
            kind=TypeError,
        ) from cause


def _check_backbone(model: keras.Model) -> None:
    if isinstance(model, keras.Sequential) and not model.built:
        raise checks.error(
            "The Sequential model is not built: its layers have no shapes yet.",
            expected="a built model",
            received=f"{model.name!r}, unbuilt",
            fix="put keras.Input(shape=(height, width, channels)) first, or call model.build((None, height, "
            "width, channels))",
        )
    if not is_functional(model):
        raise checks.error(
            "Exits can be attached to functional and Sequential models only.",
            expected="a keras.Model made by keras.Model(inputs, outputs) or keras.Sequential",
            received=f"{type(model).__name__}, a subclassed model with its own call(), or one that holds such"
            if isinstance(model, keras.Model)
            else repr(model),
            fix=f"a file has to be loaded: add_exits(keras.models.load_model({os.fspath(model)!r}))"
            if isinstance(model, str | os.PathLike)
            else "rebuild the network with the functional API, so that its inner tensors are known",
            kind=TypeError,
        )
    if len(model.outputs) != 1:
        raise checks.error(
            "The model has several outputs.",
            expected="one output of class scores, (batch, classes)",
            received=f"{len(model.outputs)} outputs: {model.output_names}",
            fix="pass keras.Model(model.inputs, model.outputs[i]) with the output that classifies"
            + (
                "; this model has exits already: strip_exits(model) gives the plain network back"
                if any(isinstance(layer, ExitLogits) for layer in model.layers)
                else ""
            ),
        )
    if len(model.inputs) != 1 or not is_map(model.inputs[0]):
        raise checks.error(
            "The model does not take one batch of images.",
            expected="one input of shape (batch, height, width, channels)",
            received=f"inputs of shape {[tuple(t.shape) for t in model.inputs]}",
            fix="pass an image classification network",
        )


def _check_free_names(names: list[str], count: int) -> None:
    # Every new layer is called exit_i or exit_i_..., and the last one final.
    pattern = re.compile(rf"(?:.*/)?(?:{FINAL}|exit_({'|'.join(map(str, range(1, count + 1)))})(?:_.*)?)")
    taken = [name for name in names if pattern.fullmatch(name)]
    if taken:
        raise checks.error(
            "The network has layers with the names of exits.",
            expected="no layer called 'final', 'exit_1' or 'exit_1_...', and so on",
            received=f"layers {taken!r}",
            fix="rename these layers of the network",
        )


def _data_format(graph: Graph) -> str:
    formats = (getattr(step.unwrapped, "data_format", None) for step in graph.steps)
    return next((f for f in formats if f is not None), keras.config.image_data_format())


def _halvings(shape: Shape, end: Shape, data_format: str) -> int:
    """How often the longer side is halved from one map to the other, to the nearest whole number."""
    ratio = max(spatial_size(shape, data_format)) / max(spatial_size(end, data_format))
    return max(round(math.log2(ratio)), 0)


def _warn_of_costly_heads(model: keras.Model) -> None:
    """Warns of exits that save nothing: beside the whole network alone, or beside the exit after them."""
    costs = cost(model)
    total, findings = costs.backbone, []
    alone = [
        stages + head
        for stages, head in zip(
            itertools.accumulate(costs.stage_multiply_adds), costs.head_multiply_adds, strict=True
        )
    ]
    for i, name in enumerate(costs.names[:-1]):
        share = f"its head {costs.head_multiply_adds[i] / total:.1%}"
        if costs.cumulative[i] > total:
            findings.append(f"{name!r} {costs.cumulative[i] / total:.1%} with the heads before it, {share}")
        elif alone[i] > alone[i + 1]:
            findings.append(
                f"{name!r} {alone[i] / total:.1%}, {share}; the exit after it {alone[i + 1] / total:.1%}"
            )
    if findings:
        checks.warn(
            "To leave early saves nothing at some exits. They cost, in percent of the multiply-adds of the "
            f"whole network without exits ({total:,}): {'. '.join(findings)}. Use head='light', fewer exits, "
            "or earlier layers."
        )

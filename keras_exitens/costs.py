"""Multiply-adds and parameters of a network, per layer, per stage and per exit."""

import collections
import dataclasses
import itertools
import math

import keras
from keras import layers

from keras_exitens import checks
from keras_exitens.graph import Graph
from keras_exitens.layers import ExitLogits
from keras_exitens.names import exit_graph, exit_order

__all__ = ["ExitCost", "cost", "multiply_adds"]


@dataclasses.dataclass(frozen=True)
class ExitCost:
    """What each exit of a multi-exit network costs. Multiply-adds are counted for one image.

    A *stage* is the part of the backbone between one exit and the next; a *head* is what belongs to one
    exit alone. To leave at exit i costs all stages and all heads up to i. The final exit has no head of its
    own: its classifier counts as part of the last stage.

    Attributes:
        names: exit names in order, `("exit_1", ..., "final")`.
        stage_multiply_adds: int per exit, the stage before it.
        head_multiply_adds: int per exit, its head (0 for the final exit).
        stage_parameters: int per exit, likewise.
        head_parameters: int per exit, likewise.
    """

    names: tuple
    stage_multiply_adds: tuple
    head_multiply_adds: tuple
    stage_parameters: tuple
    head_parameters: tuple

    @property
    def cumulative(self):
        """Multiply-adds to leave at each exit, all earlier stages and heads included."""
        return tuple(
            itertools.accumulate(
                s + h for s, h in zip(self.stage_multiply_adds, self.head_multiply_adds, strict=True)
            )
        )

    @property
    def backbone(self):
        """Multiply-adds of the network without any early exit."""
        return sum(self.stage_multiply_adds)

    @property
    def parameters(self):
        """Parameters of the whole multi-exit network."""
        return sum(self.stage_parameters) + sum(self.head_parameters)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        return self.cumulative[index]

    def __str__(self):
        rows = [("exit", "stage", "head", "cumulative", "of network", "parameters")]
        columns = (
            self.names,
            self.stage_multiply_adds,
            self.head_multiply_adds,
            self.cumulative,
            self.stage_parameters,
            self.head_parameters,
        )
        for name, stage, head, total, stage_params, head_params in zip(*columns, strict=True):
            share = f"{total / self.backbone:.1%}"
            rows.append((name, _si(stage), _si(head), _si(total), share, f"{stage_params + head_params:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        form = "  ".join(f"{{:{'<' if i == 0 else '>'}{width}}}" for i, width in enumerate(widths))
        return "\n".join(form.format(*row) for row in rows)


def cost(model):
    """Counts the multiply-adds and parameters of each stage and each head of a multi-exit model.

    One multiply-add is one multiplication with its addition: half of what profilers call floating point
    operations. Counted are convolutions, matrix products and attention; normalisation, pooling, biases and
    activations are not (TensorFlow's profiler counts some of these: compare with half of its `Conv2D`,
    `DepthwiseConv2dNative` and `MatMul` operations). Where the model takes images of any size, 224 × 224
    pixels are assumed.

    Args:
        model: the result of `add_exits`, or a functional model with a dict of logits.

    Returns:
        An `ExitCost`; `print(cost(model))` shows it as a table.

    Example:

    ```python
    model = kx.add_exits(keras.applications.MobileNetV2(weights=None), exits=2)
    print(kx.cost(model))
    ```
    """
    names = exit_order(model)
    _, graph, outputs = exit_graph(model)
    needed = [graph.ancestors(outputs[name]) for name in names]
    macs = multiply_adds(graph)
    params = {step.index: _parameters(step.operation) for step in graph.steps}
    last, counted, seen_layers = needed[-1], set(), set()
    columns = {"stage_macs": [], "head_macs": [], "stage_params": [], "head_params": []}
    for steps in needed:
        new = sorted(steps - counted)
        counted |= steps
        for part, indices in (
            ("stage", [i for i in new if i in last]),
            ("head", [i for i in new if i not in last]),
        ):
            columns[f"{part}_macs"].append(sum(macs[i] for i in indices))
            total = 0
            for i in indices:  # a shared layer has its parameters once
                operation = graph.steps[i].operation
                if id(operation) not in seen_layers:
                    seen_layers.add(id(operation))
                    total += params[i]
            columns[f"{part}_params"].append(total)
    return ExitCost(
        tuple(names),
        tuple(columns["stage_macs"]),
        tuple(columns["head_macs"]),
        tuple(columns["stage_params"]),
        tuple(columns["head_params"]),
    )


def multiply_adds(graph, input_shapes=None, warn=True):
    """Multiply-adds of one image through each step of a graph: a list of int, parallel to `graph.steps`.

    Args:
        graph: a `Graph`.
        input_shapes: shapes of its inputs, batch size 1; by default those of `Graph.shapes`.
        warn: whether to warn of layers whose multiply-adds are not known.
    """
    shapes = graph.shapes(input_shapes)
    unknown = collections.defaultdict(list)
    result = []
    for step in graph.steps:
        inputs = (
            _attention_inputs(step) if isinstance(step.operation, layers.MultiHeadAttention) else step.inputs
        )
        count = _of_step(
            step.operation, [shapes[id(t)] for t in inputs], [shapes[id(t)] for t in step.outputs]
        )
        if count is None:
            unknown[type(step.operation).__name__].append(step.operation.name)
        result.append(count or 0)
    if unknown and warn:
        listed = ", ".join(f"{kind} ({len(found)}, such as {found[0]!r})" for kind, found in unknown.items())
        checks.warn(f"The multiply-adds of these kinds of layers are not known and count as zero: {listed}.")
    return result


def _of_step(operation, inputs, outputs):
    """Multiply-adds of one call of one operation, or `None` where they are not known.

    Args:
        operation: a Keras layer or operation.
        inputs: shapes of its inputs, batch size 1.
        outputs: shapes of its outputs.
    """
    if isinstance(operation, ExitLogits):
        return _of_exit_logits(operation, inputs)
    for kind, count in _COUNTS.items():
        if isinstance(operation, kind):
            return count(operation, inputs[0], outputs[0])
    if isinstance(operation, layers.MultiHeadAttention):
        return _of_attention(operation, inputs, outputs[0])
    if isinstance(operation, keras.Model) and hasattr(operation, "inputs"):
        return sum(multiply_adds(Graph.of(operation), inputs, warn=False))
    if type(operation).__name__ == "Matmul":  # keras.ops.matmul, or `@`
        return math.prod(outputs[0]) * inputs[0][-1]
    if type(operation).__name__ in _UNKNOWN_PRODUCTS:
        return None
    weights = operation.weights if isinstance(operation, layers.Layer) else ()
    # Weights that are vectors (normalisation, layer scale) are applied element by element.
    if isinstance(operation, _NO_PRODUCT) or all(len(w.shape) < 2 for w in weights):
        return 0
    return None


def _spatial(layer, shape):
    return math.prod(shape[2:] if layer.data_format == "channels_first" else shape[1:-1])


def _channels(layer, shape):
    return shape[1] if layer.data_format == "channels_first" else shape[-1]


def _of_conv(layer, before, after):
    window = math.prod(layer.kernel_size) * _channels(layer, before) // layer.groups
    return _spatial(layer, after) * layer.filters * window


def _of_conv_transpose(layer, before, after):
    return _spatial(layer, before) * _channels(layer, before) * layer.filters * math.prod(layer.kernel_size)


def _of_depthwise(layer, before, after):
    return _spatial(layer, after) * _channels(layer, after) * math.prod(layer.kernel_size)


def _of_separable(layer, before, after):
    middle = _channels(layer, before) * layer.depth_multiplier
    return _spatial(layer, after) * middle * (math.prod(layer.kernel_size) + layer.filters)


def _of_dense(layer, before, after):
    return math.prod(before) * layer.units


def _of_einsum_dense(layer, before, after):
    inputs, kernel = layer.equation.replace(" ", "").split("->")[0].split(",")
    added = [size for label, size in zip(kernel, layer.kernel.shape, strict=True) if label not in inputs]
    return math.prod(before) * math.prod(added)


def _attention_inputs(step):
    """Query, value and key of a call of attention, however they were passed; masks left out."""
    names = ("query", "value", "key")
    arguments = step.node.arguments
    given = {**arguments.kwargs, **dict(zip(names, arguments.args, strict=False))}
    key = given.get("key")
    return [given["query"], given["value"], given["value"] if key is None else key]


def _of_attention(layer, inputs, after):
    """Projections of queries, keys and values, their two products, and the projection of the result."""
    query, value, key = inputs
    keys, values = layer.num_heads * layer.key_dim, layer.num_heads * layer.value_dim
    axes = getattr(layer, "_attention_axes", None) or range(1, len(query) - 1)
    seen = math.prod(key[axis] for axis in axes)  # positions that each position attends to
    positions = math.prod(query[:-1])
    projected = (
        positions * query[-1] * keys
        + math.prod(key) * keys
        + math.prod(value) * values
        + positions * values * after[-1]
    )
    return projected + positions * seen * (keys + values)


def _of_exit_logits(layer, inputs):
    classifier = layer.classifier
    outputs = classifier.compute_output_shape(inputs[0])
    return _of_step(classifier, inputs, [outputs])


# Order matters: the transposed, depthwise and separable convolutions are looked up before the plain ones.
_COUNTS = {
    (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose): _of_conv_transpose,
    (layers.DepthwiseConv1D, layers.DepthwiseConv2D): _of_depthwise,
    (layers.SeparableConv1D, layers.SeparableConv2D): _of_separable,
    (layers.Conv1D, layers.Conv2D, layers.Conv3D): _of_conv,
    layers.EinsumDense: _of_einsum_dense,
    layers.Dense: _of_dense,
}
# Layers with weights of more dimensions that are looked up or applied element by element.
_NO_PRODUCT = (layers.Embedding, layers.PReLU, layers.LayerNormalization)
# Operations and layers that multiply without weights of their own, by name: keras.ops has no public classes.
_UNKNOWN_PRODUCTS = (
    "AdditiveAttention",
    "Attention",
    "Conv",
    "ConvTranspose",
    "DepthwiseConv",
    "Dot",
    "DotProductAttention",
    "Einsum",
    "Inner",
    "SeparableConv",
    "Tensordot",
    "Vdot",
)


def _parameters(operation):
    return operation.count_params() if isinstance(operation, layers.Layer) else 0


def _si(count):
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)

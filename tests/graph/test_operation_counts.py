"""Multiply-adds and other operations of one call: every number worked out by hand."""

import warnings

import keras
import numpy as np
import pytest
from harness import needs_keras
from keras import layers, ops

from keras_exitens._graph.calls import Call
from keras_exitens._graph.counting import count_operations
from keras_exitens._graph.dag import Graph
from keras_exitens._graph.elementwise import other_operations
from keras_exitens._graph.products import products
from keras_exitens._graph.traced import traced_operations
from keras_exitens._network.exit_logits import ExitLogits
from keras_exitens.applications.grouped import GroupedConv2D


def multiply_adds(graph):
    return [count.multiply_adds for count in count_operations(graph)]


def count(shapes, call):
    """Multiply-adds of one call on inputs of these shapes."""
    inputs = [keras.Input(shape) for shape in shapes]
    return sum(multiply_adds(Graph.of(keras.Model(inputs, call(*inputs)))))


# One layer at a time, every number worked out by hand --------------------------------------------

CONVOLUTIONS = {
    # output pixels × filters × window × input channels
    "1x1": (layers.Conv2D(5, 1), (8, 8, 3), 64 * 5 * 3),
    "same": (layers.Conv2D(5, 3, padding="same"), (8, 8, 3), 64 * 5 * 9 * 3),
    "valid": (layers.Conv2D(5, 3), (8, 8, 3), 36 * 5 * 9 * 3),
    "strided, same": (layers.Conv2D(5, 3, 2, padding="same"), (9, 8, 3), 5 * 4 * 5 * 9 * 3),
    "strided, valid": (layers.Conv2D(5, 3, 2), (9, 8, 3), 4 * 3 * 5 * 9 * 3),
    "oblong window": (layers.Conv2D(5, (1, 3), (1, 2)), (8, 9, 3), 8 * 4 * 5 * 3 * 3),
    "grouped": (layers.Conv2D(6, 3, groups=2), (9, 9, 4), 49 * 6 * 9 * 2),
    # a dilated window of 3 covers 5 pixels, but multiplies 3
    "dilated": (layers.Conv2D(6, 3, dilation_rate=2), (9, 9, 4), 25 * 6 * 9 * 4),
    "depthwise by groups": (layers.Conv2D(4, 3, groups=4, padding="same"), (6, 6, 4), 36 * 4 * 9),
    "one dimension": (layers.Conv1D(5, 3), (9, 2), 7 * 5 * 3 * 2),
    "one dimension, causal": (layers.Conv1D(5, 3, padding="causal"), (9, 2), 9 * 5 * 3 * 2),
    "three dimensions": (layers.Conv3D(5, 2), (4, 4, 4, 2), 27 * 5 * 8 * 2),
    "channels first": (layers.Conv2D(6, 3, data_format="channels_first"), (4, 9, 8), 42 * 6 * 9 * 4),
    "depthwise": (layers.DepthwiseConv2D(3), (8, 8, 3), 36 * 3 * 9),
    "depthwise, strided": (layers.DepthwiseConv2D(5, 2, padding="same"), (8, 8, 3), 16 * 3 * 25),
    "depthwise, multiplied": (layers.DepthwiseConv2D(3, depth_multiplier=4), (8, 8, 3), 36 * 12 * 9),
    "depthwise, one dimension": (layers.DepthwiseConv1D(3, depth_multiplier=2), (9, 3), 7 * 6 * 3),
    # depthwise to 3 × 2 channels, then 1×1 to 5
    "separable": (layers.SeparableConv2D(5, 3, depth_multiplier=2), (8, 8, 3), 36 * (6 * 9 + 6 * 5)),
    "separable, strided": (layers.SeparableConv2D(5, 3, 2, padding="same"), (8, 8, 3), 16 * (3 * 9 + 3 * 5)),
    "separable, one dimension": (layers.SeparableConv1D(5, 3), (9, 3), 7 * (3 * 3 + 3 * 5)),
    # every input pixel meets the whole window
    "transposed": (layers.Conv2DTranspose(5, 3), (4, 4, 3), 16 * 3 * 5 * 9),
    "transposed, strided": (layers.Conv2DTranspose(5, 3, 2, padding="same"), (4, 4, 3), 16 * 3 * 5 * 9),
    "transposed, three dimensions": (layers.Conv3DTranspose(5, 2), (4, 4, 4, 3), 64 * 3 * 5 * 8),
    "transposed, channels first": (
        layers.Conv2DTranspose(5, 3, data_format="channels_first"),
        (3, 4, 4),
        16 * 3 * 5 * 9,
    ),
    "grouped, on TensorFlow's kernel": (GroupedConv2D(6, 3, groups=2), (9, 9, 4), 49 * 6 * 9 * 2),
    "transposed, one dimension": (layers.Conv1DTranspose(5, 3, 2), (4, 3), 4 * 3 * 5 * 3),
}

PRODUCTS = {
    "Dense on a vector": (layers.Dense(6), (9,), 9 * 6),
    "Dense on a map": (layers.Dense(6), (4, 5, 9), 4 * 5 * 9 * 6),
    "Dense without a bias": (layers.Dense(6, use_bias=False), (9,), 9 * 6),
    "EinsumDense on a vector": (layers.EinsumDense("ab,bc->ac", 6), (9,), 9 * 6),
    "EinsumDense, ellipsis": (layers.EinsumDense("...x,xy->...y", 6), (4, 9), 4 * 9 * 6),
    "EinsumDense to heads": (layers.EinsumDense("abc,cde->abde", (4, 2, 3)), (4, 9), 4 * 9 * 2 * 3),
    "EinsumDense from heads": (layers.EinsumDense("abde,dec->abc", (4, 7)), (4, 2, 3), 4 * 2 * 3 * 7),
    "EinsumDense along another axis": (layers.EinsumDense("abc,bd->adc", (5, 9)), (4, 9), 9 * 4 * 5),
    # the form in Keras's own documentation: the length is left open
    "EinsumDense, open length": (layers.EinsumDense("abc,cd->abd", (None, 6)), (4, 9), 4 * 9 * 6),
}

NOTHING = {
    "BatchNormalization": (layers.BatchNormalization(), (8, 8, 4)),
    "LayerNormalization": (layers.LayerNormalization(), (8, 8, 4)),
    "LayerNormalization over the map": (layers.LayerNormalization(axis=[1, 2, 3]), (8, 8, 4)),
    "GroupNormalization": (layers.GroupNormalization(2), (8, 8, 4)),
    "Normalization": (layers.Normalization(), (8, 8, 4)),
    "PReLU": (layers.PReLU(), (8, 8, 4)),
    "pooling": (layers.AveragePooling2D(2), (8, 8, 4)),
    "resizing": (layers.UpSampling2D(2), (8, 8, 4)),
    "augmentation": (layers.RandomRotation(0.1), (8, 8, 4)),
    "embedding": (layers.Embedding(10, 4), (8,)),
}


@pytest.mark.parametrize("case", [*CONVOLUTIONS.values(), *PRODUCTS.values()], ids=[*CONVOLUTIONS, *PRODUCTS])
def test_multiply_adds_of_a_layer(case):
    layer, shape, expected = case
    layer = type(layer).from_config(layer.get_config())
    assert count([shape], layer) == expected


@pytest.mark.parametrize("case", NOTHING.values(), ids=NOTHING.keys())
def test_layers_without_products_count_nothing_and_cause_no_warning(case):
    layer, shape = case
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert count([shape], type(layer).from_config(layer.get_config())) == 0


def attention(**options):
    return layers.MultiHeadAttention(num_heads=2, key_dim=5, value_dim=3, **options)


ATTENTION = {
    # 10 tokens of width 16; 2 heads: queries and keys of width 10, values of width 6, output 16.
    # projections, then scores and their product with the values
    "self": (
        [(10, 16)],
        lambda x: attention()(x, x),
        10 * 16 * (10 + 10 + 6) + 10 * 6 * 16 + 10 * 10 * (10 + 6),
    ),
    "to another width": (
        [(10, 16)],
        lambda x: attention(output_shape=7)(x, x),
        10 * 16 * (10 + 10 + 6) + 10 * 6 * 7 + 10 * 10 * (10 + 6),
    ),
    # 7 tokens of width 12 are attended to
    "cross": (
        [(10, 16), (7, 12)],
        lambda q, v: attention()(q, v),
        10 * 16 * 10 + 7 * 12 * (10 + 6) + 10 * 6 * 16 + 10 * 7 * (10 + 6),
    ),
    "keys of their own": (
        [(10, 16), (7, 12), (7, 8)],
        lambda q, v, k: attention()(q, v, key=k),
        10 * 16 * 10 + 7 * 12 * 6 + 7 * 8 * 10 + 10 * 6 * 16 + 10 * 7 * (10 + 6),
    ),
    "all by keyword": (
        [(10, 16), (7, 12), (7, 8)],
        lambda q, v, k: attention()(query=q, value=v, key=k),
        10 * 16 * 10 + 7 * 12 * 6 + 7 * 8 * 10 + 10 * 6 * 16 + 10 * 7 * (10 + 6),
    ),
    # a mask is no operand
    "masked": (
        [(10, 16), (7, 12), (10, 7)],
        lambda q, v, mask: attention()(q, v, attention_mask=mask),
        10 * 16 * 10 + 7 * 12 * (10 + 6) + 10 * 6 * 16 + 10 * 7 * (10 + 6),
    ),
    "over a map": (
        [(4, 6, 8)],
        lambda x: attention()(x, x),
        24 * 8 * (10 + 10 + 6) + 24 * 6 * 8 + 24 * 24 * (10 + 6),
    ),
    # each of the 4 rows attends to itself only
    "along the rows of a map": (
        [(4, 6, 8)],
        lambda x: attention(attention_axes=(2,))(x, x),
        24 * 8 * (10 + 10 + 6) + 24 * 6 * 8 + 4 * 6 * 6 * (10 + 6),
    ),
}


@pytest.mark.parametrize("case", ATTENTION.values(), ids=ATTENTION.keys())
def test_multiply_adds_of_attention(case):
    shapes, call, expected = case
    assert count(shapes, call) == expected


def grouped_attention(**options):
    return layers.GroupQueryAttention(head_dim=5, num_query_heads=4, num_key_value_heads=2, **options)


def pair(shape=(7, 12)):
    return np.ones(shape, "float32")


# One tensor x of 10 tokens, 16 wide. The sizes of constants are those of `pair`.
BARE_PRODUCTS = {
    "ops.matmul": (lambda x: ops.matmul(x, ops.transpose(x, (0, 2, 1))), 10 * 16 * 10),
    "the operator @": (lambda x: x @ ops.transpose(x, (0, 2, 1)), 10 * 16 * 10),
    "a constant to the right": (lambda x: ops.matmul(x, pair((16, 3))), 10 * 16 * 3),
    "a constant to the left": (lambda x: ops.matmul(pair((7, 10)), x), 7 * 10 * 16),
    "a vector to the right": (lambda x: ops.matmul(x, pair((16,))), 10 * 16),
    "a vector to the left": (lambda x: ops.matmul(pair((10,)), x), 10 * 16),
    "ops.einsum of one tensor twice": (lambda x: ops.einsum("bij,bkj->bik", x, x), 10 * 16 * 10),
    "ops.einsum with a constant": (lambda x: ops.einsum("kl,bjk->blj", pair((16, 3)), x), 10 * 16 * 3),
    "ops.einsum, ellipsis": (lambda x: ops.einsum("...j,jk", x, pair((16, 3))), 10 * 16 * 3),
    "ops.einsum of one operand": (lambda x: ops.einsum("bij->bji", x), 0),
    "ops.dot": (lambda x: ops.dot(x, pair((16, 3))), 10 * 16 * 3),
    "ops.dot with a number": (lambda x: ops.dot(x, 2.0), 0),
    "ops.inner": (lambda x: ops.inner(x, pair((3, 16))), 10 * 16 * 3),
    "ops.tensordot": (lambda x: ops.tensordot(x, pair((16, 3)), axes=1), 10 * 16 * 3),
    "ops.tensordot, two axes": (lambda x: ops.tensordot(x, pair((10, 16, 3)), axes=2), 10 * 16 * 3),
    "ops.tensordot, named axes": (
        lambda x: ops.tensordot(x, pair((3, 16)), axes=[[2], [1]]),
        10 * 16 * 3,
    ),
    "ops.conv": (lambda x: ops.conv(x, pair((3, 16, 4))), 8 * 3 * 16 * 4),
    "ops.depthwise_conv": (lambda x: ops.depthwise_conv(x, pair((3, 16, 2))), 8 * 32 * 3),
    "ops.separable_conv": (
        lambda x: ops.separable_conv(x, pair((3, 16, 2)), pair((1, 32, 5))),
        8 * (32 * 3 + 32 * 5),
    ),
    "ops.conv_transpose": (lambda x: ops.conv_transpose(x, pair((3, 5, 16)), 2), 10 * 16 * 3 * 5),
    "ops.dot_product_attention": (
        lambda x: ops.dot_product_attention(*[ops.reshape(x, (-1, 10, 2, 8))] * 3),
        2 * 10 * 10 * 16,
    ),
    "layers.Dot": (lambda x: layers.Dot(axes=2)([x, x]), 10 * 16 * 10),
    "layers.Dot, other axes": (lambda x: layers.Dot(axes=(1, -2))([x, x]), 16 * 10 * 16),
    "layers.Attention": (lambda x: layers.Attention()([x, x]), 2 * 10 * 16 * 10),
    "layers.Attention with keys": (
        lambda x: layers.Attention()([x, layers.Dense(3)(x), x]),
        10 * 16 * 3 + 10 * 10 * (16 + 3),
    ),
    "layers.Attention of sums": (lambda x: layers.Attention(score_mode="concat")([x, x]), 10 * 10 * 16),
    "layers.AdditiveAttention": (lambda x: layers.AdditiveAttention()([x, x]), 2 * 10 * 10 * 16),
    # queries and the result 20 wide, keys and values 10
    "layers.GroupQueryAttention": (
        lambda x: grouped_attention()(x, x),
        10 * 16 * (20 + 20 + 10 + 10) + 2 * 10 * 10 * 20,
    ),
    "layers.GroupQueryAttention, gated": (
        lambda x: grouped_attention(use_gate=True)(x, x),
        10 * 16 * (20 + 20 + 20 + 10 + 10) + 2 * 10 * 10 * 20,
    ),
    "layers.GroupQueryAttention to others": (
        lambda x: grouped_attention()(x, x[:, :7]),
        10 * 16 * (20 + 20) + 7 * 16 * (10 + 10) + 2 * 10 * 7 * 20,
    ),
    # windows of 5 tokens: they are folded into the batch
    "attention within windows": (
        lambda x: layers.Attention()([ops.reshape(x, (-1, 5, 16))] * 2),
        2 * 10 * 16 * 5,
    ),
}


# Before, Keras had no gates, and gave `inner` the wrong shape.
SINCE = dict.fromkeys(("layers.GroupQueryAttention, gated", "ops.inner"), "3.14")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=needs_keras(SINCE.get(name, "3.13")))
        for name, case in BARE_PRODUCTS.items()
    ],
)
def test_products_without_weights_of_their_own(case):
    call, expected = case
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert count([(10, 16)], call) == expected


def test_an_einsum_of_three_counts_in_the_order_that_tensorflow_takes():
    found = count([(10, 16)], lambda x: ops.einsum("bij,jk,kl->bil", x, pair((16, 3)), pair((3, 4))))
    assert found in (10 * 16 * 3 + 10 * 3 * 4, 16 * 3 * 4 + 10 * 16 * 4)


# Beside the products -----------------------------------------------------------------------------

MAP = 6 * 6 * 4

OTHER = {
    "a bias": (lambda x: layers.Conv2D(5, 1)(x), 36 * 5),
    "no bias": (lambda x: layers.Conv2D(5, 1, use_bias=False)(x), 0),
    "bias and activation": (lambda x: layers.Conv2D(5, 3, activation="relu")(x), 2 * 16 * 5),
    "a grouped convolution": (lambda x: GroupedConv2D(6, 3, groups=2)(x), 16 * 6),
    "bias and softmax": (lambda x: layers.Dense(5, activation="softmax")(x), 36 * (5 + 15)),
    "an activation": (lambda x: layers.Activation("gelu")(x), MAP),
    "no activation": (lambda x: layers.Activation("linear")(x), 0),
    "ReLU": (lambda x: layers.ReLU()(x), MAP),
    "batch normalisation": (lambda x: layers.BatchNormalization()(x), 2 * MAP),
    "layer normalisation": (lambda x: layers.LayerNormalization()(x), 7 * MAP),
    "RMS normalisation": (lambda x: layers.RMSNormalization()(x), 4 * MAP),
    "pooling": (lambda x: layers.MaxPooling2D(2)(x), MAP),
    "overlapping pooling": (lambda x: layers.AveragePooling2D(3, 1, padding="same")(x), 9 * MAP),
    "global pooling": (lambda x: layers.GlobalAveragePooling2D()(x), MAP),
    "ops.mean": (lambda x: ops.mean(x, axis=(1, 2)), MAP),
    "ops.max_pool": (lambda x: ops.max_pool(x, 2), MAP),
    "a sum of two": (lambda x: layers.Add()([x, x]), MAP),
    "a sum of three": (lambda x: layers.Add()([x, x, x]), 2 * MAP),
    "operators": (lambda x: x * 0.5 + x, 2 * MAP),
    "a broadcast product": (lambda x: x * ops.mean(x, axis=(1, 2), keepdims=True), 2 * MAP),
    "nearest resizing": (lambda x: layers.UpSampling2D(2)(x), 0),
    "bilinear resizing": (lambda x: layers.UpSampling2D(2, interpolation="bilinear")(x), 4 * 4 * MAP),
    "moving": (lambda x: layers.Flatten()(layers.ZeroPadding2D()(layers.Concatenate()([x, x]))), 0),
    "dropout": (lambda x: layers.SpatialDropout2D(0.5)(layers.Dropout(0.5)(x)), 0),
    # scaled queries, softmax over the scores of 2 heads, biases: 36 tokens; 10, 10, 6 and 4 wide
    "attention": (
        lambda x: attention()(*[layers.Reshape((36, 4))(x)] * 2),
        36 * 10 + 3 * 2 * 36 * 36 + 36 * (10 + 10 + 6 + 4),
    ),
    "a nested model": (
        lambda x: keras.Sequential([keras.Input((6, 6, 4)), layers.ReLU(), layers.ReLU()])(x),
        2 * MAP,
    ),
}


@pytest.mark.parametrize("case", OTHER.values(), ids=OTHER.keys())
def test_other_operations(case):
    call, expected = case
    inputs = keras.Input((6, 6, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counts = count_operations(Graph.of(keras.Model(inputs, call(inputs))))
    assert sum(count.other for count in counts) == expected


def test_a_classifier_that_ends_an_exit_is_counted_without_its_activation():
    inputs = keras.Input((6, 6, 4))
    for layer, other in ((layers.Conv2D(3, 1, activation="softmax"), 36 * 3 * 2), (layers.Dense(3), 3)):
        features = inputs if isinstance(layer, layers.Conv2D) else layers.GlobalAveragePooling2D()(inputs)
        model = keras.Model(features, ExitLogits(layer)(features))
        (counts,) = count_operations(Graph.of(model))
        assert counts == ((36 if len(features.shape) == 4 else 1) * 4 * 3, other)


# What is not known -------------------------------------------------------------------------------


class Mixer(layers.Layer):
    """A custom layer that multiplies by a matrix."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]))

    def call(self, inputs):
        return ops.matmul(inputs, self.kernel)


class Block(layers.Layer):
    """A custom layer that is a small network."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv, self.norm, self.pool = (
            layers.Conv2D(5, 3),
            layers.BatchNormalization(),
            layers.MaxPooling2D(2),
        )

    def build(self, shape):
        self.conv.build(shape)
        self.norm.build(self.conv.compute_output_shape(shape))

    def call(self, inputs, training=None):
        return ops.relu(self.pool(self.norm(self.conv(inputs), training=training)))


class Looping(layers.Layer):
    """How often a loop runs cannot be read off its graph."""

    def call(self, inputs):
        return ops.while_loop(lambda x: ops.max(x) < 9, lambda x: (2 * x,), (inputs,))[0]

    def compute_output_shape(self, shape):
        return shape


class Counting(layers.Layer):
    """A layer that writes to a variable at inference."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), trainable=False)

    def call(self, inputs):
        self.calls.assign_add(1.0)
        return -inputs


def known(shape, layer):
    """Operations of a layer, of which nothing may be unknown."""
    inputs = keras.Input(shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        (counts,) = count_operations(Graph.of(keras.Model(inputs, layer(inputs))))
    return counts


TRACED = {
    "a matrix": (Mixer, (64 * 16, 0)),
    "a network": (Block, (36 * 5 * 9 * 4, 36 * 5 * (1 + 2) + 9 * 5 * (4 + 1))),
    "a Lambda": (lambda: layers.Lambda(lambda x: x @ ops.transpose(x, (0, 1, 3, 2))), (8 * 8 * 8 * 4, 0)),
    "a variable written to": (Counting, (0, 256)),
    "arithmetic": (lambda: layers.Lambda(lambda x: ops.relu(x) * 2.0 + x), (0, 3 * 256)),
}


@pytest.mark.parametrize("case", TRACED.values(), ids=TRACED.keys())
def test_layers_of_somebody_else_are_traced(case):
    layer, expected = case
    assert known((8, 8, 4), layer()) == expected


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Conv2D(6, 3, 2, padding="same"),
        lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
        lambda: layers.SeparableConv2D(6, 3),
        lambda: layers.Conv2DTranspose(6, 3, 2),
        lambda: layers.Dense(7),
        lambda: layers.MultiHeadAttention(2, 5, attention_axes=(1, 2)),
        lambda: layers.BatchNormalization(),
        lambda: layers.AveragePooling2D(2),
        lambda: layers.GlobalAveragePooling2D(),
        lambda: layers.ReLU(),
    ],
    ids=[
        "conv",
        "depthwise",
        "separable",
        "transposed",
        "dense",
        "attention",
        "norm",
        "pool",
        "global",
        "relu",
    ],
)
def test_tracing_agrees_with_the_tables(layer):
    layer = layer()
    inputs = keras.Input((8, 8, 4))
    layer(*[inputs] * (2 if isinstance(layer, layers.MultiHeadAttention) else 1))
    step = Graph.of(keras.Model(inputs, layer.output)).steps[-1]
    call = Call.of_step(step, Graph.of(keras.Model(inputs, layer.output)).nominal_shapes)
    multiply_adds, other = traced_operations(call)
    assert multiply_adds == products(call)
    if not isinstance(layer, layers.MultiHeadAttention):  # scaled and softmaxed in another form
        assert other == other_operations(call)


def test_layers_that_cannot_be_traced_are_named_in_a_warning():
    with pytest.warns(UserWarning, match=r"Looping \(2, such as 'first'\)"):
        assert count([(8, 8, 4)], lambda x: Looping()(Looping(name="first")(x))) == 0


def test_unknown_layers_of_a_nested_model_are_named():
    inner = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(4, 1), Looping(name="deep")])
    with pytest.warns(UserWarning, match=r"Looping \(1, such as 'deep'\)"):
        assert count([(8, 8, 4)], inner) == 64 * 16


def test_wrapped_layers():
    assert count([(6, 6, 4)], layers.SpectralNormalization(layers.Conv2D(5, 3))) == 16 * 5 * 9 * 4
    assert count([(3, 6, 6, 4)], layers.TimeDistributed(layers.Conv2D(5, 3))) == 3 * 16 * 5 * 9 * 4


def test_a_shared_layer_counts_at_every_call():
    shared = layers.Conv2D(3, 3, padding="same")
    assert count([(8, 8, 3)], lambda x: shared(shared(x))) == 2 * 64 * 81


# Nested models and sizes -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8, 3), (None, None, 3)], ids=["fixed", "open"])
def test_a_nested_model_counts_on_the_image_that_it_gets(size):
    body = keras.Sequential([keras.Input(size), layers.Conv2D(4, 3, padding="same")])
    assert count([(8, 8, 3)], body) == 64 * 4 * 9 * 3

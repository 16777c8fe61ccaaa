"""Multiply-adds and parameters: by hand, against TensorFlow's profiler, per stage and per head."""

import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from harness import CLASSES, NETWORKS, classify, conv, images, plain, same
from keras import layers, ops
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

import keras_exitens as kx
from keras_exitens.costs import multiply_adds
from keras_exitens.graph import Graph


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


# Products that no layer with weights stands for.
BARE_PRODUCTS = {
    "ops.matmul": (lambda x: ops.matmul(x, ops.transpose(x, (0, 2, 1))), 10 * 16 * 10),
    "the operator @": (lambda x: x @ ops.transpose(x, (0, 2, 1)), 10 * 16 * 10),
    "ops.einsum": (lambda x: ops.einsum("bij,bkj->bik", x, x), 10 * 16 * 10),
    "ops.conv": (lambda x: ops.conv(x, np.ones((3, 16, 4), "float32")), 8 * 3 * 16 * 4),
    "layers.Dot": (lambda x: layers.Dot(axes=2)([x, x]), 10 * 16 * 10),
    "layers.Attention": (lambda x: layers.Attention()([x, x]), 2 * 10 * 16 * 10),
}


@pytest.mark.parametrize("case", BARE_PRODUCTS.values(), ids=BARE_PRODUCTS.keys())
def test_products_without_weights_are_counted_or_named_in_a_warning(case):
    call, expected = case
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = count([(10, 16)], call)
    assert got == expected or any("not known" in str(w.message) for w in caught)


class Mixer(layers.Layer):
    """A custom layer that multiplies by a matrix."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]))

    def call(self, inputs):
        return ops.matmul(inputs, self.kernel)


def test_custom_layers_with_a_matrix_are_named_in_a_warning():
    inputs = keras.Input((8, 8, 4))
    x = Mixer(name="my_mixer")(layers.Conv2D(4, 1)(inputs))
    graph = Graph.of(keras.Model(inputs, Mixer()(x)))
    with pytest.warns(UserWarning, match=r"Mixer \(2, such as 'my_mixer'\)"):
        counts = multiply_adds(graph)
    assert counts == [64 * 16, 0, 0]


def test_wrapped_layers_are_counted_or_named_in_a_warning():
    for wrap in (layers.SpectralNormalization, layers.TimeDistributed):
        shape = (3, 6, 6, 4) if wrap is layers.TimeDistributed else (6, 6, 4)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            got = count([shape], wrap(layers.Conv2D(5, 3)))
        named = [w for w in caught if wrap.__name__ in str(w.message)]
        assert got == 16 * 5 * 9 * 4 * (3 if wrap is layers.TimeDistributed else 1) or named


def test_add_exits_warns_once_of_what_it_cannot_count():
    inputs = keras.Input((16, 16, 3))
    x = conv(Mixer()(conv(inputs, 4)), 4, 2)
    model = keras.Model(inputs, classify(conv(x, 4, 2)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kx.add_exits(model, 1, head="linear")
    assert [str(w.message).count("Mixer") for w in caught] == [1]
    assert caught[0].filename == __file__


def test_a_shared_layer_counts_at_every_call():
    shared = layers.Conv2D(3, 3, padding="same")
    assert count([(8, 8, 3)], lambda x: shared(shared(x))) == 2 * 64 * 81


# Nested models and sizes -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8, 3), (None, None, 3)], ids=["fixed", "open"])
def test_a_nested_model_counts_on_the_image_that_it_gets(size):
    body = keras.Sequential([keras.Input(size), layers.Conv2D(4, 3, padding="same")])
    assert count([(8, 8, 3)], body) == 64 * 4 * 9 * 3


def test_open_sizes_count_at_224_pixels():
    def network(size):
        inputs = keras.Input((size, size, 3))
        return keras.Model(inputs, classify(conv(conv(conv(inputs, 4, 2), 6, 2), 8)))

    opened, fixed = (kx.cost(kx.add_exits(network(size), 1)) for size in (None, 224))
    assert opened == fixed
    assert opened.backbone == 112**2 * 4 * 27 + 56**2 * 6 * 36 + 56**2 * 8 * 54 + 8 * CLASSES


# Against TensorFlow ------------------------------------------------------------------------------

KINDS = ("Conv2D", "DepthwiseConv2dNative", "MatMul")


def profiled(model):
    """Half of what TensorFlow's profiler counts on the frozen graph for one image, for `KINDS`."""
    signature = tf.TensorSpec((1, *model.inputs[0].shape[1:]))
    function = tf.function(lambda x: model(x, training=False)).get_concrete_function(signature)
    frozen = convert_variables_to_constants_v2(function).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    with frozen.as_default():
        top = tf.compat.v1.profiler.profile(frozen, cmd="op", options={**options, "output": "none"})
    found, node = {}, top
    while node.children:
        node = node.children[0]
        found[node.name] = node.float_ops
    assert set(KINDS) & set(found)
    return sum(found.get(kind, 0) for kind in KINDS) / 2


APPLICATIONS = {
    "ResNet50": {"input_shape": (32, 32, 3)},
    "MobileNetV2": {"input_shape": (64, 64, 3), "alpha": 0.35},
    "DenseNet121": {"input_shape": (32, 32, 3)},
}


@pytest.mark.parametrize("name", APPLICATIONS)
def test_whole_networks_against_the_profiler(name):
    model = getattr(keras.applications, name)(weights=None, classes=10, **APPLICATIONS[name])
    counted = sum(multiply_adds(Graph.of(model)))
    assert counted == pytest.approx(profiled(model), rel=0.01)


@pytest.mark.parametrize("head", ["conv", "bottleneck", "separable", "linear"])
def test_a_multi_exit_network_against_the_profiler(head):
    """Heads included: the last cumulative cost is everything that the network does."""
    model = kx.add_exits(plain([8, 8, 16, 16, 24], [1, 2, 1, 2, 1], size=16), 2, head=head)
    assert kx.cost(model).cumulative[-1] == pytest.approx(profiled(model), rel=0.01)


# Stages, heads and exits -------------------------------------------------------------------------


def staged():
    """Three convolutions of 8, 12 and 16 channels at 16, 8 and 8 pixels; exits after two of them."""
    return plain([8, 12, 16], [1, 2, 1], size=16)


STAGES = (16**2 * 8 * 27, 8**2 * 12 * 72, 8**2 * 16 * 108 + 16 * CLASSES)
STAGE_PARAMETERS = (8 * 28, 12 * 73, 16 * 109 + 17 * CLASSES)


def test_stages_and_linear_heads_by_hand():
    costs = kx.cost(kx.add_exits(staged(), ["conv1", "conv2"], head="linear"))
    # pool, project to D = 16, classify
    heads = (8 * 16 + 16 * CLASSES, 12 * 16 + 16 * CLASSES, 0)
    assert costs.names == ("exit_1", "exit_2", "final")
    assert costs.stage_multiply_adds == STAGES
    assert costs.head_multiply_adds == heads
    assert costs.stage_parameters == STAGE_PARAMETERS
    assert costs.head_parameters == (9 * 16 + 17 * CLASSES, 13 * 16 + 17 * CLASSES, 0)
    assert costs.backbone == sum(STAGES)
    assert costs.cumulative == tuple(np.cumsum(np.add(STAGES, heads)))
    assert len(costs) == 3
    assert [costs[i] for i in range(3)] == list(costs.cumulative)


def test_convolutional_heads_by_hand():
    costs = kx.cost(kx.add_exits(staged(), ["conv1", "conv2"], head="conv"))
    # from conv1 one halving to 8×8; from conv2 none. BatchNorm: 4 numbers a channel.
    convs = (8**2 * 16 * 9 * 8, 8**2 * 16 * 9 * 12)
    assert costs.head_multiply_adds == (*(c + 16 * CLASSES for c in convs), 0)
    assert costs.head_parameters == (
        *(9 * c * 16 + 4 * 16 + 17 * CLASSES for c in (8, 12)),
        0,
    )
    assert costs.stage_multiply_adds == STAGES


@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_costs_of_awkward_networks(build):
    model, head = build(), "linear"
    exits = kx.add_exits(model, 2, head=head)
    costs = kx.cost(exits)
    assert np.all(np.diff((0, *costs.cumulative)) > 0)
    assert costs.parameters == exits.count_params()
    # What the network costs is what it cost before, wherever the exits are.
    assert costs.backbone == kx.cost(kx.add_exits(model, 1, head=head)).backbone
    assert sum(costs.stage_parameters) == model.count_params()
    assert costs.head_multiply_adds[-1] == costs.head_parameters[-1] == 0
    assert min(costs.head_multiply_adds[:-1]) > 0


def test_costs_of_a_loaded_model_are_the_same(tmp_path):
    model = kx.add_exits(staged(), 2)
    model.save(tmp_path / "model.keras")
    assert kx.cost(keras.saving.load_model(tmp_path / "model.keras")) == kx.cost(model)


def test_counting_changes_nothing():
    model = kx.add_exits(staged(), 2)
    x = images(model)
    config, before = model.to_json(), model(x)
    kx.cost(model)
    assert model.to_json() == config
    assert same(model(x), before)


def test_the_table():
    costs = kx.cost(kx.add_exits(staged(), ["conv1", "conv2"], head="linear"))
    header, *rows = str(costs).splitlines()
    assert header.split() == ["exit", "stage", "head", "cumulative", "of", "network", "parameters"]
    assert [row.split()[0] for row in rows] == ["exit_1", "exit_2", "final"]
    assert len({len(line) for line in [header, *rows]}) == 1, "columns are aligned"
    shares = [float(re.search(r"([\d.]+)%", row)[1]) for row in rows]
    np.testing.assert_allclose(shares, 100 * np.array(costs.cumulative) / sum(STAGES), atol=0.06)
    assert rows[0].split()[1:3] == ["55.30", "k"]
    assert rows[-1].split()[-1] == f"{STAGE_PARAMETERS[-1]:,}"


# Models made by hand -----------------------------------------------------------------------------


def test_a_dict_of_logits_made_by_hand():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same")(inputs)
    early = layers.Dense(5)(layers.GlobalAveragePooling2D()(x))
    x = layers.Conv2D(6, 3, padding="same")(x)
    late = layers.Dense(5)(layers.GlobalAveragePooling2D()(x))
    costs = kx.cost(keras.Model(inputs, {"a_late": late, "b_early": early}))
    assert costs.names == ("b_early", "a_late")
    assert costs.stage_multiply_adds == (64 * 4 * 27, 64 * 6 * 36 + 6 * 5)
    assert costs.head_multiply_adds == (4 * 5, 0)
    assert costs.stage_parameters == (4 * 28, 6 * 37 + 7 * 5)
    assert costs.head_parameters == (5 * 5, 0)


def test_exits_that_build_on_each_other():
    """The head of an exit may feed the next exit too: it counts once, where it first runs."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same")(inputs)
    feature = layers.Dense(7)(layers.GlobalAveragePooling2D()(x))
    early = layers.Dense(5)(feature)
    x = layers.Conv2D(6, 3, padding="same")(x)
    both = layers.concatenate([layers.GlobalAveragePooling2D()(x), feature])
    model = keras.Model(inputs, {"exit_1": early, "final": layers.Dense(5)(both)})
    costs = kx.cost(model)
    assert costs.stage_multiply_adds == (64 * 4 * 27 + 4 * 7, 64 * 6 * 36 + 13 * 5)
    assert costs.head_multiply_adds == (7 * 5, 0)
    assert costs.parameters == model.count_params()


def test_exits_on_the_outputs_of_a_feature_extractor():
    """A nested model with several outputs is no single block: an early exit needs a part of it only."""

    def maps(inputs):
        fine = layers.Conv2D(4, 3, padding="same", name="fine")(inputs)
        return {"fine": fine, "coarse": layers.Conv2D(6, 3, 2, padding="same", name="coarse")(fine)}

    def exits(inputs, found):
        heads = {"exit_1": found["fine"], "final": found["coarse"]}
        pooled = {name: layers.GlobalAveragePooling2D()(x) for name, x in heads.items()}
        return keras.Model(inputs, {name: layers.Dense(5, name=name)(x) for name, x in pooled.items()})

    inside, inputs = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    extractor = keras.Model(inside, maps(inside), name="extractor")
    nested = kx.cost(exits(inputs, extractor(inputs)))
    assert nested == kx.cost(exits(inputs, maps(inputs)))
    assert nested.stage_multiply_adds == (64 * 4 * 27, 16 * 6 * 36 + 6 * 5)
    assert nested.stage_parameters == (4 * 28, 6 * 37 + 7 * 5)


# The warning -------------------------------------------------------------------------------------


def vgg_like():
    """VGG16 in small: narrow early maps, wide late ones, and two hidden Dense layers."""
    x = inputs = keras.Input((32, 32, 3))
    for i, filters in enumerate((4, 8, 32, 64, 64), 1):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"block{i}")(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Dense(96, activation="relu")(layers.Dense(96, activation="relu")(layers.Flatten()(x)))
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(x))


def test_a_head_that_costs_more_than_the_network_causes_a_warning():
    exits = ["block3", "block4", "block5"]
    with pytest.warns(UserWarning, match="more multiply-adds than the whole network") as caught:
        model = kx.add_exits(vgg_like(), exits, head="conv")
    costs = kx.cost(model)
    message = str(caught[0].message)
    reached = np.cumsum(costs.stage_multiply_adds)
    for name, stages, head in zip(costs.names, reached, costs.head_multiply_adds, strict=True):
        assert (f"'{name}' {stages + head:,} ({head:,}" in message) == (stages + head > costs.backbone)
    assert f"{costs.backbone:,}" in message
    assert caught[0].filename == __file__


def test_a_light_head_causes_none():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kx.add_exits(vgg_like(), ["block3", "block4", "block5"], head="linear")

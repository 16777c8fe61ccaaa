"""Multiply-adds against TensorFlow's own profiler: whole networks, with and without exits."""

import itertools
import math
import warnings

import keras
import pytest
import tensorflow as tf
from harness import CLASSES, classify, conv, plain
from keras import layers
from packaging.version import Version
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

import keras_exitens as kx

KINDS = ("Conv2D", "DepthwiseConv2dNative", "MatMul")


def frozen_graph(model):
    """The TensorFlow graph of one image through a model, its weights constants."""
    signature = tf.TensorSpec((1, *model.inputs[0].shape[1:]))
    function = tf.function(lambda x: model(x, training=False)).get_concrete_function(signature)
    return convert_variables_to_constants_v2(function).graph


def profiled(graph):
    """Half of the floating point operations that TensorFlow's profiler counts for `KINDS`.

    It counts biases, pooling and sums too, and batched matrix products not at all.
    """
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    with graph.as_default():
        node = tf.compat.v1.profiler.profile(graph, cmd="op", options={**options, "output": "none"})
    found = {}
    while node.children:
        node = node.children[0]
        found[node.name] = node.float_ops
    assert set(KINDS) & set(found)
    return sum(found.get(kind, 0) for kind in KINDS) / 2


def batched(graph):
    """Multiply-adds of the batched matrix products in a graph, from the shapes of their operands."""
    total = 0
    for op in graph.get_operations():
        shapes = [tuple(t.shape) for t in op.inputs]
        if op.type.startswith("BatchMatMul"):
            total += math.prod(op.outputs[0].shape) * shapes[0][-2 if op.get_attr("adj_x") else -1]
        elif op.type == "Einsum":
            terms = op.get_attr("equation").decode().split("->")[0].split(",")
            labelled = zip("".join(terms), itertools.chain(*shapes), strict=True)
            total += math.prod(dict(labelled).values())
    return total


def in_tensorflow(model):
    graph = frozen_graph(model)
    return profiled(graph) + batched(graph)


# Name of a network in keras.applications -> size of the image.
FAST = {"ResNet50": 32, "MobileNetV2": 64}
MORE = {
    "DenseNet121": 64,
    "EfficientNetB0": 64,
    "EfficientNetV2B0": 64,
    "InceptionV3": 96,
    "InceptionResNetV2": 96,
    "MobileNet": 64,
    "MobileNetV3Large": 64,
    "NASNetMobile": 64,
    "ResNet50V2": 64,
    "VGG16": 64,
    "Xception": 96,
}


def application(name, size):
    return getattr(keras.applications, name)(weights=None, classes=10, input_shape=(size, size, 3))


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_networks_of_keras_applications(name):
    model = application(name, {**FAST, **MORE}[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # every layer is known
        costs = kx.cost(model)
    assert costs.backbone == pytest.approx(in_tensorflow(model), rel=0.01)


@pytest.mark.parametrize("name", ["MobileNetV2", pytest.param("DenseNet121", marks=pytest.mark.slow)])
def test_networks_of_keras_applications_with_exits(name):
    """Heads included: the last cumulative cost is everything that the network does."""
    model = kx.add_exits(application(name, {**FAST, **MORE}[name]), exits=3)
    assert kx.cost(model).cumulative[-1] == pytest.approx(in_tensorflow(model), rel=0.01)


@pytest.mark.parametrize("head", ["conv", "bottleneck", "separable", "linear"])
def test_every_head(head):
    model = kx.add_exits(plain([8, 8, 16, 16, 24], [1, 2, 1, 2, 1], size=16), 2, head=head)
    assert kx.cost(model).cumulative[-1] == in_tensorflow(model)


def test_grouped_convolutions():
    model = kx.applications.ResNeXt29(classes=10, width=0.25)
    assert kx.cost(model).backbone == in_tensorflow(model)


GATE = {"use_gate": True} if Version(keras.version()) >= Version("3.14") else {}
ATTENTION = {
    "MultiHeadAttention": lambda x: layers.MultiHeadAttention(2, 5, value_dim=3)(x, x),
    "MultiHeadAttention over the rows of a map": lambda x: layers.Reshape((64, 8))(
        layers.MultiHeadAttention(2, 5, attention_axes=(2,))(*[layers.Reshape((8, 8, 8))(x)] * 2)
    ),
    "GroupQueryAttention": lambda x: layers.GroupQueryAttention(4, 4, 2, **GATE)(x, x),
    "Attention": lambda x: layers.Attention()([x, x]),
    "Dot": lambda x: layers.Dot(axes=(2, 2))([x, x]),
    "matmul": lambda x: x @ keras.ops.transpose(x, (0, 2, 1)),
    "einsum": lambda x: keras.ops.einsum("bij,bkj->bik", x, x),
}


@pytest.mark.parametrize("product", ATTENTION.values(), ids=ATTENTION.keys())
def test_attention_and_bare_products(product):
    inputs = keras.Input((16, 16, 3))
    x = product(layers.Reshape((64, 8))(conv(inputs, 8, 2)))
    x = layers.Reshape((8, 8, x.shape[-1]))(x)
    model = keras.Model(inputs, classify(conv(x, 8)))
    assert model.output_shape == (None, CLASSES)
    assert kx.cost(model).backbone == in_tensorflow(model)

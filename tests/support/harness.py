"""Small networks, and what several test files do with them."""

import gc

import keras
import numpy as np
import pytest
from keras import layers, ops
from packaging.version import Version

CLASSES = 5

# The objects of TensorFlow's modules live for ever: the garbage collector need not walk them in every test.
gc.collect()
gc.freeze()


def needs_keras(version):
    """A mark for what older versions of Keras do not have, or get wrong themselves."""
    return pytest.mark.skipif(Version(keras.version()) < Version(version), reason=f"Keras {version}")


def images(model, count=4, seed=0, size=16):
    """Random images for `model`; where it leaves height or width open, `size` pixels."""
    shape = [size if s is None else s for s in model.inputs[0].shape[1:]]
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype("float32")


def randomise(model, seed=0):
    """Gives every vector among the weights a random value, so that nothing agrees by chance.

    Biases are no longer 0 and BatchNorm is no longer the identity; kernels are random from the start.
    """
    rng = np.random.default_rng(seed)
    for v in model.weights:
        if len(v.shape) == 1 and "float" in v.dtype:
            positive = v.name in ("gamma", "moving_variance", "variance", "scale")
            v.assign(rng.uniform(0.5, 1.5, v.shape) if positive else rng.normal(0, 0.2, v.shape))
    for layer in all_layers(model):
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()  # it computes with copies of its weights, which loading makes anew
    return model


def settle(model, x):
    """Conditions a network of random weights as training would: rounding stays small, images stay apart.

    Every normalisation gets the statistics of `x`: else deep networks give the same logits for all images.
    And an offset by which most of its outputs are positive: networks of random rectifiers are chaotic, a
    rounding at the first layer is a thousand times as large at the fiftieth.
    """
    norms = [layer for layer in all_layers(model) if isinstance(layer, layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.center:
            norm.beta.assign(np.full(norm.beta.shape, 1.5))
    model(x, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def logits_by_hand(model, classifier, x):
    """What the classifier layer gives before its activation, as a matrix product in NumPy, float64.

    Args:
        model: the user's network.
        classifier: its `Dense` or 1×1 convolution layer.
        x: images.

    Returns:
        `(batch, units)`; the mean over height and width where the classifier runs on a map.
    """
    feature = np.asarray(keras.Model(model.inputs[0], classifier.input)(x, training=False), "float64")
    kernel, *bias = (np.asarray(w, "float64") for w in classifier.get_weights())
    rows = feature @ kernel.reshape(kernel.shape[-2:]) + sum(bias)
    return rows.reshape(len(x), -1, rows.shape[-1]).mean(axis=1)


def log_softmax(logits):
    logits = np.asarray(logits, "float64")
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def same(a, b):
    """Whether two arrays, or two dicts of arrays, are equal bit for bit."""
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[key], b[key]) for key in a)
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def all_layers(model):
    """Every layer of a model and of the models nested in it, models themselves left out."""
    nested = []
    for layer in model.layers:
        nested += all_layers(layer) if isinstance(layer, keras.Model) else [layer]
    return nested


def state(model):
    """Everything about a model that building on it must leave alone."""
    x = images(model)
    return {
        "config": model.to_json(),
        "layers": [(layer.name, id(layer), id(layer.output)) for layer in all_layers(model)],
        "activations": [getattr(layer, "activation", None) for layer in all_layers(model)],
        "trainable": [layer.trainable for layer in all_layers(model)],
        "variables": [id(v) for v in model.variables],
        "weights": [w.tobytes() for w in model.get_weights()],
        "output": np.asarray(model(x)).tobytes(),
    }


def conv(x, filters, strides=1, norm=True, **options):
    """Convolution, batch normalisation and ReLU."""
    x = layers.Conv2D(filters, 3, strides, padding="same", **options)(x)
    return layers.ReLU()(layers.BatchNormalization()(x) if norm else x)


def classify(x, activation="softmax", name="classifier"):
    return layers.Dense(CLASSES, activation=activation, name=name)(layers.GlobalAveragePooling2D()(x))


# Awkward networks. Each ends in a Dense layer called "classifier" and has at least two inner cuts.


def sequential():
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(4, 3, padding="same", activation="relu", name="a"),
            layers.Conv2D(6, 3, 2, padding="same", name="b"),
            layers.BatchNormalization(name="b_bn"),
            layers.ReLU(name="b_relu"),
            layers.Conv2D(8, 3, 2, padding="same", activation="relu", name="c"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(CLASSES, activation="softmax", name="classifier"),
        ],
        name="sequential",
    )


def operators():
    """Residual blocks written with `+`, `*` and keras.ops."""
    inputs = keras.Input((16, 16, 3))
    x = conv(inputs / 2.0 - 0.1, 4)
    for filters, strides in ((4, 1), (8, 2), (8, 1), (8, 2)):
        y = conv(x, filters, strides)
        y = layers.Conv2D(filters, 3, padding="same")(y)
        skip = layers.Conv2D(filters, 1, strides)(x) if strides > 1 else x
        x = ops.relu(skip + y * 0.5)
    return keras.Model(inputs, classify(x), name="operators")


def shared_layer():
    inputs = keras.Input((16, 16, 3))
    shared = layers.Conv2D(4, 3, padding="same", activation="relu", name="shared")
    x = shared(layers.Conv2D(4, 1, name="stem")(inputs))
    x = layers.BatchNormalization()(shared(x) + x)
    x = conv(x, 4, 2)
    return keras.Model(inputs, classify(conv(shared(x), 6, name="last")), name="shared_layer")


def dense_concat():
    inputs = keras.Input((16, 16, 3))
    x = conv(inputs, 4)
    for _ in range(2):
        for _ in range(3):
            x = layers.Concatenate()([x, conv(x, 2)])
        x = layers.AveragePooling2D(2)(layers.Conv2D(4, 1)(x))
    return keras.Model(inputs, classify(conv(x, 8)), name="dense_concat")


def inception():
    inputs = keras.Input((16, 16, 3))
    x = conv(inputs, 4)
    for strides in (2, 1, 2):
        pooled = layers.MaxPooling2D(3, strides, padding="same")(x)
        deep = conv(conv(x, 2), 4, strides)
        x = layers.concatenate([layers.Conv2D(3, 1, strides)(x), deep, layers.Conv2D(2, 1)(pooled)])
    return keras.Model(inputs, classify(conv(x, 6)), name="inception")


def _body(inputs, name):
    x = conv(inputs, 4, name=f"{name}_a")
    x = conv(x, 6, 2, name=f"{name}_b")
    return keras.Model(inputs, x, name=name)


def nested():
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Rescaling(0.5, offset=0.1),
            _body(keras.Input((16, 16, 3)), "body"),
            layers.Conv2D(8, 3, 2, padding="same", name="top"),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.3),
            layers.Dense(CLASSES, activation="softmax", name="classifier"),
        ],
        name="nested",
    )


def deep_nested():
    """A model in a model in a model."""
    inner = _body(keras.Input((16, 16, 3)), "inner")
    inputs = keras.Input((16, 16, 3))
    middle = keras.Model(inputs, conv(inner(inputs), 8, name="middle_c"), name="middle")
    inputs = keras.Input((16, 16, 3))
    return keras.Model(inputs, classify(conv(middle(inputs), 8, 2, name="outer")), name="deep_nested")


def nested_twice():
    """One nested model, called twice."""
    block = keras.Sequential(
        [
            keras.Input((16, 16, 4)),
            layers.Conv2D(4, 3, padding="same", name="twice"),
            layers.BatchNormalization(),
        ],
        name="block",
    )
    inputs = keras.Input((16, 16, 3))
    x = block(layers.Conv2D(4, 1, name="stem")(inputs))
    x = ops.relu(block(x) + x)
    return keras.Model(inputs, classify(conv(conv(x, 6, 2), 8, 2)), name="nested_twice")


def nested_pyramid():
    """A nested feature extractor with a dict of outputs, both used."""
    inputs = keras.Input((16, 16, 3))
    fine = conv(inputs, 4, 2, name="fine")
    coarse = conv(fine, 6, 2, name="coarse")
    extractor = keras.Model(inputs, {"fine": fine, "coarse": coarse}, name="extractor")
    inputs = keras.Input((16, 16, 3))
    maps = extractor(conv(inputs, 3))
    x = layers.concatenate([layers.MaxPooling2D(2)(maps["fine"]), maps["coarse"]])
    return keras.Model(inputs, classify(conv(x, 8)), name="nested_pyramid")


def frozen():
    """The usual transfer learning: a frozen body, called with training=False."""
    body = _body(keras.Input((16, 16, 3)), "body")
    body.trainable = False
    inputs = keras.Input((16, 16, 3))
    x = conv(body(inputs, training=False), 8, name="top")
    return keras.Model(inputs, classify(conv(x, 8, 2)), name="frozen")


def inference_mode():
    """A body called with training=False, but not frozen."""
    body = _body(keras.Input((16, 16, 3)), "body")
    inputs = keras.Input((16, 16, 3))
    x = conv(body(inputs, training=False), 8, name="top")
    return keras.Model(inputs, classify(conv(x, 8, 2)), name="inference_mode")


def any_size():
    inputs = keras.Input((None, None, 3))
    x = conv(inputs, 4, 2)
    x = layers.UpSampling2D()(conv(x, 6, 2)) + layers.Conv2D(6, 1)(x)
    return keras.Model(inputs, classify(conv(conv(x, 6, 2), 8)), name="any_size")


def oblong():
    """Images that are not square, of one channel; and a layer with two outputs."""
    inputs = keras.Input((24, 10, 1))
    x = conv(inputs, 4, 2)
    left, right = ops.split(x, 2, axis=-1)
    x = layers.concatenate([conv(left, 3), right])
    return keras.Model(inputs, classify(conv(conv(x, 6, 2), 8)), name="oblong")


NETWORKS = (
    sequential,
    operators,
    shared_layer,
    dense_concat,
    inception,
    nested,
    deep_nested,
    nested_twice,
    nested_pyramid,
    frozen,
    inference_mode,
    any_size,
    oblong,
)

# One of each kind, for tests that take long or care less about the form of the network.
SOME = (sequential, operators, dense_concat, nested, nested_twice)


def plain(widths, sizes, *, in_channels=3, classes=CLASSES, size=32):
    """Convolutions one after another, `conv1` ... `convN`; N numbers of filters and of strides."""
    x = inputs = keras.Input((size, size, in_channels))
    for i, (filters, strides) in enumerate(zip(widths, sizes, strict=True), 1):
        x = layers.Conv2D(filters, 3, strides, padding="same", activation="relu", name=f"conv{i}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(classes, name="classifier")(x), name="plain")


def source(model, exit_name):
    """The tensor that the head of an exit takes in: read by walking back from its first own layer."""
    tensor = model.output[exit_name]
    while True:
        operation, node, _ = tensor._keras_history
        if not operation.name.startswith(exit_name):
            return tensor
        tensor = operation._inbound_nodes[node].input_tensors[0]


def sources(model, names):
    """Names of the layers that the early exits are attached to."""
    return [source(model, name)._keras_history.operation.name for name in names if name != "final"]

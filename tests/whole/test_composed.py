"""What users compose: augmentation, frozen backbones, several inputs and outputs; what is refused."""

import keras
import numpy as np
import pytest
from harness import CLASSES, classify, conv, images, logits_by_hand, randomise, same
from keras import layers, ops

import keras_exitens as kx

pytestmark = pytest.mark.filterwarnings(
    "ignore:To leave early saves nothing", "ignore:The operations of these"
)


def body(name="backbone", size=16):
    inputs = keras.Input((size, size, 3))
    x = conv(conv(inputs, 4, name=f"{name}_a"), 6, 2, name=f"{name}_b")
    return keras.Model(inputs, conv(x, 8, 2, name=f"{name}_c"), name=name)


def augmented():
    """Transfer learning as the guides of Keras have it: augmentation, a frozen backbone, a new head."""
    backbone = body()
    backbone.trainable = False
    augment = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.1)], name="augment")
    inputs = keras.Input((16, 16, 3))
    x = backbone(layers.Rescaling(1 / 255)(augment(inputs)), training=False)
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(CLASSES, "softmax", name="classifier")(x), name="augmented")


def in_a_row():
    """The same as a Sequential model, the augmentation one of it too, unbuilt until the model is."""
    backbone = body()
    backbone.trainable = False
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            keras.Sequential([layers.RandomFlip(), layers.RandomContrast(0.2)], name="augment"),
            layers.Rescaling(1 / 255),
            backbone,
            layers.GlobalAveragePooling2D(),
            layers.Dense(CLASSES, "softmax", name="classifier"),
        ]
    )


@pytest.mark.parametrize("build", [augmented, in_a_row], ids=lambda build: build.__name__)
def test_a_frozen_backbone_stays_frozen_while_its_exits_train(build, tmp_path):
    """No weight and no BatchNorm statistic of it moves, also after saving and loading; the heads do."""
    model = randomise(build())
    x = 255 * images(model, count=8)
    y = np.arange(8) % CLASSES
    exits = kx.add_exits(model, ["backbone/backbone_a", "backbone/backbone_b"], head="linear")
    expected = logits_by_hand(model, model.get_layer("classifier"), x)
    np.testing.assert_allclose(exits(x, training=False)["final"], expected, atol=1e-5)
    exits.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    frozen = [v.path for v in model.get_layer("backbone").weights]
    assert len(frozen) == 3 * (2 + 4)
    for found in (exits, loaded):
        before = {v.path: v.numpy() for v in found.variables}
        # A flat copy builds its layers itself: the paths of their weights are the same.
        assert set(frozen) <= set(before)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        found.compile(keras.optimizers.SGD(0.1), dict.fromkeys(found.output, loss))
        found.fit(x, dict.fromkeys(found.output, y), epochs=2, verbose=0)
        moved = {v.path for v in found.variables if np.abs(v.numpy() - before[v.path]).max() > 0}
        assert not moved & set(frozen)
        assert {v.path for v in found.trainable_variables} <= moved
        assert len(found.trainable_variables) >= 2 + 2 * 2


def test_augmentation_runs_in_training_only():
    model = randomise(augmented())
    x = 255 * images(model)
    exits = kx.add_exits(model, ["backbone/backbone_b"], head="linear")
    still = exits(x, training=False)
    assert same(exits(x, training=False), still)
    assert not same(exits(x, training=True)["exit_1"], exits(x, training=True)["exit_1"])


def pair():
    """A layer with two inputs by keyword, an operation with two outputs, slices and matrix products."""
    inputs = keras.Input((16, 16, 3))
    x = conv(inputs, 4, 2)
    attention = layers.MultiHeadAttention(2, 2, attention_axes=(1, 2))
    rows = ops.reshape(conv(x, 4), (-1, 64, 4))
    scores = ops.softmax(ops.matmul(rows, ops.transpose(rows, (0, 2, 1))) / 8.0)
    x = x + ops.reshape(scores @ rows, (-1, 8, 8, 4))
    x = layers.concatenate([attention(query=x, value=x[:, ::2]), x[..., :1]])
    top, bottom = ops.split(x, 2, axis=1)
    return keras.Model(inputs, classify(conv(ops.where(top > bottom, top, -bottom), 6)), name="pair")


def test_several_inputs_outputs_and_operators(tmp_path):
    model = randomise(pair())
    x = images(model)
    exits = kx.add_exits(model, 2, head="linear")
    expected = logits_by_hand(model, model.get_layer("classifier"), x)
    np.testing.assert_allclose(exits(x)["final"], expected, atol=1e-5)
    np.testing.assert_allclose(kx.strip_exits(exits)(x), model(x), atol=1e-6)
    exits.save(tmp_path / "model.keras")
    assert same(keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)(x), exits(x))


# What is refused ---------------------------------------------------------------------------------


class Control(keras.Model):
    """A model whose `call` decides by the values."""

    def __init__(self):
        super().__init__()
        self.convs = [layers.Conv2D(4, 3) for _ in range(2)]
        self.dense = layers.Dense(CLASSES)

    def call(self, x):
        x = self.convs[0](x)
        x = self.convs[1](x) if ops.mean(x) > 0 else x
        return self.dense(ops.mean(x, axis=(1, 2)))


class Block(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(4, 3, padding="same")

    def call(self, x):
        return self.conv(x)


def test_a_subclassed_model_is_named():
    with pytest.raises(TypeError, match=r"(?s)Control, a subclassed model.*functional API"):
        kx.add_exits(Control(), 1)


def test_a_subclassed_model_inside_is_one_operation():
    """Exits stand before and after it; what is inside is not there to be named."""
    inputs = keras.Input((16, 16, 3))
    x = Block(name="block")(conv(inputs, 4, name="before"))
    model = randomise(keras.Model(inputs, classify(conv(x, 6, 2))))
    x = images(model)
    exits = kx.add_exits(model, ["before", "block"], head="linear")
    expected = logits_by_hand(model, model.get_layer("classifier"), x)
    np.testing.assert_allclose(exits(x)["final"], expected, atol=1e-5)
    with pytest.raises(ValueError, match="no layer 'block/conv"):
        kx.add_exits(model, ["block/conv2d"])


def test_several_image_inputs_are_refused():
    inputs = [keras.Input((16, 16, 3), name=name) for name in ("left", "right")]
    model = keras.Model(inputs, classify(conv(layers.concatenate(inputs), 4)))
    with pytest.raises(
        ValueError, match=r"(?s)one batch of images.*\(None, 16, 16, 3\), \(None, 16, 16, 3\)"
    ):
        kx.add_exits(model, 1)


def test_a_recurrent_layer_at_the_end_is_no_obstacle():
    """Rows of pixels read by a GRU: what comes before it has maps, and exits."""
    inputs = keras.Input((16, 16, 3))
    x = conv(conv(inputs, 4, 2, name="first"), 6, name="second")
    x = layers.GRU(7)(layers.Reshape((8, 48))(x))
    model = randomise(keras.Model(inputs, layers.Dense(CLASSES, "softmax", name="classifier")(x)))
    x = images(model)
    exits = kx.add_exits(model, ["first"], head="linear")
    expected = logits_by_hand(model, model.get_layer("classifier"), x)
    np.testing.assert_allclose(exits(x)["final"], expected, atol=1e-5)
    assert {f.shape for f in kx.exit_features(exits).values()} == {(None, 7)}


def test_a_recurrent_network_without_maps_is_refused():
    model = keras.Sequential([keras.Input((16, 8)), layers.GRU(7), layers.Dense(CLASSES, "softmax")])
    with pytest.raises(ValueError, match=r"(?s)one batch of images.*\(None, 16, 8\)"):
        kx.add_exits(model, 1)

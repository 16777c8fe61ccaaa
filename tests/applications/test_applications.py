"""The small-image networks: published parameter counts, shapes, names, errors, saving, learning."""

import inspect
import os
import re
import subprocess
import sys
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_exitens
from keras_exitens import applications
from keras_exitens.applications import blocks

# One small member of each family, cheap to build and train.
FAMILIES = {
    "VGG": lambda **options: applications.VGG11(**{"width": 1 / 16, **options}),
    "ResNet": lambda **options: applications.ResNet18(**{"width": 1 / 16, **options}),
    "ResNeXt": lambda **options: applications.ResNeXt29(**{"width": 1 / 64, **options}),
    "WideResNet": lambda **options: applications.WideResNet(10, 1, **{"width": 0.5, **options}),
}


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES.keys())
def family(request):
    return request.param


def trainable_size(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


# Parameter counts -------------------------------------------------------------------------------
# Trainable parameters by arithmetic. A convolution has k²·in·out/groups, a BatchNorm 2 a channel.


def vgg_size(depths, classes):
    channels = [c for c, d in zip((64, 128, 256, 512, 512), depths, strict=True) for _ in range(d)]
    pairs = zip([3, *channels], channels, strict=False)
    return sum(9 * i * o + 2 * o for i, o in pairs) + 513 * classes


def basic_size(depths, classes):
    size = 27 * 64 + 2 * 64
    for i, c, d in zip((64, 64, 128, 256), (64, 128, 256, 512), depths, strict=True):
        shortcut = (i * c + 2 * c) if i != c else 0
        size += (9 * i * c + 9 * c * c + 4 * c) + (d - 1) * (18 * c * c + 4 * c) + shortcut
    return size + 513 * classes


def bottleneck_size(depths, inner, outer, groups, classes):
    size = 27 * 64 + 2 * 64
    for i, m, o, d in zip((64, *outer), inner, outer, depths, strict=False):
        body = 9 * m * m // groups + m * o + 4 * m + 2 * o
        size += d * body + i * m + (d - 1) * o * m + i * o + 2 * o
    return size + (outer[-1] + 1) * classes


def wide_size(depth, k, classes):
    n, size = (depth - 4) // 6, 27 * 16
    for i, c in zip((16, 16 * k, 32 * k), (16 * k, 32 * k, 64 * k), strict=True):
        size += (2 * i + 9 * i * c + 2 * c + 9 * c * c + i * c) + (n - 1) * (18 * c * c + 4 * c)
    return size + 2 * 64 * k + (64 * k + 1) * classes


class Count(NamedTuple):
    """A published count of trainable parameters (BatchNorm's moving statistics are in none of them).

    `more` is what the source has and this package has not; `exact` is `None` where the source only
    gives `millions`.
    """

    network: str
    classes: int
    millions: str
    exact: int | None
    arithmetic: int
    source: str
    more: int = 0


# kuangliu's VGG convolutions have biases, one a channel, which the BatchNorm after them cancels.
VGG_BIASES = {"VGG11": 2752, "VGG13": 2944, "VGG16": 4224, "VGG19": 5504}
# torchvision's stem is 7×7, that for small images 3×3, both from 3 to 64 channels.
STEM_7X7 = (49 - 9) * 3 * 64

PUBLISHED = [
    Count(
        *("VGG11", 10, "9.23", 9_231_114, vgg_size((1, 1, 2, 2, 2), 10)),
        source="kuangliu/pytorch-cifar, models/vgg.py, counted by thop in the README of a fork",
        more=VGG_BIASES["VGG11"],
    ),
    Count(
        *("VGG13", 10, "9.42", 9_416_010, vgg_size((2, 2, 2, 2, 2), 10)),
        source="kuangliu/pytorch-cifar, models/vgg.py, counted by thop in the README of a fork",
        more=VGG_BIASES["VGG13"],
    ),
    Count(
        *("VGG16", 10, "14.73", 14_728_266, vgg_size((2, 2, 3, 3, 3), 10)),
        source="kuangliu/pytorch-cifar, models/vgg.py; da2so/DA2Lite, model_zoo/README.md: 14.73M",
        more=VGG_BIASES["VGG16"],
    ),
    Count(
        *("VGG19", 10, "20.04", 20_040_522, vgg_size((2, 2, 4, 4, 4), 10)),
        source="bearpaw/pytorch-classification, README: vgg19_bn 20.04M",
        more=VGG_BIASES["VGG19"],
    ),
    Count(
        *("ResNet18", 100, "11.2", 11_220_132, basic_size((2, 2, 2, 2), 100)),
        source="weiaicunzai/pytorch-cifar100, README: 11.2M",
    ),
    Count(
        *("ResNet34", 100, "21.3", 21_328_292, basic_size((3, 4, 6, 3), 100)),
        source="weiaicunzai/pytorch-cifar100, README: 21.3M",
    ),
    Count(
        *("ResNet50", 100, "23.7", 23_705_252),
        bottleneck_size((3, 4, 6, 3), (64, 128, 256, 512), (256, 512, 1024, 2048), 1, 100),
        source="weiaicunzai/pytorch-cifar100, README: 23.7M",
    ),
    Count(
        *("ResNet101", 100, "42.7", 42_697_380),
        bottleneck_size((3, 4, 23, 3), (64, 128, 256, 512), (256, 512, 1024, 2048), 1, 100),
        source="weiaicunzai/pytorch-cifar100, README: 42.7M",
    ),
    Count(
        *("ResNeXt29", 10, "34.43", None),
        bottleneck_size((3, 3, 3), (512, 1024, 2048), (256, 512, 1024), 8, 10),
        source="arXiv 1611.05431, table 7: 34.4M; bearpaw/pytorch-classification, README: 34.43M",
    ),
    Count(
        *("ResNeXt50", 1000, "25.03", 25_028_904),
        bottleneck_size((3, 4, 6, 3), (128, 256, 512, 1024), (256, 512, 1024, 2048), 32, 1000),
        source="pytorch/vision, resnext50_32x4d, num_params (ImageNet, 7×7 stem)",
        more=STEM_7X7,
    ),
    Count(
        *("WideResNet16_4", 10, "2.75", 2_748_890, wide_size(16, 4, 10)),
        source="public counts of WRN-16-4, for instance 2.75M in READMEs on CIFAR-10",
    ),
    Count(
        *("WideResNet28_10", 100, "36.5", 36_536_884, wide_size(28, 10, 100)),
        source="osmr/imgclsmob, wrn28_10_cifar100; arXiv 1605.07146: 36.5M",
    ),
]


@pytest.fixture
def zero_kernels(monkeypatch):
    """Kernels of zeros: counting needs no random numbers, and 250 million take long."""
    zeros = keras.initializers.Zeros()
    monkeypatch.setattr(
        keras.initializers.HeNormal, "__call__", lambda self, shape, dtype=None: zeros(shape, dtype)
    )


@pytest.mark.parametrize("count", PUBLISHED, ids=lambda count: count.network)
def test_parameters_equal_the_published_count(count, zero_kernels):
    model = getattr(applications, count.network)(classes=count.classes)
    size = trainable_size(model)
    assert size == count.arithmetic
    if count.exact is not None:
        assert size + count.more == count.exact
    if count.network in VGG_BIASES:
        convs = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
        assert sum(layer.filters for layer in convs) == count.more
    decimals = len(count.millions.split(".")[1])
    assert f"{(size + count.more) / 1e6:.{decimals}f}" == count.millions
    # What is not trainable are two moving statistics beside two parameters of each BatchNorm.
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert model.count_params() - size == sum(2 * layer.gamma.shape[0] for layer in norms)


def test_every_network_has_a_published_count():
    assert {count.network for count in PUBLISHED} | {"WideResNet"} == set(applications.__all__)


def test_wide_resnet_of_another_depth_and_width(zero_kernels):
    model = applications.WideResNet(16, 10, classes=10)
    # osmr/imgclsmob, wrn16_10_cifar10
    assert trainable_size(model) == wide_size(16, 10, 10) == 17_116_634


# Shapes, names, arithmetic of the blocks --------------------------------------------------------


def test_output_shape(family):
    for shape in [(32, 32, 3), (28, 28, 1), (64, 48, 3)]:
        model = family(input_shape=shape, classes=7)
        scores = model(np.zeros((2, *shape), "float32"), training=False)
        assert scores.shape == (2, 7)
        np.testing.assert_allclose(keras.ops.sum(scores, axis=-1), 1.0, rtol=1e-5)
    free = family(input_shape=(None, None, 3), classes=7)
    assert free(np.zeros((1, 33, 20, 3), "float32"), training=False).shape == (1, 7)


RESOLUTIONS = {  # side of the map at the end of each stage, for 32×32 pixels
    "VGG16": [16, 8, 4, 2, 1],
    "ResNet18": [32, 16, 8, 4],
    "ResNeXt29": [32, 16, 8],
    "ResNeXt50": [32, 16, 8, 4],
    "WideResNet16_4": [32, 16, 8],
}


def test_stage_resolutions():
    for name, expected in RESOLUTIONS.items():
        sides = {}
        for layer in getattr(applications, name)(width=1 / 32).layers:
            if stage := re.match(r"stage\d+", layer.name):
                sides[stage.group()] = layer.output.shape[1:3]
        assert list(sides.values()) == [(side, side) for side in expected], name


def test_odd_sizes_round_up(family):
    # 25 -> 13 -> 7 -> 4 -> 2 -> 1, for pooling and for strided convolutions alike.
    model = family(input_shape=(25, 25, 3))
    sides = [layer.output.shape[1] for layer in model.layers if layer.name.startswith("stage")]
    assert set(sides) - {27, 15, 9} <= {25, 13, 7, 4, 2, 1}  # 27, 15, 9: padded for a stride


def test_quarter_width(zero_kernels):
    # Nearly all parameters are in convolutions, whose count goes with the square of the width.
    for count in PUBLISHED:
        if count.network in ("VGG16", "ResNet18", "ResNeXt29", "WideResNet16_4"):
            model = getattr(applications, count.network)(width=0.25, classes=count.classes)
            assert trainable_size(model) == pytest.approx(count.arithmetic / 16, rel=0.05)


def test_channels_are_rounded_to_a_positive_multiple():
    assert blocks.scaled(64, 1.0) == 64
    assert blocks.scaled(64, 0.3) == 19  # 19.2
    assert blocks.scaled(3, 0.5) == 2  # halves go up
    assert blocks.scaled(64, 1e-3) == 1
    assert blocks.scaled(128, 0.3, 32) == 32  # 38.4
    assert blocks.scaled(128, 1.6, 32) == 192  # 204.8
    assert blocks.scaled(128, 1e-3, 32) == 32


def test_tiny_width_builds(family):
    assert family(width=1e-3, classes=3).output.shape == (None, 3)


@pytest.mark.parametrize("name, groups, count", [("ResNeXt29", 8, 9), ("ResNeXt50", 32, 16)])
def test_convolutions_are_grouped(name, groups, count):
    model = getattr(applications, name)(width=0.5)
    grouped = [layer for layer in model.layers if getattr(layer, "groups", 1) > 1]
    assert len(grouped) == count
    for layer in grouped:
        assert (layer.groups, layer.filters) == (groups, layer.input.shape[-1])
        # The kernel sees the input channels of one group only.
        assert layer.kernel.shape == (3, 3, layer.filters // groups, layer.filters)
    first = {"ResNeXt29": (3, 3, 32, 256), "ResNeXt50": (3, 3, 2, 64)}
    assert grouped[0].kernel.shape == first[name]


@pytest.mark.parametrize("padding, strides, dilation", [("same", 2, 1), ("valid", 1, 2)])
def test_grouped_convolution_is_that_of_keras(padding, strides, dilation):
    arguments = {"groups": 4, "padding": padding, "strides": strides, "dilation_rate": dilation}
    ours = applications.grouped.GroupedConv2D(16, 3, **arguments)
    keras_own = keras.layers.Conv2D(16, 3, **arguments)
    x = keras.random.normal((2, 9, 9, 8))
    ours.build(x.shape)
    keras_own.build(x.shape)
    keras_own.set_weights(ours.get_weights())
    results = []
    for layer in (ours, keras_own):
        with tf.GradientTape() as tape:
            y = layer(x)
            loss = tf.reduce_sum(y * y)
        results.append([y, *tape.gradient(loss, layer.trainable_variables)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("onednn", ["0", "1"])
def test_grouped_convolution_trains_with_and_without_onednn(onednn):
    """Without oneDNN a CPU has no gradient of the kernel of TensorFlow, nor the kernel joined with a bias."""
    code = """if True:
        import keras, numpy as np
        from keras_exitens.applications.grouped import GroupedConv2D
        image = keras.Input((8, 8, 4))
        x = GroupedConv2D(4, 3, groups=2, activation="relu")(image)
        model = keras.Model(image, keras.layers.Dense(1)(keras.layers.Flatten()(x)))
        model.compile("sgd", "mse")
        images = np.random.default_rng(0).normal(size=(4, 8, 8, 4))
        assert np.isfinite(model.fit(images, np.ones(4), verbose=0).history["loss"]).all()
        assert np.isfinite(model.predict(images, verbose=0)).all()
    """
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": onednn}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_layer_names():
    names = [layer.name for layer in applications.ResNet18(width=0.125).layers]
    assert len(set(names)) == len(names)
    assert names[0] == "image"
    assert names[-2:] == ["avg_pool", "predictions"]
    expected = {"stem_conv", "stage2_block1_conv1", "stage2_block1_shortcut", "stage4_block2_add"}
    assert expected | {"stage4_block2_out"} <= set(names)
    assert "stage1_block1_shortcut" not in names  # the shapes agree: identity


def test_default_model_names():
    for name in applications.__all__:
        default = inspect.signature(getattr(applications, name)).parameters["name"].default
        assert default.replace("_", "") == name.lower().replace("_", "")


def test_strided_convolution_samples_where_pytorch_does():
    # Padded by one pixel on each side, the middle of the kernel falls on pixels 0, 2, 4, …
    image = keras.Input((8, 7, 1))
    model = keras.Model(image, blocks.conv(image, 1, 3, stride=2, name="conv"))
    kernel = np.zeros((3, 3, 1, 1), "float32")
    kernel[1, 1] = 1.0
    model.set_weights([kernel])
    x = np.random.default_rng(0).normal(size=(1, 8, 7, 1)).astype("float32")
    np.testing.assert_array_equal(model(x), x[:, ::2, ::2])


def test_residual_block_with_silent_branch_is_the_identity():
    image = keras.Input((6, 6, 4))
    model = keras.Model(image, blocks.residual_block(image, 4, 1, name="block"))
    model.get_layer("block_conv2_bn").gamma.assign(np.zeros(4))
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 4)).astype("float32")
    np.testing.assert_array_equal(model(x, training=False), np.maximum(x, 0))


def test_wide_resnet_shortcut_starts_from_the_activated_map():
    model = applications.WideResNet(10, 2, width=0.25)
    assert (
        model.get_layer("stage2_block1_shortcut").input is model.get_layer("stage2_block1_preact_relu").output
    )
    model = applications.WideResNet(16, 2, width=0.25)
    addends = model.get_layer("stage1_block2_add").input
    assert any(tensor is model.get_layer("stage1_block1_add").output for tensor in addends)


def test_settings_of_the_layers(family):
    model = family(classifier_activation=None)
    assert model.get_layer("predictions").activation is keras.activations.linear
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            assert (layer.epsilon, layer.momentum) == (1e-5, 0.9)
        if isinstance(layer, keras.layers.Conv2D):
            assert not layer.use_bias
            assert isinstance(layer.kernel_initializer, keras.initializers.HeNormal)


# Errors -----------------------------------------------------------------------------------------


ILLEGAL = [
    *(({"width": width}, "`width` is out of range") for width in (0, -1.0, float("nan"), "wide")),
    *(({"classes": classes}, "`classes` is out of range") for classes in (0, -3, None)),
    ({"classes": 2.5}, "`classes` is not a whole number"),
    *(
        ({"input_shape": shape}, "not the shape of one image")
        for shape in [(32, 32), (None, 32, 32, 3), 32, None, "abc"]
    ),
    *(
        ({"input_shape": shape}, r"`input_shape\[[02]\]` is out of range")
        for shape in [(32, 32, 0), (32, 32, None), (-1, 32, 3)]
    ),
    ({"classifier_activation": "no such activation"}, "no such activation"),  # Keras's own error
]


def test_illegal_arguments(family):
    for arguments, message in ILLEGAL:
        with pytest.raises(ValueError, match=message):
            family(**arguments)


SMALLEST = {"VGG11": 17, "ResNet18": 5, "ResNeXt29": 3, "WideResNet16_4": 3}


def test_smallest_image():
    for name, smallest in SMALLEST.items():
        network = getattr(applications, name)
        model = network(input_shape=(smallest, smallest, 3), width=1 / 16)
        assert model.get_layer("avg_pool").input.shape[1:3] == (1, 1)
        with pytest.raises(ValueError, match=f"at least {smallest} pixels"):
            network(input_shape=(32, smallest - 1, 3))


def test_illegal_wide_resnet_depth_names_the_nearest():
    nearest = {27: "22 or 28", 29: "28 or 34", 3: "10$", 4: "10$", -8: "10$", 12.5: "10 or 16"}
    for depth, legal in nearest.items():
        with pytest.raises(ValueError, match=f"take the nearest: {legal}"):
            applications.WideResNet(depth=depth)


def test_illegal_widen_factor():
    with pytest.raises(ValueError, match="`widen_factor` is out of range"):
        applications.WideResNet(widen_factor=0)


# Use --------------------------------------------------------------------------------------------


def test_channels_first():
    keras.config.set_image_data_format("channels_first")
    try:
        model = applications.ResNeXt29(input_shape=(3, 32, 16), width=1 / 64)
        assert model.get_layer("stage3_block3_out").output.shape == (None, 16, 8, 4)
        with pytest.raises(ValueError, match=r"\(channels, height, width\)"):
            applications.ResNet18(input_shape=(3, 32, 4))
    finally:
        keras.config.set_image_data_format("channels_last")


def test_saving_keeps_the_outputs(family, tmp_path):
    model = family(input_shape=(20, 20, 3), classes=5)
    random = np.random.default_rng(0)
    # BatchNorm statistics other than 0 and 1, so that losing them would show.
    model.set_weights([w + random.uniform(0.05, 0.1, w.shape).astype(w.dtype) for w in model.get_weights()])
    x = random.normal(size=(3, 20, 20, 3)).astype("float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x, training=False), model(x, training=False))
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]


def test_a_training_step_lowers_the_loss(family):
    model = family(input_shape=(17, 17, 1), classes=4)
    # Eagerly, for tracing the graph would take longer than the two steps.
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy", run_eagerly=True)
    x = np.random.default_rng(0).normal(size=(8, 17, 17, 1)).astype("float32")
    y = np.arange(8) % 4
    first = model.train_on_batch(x, y)
    second = model.train_on_batch(x, y)  # the loss before this second step, on the same batch
    assert second < first


def test_docstrings_are_complete_and_their_examples_run():
    for name in applications.__all__:
        network = getattr(applications, name)
        headings = re.findall(r"^(\w+):$", network.__doc__, re.MULTILINE)
        assert headings == ["Args", "Returns", "Raises", "Example", "Reference"]
        for argument in inspect.signature(network).parameters:
            assert f"\n    {argument}: " in network.__doc__
        assert re.search(r"arXiv\s+\d{4}\.\d{4,5}", network.__doc__)
        assert not re.search(r"\{\w+\}", network.__doc__)
        (example,) = re.findall(r"```python\n(.*?)```", network.__doc__, re.DOTALL)
        scope = {"keras_exitens": keras_exitens}
        exec(example, scope)
        assert isinstance(scope["model"], keras.Model)


LOAD = """if True:
    import sys
    import keras, numpy as np
    model = keras.models.load_model(sys.argv[1])
    found = model.predict(np.load(sys.argv[2])["x"], verbose=0)
    assert not any(name.startswith("keras_exitens") for name in sys.modules)
    np.testing.assert_allclose(found, np.load(sys.argv[2])["y"], atol=1e-6)
"""


@pytest.mark.parametrize("name", ["VGG11", "ResNet18", "ResNeXt29", "ResNeXt50"])
def test_a_stripped_network_needs_nothing_of_this_library(name, tmp_path):
    width = 0.125 if "ResNeXt" in name else 0.0625
    model = keras_exitens.add_exits(getattr(applications, name)(input_shape=(32, 32, 3), width=width), 2)
    plain = keras_exitens.strip_exits(model)
    assert {type(layer).__module__.partition(".")[0] for layer in plain.layers} == {"keras"}
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    final = keras_exitens.strip_exits(model, activation=None)
    np.testing.assert_allclose(plain(x), tf.nn.softmax(final(x)), atol=1e-6)
    # The variables are those of the model, and the layers take part in both.
    assert {id(v) for v in plain.variables} <= {id(v) for v in model.variables}
    plain.set_weights([w * 0.9 for w in plain.get_weights()])
    np.testing.assert_allclose(plain(x), tf.nn.softmax(model(x)["final"]), atol=1e-6)
    early = keras_exitens.strip_exits(model, "exit_1")
    np.testing.assert_allclose(early(x), tf.nn.softmax(model(x)["exit_1"]), atol=1e-6)
    again = keras_exitens.strip_exits(keras_exitens.add_exits(plain, 1))
    np.testing.assert_allclose(again(x), plain(x), atol=1e-6)
    plain.save(tmp_path / "plain.keras")
    np.savez(tmp_path / "expected.npz", x=x, y=plain.predict(x, verbose=0))
    command = [
        sys.executable,
        "-I",
        "-c",
        LOAD,
        str(tmp_path / "plain.keras"),
        str(tmp_path / "expected.npz"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]

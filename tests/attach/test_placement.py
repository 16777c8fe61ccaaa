"""Where exits go: by compute, by stage, by name; and what is refused."""

import itertools
import math
import os
import pathlib
import re
import subprocess
import sys
import warnings

import harness
import keras
import numpy as np
import pytest
from harness import (
    CLASSES,
    NETWORKS,
    SOME,
    classify,
    conv,
    deep_nested,
    dense_concat,
    images,
    nested,
    nested_twice,
    operators,
    plain,
    same,
    sequential,
    source,
    sources,
    state,
)
from keras import layers

import keras_exitens as kx
from keras_exitens._attach import placement as placement_rules
from keras_exitens._graph.counting import count_operations
from keras_exitens._graph.dag import Graph
from keras_exitens._graph.flattening import flatten


def placed(model, *arguments, **options):
    """Names of the layers that exits are attached to."""
    exits = kx.add_exits(model, *arguments, head="linear", **options)
    return sources(exits, kx.exit_names(exits))


def unevenness(segments):
    return sum(s**2 for s in segments)


# By compute --------------------------------------------------------------------------------------


def plain_cost(widths, strides, size, classes=CLASSES, in_channels=3):
    """Multiply-adds of each convolution of `plain`, and of its classifier, by hand."""
    counts = []
    for filters, stride in zip(widths, strides, strict=True):
        size = -(-size // stride)
        counts.append(size * size * filters * 9 * in_channels)
        in_channels = filters
    return counts, in_channels * classes


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("exits", [1, 2, 3])
def test_compute_is_the_best_of_all_subsets_but_for_small_moves(seed, exits):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 9))
    widths, strides = (rng.integers(2, 24, n).tolist(), rng.choice([1, 1, 2], n).tolist())
    model = plain(widths, strides)
    counts, classifier = plain_cost(widths, strides, 32)
    total = sum(counts) + classifier
    reached = np.cumsum(counts)[:-1].tolist()  # after the last convolution there is no inner map

    # A linear head: to the width of the last map where the exit has another one, then to the classes.
    heads = [(w * widths[-1] if w != widths[-1] else 0) + widths[-1] * CLASSES for w in widths]

    def segments(subset):
        between = np.diff([0, *(reached[i] for i in subset), total])
        return np.add(between, [*(heads[i] for i in subset), 0]).tolist()

    subsets = list(itertools.combinations(range(n - 1), exits))
    best = min(subsets, key=lambda subset: unevenness(segments(subset)))
    model_exits = kx.add_exits(model, exits, head="linear")
    names = sources(model_exits, kx.exit_names(model_exits))
    chosen = tuple(int(name.removeprefix("conv")) - 1 for name in names)
    if chosen != best:  # an exit moves a little to where less is kept
        sizes = [math.prod(model.get_layer(f"conv{i + 1}").output.shape[1:]) for i in range(n - 1)]
        for i, j in zip(chosen, best, strict=True):
            assert i == j or sizes[i] < sizes[j]
            assert abs(reached[i] + heads[i] - reached[j] - heads[j]) <= 0.02 * total
    # and the network that comes out is cut there
    costs = kx.cost(model_exits)
    assert np.diff([0, *costs.cumulative]).tolist() == segments(chosen)


@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_compute_is_the_best_of_all_cuts_of_an_awkward_network(build):
    """Where everything passes through one tensor; where there are too few such places, never worse."""
    model = build()
    graph = flatten(model).graph
    macs, live = [count.multiply_adds for count in count_operations(graph)], graph.live_after
    reached = np.cumsum(macs)
    pooled = next(s for s in graph.steps if isinstance(s.operation, layers.GlobalAveragePooling2D))
    width = pooled.outputs[0].shape[-1]
    heads = {}  # multiply-adds up to a cut -> those of the cheapest linear head of the cuts there
    for s in graph.steps:
        tensor = s.outputs[0]
        if s.index < pooled.index - 1 and len(live[s.index]) == 1 and len(tensor.shape) == 4:
            channels = tensor.shape[-1]
            head = (channels * width if channels != width else 0) + width * CLASSES
            end = int(reached[s.index])
            heads[end] = min(head, heads.get(end, head))
    heads.pop(0, None)
    subsets = list(itertools.combinations(sorted(heads), 2))
    assert subsets
    best = min(
        unevenness(np.add(np.diff([0, *subset, sum(macs)]), [*(heads[end] for end in subset), 0]))
        for subset in subsets
    )
    costs = kx.cost(kx.add_exits(model, 2, head="linear"))
    assert unevenness(np.diff([0, *costs.cumulative])) == best


@pytest.mark.parametrize(("blocks", "exits"), [(4, 1), (6, 2), (8, 3), (8, 1), (10, 4)])
def test_equal_blocks_are_split_evenly(blocks, exits):
    model = plain([8] * blocks, [1] * blocks, in_channels=8, size=16)
    step = blocks // (exits + 1)
    assert placed(model, exits) == [f"conv{i * step}" for i in range(1, exits + 1)]
    stages = kx.cost(kx.add_exits(model, exits)).stage_multiply_adds
    assert max(stages) - min(stages) == 8 * CLASSES  # the classifier, in the last stage


@pytest.mark.parametrize("head", ["light", "conv", "bottleneck", "separable", "linear"])
def test_heads_count_in_an_even_split(head, monkeypatch):
    """Of all choices that save something at each exit, the most even one, heads included."""
    monkeypatch.setattr(placement_rules, "NEAR", 0)  # no moves to where less is kept
    widths, strides = [8, 8, 16, 16, 32, 32, 64, 64], [1, 1, 2, 1, 2, 1, 2, 1]
    model = plain(widths, strides)
    total = sum(plain_cost(widths, strides, 32)[0]) + 64 * CLASSES

    def cumulative(subset):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kx.cost(kx.add_exits(model, [f"conv{i}" for i in subset], head=head)).cumulative

    costs = [cumulative(subset) for subset in itertools.combinations(range(1, 8), 2)]
    paying = [c for c in costs if c[1] <= total] or costs
    best = min(unevenness(np.diff([0, *c])) for c in paying)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if paying is not costs else "ignore")
        found = kx.cost(kx.add_exits(model, 2, head=head)).cumulative
    assert unevenness(np.diff([0, *found])) == best


def test_no_exit_saves_nothing_where_all_can_save_something():
    """A head costs a tenth of the network. Spread evenly, the last of four exits costs more than it all."""
    model = plain([8] * 10, [1] * 10, in_channels=8, size=16)
    with pytest.warns(UserWarning, match="'exit_4' 12.*% with the heads before it"):
        kx.add_exits(model, [f"conv{i}" for i in (2, 4, 6, 8)], head="conv")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = kx.cost(kx.add_exits(model, 4, head="conv"))
    assert found.cumulative[3] < found.backbone


def test_placement_is_deterministic():
    for build in (operators, dense_concat, nested):
        keras.backend.clear_session()  # names begin again
        first = placed(build(), 2)
        keras.backend.clear_session()
        model = build()
        assert placed(model, 2) == placed(model, 2) == first
        assert placed(keras.models.clone_model(model), 2) == first


def test_placement_is_the_same_in_every_process():
    code = (
        "import keras, keras_exitens as kx; from harness import sources;"
        "model = keras.applications.NASNetMobile(weights=None, input_shape=(64, 64, 3), classes=10);"
        "exits = kx.add_exits(model, 3, head='linear'); print('found', sources(exits, kx.exit_names(exits)))"
    )
    support = pathlib.Path(harness.__file__).parent
    path = os.pathsep.join([str(support), str(support.parents[1]), os.environ.get("PYTHONPATH", "")])
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.partition("found")[2]
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert found.pop().count("'") == 6


def test_no_exit_stands_at_full_size_where_a_later_cut_is_as_good():
    """VGG16's first block takes 13 % of the work. The exit stands after its pooling."""
    model = keras.applications.VGG16(weights=None, classes=10)
    names = placed(model, 7)
    sizes = [model.get_layer(name).output.shape[1] for name in names]
    assert names[0] == "block1_pool"
    assert max(sizes) <= 112


def test_of_cuts_close_by_the_one_with_least_to_keep():
    """The most even cut is a wide map; a narrow one comes 1.6 % of the work later."""
    x = inputs = keras.Input((16, 16, 8))
    x = conv(conv(x, 16), 11)
    x = layers.Conv2D(32, 1, name="wide")(x)
    x = layers.Conv2D(3, 1, name="narrow")(x)
    model = keras.Model(inputs, classify(conv(conv(x, 16), 16)))
    costs = kx.cost(model)
    work = {c.name: c.multiply_adds for c in costs.layers}
    total = list(itertools.accumulate(work.values()))
    distance = {name: abs(before / costs.backbone - 0.5) for name, before in zip(work, total, strict=True)}
    assert min(distance, key=distance.get) == "wide"
    assert work["narrow"] / costs.backbone < 0.02
    assert placed(model, 1) == ["narrow"]


def test_small_steps_do_not_add_up_to_a_large_move():
    """Maps that grow a little at each step, as in a dense block: an exit moves by 2 % of the work."""
    model = plain([32 + i for i in range(80)], [1] * 80, in_channels=32, size=8)
    costs = kx.cost(kx.add_exits(model, 1, head="linear"))
    assert abs(costs.stages[0] / costs.backbone - 0.5) < 0.02 + 1 / 80


def squeezed():
    """Squeeze-and-excitation on a path of its own: the squeezed map is no place for an exit."""
    x = inputs = keras.Input((16, 16, 8))
    skip = layers.Conv2D(8, 1)(inputs)
    for _ in range(4):
        x = conv(x, 8)
        s = layers.GlobalAveragePooling2D(keepdims=True)(x)
        s = layers.Conv2D(8, 1, activation="sigmoid")(layers.Conv2D(64, 1, activation="relu")(s))
        x = layers.Multiply()([x, s])
    return keras.Model(inputs, classify(conv(layers.Add()([x, skip]), 8)))


@pytest.mark.parametrize("exits", [1, 2, 3])
def test_no_exit_stands_on_a_squeezed_map(exits):
    model = kx.add_exits(squeezed(), exits, head="linear")
    assert {source(model, name).shape[1:3] for name in kx.exit_names(model)[:-1]} == {(16, 16)}


def test_no_exit_stands_after_the_last_block():
    """Though hidden Dense layers still come, as in VGG."""
    model = vgg(hidden=64)
    with pytest.raises(ValueError, match="at most 7 early"):
        kx.add_exits(model, 8)
    assert placed(model, 7)[-1] == "block4a"


def test_compute_is_the_default():
    model = plain([4, 24, 24, 4, 4, 4], [1, 1, 2, 2, 2, 2])
    assert placed(model) == placed(model, 3) == placed(model, 3, placement="compute")
    assert placed(model) != placed(model, 3, placement="stage")


def test_an_exit_stands_after_the_activation_and_the_pooling_of_a_convolution():
    """Of the cheap layers that follow a convolution, the last of those with the least to keep; by stage, the
    last at that resolution."""
    assert placed(sequential(), 2) == ["a", "b_relu"]
    x = inputs = keras.Input((32, 32, 3))
    for i in (1, 2, 3):
        x = layers.ZeroPadding2D(1, name=f"pad{i}")(x)
        x = layers.ReLU(name=f"relu{i}")(layers.Conv2D(8, 3, name=f"conv{i}")(x))
        x = layers.MaxPooling2D(2, name=f"pool{i}")(x)
    model = keras.Model(inputs, classify(x))
    assert placed(model, 2) == ["pool1", "pool2"]
    assert placed(model, 2, placement="stage") == ["relu1", "relu2"]


@pytest.mark.parametrize("placement", ["compute", "stage"])
def test_no_exit_stands_on_padding(placement):
    """A padded map says no more than the map, and its size is no stage of the network."""
    model = keras.applications.MobileNet(
        weights=None, alpha=0.25, classes=CLASSES, input_shape=(64, 64, 3), dropout=0.0
    )
    for exits in (2, 4):
        found = placed(model, exits, placement=placement)
        assert not [name for name in found if "pad" in name]


@pytest.mark.parametrize("placement", ["compute", "stage"])
@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_exits_come_before_the_last_map_and_in_order(build, placement):
    exits = 2 if placement == "compute" else 1  # one has two resolutions only
    model = kx.add_exits(build(), exits, head="linear", placement=placement)
    graph = Graph.of(model)
    last = model.get_layer("final").input
    while not isinstance(last._keras_history.operation, layers.GlobalAveragePooling2D):
        last = graph.producer(last).inputs[0]
    last = graph.producer(last).inputs[0]
    tensors = [source(model, name) for name in kx.exit_names(model)[:-1]]
    before = graph.ancestors(last) - {graph.producer(last).index}
    where = [graph.producer(t).index for t in tensors]
    assert set(where) <= before
    assert where == sorted(set(where))


def ends_in_pooling():
    """VGG for small images: the last convolution, a pooling, then straight to the classifier."""
    x = inputs = keras.Input((32, 32, 3))
    for i, filters in enumerate((4, 8, 12, 16), 1):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"block{i}")(x)
        x = layers.MaxPooling2D(2)(x)
    return keras.Model(inputs, classify(x))


@pytest.mark.parametrize("placement", ["compute", "stage"])
@pytest.mark.parametrize(
    "build", [*SOME, ends_in_pooling], ids=lambda build: getattr(build, "__name__", None)
)
def test_every_exit_saves_something(build, placement):
    """An exit that stands after all convolutions costs the whole network and its head."""
    model = build()
    with pytest.raises(ValueError, match="too few") as error:
        kx.add_exits(model, 1000, placement=placement)
    possible = int(re.search(r"at most (\d+)", str(error.value))[1])
    classifier = np.prod(model.get_layer("classifier").kernel.shape)
    for exits in (1, possible):
        costs = kx.cost(kx.add_exits(model, exits, head="linear", placement=placement))
        assert costs.stage_multiply_adds[-1] > classifier
        assert min(costs.stage_multiply_adds) > 0


# By stage ----------------------------------------------------------------------------------------


def vgg(hidden=16):
    """Two convolutions and a pooling a stage; 32, 16, 8 and 4 pixels."""
    x = inputs = keras.Input((32, 32, 3))
    for i, filters in enumerate((4, 6, 8, 10), 1):
        for j in "ab":
            x = layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"block{i}{j}")(x)
        x = layers.MaxPooling2D(2, name=f"pool{i}")(x)
    x = layers.Dense(hidden, activation="relu", name="hidden")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax", name="classifier")(x))


@pytest.mark.parametrize("exits", [1, 2, 3, 4])
def test_stages_of_a_vgg(exits):
    assert placed(vgg(), exits, placement="stage") == [f"block{i}b" for i in range(5 - exits, 5)]


def test_stages_of_a_resnet():
    """At 64 pixels the stages have 16, 8, 4 and 2; the last ends in the network's own last map."""
    model = keras.applications.ResNet50(weights=None, classes=CLASSES, input_shape=(64, 64, 3))
    names = ["conv2_block3_out", "conv3_block4_out", "conv4_block6_out"]
    assert placed(model, 3, placement="stage") == names
    assert placed(model, 1, placement="stage") == names[-1:]


def test_stages_of_a_plain_network():
    model = plain([4, 4, 6, 6, 8, 8, 8], [1, 1, 2, 1, 2, 1, 1])
    assert placed(model, 2, placement="stage") == ["conv2", "conv4"]
    assert placed(model, 1, placement="stage") == ["conv4"]


def test_stages_of_an_oblong_image():
    x = inputs = keras.Input((32, 12, 3))
    for i, strides in enumerate(((2, 1), 1, (1, 2), 1, 2, 1), 1):
        x = conv(x, 4 + i, strides, name=f"conv{i}")
    found = kx.add_exits(keras.Model(inputs, classify(x)), 2, placement="stage")
    shapes = [source(found, name).shape[1:] for name in ("exit_1", "exit_2")]
    assert shapes == [(16, 12, 6), (16, 6, 8)]


def test_stages_come_in_order_where_a_resolution_returns():
    """16, 8, 4, again 8, and then 2 pixels. The last map of each, in the order computed: 16, 4, 8."""
    x = inputs = keras.Input((16, 16, 3))
    x = conv(x, 4)
    x = conv(conv(x, 5, 2), 6, 2)
    x = conv(layers.UpSampling2D()(x), 7)
    x = conv(x, 8, 4)
    exits = kx.add_exits(keras.Model(inputs, classify(x)), 3, placement="stage", head="linear")
    tensors = [source(exits, name) for name in kx.exit_names(exits)[:-1]]
    where = [Graph.of(exits).producer(t).index for t in tensors]
    assert where == sorted(where)
    assert [t.shape[1:] for t in tensors] == [(16, 16, 4), (4, 4, 6), (8, 8, 7)]
    assert min(kx.cost(exits).stage_multiply_adds) > 0


# By name -----------------------------------------------------------------------------------------


def test_exits_stand_where_they_are_named():
    model = plain([4, 6, 8, 8], [1, 2, 1, 2])
    assert placed(model, ["conv1", "conv3"]) == ["conv1", "conv3"]
    assert placed(model, ("conv2",)) == ["conv2"]
    assert placed(model, ["conv4"]) == ["conv4"]  # the last map itself


def test_layers_of_nested_models():
    found = kx.add_exits(deep_nested(), ["middle/inner/inner_a", "middle/inner", "middle"], head="linear")
    operations = [source(found, name)._keras_history.operation for name in kx.exit_names(found)[:-1]]
    assert operations[0].name == "inner_a"
    shapes = [source(found, name).shape[1:] for name in kx.exit_names(found)[:-1]]
    assert shapes == [(16, 16, 4), (8, 8, 6), (8, 8, 8)]


def test_an_operator_can_be_named():
    model = operators()
    names = [op.name for op in model.operations if type(op).__name__ in ("Add", "Relu")][:2]
    assert len(names) == 2
    assert placed(model, names) == names


def test_a_model_called_twice_is_known_by_its_first_call():
    found = kx.add_exits(nested_twice(), ["block/twice"], head="linear")
    graph = Graph.of(found)
    calls = [s.outputs[0] for s in graph.steps if s.operation.name == "twice"]
    assert len(calls) == 2
    assert source(found, "exit_1") is calls[0]


def twin_bodies():
    """Two nested models whose layers have the same names."""

    def body(name, channels):
        convs = [layers.Conv2D(4, 3, padding="same", activation="relu", name=n) for n in ("one", "two")]
        return keras.Sequential([keras.Input((8, 8, channels)), *convs], name=name)

    model = [keras.Input((8, 8, 3)), body("first", 3), body("second", 4), layers.Conv2D(6, 3)]
    return keras.Sequential(
        [*model, layers.GlobalAveragePooling2D(), layers.Dense(CLASSES, activation="softmax")]
    )


@pytest.mark.parametrize("exits", [["first/one", "second/one"], ["second"], 3], ids=str)
def test_nested_models_with_layers_of_the_same_name_are_all_opened(exits, tmp_path):
    model = twin_bodies()
    x = images(model)
    found = kx.add_exits(model, exits, head="linear")
    assert len(kx.exit_names(found)) == (exits if exits == 3 else len(exits)) + 1
    np.testing.assert_allclose(keras.ops.softmax(found(x)["final"]), model(x), atol=1e-6)
    found.save(tmp_path / "model.keras")
    assert same(keras.saving.load_model(tmp_path / "model.keras")(x), found(x))
    assert {id(v) for v in model.variables} <= {id(v) for v in found.variables}


# What is refused ---------------------------------------------------------------------------------

FOUR = ([4, 6, 8, 8], [1, 2, 1, 2])

REFUSED = {
    "unknown name": (["conv1", "convv3"], r"no layer 'convv3'(?s:.*)did you mean 'conv3'"),
    "unknown name in a nested model": (["sub/conv1"], "no layer 'sub/conv1'"),
    "the input": (["keras_tensor"], "no layer"),
    "out of order": (["conv3", "conv1"], r"repeated or out of order(?s:.*)\['conv1', 'conv3'\]"),
    "repeated": (["conv1", "conv1"], r"repeated or out of order(?s:.*)\['conv1'\]"),
    "the pooled vector": (["pool"], "No exit can stand at layer 'pool'"),
    "the classifier": (["conv1", "classifier"], "No exit can stand at layer 'classifier'"),
    "negative": (-2, "`exits` is out of range"),
    "an empty list": ([], "neither a number nor a list"),
    "a name": ("conv1", r"neither a number nor a list(?s:.*)exits=\['conv1'\]"),
    "a flag": (True, "neither a number nor a list"),
    "a fraction": (1.5, "neither a number nor a list"),
    "nothing": (None, "neither a number nor a list"),
    "a layer": ([layers.Conv2D(4, 3, name="conv1")], "no layer"),
    "a list in a list": ([["conv1"]], "no layer"),
    "a number in a list": ([1], "no layer"),
    "too many": (4, r"too few places(?s:.*)at most 3"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_exits_that_are_refused(case):
    exits, message = case
    model = plain(*FOUR, size=16)
    before = state(model)
    with pytest.raises(ValueError, match=message) as error:
        kx.add_exits(model, exits)
    assert re.search(r"(?s)\n  Expected: .*\n  Received: .*\n  Fix: ", str(error.value))
    assert state(model) == before


def test_a_map_after_the_last_one_is_refused():
    """A map of one pixel, as MobileNetV3 has it between pooling and classifier."""
    inputs = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D(keepdims=True)(conv(conv(inputs, 4, 2), 6))
    x = layers.Conv2D(9, 1, activation="relu", name="squeezed")(x)
    x = layers.Flatten()(layers.Conv2D(CLASSES, 1)(x))
    with pytest.raises(ValueError, match=r"'squeezed'(?s:.*)which comes after it"):
        kx.add_exits(keras.Model(inputs, x), ["squeezed"])


@pytest.mark.parametrize("option", [{"head": "cnn"}, {"placement": "computed"}], ids=str)
@pytest.mark.parametrize("exits", [2, ["conv1"]], ids=str)
def test_unknown_options_are_refused(option, exits):
    """An option is checked even where it has no effect."""
    model = plain(*FOUR, size=16)
    before = state(model)
    (argument, value), *_ = option.items()
    with pytest.raises(ValueError, match=f"(?s)`{argument}`.*{value}.*did you mean"):
        kx.add_exits(model, exits, **option)
    assert state(model) == before


@pytest.mark.parametrize("placement", ["compute", "stage"])
@pytest.mark.parametrize("build", [operators, dense_concat, nested, vgg], ids=lambda build: build.__name__)
def test_the_message_says_how_many_exits_there_can_be(build, placement):
    model = build()
    with pytest.raises(ValueError, match="too few") as error:
        kx.add_exits(model, 1000, placement=placement)
    possible = int(re.search(r"at most (\d+)", str(error.value))[1])
    assert f"exits={possible}" in str(error.value).split("Fix")[1]
    assert len(placed(model, possible, placement=placement)) == possible
    with pytest.raises(ValueError, match=f"(?s)too few.*at most {possible} "):
        kx.add_exits(model, possible + 1, placement=placement)


def test_a_network_with_no_inner_map():
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, classify(conv(inputs, 4)))
    with pytest.raises(ValueError, match=r"(?s)too few places.*at most 0.*deeper network"):
        kx.add_exits(model, 1)


@pytest.mark.parametrize("number", [np.int64(2), np.int32(2)], ids=repr)
def test_numbers_from_numpy_are_numbers(number):
    assert placed(plain(*FOUR, size=16), number) == placed(plain(*FOUR, size=16), 2)


# Names that are taken ----------------------------------------------------------------------------


def named_network(where, name):
    """A network in which something has this name: a layer, a layer of a nested model, or the input."""
    inputs = keras.Input((16, 16, 3), name=name if where == "input" else "images")
    x = conv(inputs, 4, 2)
    body = [keras.Input(x.shape[1:]), layers.Conv2D(6, 3, name=name if where == "nested" else "a")]
    x = keras.Sequential([*body, layers.Conv2D(8, 3, name="b")], name="body")(x)
    x = layers.Conv2D(8, 3, name=name if where == "layer" else "c")(x)
    return keras.Model(inputs, classify(conv(x, 8)))


@pytest.mark.parametrize("name", ["exit_1", "exit_2_pool", "final"])
@pytest.mark.parametrize("where", ["layer", "nested", "input"])
def test_a_name_clash_is_an_error_of_ours(where, name):
    model = named_network(where, name)
    before = state(model)
    with pytest.raises(ValueError, match=f"(?s)names of exits.*Received.*{name}.*Fix"):
        kx.add_exits(model, 2)
    assert state(model) == before


@pytest.mark.parametrize("name", ["exit_3", "exit_12", "exit", "finally"])
def test_names_that_do_not_clash_are_left_alone(name):
    model = named_network("layer", name)
    exits = kx.add_exits(model, 2)
    assert kx.exit_names(exits) == ["exit_1", "exit_2", "final"]
    x = images(model)
    assert same(kx.strip_exits(exits)(x), model(x))

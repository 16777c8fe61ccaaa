"""Costs per layer, per stage, per head and per exit; the tables; what costly heads cause."""

import dataclasses
import re
import warnings

import keras
import numpy as np
import pytest
from harness import CLASSES, NETWORKS, classify, conv, images, plain, same
from keras import layers

import keras_exitens as kx
from keras_exitens._network.costs import ExitCost

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


def test_open_sizes_count_at_224_pixels():
    def network(size):
        inputs = keras.Input((size, size, 3))
        return keras.Model(inputs, classify(conv(conv(conv(inputs, 4, 2), 6, 2), 8)))

    opened, fixed = (kx.cost(kx.add_exits(network(size), 1)) for size in (None, 224))
    assert opened == fixed
    assert opened.stage_other == fixed.stage_other
    assert opened.backbone == 112**2 * 4 * 27 + 56**2 * 6 * 36 + 56**2 * 8 * 54 + 8 * CLASSES


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
    loaded, costs = kx.cost(keras.saving.load_model(tmp_path / "model.keras")), kx.cost(model)
    assert loaded == costs
    assert loaded.layers == costs.layers


def test_counting_changes_nothing():
    model = kx.add_exits(staged(), 2)
    x = images(model)
    config, before = model.to_json(), model(x)
    kx.cost(model)
    assert model.to_json() == config
    assert same(model(x), before)


def test_the_table_by_exit():
    costs = kx.cost(kx.add_exits(staged(), ["conv1", "conv2"], head="linear"))
    header, *rows = str(costs).splitlines()
    assert header.split() == ["exit", "stage", "head", "cumulative", "of", "network", "parameters"]
    assert [row.split()[0] for row in rows] == ["exit_1", "exit_2", "final"]
    assert len({len(line) for line in [header, *rows]}) == 1, "columns are aligned"
    shares = [float(re.search(r"([\d.]+)%", row)[1]) for row in rows]
    np.testing.assert_allclose(shares, 100 * np.array(costs.cumulative) / sum(STAGES), atol=0.06)
    assert rows[0].split()[1:3] == ["55.30", "k"]
    assert rows[-1].split()[-1] == f"{STAGE_PARAMETERS[-1]:,}"


def test_layers_add_up_to_stages_and_heads():
    model = kx.add_exits(staged(), 2)
    costs = kx.cost(model)
    first, *_ = costs.layers
    assert dataclasses.asdict(first) == {
        "name": "conv1",
        "kind": "Conv2D",
        "exit": "exit_1",
        "part": "stage",
        "shape": (16, 16, 8),
        "multiply_adds": STAGES[0],
        "other": 2 * 16**2 * 8,  # bias and ReLU
        "parameters": STAGE_PARAMETERS[0],
    }
    for part in ("stage", "head"):
        for what in ("multiply_adds", "other", "parameters"):
            for name, number in zip(costs.names, getattr(costs, f"{part}_{what}"), strict=True):
                own = [c for c in costs.layers if c.part == part and c.exit == name]
                assert sum(getattr(c, what) for c in own) == number
    assert sum(c.parameters for c in costs.layers) == costs.parameters == model.count_params()
    assert {c.name for c in costs.layers} == {
        op.name for op in model.operations if not isinstance(op, layers.InputLayer)
    }


def test_other_operations_of_stages_and_heads():
    costs = kx.cost(kx.add_exits(staged(), ["conv1", "conv2"], head="linear"))
    maps = (16**2 * 8, 8**2 * 12, 8**2 * 16)
    # bias and ReLU of each convolution; the pooling and the bias of the classifier
    assert costs.stage_other == (2 * maps[0], 2 * maps[1], 2 * maps[2] + maps[2] + CLASSES)
    # pooling and the two biases
    assert costs.head_other == (maps[0] + 16 + CLASSES, maps[1] + 16 + CLASSES, 0)


def test_the_table_by_stage_and_by_layer():
    costs = kx.cost(kx.add_exits(staged(), ["conv1", "conv2"], head="linear"))
    header, *rows = costs.table("stage").splitlines()
    assert header.split() == ["exit", "part", "multiply-adds", "other", "operations", "parameters"]
    assert [row.split()[:2] for row in rows] == [
        ["exit_1", "stage"],
        ["exit_1", "head"],
        ["exit_2", "stage"],
        ["exit_2", "head"],
        ["final", "stage"],
    ]
    assert rows[0].split()[2:] == [f"{n:,}" for n in (STAGES[0], 2 * 16**2 * 8, STAGE_PARAMETERS[0])]
    _, *rows = costs.table("layer").splitlines()
    assert len(rows) == len(costs.layers)
    numbers = [f"{n:,}" for n in (STAGES[0], 2 * 16**2 * 8, STAGE_PARAMETERS[0])]
    assert rows[0].split() == ["conv1", "Conv2D", "16×16×8", "exit_1", "stage", *numbers]
    with pytest.raises(ValueError, match=r"`by`(?s:.*)did you mean 'layer'"):
        costs.table("layers")


# Some exits switched off, other units, plain networks --------------------------------------------


@pytest.mark.parametrize("unit", ["multiply-adds", "seconds"])
def test_a_disabled_exit_does_not_run_its_head(unit):
    scale = 1 if unit == "multiply-adds" else 0.25
    costs = ExitCost(
        ("exit_1", "exit_2", "final"), (10 * scale, 20 * scale, 30 * scale), (1 * scale, 2 * scale, 0), unit
    )
    assert costs.cumulative == tuple(scale * n for n in (11, 33, 63))
    assert costs.only([True, True, True]) == costs
    assert costs.only([False, True, True]).cumulative == tuple(scale * n for n in (10, 32, 62))
    assert costs.only(np.array([True, False, True])).cumulative == tuple(scale * n for n in (11, 31, 61))
    off = costs.only([False, False, True])
    assert off.cumulative[-1] == off.backbone == costs.backbone == 60 * scale
    assert off.unit == unit
    assert costs.cumulative == tuple(scale * n for n in (11, 33, 63)), "the original is left alone"


def test_switching_an_exit_off_is_what_taking_it_off_costs():
    model = kx.add_exits(staged(), ["conv1", "conv2"])
    costs = kx.cost(model).only([False, True, True])
    without = kx.cost(kx.add_exits(staged(), ["conv2"]))
    assert costs.cumulative[1:] == without.cumulative
    assert costs.parameters == without.parameters
    assert sum(costs.head_other) == sum(without.head_other)


@pytest.mark.parametrize("enabled", [[True, True], [True, True, False], []], ids=str)
def test_flags_that_do_not_fit_are_refused(enabled):
    costs = kx.cost(kx.add_exits(staged(), 2))
    with pytest.raises(ValueError, match=r"`enabled` does not fit(?s:.*)3 flags, for exit_1, exit_2, final"):
        costs.only(enabled)


def test_an_exit_cost_made_by_hand_is_checked():
    with pytest.raises(ValueError, match="2 names, 2 stages, 1 heads"):
        ExitCost(("exit_1", "final"), (1, 2), (1,))


def test_seconds_in_the_table():
    table = str(ExitCost(("exit_1", "final"), (0.002, 0.006), (0.001, 0.0), "seconds")).splitlines()
    assert table[1].split()[:6] == ["exit_1", "2.000", "ms", "1.000", "ms", "3.000"]
    assert table[2].split()[-2] == "112.5%"


@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_a_plain_network_is_one_with_the_final_exit_alone(build):
    model = build()
    costs = kx.cost(model)
    assert costs.names == ("final",)
    assert costs.parameters == model.count_params()
    assert costs.cumulative == (kx.cost(kx.add_exits(model, 0)).backbone,)


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


class Looping(layers.Layer):
    """A layer whose operations cannot be told."""

    def call(self, inputs):
        return keras.ops.while_loop(lambda x: keras.ops.max(x) < 9, lambda x: (2 * x,), (inputs,))[0]

    def compute_output_shape(self, shape):
        return shape


def test_add_exits_warns_once_of_what_it_cannot_count():
    inputs = keras.Input((16, 16, 3))
    x = conv(Looping()(conv(inputs, 4)), 4, 2)
    model = keras.Model(inputs, classify(conv(x, 4, 2)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kx.add_exits(model, 1, head="linear")
    assert [str(w.message).count("Looping") for w in caught] == [1]
    assert caught[0].filename == __file__


def vgg_like():
    """VGG16 in small: narrow early maps, wide late ones, and two hidden Dense layers."""
    x = inputs = keras.Input((32, 32, 3))
    for i, filters in enumerate((4, 8, 32, 64, 64), 1):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"block{i}")(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Dense(96, activation="relu")(layers.Dense(96, activation="relu")(layers.Flatten()(x)))
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(x))


def test_an_exit_that_saves_nothing_causes_a_warning():
    exits = ["block3", "block4", "block5"]
    with pytest.warns(UserWarning, match="saves nothing") as caught:
        model = kx.add_exits(vgg_like(), exits, head="conv")
    costs, message = kx.cost(model), str(caught[0].message)
    assert all(reached > costs.backbone for reached in costs.cumulative[:-1])
    for name, reached, head in zip(costs.names[:-1], costs.cumulative, costs.heads, strict=False):
        stated = (
            f"'{name}' {reached / costs.backbone:.1%} with the heads before it, its head "
            f"{head / costs.backbone:.1%}"
        )
        assert stated in message
    assert f"{costs.backbone:,}" in message
    assert "head='light'" in message
    assert caught[0].filename == __file__


def test_an_exit_that_costs_more_than_the_next_one_causes_a_warning():
    x = inputs = keras.Input((32, 32, 8))
    x = layers.Conv2D(8, 3, padding="same", name="early")(x)
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="later")(x)
    for i in range(8):
        x = layers.Conv2D(64, 3, padding="same", strides=1 + (i == 4), name=f"body{i}")(x)
    x = layers.GlobalAveragePooling2D()(x)
    backbone = keras.Model(inputs, layers.Dense(CLASSES)(x))

    def dear_at_first(tensor, width, name):
        return layers.Conv2D(64 if name == "exit_1" else 8, 5, padding="same")(tensor)

    with pytest.warns(UserWarning, match="saves nothing") as caught:
        model = kx.add_exits(backbone, ["early", "later"], head=dear_at_first)
    costs = kx.cost(model)
    first = (costs.stages[0] + costs.heads[0]) / costs.backbone
    second = (sum(costs.stages[:2]) + costs.heads[1]) / costs.backbone
    assert 1 > first > second
    assert f"'exit_1' {first:.1%}, its head" in str(caught[0].message)
    assert f"the exit after it {second:.1%}" in str(caught[0].message)
    assert "exit_2" not in str(caught[0].message)


def test_a_light_head_causes_none():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kx.add_exits(vgg_like(), ["block3", "block4"], head="linear")

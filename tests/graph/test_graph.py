"""The graph of a network: order, ancestors, cuts, sizes, and nested models made flat."""

import keras
import numpy as np
import pytest
from harness import (
    CLASSES,
    NETWORKS,
    all_layers,
    classify,
    conv,
    deep_nested,
    images,
    nested,
    nested_twice,
    randomise,
    same,
    sequential,
)
from keras import layers, ops

from keras_exitens._graph.dag import Graph, is_map, spatial_size
from keras_exitens._graph.flattening import flatten


@pytest.fixture(params=NETWORKS, ids=lambda build: build.__name__, scope="module")
def model(request):
    keras.utils.set_random_seed(0)
    return randomise(request.param())


def flat(model):
    """A model made of what `flatten` gives."""
    found = flatten(model)
    return keras.Model(found.inputs, found.outputs)


# Order, ancestors, live tensors ----------------------------------------------------------------


def test_every_call_comes_once_and_after_what_it_needs(model):
    graph = Graph.of(flat(model))
    made = {id(t) for t in graph.inputs}
    for step in graph.steps:
        assert {id(t) for t in step.inputs} <= made
        assert not {id(t) for t in step.outputs} & made
        made |= {id(t) for t in step.outputs}
    assert {id(t) for t in graph.outputs} <= made
    assert [step.index for step in graph.steps] == list(range(len(graph.steps)))


def test_a_shared_layer_gives_one_step_a_call():
    shared = layers.Conv2D(3, 1, name="shared")
    inputs = keras.Input((4, 4, 3))
    graph = Graph.of(keras.Model(inputs, shared(shared(shared(inputs)))))
    assert [step.operation for step in graph.steps] == [shared] * 3
    # The layer has been called elsewhere too; that call is none of this graph's.
    shared(keras.Input((4, 4, 3)))
    assert len(Graph.of(keras.Model(inputs, graph.outputs)).steps) == 3


def test_ancestors_are_the_transitive_closure_of_the_inputs(model):
    graph = Graph.of(flat(model))
    maker = {id(t): step.index for step in graph.steps for t in step.outputs}
    needs = [{step.index} | {maker[id(t)] for t in step.inputs if id(t) in maker} for step in graph.steps]
    for _ in graph.steps:  # relax as often as the longest path can need
        needs = [set().union(*(needs[i] for i in need)) for need in needs]
    for step in graph.steps:
        assert graph.ancestors(step.outputs[0]) == needs[step.index]
    both = graph.steps[0].outputs[0], graph.steps[-1].outputs[0]
    assert graph.ancestors(*both) == needs[0] | needs[-1]
    assert graph.ancestors(graph.inputs[0]) == set()


def test_live_tensors_by_their_definition(model):
    graph = Graph.of(flat(model))
    outputs = {id(t) for t in graph.outputs}
    for k, live in enumerate(graph.live_after):
        exists = {id(t) for t in graph.inputs} | {id(t) for s in graph.steps[: k + 1] for t in s.outputs}
        needed = outputs | {id(t) for s in graph.steps[k + 1 :] for t in s.inputs}
        assert {id(t) for t in live} == exists & needed
        assert len(live) == len(exists & needed)


def test_a_network_can_be_cut_where_one_tensor_is_live(model):
    whole = flat(model)
    graph = Graph.of(whole)
    x = images(model)
    cuts = [live[0] for live in graph.live_after[:-1] if len(live) == 1]
    assert len(cuts) >= 4
    for cut in cuts[:: max(len(cuts) // 4, 1)]:
        first, second = keras.Model(whole.input, cut), keras.Model(cut, whole.output)
        np.testing.assert_allclose(second(first(x)), model(x), rtol=1e-5, atol=1e-6)


def test_an_output_in_the_middle_stays_live():
    inputs = keras.Input((4, 4, 3))
    middle = layers.Conv2D(3, 1)(inputs)
    end = layers.Conv2D(3, 1)(layers.Conv2D(3, 1)(middle))
    live = Graph([inputs], [middle, end]).live_after
    assert [len(tensors) for tensors in live] == [1, 2, 2]
    assert all(any(t is middle for t in tensors) for tensors in live)


def test_a_dead_output_of_a_layer_is_not_live():
    inputs = keras.Input((4, 4, 4))
    left, _ = ops.split(inputs, 2, axis=-1)
    graph = Graph.of(keras.Model(inputs, layers.Conv2D(2, 1)(left)))
    assert [[t is left for t in live] for live in graph.live_after] == [[True], [False]]


# Shapes ----------------------------------------------------------------------------------------


def test_shapes_are_those_of_a_run(model):
    whole = flat(model)
    graph = Graph.of(whole)
    shapes = graph.nominal_shapes
    tensors = [t for step in graph.steps for t in step.outputs]
    # 224 pixels are assumed where the model leaves the size open.
    x = images(model, count=1, size=224)
    ran = keras.Model(whole.input, tensors)(x)
    for tensor, value in zip(tensors, ran, strict=True):
        assert shapes[id(tensor)] == tuple(value.shape)
    assert shapes[id(graph.inputs[0])] == x.shape


@pytest.mark.parametrize("size", [(None, 40), (40, None), (None, None)])
def test_only_open_sizes_are_assumed(size):
    inputs = keras.Input((*size, 3))
    graph = Graph.of(keras.Model(inputs, layers.Conv2D(2, 3, 2, padding="same")(inputs)))
    expected = tuple((s or 224) // 2 for s in size)
    assert graph.nominal_shapes[id(graph.outputs[0])] == (1, *expected, 2)


def test_a_fixed_batch_counts_as_one_row():
    inputs = keras.Input(batch_shape=(8, 6, 6, 3))
    graph = Graph.of(keras.Model(inputs, layers.Conv2D(2, 3)(inputs)))
    assert graph.nominal_shapes[id(graph.outputs[0])] == (1, 4, 4, 2)


@pytest.mark.parametrize(
    ("shape", "data_format", "expected"),
    [((1, 5, 7, 3), "channels_last", (5, 7)), ((1, 3, 5, 7), "channels_first", (5, 7))],
)
def test_spatial_size(shape, data_format, expected):
    assert spatial_size(shape, data_format) == expected


def test_maps_have_four_dimensions():
    shapes = {(5,): False, (5, 3): False, (5, 5, 3): True, (5, 5, 5, 3): False}
    assert {shape: is_map(keras.Input(shape)) for shape in shapes} == shapes


# Flattening ------------------------------------------------------------------------------------


def test_flattening_keeps_the_numbers_and_the_layers(model):
    whole = flat(model)
    x = images(model)
    assert same(whole(x), model(x))
    assert not any(isinstance(layer, keras.Model) for layer in whole.layers)
    assert not any(isinstance(step.operation, keras.Model) for step in Graph.of(whole).steps)

    def own(found):
        return {id(layer) for layer in found if not isinstance(layer, layers.InputLayer)}

    assert own(whole.layers) == own(all_layers(model))
    assert {id(v) for v in whole.weights} == {id(v) for v in model.weights}


def test_a_model_without_nested_models_comes_back_as_it_is():
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, classify(conv(inputs, 4)))
    flat = flatten(model)
    flat_inputs, flat_outputs, named = flat.inputs, flat.outputs, flat.named
    assert flat_inputs is model.input
    assert flat_outputs is model.output
    assert named["classifier"] is model.output


def test_names_of_nested_layers():
    named = flatten(deep_nested()).named
    assert {"middle", "middle/inner", "middle/inner/inner_b", "middle/middle_c", "outer"} <= set(named)
    assert not {"inner", "inner_b", "inner/inner_b"} & set(named)
    assert named["middle/inner/inner_b"]._keras_history.operation.name == "inner_b"
    named = flatten(nested()).named
    assert named["body"] is not named["body/body_b"]
    assert named["body"].shape == (None, 8, 8, 6)
    # A model called twice is known by its first call.
    flat = flatten(nested_twice())
    outputs, named = flat.outputs, flat.named
    graph = Graph([named["stem"]], [outputs])
    first = next(step for step in graph.steps if step.operation.name == "twice")
    assert named["block/twice"] is first.outputs[0]
    named = flatten(sequential()).named
    assert list(named)[:2] == ["a", "b"]


def test_structured_inputs_keep_their_structure():
    inputs = keras.Input((8, 8, 3), name="image")
    body = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3)], name="body")
    model = keras.Model({"image": inputs}, classify(body(inputs)))
    x = images(model)
    assert set(flatten(model).inputs) == {"image"}
    assert same(flat(model)({"image": x}), model({"image": x}))


def test_a_nested_model_called_by_keyword():
    body = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3)], name="body")
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, classify(body(inputs=inputs)))
    x = images(model)
    assert same(flat(model)(x), model(x))


def test_a_nested_model_casts_what_enters_it():
    """A functional model casts its inputs to the dtype of its Input: here bytes to float32."""
    body = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3)], name="body")
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    model = keras.Model(inputs, classify(body(inputs)))
    x = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3)).astype("uint8")
    assert same(flat(model)(x), model(x))


def test_a_nested_model_casts_in_half_precision_too():
    """An operator in a nested model computes in float32, as its Input has it, whatever came before."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    inside = keras.Input((8, 8, 3))
    body = keras.Model(inside, layers.Conv2D(4, 3)(inside / 3.0 - 1.0), name="body")
    inputs = keras.Input((8, 8, 3))
    model = randomise(keras.Model(inputs, classify(body(layers.Rescaling(0.3)(inputs)))))
    x = images(model)
    assert same(flat(model)(x), model(x))


def test_nested_models_may_hold_layers_of_the_same_name():
    def body(name, channels):
        return keras.Sequential(
            [keras.Input((8, 8, channels)), layers.Conv2D(4, 3, padding="same", name="conv")], name=name
        )

    model = randomise(
        keras.Sequential(
            [
                *(keras.Input((8, 8, 3)), body("first", 3), body("second", 4)),
                *(layers.GlobalAveragePooling2D(), layers.Dense(CLASSES)),
            ]
        )
    )
    x = images(model)
    assert same(flat(model)(x), model(x))


def test_a_loaded_backbone_in_a_new_model(tmp_path):
    """Automatic names begin again in a new process, so a loaded backbone's clash with the new layers'."""
    keras.backend.clear_session()
    body = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Conv2D(4, 3)], name="body")
    body.save(tmp_path / "body.keras")
    keras.backend.clear_session()
    body = keras.saving.load_model(tmp_path / "body.keras")
    top = [layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Dense(CLASSES)]
    model = randomise(keras.Sequential([keras.Input((8, 8, 3)), body, *top]))
    assert {layer.name for layer in model.layers} & {layer.name for layer in body.layers}
    x = images(model)
    assert same(flat(model)(x), model(x))

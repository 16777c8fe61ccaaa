"""A multi-exit model is parsed once, for as long as it lives; what its layers can change is read anew."""

import collections
import gc
import weakref

import harness
import keras
import numpy as np
import pytest
from keras import layers

import keras_exitens as kx
from keras_exitens._graph import dag, flattening
from keras_exitens._network.exit_network import ExitNetwork


@pytest.fixture
def walks(monkeypatch):
    """Counts how often the calls of a graph are walked, and its shapes worked out."""
    counts = collections.Counter()
    walk, shapes = dag.calls_between, dag.Graph.shapes

    def counted(*arguments):
        counts["walks"] += 1
        return walk(*arguments)

    def counted_shapes(*arguments):
        counts["shapes"] += 1
        return shapes(*arguments)

    monkeypatch.setattr(dag, "calls_between", counted)
    monkeypatch.setattr(flattening, "calls_between", counted)
    monkeypatch.setattr(dag.Graph, "shapes", counted_shapes)
    return counts


def test_from_add_exits_to_early_exit_the_network_is_walked_once(walks):
    x, y = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype("float32"), np.arange(8) % 5
    model = kx.add_exits(harness.sequential(), 2)
    assert walks == {"walks": 2, "shapes": 2}, "the network as it came, and with its exits"
    walks.clear()
    distiller = kx.ExitEnsembleDistiller(model)
    assert walks == {"walks": 1}, "the model of logits and features that it trains"
    walks.clear()
    distiller.compile("sgd", metrics=["accuracy"])
    distiller.fit(x, y, verbose=0)
    records = kx.collect(distiller, (x, y), verbose=0)
    policy = kx.calibrate(records, kx.cost(model), max_accuracy_drop=0.5)
    early = kx.EarlyExit(model, policy)
    early.predict(x, verbose=0)
    early.benchmark((x, y))
    records.check(model)
    kx.strip_exits(model)
    kx.measured_cost(model, repeats=1)
    kx.exit_names(model), kx.exit_features(model)
    assert not walks


def test_it_is_kept_with_the_model_and_not_longer():
    model = kx.add_exits(harness.sequential(), 2)
    parsed = ExitNetwork.of(model)
    assert ExitNetwork.of(model) is parsed
    assert ExitNetwork.of(keras.models.clone_model(model)) is not parsed
    model(model.input)  # the graph now leads back to the model
    gone = [weakref.ref(model), weakref.ref(parsed), weakref.ref(parsed.graph)]
    keras.backend.clear_session()
    del model, parsed
    gc.collect()
    assert not any(ref() for ref in gone)


def test_it_is_no_part_of_what_is_saved_or_counted(tmp_path):
    model = kx.add_exits(harness.sequential(), 2)
    before = ([v.path for v in model.variables], model.to_json(), len(model._flatten_layers()))
    assert ExitNetwork.of(model).features and ExitNetwork.of(model).increments
    assert ([v.path for v in model.variables], model.to_json(), len(model._flatten_layers())) == before
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert ExitNetwork.of(loaded).names == ("exit_1", "exit_2", "final")


def test_features_are_made_once_and_are_tensors_of_the_model():
    inner = harness.sequential()
    inputs = keras.Input(inner.input_shape[1:])
    scaled = keras.Sequential([keras.Input(inner.input_shape[1:]), layers.Rescaling(1 / 255)])(inputs)
    x = layers.Conv2D(4, 3)(scaled)
    first = layers.Dense(5)(layers.GlobalAveragePooling2D()(x))
    last = layers.Dense(5)(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(x)))
    model = keras.Model(inputs, {"exit_1": first, "final": last})
    features, again = kx.exit_features(model), kx.exit_features(model)
    assert list(features) == list(again)
    assert all(features[name] is again[name] for name in features)
    found = keras.Model(model.input, list(features.values()))(np.ones((2, *inner.input_shape[1:]), "float32"))
    assert [f.shape for f in found] == [(2, 4)] * 2
    features.clear()
    assert list(kx.exit_features(model)) == ["exit_1", "final"]


def test_a_sequential_model_that_grows_is_parsed_again():
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D()])
    model.add(layers.Dense(6))
    before = kx.cost(model)
    model.add(layers.Dense(7))
    assert kx.cost(model).backbone == before.backbone + 6 * 7
    model.pop()
    assert kx.cost(model) == before


def test_what_layers_change_is_seen():
    model = kx.add_exits(harness.sequential(), 2)
    before = kx.cost(model)
    classifier, rank = model.get_layer("exit_1").classifier, 2
    classifier.enable_lora(rank)
    assert kx.cost(model).parameters == before.parameters + rank * sum(classifier.kernel.shape)
    # The activation that is restored is the one that the layer has now.
    model.get_layer("final").classifier.activation = keras.activations.log_softmax
    x = np.random.default_rng(0).normal(size=(3, *model.input_shape[1:])).astype("float32")
    found = kx.strip_exits(model).predict(x, verbose=0)
    assert found.max() <= 0


@pytest.mark.parametrize(
    "make", [lambda: keras.Sequential([layers.Dense(2)]), lambda: object(), lambda: None]
)
def test_what_is_no_functional_model_is_refused(make):
    with pytest.raises(ValueError, match="This is not a multi-exit model"):
        kx.exit_names(make())
    with pytest.raises(ValueError, match="This is not a multi-exit model"):
        kx.cost(make())

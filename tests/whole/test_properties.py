"""Random convolutional networks: what must hold for every network holds for these.

`HYPOTHESIS_PROFILE=long pytest tests/whole/test_properties.py -m sweep` tries 2,000 of them, at random.
"""

import os
import tempfile

import keras
import numpy as np
import pytest
from harness import CLASSES, images, logits_by_hand, randomise, same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers, ops

import keras_exitens as kx
from keras_exitens._graph.dag import Graph, is_map
from keras_exitens._graph.flattening import flatten
from keras_exitens._network.classifier import find_classifier, last_map
from keras_exitens._stages.split import split

pytestmark = pytest.mark.filterwarnings("ignore:To leave early saves nothing")

common = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("fast", max_examples=50, derandomize=True, **common)
settings.register_profile("ci", max_examples=300, derandomize=True, **common)
settings.register_profile("long", max_examples=2000, print_blob=True, **common)

# A network is drawn as a list of blocks, a nested model as a list of them: plain data, so that a failing one
# prints in full and shrinks.
SIMPLE = st.sampled_from(["conv", "down", "norm", "act", "operators", "slice", "pool", "dropout", "reuse"])
JOINED = st.sampled_from(["residual", "dense", "inception", "excite", "long", "two"])
BLOCK = st.recursive(
    SIMPLE | JOINED,
    lambda inner: st.tuples(
        st.sampled_from(["nest", "twice", "twin", "sequential"]), st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=4,
)
NETWORK = st.fixed_dictionaries(
    {
        "blocks": st.lists(BLOCK, min_size=2, max_size=6),
        "names": st.sampled_from(["automatic", "clashing"]),
        "ending": st.sampled_from(["dense", "logits", "activation", "conv", "hidden", "norm", "sigmoid"]),
        "wrap": st.booleans(),  # preprocessing and head around a nested backbone
        "size": st.sampled_from([8, 12]),
        # Exits at these of the layers, or as many as there are places for, up to four.
        "where": st.none() | st.sets(st.integers(0, 30), min_size=1, max_size=4),
    }
)


class Builder:
    """Makes a network of what was drawn."""

    def __init__(self, recipe):
        self.recipe = recipe
        self.shared = None  # a convolution that several blocks call
        self.early = []  # maps of earlier blocks in the same model, which "long" comes back to
        self.models = 0
        self.count = {}  # of the layers of each kind in the same model

    def network(self):
        size = self.recipe["size"]
        inputs = keras.Input((size, size, 3))
        if self.recipe["wrap"]:
            inside = keras.Input((size, size, 3))
            body = keras.Model(inside, self.body(inside), name="backbone")
            x = body(layers.Rescaling(0.5)(inputs))
        else:
            x = self.body(inputs)
        return keras.Model(inputs, self.finish(x), name="network")

    def body(self, x):
        x = self.conv(x, 4)
        for block in self.recipe["blocks"]:
            x = self.block(block, x)
        return self.conv(x, 4)

    def named(self, kind, **options):
        """In a model of its own a layer may be called as others are elsewhere."""
        if self.recipe["names"] == "clashing":
            self.count[kind] = self.count.get(kind, 0) + 1
            options["name"] = f"{kind}{self.count[kind]}"
        return options

    def conv(self, x, filters=4, size=3, **options):
        return layers.Conv2D(filters, size, padding="same", **self.named("conv", **options))(x)

    def block(self, block, x):
        if not isinstance(block, str):
            return self.nested(*block, x)
        self.early = [*self.early, x][-3:]
        return getattr(self, block)(x)

    def nested(self, kind, blocks, x):
        """A nested model; `twice` is called twice, `twin` is followed by another like it."""
        for _ in range(2 if kind == "twin" else 1):
            outer = self.count, self.early, self.shared
            self.count, self.early, self.models = {}, [], self.models + 1
            if self.recipe["names"] == "clashing":
                self.shared = None  # else a layer that models inside and outside of each other call
            name = f"model{self.models}"
            size = x.shape[1] if kind == "twin" else None
            inputs = keras.Input((size, size, x.shape[-1]))
            y = inputs
            for block in blocks:
                y = self.block(block, y)
            if kind == "twice":
                y = self.conv(y, x.shape[-1], 1)
            model = keras.Model(inputs, self.conv(y, 4, 1), name=name)
            self.count, self.early, self.shared = outer
            if kind == "sequential":
                model = keras.Sequential(
                    [keras.Input(x.shape[1:]), model, layers.ReLU()], name=f"{name}_sequence"
                )
            x = model(x)
            if kind == "twice" and inputs.shape[-1] == x.shape[-1]:
                x = model(x)
        return x

    # Blocks of one path.

    def down(self, x):
        return self.conv(x, min(x.shape[-1] * 2, 8), strides=2) if (x.shape[1] or 1) > 2 else x

    def norm(self, x):
        return layers.BatchNormalization(**self.named("norm"))(x)

    def act(self, x):
        return layers.ReLU(**self.named("act"))(x)

    def operators(self, x):
        return ops.relu(x * 0.5 + 0.1) - x / 3.0

    def slice(self, x):
        return ops.concatenate([x[..., :2], x[..., 1:]], axis=-1)

    def pool(self, x):
        return layers.MaxPooling2D(2, 1, padding="same", **self.named("pool"))(x)

    def dropout(self, x):
        return layers.SpatialDropout2D(0.2, **self.named("drop"))(x)

    def reuse(self, x):
        if self.shared is None:
            self.shared = layers.Conv2D(4, 3, padding="same", **self.named("shared"))
        return self.shared(self.conv(x, 4, 1))

    # Blocks of several paths.

    def residual(self, x):
        return layers.Add(**self.named("add"))([x, self.conv(self.act(self.conv(x, 4)), x.shape[-1])])

    def dense(self, x):
        for _ in range(2):
            x = layers.Concatenate(**self.named("join"))([x, self.conv(x, 2)])
        return self.conv(x, 4, 1)

    def inception(self, x):
        paths = [self.conv(x, 2, 1), self.conv(self.conv(x, 2, 1), 3), self.conv(self.pool(x), 2, 1)]
        return layers.Concatenate(**self.named("join"))(paths)

    def excite(self, x):
        weights = layers.GlobalAveragePooling2D(keepdims=True, **self.named("squeeze"))(x)
        return x * self.conv(weights, x.shape[-1], 1, activation="sigmoid")

    def long(self, x):
        """Joins a map of several blocks ago: many tensors are live between."""
        for old in self.early:
            if old.shape[1:3] == x.shape[1:3] and None not in x.shape[1:3]:
                return layers.Concatenate(**self.named("join"))([self.conv(old, 2, 1), x])
        return x

    def two(self, x):
        """An operation with two outputs, a layer with two inputs.

        One of them is a gate between 0 and 1: products of maps, one after another, would leave float32.
        """
        gate, values = ops.split(self.conv(x, 4, 1), 2, axis=-1)
        return layers.Multiply(**self.named("times"))([ops.sigmoid(gate), values])

    def finish(self, x):
        kind = self.recipe["ending"]
        if kind == "conv":
            x = layers.GlobalAveragePooling2D(keepdims=True, name="pooled")(x)
            x = layers.Conv2D(CLASSES, 1, name="classifier")(x)
            return layers.Softmax(name="probabilities")(layers.Reshape((CLASSES,), name="flat")(x))
        x = layers.GlobalAveragePooling2D(name="pooled")(x)
        if kind == "hidden":
            x = layers.Dense(7, "relu", name="hidden")(x)
        if kind == "norm":
            x = layers.LayerNormalization(name="last_norm")(x)
        if kind == "sigmoid":
            return layers.Dense(1, "sigmoid", name="classifier")(x)
        activation = None if kind in ("logits", "activation") else "softmax"
        x = layers.Dense(CLASSES, activation, name="classifier")(x)
        return layers.Activation("softmax", name="probabilities")(x) if kind == "activation" else x


def with_exits(model, where):
    """The network with exits; `None` where it has no place for any."""
    if where is not None:
        flat = flatten(model)
        inputs, output, named = flat.inputs, flat.outputs, flat.named
        graph = Graph([inputs], [output])
        classifier = find_classifier(graph, output)
        before = graph.ancestors(last_map(graph, classifier, "channels_last"))
        order = {graph.producer(t).index: name for name, t in named.items() if is_map(t)}
        names = [order[i] for i in sorted(before & set(order))]
        chosen = sorted({i % len(names) for i in where})
        return kx.add_exits(model, [names[i] for i in chosen], head="linear")
    for count in (4, 3, 2, 1):
        try:
            return kx.add_exits(model, count, head="linear")
        except ValueError as error:
            assert "too few" in str(error)
    return None


def check(recipe):
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    model = randomise(Builder(recipe).network())
    x = images(model, count=2)
    config, before = model.to_json(), np.asarray(model(x))
    expected = logits_by_hand(model, model.get_layer("classifier"), x)
    if recipe["ending"] == "sigmoid":
        expected = np.concatenate([0 * expected, expected], axis=1)
    exits = with_exits(model, recipe["where"])
    if exits is None:
        return
    out = exits(x)
    assert np.isfinite(expected).all()  # else the comparisons would say nothing
    atol = 1e-5 * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(out["final"], expected, atol=atol)
    assert same(model(x), before)
    assert model.to_json() == config

    # Taken off again, it is the network, and holds all of its weights that are in use.
    stripped = kx.strip_exits(exits)
    np.testing.assert_allclose(stripped(x), before, atol=1e-6)
    assert {id(v) for v in stripped.variables} == {id(v) for v in model.variables}

    # No exit changes when there are others.
    names = kx.exit_names(exits)
    for name in names[:-1]:
        alone = kx.strip_exits(exits, name, activation=None)
        np.testing.assert_allclose(alone(x), out[name], atol=1e-6)

    # Saved and loaded, cloned, built from its config: the same bits, and as many weights.
    with tempfile.TemporaryDirectory() as folder:
        exits.save(f"{folder}/model.keras")
        loaded = keras.saving.load_model(f"{folder}/model.keras", safe_mode=True)
    assert same(loaded(x), out)
    assert kx.exit_names(loaded) == names
    assert loaded.count_params() == exits.count_params()
    assert kx.cost(loaded) == kx.cost(exits)
    assert kx.cost(exits).parameters == exits.count_params()

    # Cut at its exits and run stage by stage, it gives the same.
    stages = split(exits)
    values = dict.fromkeys(stages[0].model.input, x)
    for stage in stages:
        made = stage.model({name: values[name] for name in stage.model.input})
        np.testing.assert_allclose(made["logits"], out[stage.exit], atol=1e-6)
        values = {name: made.get(name, values.get(name)) for name in stage.carried}
    assert [stage.exit for stage in stages] == names


@settings(settings.get_profile("fast"))
@given(NETWORK)
def test_random_networks(recipe):
    check(recipe)


@pytest.mark.sweep
@settings(settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci")))
@given(NETWORK)
def test_many_random_networks(recipe):
    check(recipe)

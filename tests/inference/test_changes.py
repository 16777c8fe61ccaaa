"""What changes the network, the policy or the mode after a call shows in the next one."""

import harness
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_exitens as kx
from keras_exitens import policies
from keras_exitens._stages.watching import Values

NEVER, ALWAYS = policies.MaxProbability(0.5, enabled=False), policies.MaxProbability(0.0)
PREDICT = {
    "predict": lambda early, x: early.predict(x, verbose=0),
    "predict_on_batch": lambda early, x: early.predict_on_batch(x),
    "data set": lambda early, x: early.predict(tf.data.Dataset.from_tensor_slices(x).batch(4), verbose=0),
}


def images(rows=8):
    return np.random.default_rng(0).normal(size=(rows, 12, 12, 3)).astype("float32")


def made():
    inputs = keras.Input((12, 12, 3))
    x = layers.Rescaling(0.5, name="scale")(inputs)
    x = harness.conv(x, 6, 1, name="first")
    x = layers.Conv2D(8, 3, 2, activation="relu", name="second")(x)
    x = harness.conv(x, 8, 1, name="third")
    x = layers.Dense(6, name="hidden")(layers.GlobalAveragePooling2D()(x))
    plain = keras.Model(inputs, layers.Dense(5, "softmax", name="classifier")(x))
    return harness.randomise(kx.add_exits(plain, ["second"], head="linear"))


def trained(model):
    distiller = kx.ExitEnsembleDistiller(model)
    distiller.compile("sgd")
    distiller.fit(images(), np.arange(8) % 5, verbose=0)


def trained_by_xla(model):
    distiller = kx.ExitEnsembleDistiller(model)
    distiller.compile("sgd", jit_compile=True)
    distiller.fit(images(), np.arange(8) % 5, verbose=0)


def quantized_layer(model):
    model.get_layer("hidden").quantize("int8")


def lora(model):
    model.get_layer("hidden").enable_lora(2)
    model.get_layer("hidden").lora_kernel_b.assign(np.ones((2, 6)))


def first_kernel(model):
    model.get_layer("first").kernel.assign_add(model.get_layer("first").kernel * 0.5)


def scattered(model):
    model.get_layer("first").kernel.value.scatter_nd_update([[0, 0, 0]], [np.full(6, 3.0)])


def one_number(model):
    bias = model.get_layer("hidden").bias
    bias.assign(np.where(np.arange(6) == 3, 2.0, bias))


CHANGES = {
    "all weights": lambda model: model.set_weights([w * 1.5 for w in model.get_weights()]),
    "one kernel": first_kernel,
    "one number": one_number,
    "scattered": scattered,
    "moving mean": lambda model: model.layers[3].moving_mean.assign_add(np.ones(6)),
    "trained": trained,
    "trained by XLA": trained_by_xla,
    "quantized": lambda model: model.quantize("int8"),
    "a quantized layer": quantized_layer,
    "LoRA": lora,
    "an attribute": lambda model: setattr(model.get_layer("scale"), "scale", 0.25),
    "activation": lambda model: setattr(model.get_layer("second"), "activation", keras.activations.tanh),
    "dtype policy": lambda model: setattr(model.get_layer("hidden"), "dtype_policy", "mixed_bfloat16"),
}


def assert_follows(early, predict, x):
    """The answers of the network as it is now, by every way to ask."""
    compiled = tf.function(lambda x: early.model(x, training=False), autograph=False)
    # In half precision what is compiled is rounded elsewhere: where the compiler joins operations.
    wanted = [
        early.policy.simulate(np.stack([np.asarray(z) for z in logits.values()]))
        for logits in (compiled(tf.constant(x)), early.model(x, training=False))
    ]
    for found in (predict(early, x), early(x)):
        np.testing.assert_array_equal(found["exit"], wanted[0]["exit"])
        assert any(np.allclose(found["logits"], w["logits"], rtol=1e-4, atol=1e-4) for w in wanted)


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_the_network_shows(change, optimize):
    model, x = made(), images()
    wrapped = [kx.EarlyExit(model, NEVER, optimize=optimize) for _ in PREDICT]
    for early, predict in zip(wrapped, PREDICT.values(), strict=True):
        before = predict(early, x)["logits"]
    change(model)
    assert np.abs(model(x, training=False)["final"] - before).max() > 1e-4, "nothing changed"
    for early, predict in zip(wrapped, PREDICT.values(), strict=True):
        assert_follows(early, predict, x)
        assert_follows(early, predict, x)


@pytest.mark.parametrize("predict", PREDICT.values(), ids=PREDICT.keys())
@pytest.mark.parametrize("optimize", [False, True])
def test_another_policy_is_followed(optimize, predict):
    x = images()
    early = kx.EarlyExit(made(), ALWAYS, optimize=optimize)
    for policy, exit_ in [(ALWAYS, 0), (NEVER, 1), (ALWAYS, 0), (policies.Entropy(np.inf), 1)]:
        early.policy = policy
        assert set(predict(early, x)["exit"]) == {exit_}
        assert_follows(early, predict, x)
    early.policy.thresholds = (-np.inf,)
    assert set(predict(early, x)["exit"]) == {0}
    with pytest.raises(TypeError, match="is not a policy"):
        early.policy = 0.5
    with pytest.raises(ValueError, match="thresholds"):
        early.policy = policies.MaxProbability([0.1, 0.2, 0.3])
    assert set(predict(early, x)["exit"]) == {0}


@pytest.mark.parametrize("first", [False, True])
def test_optimize_may_be_switched(first):
    model, x = made(), images()
    early = kx.EarlyExit(model, NEVER, optimize=first)
    for optimize in (first, not first, first):
        early.optimize = optimize
        model.set_weights([w * 1.1 for w in model.get_weights()])
        for predict in PREDICT.values():
            assert_follows(early, predict, x)
    assert early.get_config()["optimize"] is first


def test_the_network_cannot_be_exchanged():
    early = kx.EarlyExit(made(), NEVER)
    with pytest.raises(AttributeError, match="make another one"):
        early.model = made()


def test_a_change_of_a_late_stage_matters_only_to_rows_that_come_there():
    model, x = made(), images()
    early = kx.EarlyExit(model, ALWAYS, optimize=True)
    before = early.predict_on_batch(x)
    model.get_layer("hidden").kernel.assign(np.zeros((8, 6)))
    after = early.predict_on_batch(x)
    assert all(np.array_equal(before[key], after[key]) for key in before)
    early.policy = NEVER
    assert_follows(early, PREDICT["predict_on_batch"], x)


def test_nothing_is_traced_again_without_need():
    model, x = made(), images()
    early = kx.EarlyExit(model, policies.MaxProbability(0.3), optimize=True)
    for predict in PREDICT.values():
        predict(early, x)
    function = early.predict_function
    model(x)
    model.predict(x, verbose=0)
    kx.collect(model, (x, np.arange(8) % 5), verbose=0)
    kx.cost(model)
    kx.ExitEnsembleDistiller(model)
    for predict in PREDICT.values():
        predict(early, x)
    assert early.predict_function is function


# After a call that failed ------------------------------------------------------------------------


class Interrupted(keras.callbacks.Callback):
    def on_predict_batch_end(self, batch, logs=None):
        raise KeyboardInterrupt


FAILURES = {
    "too small": (ValueError, lambda early, x: early.predict(x[:, :8], verbose=0)),
    "too small, one batch": (ValueError, lambda early, x: early.predict_on_batch(x[:, :8])),
    "no batch": (ValueError, lambda early, x: early(x[0])),
    "text": (ValueError, lambda early, x: early.predict_on_batch(x.astype("str"))),
    "two inputs": (ValueError, lambda early, x: early.predict_on_batch([x, x])),
    "data set": (
        ValueError,
        lambda early, x: early.predict(tf.data.Dataset.from_tensor_slices(x[:, :8]).batch(2), verbose=0),
    ),
    "interrupted": (
        KeyboardInterrupt,
        lambda early, x: early.predict(x, callbacks=[Interrupted()], verbose=0),
    ),
}


@pytest.mark.parametrize("error, fail", FAILURES.values(), ids=FAILURES.keys())
def test_after_a_call_that_failed(error, fail):
    x, model = images(), made()
    for predict in PREDICT.values():
        early = kx.EarlyExit(model, policies.MaxProbability(0.3), optimize=True)
        with pytest.raises(error):
            fail(early, x)
        assert_follows(early, predict, x)


# Values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int8", "uint8", "bool"])
def test_values_see_a_bit_and_nothing_else(dtype):
    variable, other = (tf.Variable(tf.cast([0, 1, 1, 0], dtype)) for _ in range(2))
    values = Values([other, variable])
    assert not values.changed()
    variable.assign(tf.cast([0, 1, 1, 0], dtype))
    assert not values.changed()
    variable.assign(tf.cast([0, 1, 1, 1], dtype))
    assert values.changed() and values.changed()


def test_values_of_odd_variables():
    empty, scalar, table = tf.Variable(tf.zeros((0, 3))), tf.Variable(0.5), tf.Variable(tf.zeros((9, 3)))
    values = Values([empty, scalar, table])
    assert not values.changed()
    table.scatter_nd_update([[1]], [[0.0, 0.0, 0.0]])  # from now on it is copied when it is read
    assert not values.changed() and not values.changed()
    table.scatter_nd_update([[1]], [[0.0, 0.0, 1.0]])
    assert values.changed()
    values = Values([empty, scalar, table])
    assert not values.changed()
    scalar.assign(np.nan)
    values = Values([scalar])
    assert not values.changed(), "NaN is NaN again"

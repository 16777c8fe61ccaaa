"""`ExitEnsembleDistiller`: one step against NumPy, and all of Keras's machinery around it."""

import os
import pathlib
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from distillers import (
    CASES,
    CLASSES,
    EXITS,
    L2,
    Case,
    assert_parameters,
    data,
    distiller_of,
    network,
    parameters,
    variables,
    vectors,
    with_parameters,
)
from keras import layers, ops
from keras.optimizers.schedules import PolynomialDecay

import keras_exitens as kx
from keras_exitens import objectives
from keras_exitens._keras import ACTIVITY_IS_A_MEAN

cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def terms_by_hand(case, params, x, y):
    logits, features, _ = reference.forward(params, x)
    return case.terms(logits, features, y)


def decay_by_hand(params, l2=L2):
    return l2 * sum((p**2).sum() for name, p in params.items() if name.endswith("/kernel"))


def scalar(distiller, name):
    """The value of one of the distiller's own scalars."""
    (value,) = [float(np.asarray(v)) for v in distiller.non_trainable_variables if v.name == name]
    return value


# One step -----------------------------------------------------------------------------------------


@cases
@pytest.mark.parametrize("eagerly", [False, True], ids=["graph", "eager"])
def test_one_step_equals_the_step_by_hand(case, eagerly):
    """With sample weights and with L2 regularisers, whose gradient is not divided by anything."""
    (x, y), params = data(), parameters()
    w = np.random.default_rng(1).uniform(0, 2, len(x))
    distiller = distiller_of(case, l2=L2, run_eagerly=eagerly)
    logs = distiller.train_on_batch(x, y, w.astype("float32"), return_dict=True)
    assert_parameters(
        distiller.model, reference.sgd_step(params, x, y, case.gradients, 0.1, l2=L2, sample_weight=w)
    )
    terms = terms_by_hand(case, params, x, y)
    for name, values in terms.items():
        np.testing.assert_allclose(
            logs[f"{name}_loss"], (w * values).mean(), rtol=1e-5, atol=1e-7, err_msg=name
        )
    loss = reference.mean_loss(terms, w) + decay_by_hand(params)
    np.testing.assert_allclose(logs["loss"], loss, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if name != "dbt annealed"])
def test_an_uneven_epoch_equals_its_steps_by_hand(name):
    """Momentum over batches of 5, 5 and 3 rows; the logged loss is the mean over all 13 rows."""
    case, (x, y), params, velocity, total = CASES[name], data(), parameters(), None, {}
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    distiller = distiller_of(case, optimizer, run_eagerly=name != "eed mse")
    logs = distiller.fit(x, y, batch_size=5, shuffle=False, verbose=0).history
    for rows in (slice(0, 5), slice(5, 10), slice(10, 13)):
        for term, values in terms_by_hand(case, params, x[rows], y[rows]).items():
            total[term] = total.get(term, 0) + values.sum() / 13
        params, velocity = reference.momentum_step(params, velocity, x[rows], y[rows], case.gradients, 0.1)
    assert_parameters(distiller.model, params)
    for term, value in total.items():
        np.testing.assert_allclose(logs[f"{term}_loss"], [value], rtol=1e-5, atol=1e-7, err_msg=term)
    np.testing.assert_allclose(logs["loss"], [sum(total.values())], rtol=1e-5)
    assert scalar(distiller, "step") == 3


def test_annealing_equals_its_steps_by_hand():
    (x, y), params, temperature, seen = data(20), parameters(), 1.0, []
    params["final/kernel"] *= 20  # the confidence is now above a half, now below
    distiller = distiller_of(CASES["dbt annealed"], keras.optimizers.SGD(0.01), params)
    distiller.fit(x, y, batch_size=1, shuffle=False, verbose=0)
    for row in range(20):
        rows = slice(row, row + 1)
        logits, _, _ = reference.forward(params, x[rows])

        def gradients(z, f, y, temperature=temperature):
            return reference.dbt_grad(z, y, temperature=temperature)

        params = reference.sgd_step(params, x[rows], y[rows], gradients, 0.01)
        temperature = reference.dbt_next_temperature(logits, temperature)
        seen.append(temperature)
    assert 4 < len(set(seen)) < 18
    np.testing.assert_allclose(scalar(distiller, "temperature"), temperature, rtol=1e-5)
    assert_parameters(distiller.model, params, rtol=1e-4)


def test_a_scheduled_weight_follows_the_steps():
    (x, y), params = data(12), parameters()
    weight = PolynomialDecay(4.0, 2, 0.0)
    case = Case(lambda: objectives.EED("mse", output_weight=weight, feature_weight=0), None, None)
    distiller = distiller_of(case)
    distiller.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    for step, output_weight in enumerate((4.0, 2.0, 0.0)):
        rows = slice(4 * step, 4 * step + 4)

        def gradients(z, f, y, output_weight=output_weight):
            return reference.eed_grad(z, f, y, output_weight=output_weight, feature_weight=0)

        params = reference.sgd_step(params, x[rows], y[rows], gradients, 0.1)
    assert_parameters(distiller.model, params)


def test_class_weight_is_a_weight_of_samples():
    (x, y), params, case = data(8), parameters(), CASES["beed"]
    class_weight = {0: 0.5, 1: 2.0, 2: 0.0, 3: 1.5}
    w = np.array([class_weight[label] for label in y])
    expected = reference.sgd_step(params, x, y, case.gradients, 0.1, sample_weight=w)
    for labels in (y, y[:, None], np.eye(CLASSES)[y]):
        distiller = distiller_of(case, run_eagerly=labels is not y)
        distiller.fit(x, labels, batch_size=8, class_weight=class_weight, verbose=0)
        assert_parameters(distiller.model, expected)


@pytest.mark.parametrize("form", ["array", "column", "data set", "generator"])
def test_sample_weights_of_every_form(form):
    (x, y), params, case = data(8), parameters(), CASES["eed mse"]
    w = np.random.default_rng(1).uniform(0, 2, 8)
    distiller, options = distiller_of(case), {"batch_size": 8, "shuffle": False, "verbose": 0}
    if form == "data set":
        distiller.fit(tf.data.Dataset.from_tensor_slices((x, y, w)).batch(8), verbose=0)
    elif form == "generator":
        distiller.fit((batch for batch in [(x, y, w)]), steps_per_epoch=1, verbose=0)
    else:
        distiller.fit(x, y, sample_weight=w if form == "array" else w[:, None], **options)
    expected = reference.sgd_step(params, x, y, case.gradients, 0.1, sample_weight=w)
    assert_parameters(distiller.model, expected)


@pytest.mark.parametrize("labels", ["soft", "one-hot integers", "column"])
def test_labels_of_every_form(labels):
    (x, y), params, case = data(8), parameters(), CASES["eed kl"]
    exact = np.random.default_rng(1).dirichlet(np.ones(CLASSES), size=8) if labels == "soft" else y
    given = {"soft": exact, "one-hot integers": np.eye(CLASSES, dtype="int64")[y], "column": y[:, None]}[
        labels
    ]
    distiller = distiller_of(case, run_eagerly=True)
    distiller.train_on_batch(x, given)
    assert_parameters(distiller.model, reference.sgd_step(params, x, exact, case.gradients, 0.1))


def test_smoothed_labels_in_a_whole_step():
    (x, y), params, case = data(8), parameters(), CASES["byot"]
    smooth = np.eye(CLASSES)[y] * 0.8 + 0.2 / CLASSES
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
    distiller = distiller_of(case, loss=loss, run_eagerly=True)
    distiller.train_on_batch(x, y)
    assert_parameters(distiller.model, reference.sgd_step(params, x, smooth, case.gradients, 0.1))


@pytest.mark.parametrize("name", ["eed kl", "dbt annealed"])
def test_one_step_in_float64(name):
    (x, y), params, case = data(8), parameters(), CASES[name]
    distiller = distiller_of(case, dtype="float64", run_eagerly=True)
    x = x.astype("float64")
    distiller.train_on_batch(x, y)
    expected = reference.sgd_step(params, x, y, case.gradients, 0.1)
    for name, variable in variables(distiller.model).items():
        assert variable.dtype == "float64"
        found = np.asarray(variable).reshape(params[name].shape)
        np.testing.assert_allclose(found, expected[name], rtol=1e-7, atol=1e-9, err_msg=name)


def test_regularisers_of_activity_and_of_other_layers_are_kept():
    inputs = keras.Input((6,))
    x = layers.Dense(5, activity_regularizer=keras.regularizers.L1(0.1), name="a")(inputs)
    first = layers.Dense(CLASSES, bias_regularizer=keras.regularizers.L2(0.5), name="exit_1")(x)
    model = keras.Model(inputs, {"exit_1": first, "final": layers.Dense(CLASSES, name="final")(x)})
    model.get_layer("exit_1").bias.assign([1.0, 2, 3, 4])
    distiller = kx.ExitEnsembleDistiller(model, objectives.CrossEntropy())
    distiller.compile("sgd")
    x, y = np.random.default_rng(0).normal(size=(8, 6)).astype("float32"), np.arange(8) % CLASSES
    logs = distiller.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    logits = distiller.predict(x, verbose=0)
    classification = sum(
        reference.ce(logits[name].astype("float64"), y).mean() for name in ("exit_1", "final")
    )
    hidden = x @ np.asarray(model.get_layer("a").kernel)
    rows = 8 if ACTIVITY_IS_A_MEAN else 1  # what Keras divides activity by
    added = 0.1 * np.abs(hidden).sum() / rows + 0.5 * (1 + 4 + 9 + 16)
    np.testing.assert_allclose(logs["classification_loss"], classification, rtol=1e-5)
    np.testing.assert_allclose(logs["loss"], classification + added, rtol=1e-5)


# What a step does once, and what evaluation never does ----------------------------------------------


class Counter(layers.Layer):
    """Passes on what it gets, and counts."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, x):
        self.count.assign_add(1)
        return x


def counting(momentum=0.9):
    """Two exits behind a counter, a BatchNorm that sees the images themselves, and a Dropout."""
    inputs = keras.Input((6,))
    x = layers.BatchNormalization(momentum=momentum, name="norm")(Counter(name="counter")(inputs))
    x = layers.Dropout(0.3, seed=1, name="dropout")(layers.Dense(5)(x))
    first = layers.Dense(CLASSES, name="exit_1")(x)
    late = Counter(name="late")(layers.Dense(5)(x))
    return keras.Model(inputs, {"exit_1": first, "final": layers.Dense(CLASSES, name="final")(late)})


@pytest.mark.parametrize("objective", [objectives.EED, lambda: objectives.DBT(temperature="annealed")])
@pytest.mark.parametrize("eagerly", [False, True], ids=["graph", "eager"])
def test_a_step_runs_the_network_once(eagerly, objective):
    model = counting()
    distiller = kx.ExitEnsembleDistiller(model, objective())
    distiller.compile("sgd", metrics=["accuracy"], run_eagerly=eagerly)
    counters = [model.get_layer(name).count for name in ("counter", "late")]

    def runs(action):
        before = [float(c) for c in counters]
        action()
        return [float(c) - b for c, b in zip(counters, before, strict=True)]

    x, y = vectors()
    assert runs(lambda: distiller.fit(x, y, batch_size=4, verbose=0)) == [3, 3]
    assert runs(lambda: distiller.evaluate(x, y, batch_size=5, verbose=0)) == [3, 3]
    assert runs(lambda: distiller.predict(x, batch_size=6, verbose=0)) == [2, 2]


def test_batch_norm_moves_once_a_training_step():
    model = counting(momentum=0.75)
    distiller = kx.ExitEnsembleDistiller(model)
    distiller.compile("sgd")
    x, y = vectors()
    distiller.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    mean, variance = np.zeros(6), np.ones(6)
    for batch in np.split(x.astype("float64"), 3):
        mean = 0.75 * mean + 0.25 * batch.mean(axis=0)
        variance = 0.75 * variance + 0.25 * batch.var(axis=0)
    norm = model.get_layer("norm")
    np.testing.assert_allclose(norm.moving_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, variance, rtol=1e-5)


def test_evaluation_and_prediction_change_nothing():
    model = counting()
    for name in ("counter", "late"):
        model.get_layer(name).count.assign(0)
    distiller = kx.ExitEnsembleDistiller(model, objectives.DBT(temperature="annealed"))
    distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), metrics=["accuracy"])
    x, y = vectors()
    model.get_layer("final").bias.assign([9.0, 0, 0, 0])  # confident: the temperature would rise
    distiller.fit(x, y, batch_size=4, verbose=0)
    assert scalar(distiller, "temperature") > 1.0

    def state():
        kept = {v.path: np.asarray(v).copy() for v in [*distiller.variables, *distiller.optimizer.variables]}
        return {path: value for path, value in kept.items() if not path.endswith("count")}

    before = state()
    assert len(before) > 20
    distiller.evaluate(x, y, verbose=0)
    distiller.test_on_batch(x, y)
    distiller.predict(x, verbose=0)
    distiller(x)
    after = state()
    assert set(after) == set(before)
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)


def test_nothing_is_tracked_twice():
    model = network()
    distiller = kx.ExitEnsembleDistiller(model, objectives.DBT(temperature="annealed"))
    assert {id(v) for v in distiller.trainable_variables} == {id(v) for v in model.trainable_variables}
    assert len(distiller.trainable_variables) == len(model.trainable_variables)
    assert sorted(v.name for v in distiller.non_trainable_variables) == ["step", "temperature"]
    assert distiller.model is model


# Logs -----------------------------------------------------------------------------------------------


def test_logs_have_exactly_the_documented_names():
    x, y = data(8)
    distiller = distiller_of(metrics=["accuracy"])
    history = distiller.fit(x, y, validation_split=0.5, verbose=0).history
    terms = {"loss", "classification_loss", "distillation_loss", "feature_loss"}
    names = terms | {f"{name}_accuracy" for name in (*EXITS, "ensemble")}
    assert set(history) == names | {f"val_{name}" for name in names}
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    assert set(logs) == names
    listed = distiller.evaluate(x, y, verbose=0)
    order = ["loss", "classification_loss", "distillation_loss", "feature_loss"]
    order += [f"{name}_accuracy" for name in (*EXITS, "ensemble")]
    assert listed == [logs[name] for name in order]


@cases
def test_evaluation_over_uneven_batches_is_the_mean_over_all_rows(case):
    (x, y), params = data(), parameters()
    distiller = distiller_of(case, l2=L2, metrics=["accuracy", "crossentropy"], run_eagerly=True)
    logs = distiller.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    terms = terms_by_hand(case, params, x, y)
    for name, values in terms.items():
        np.testing.assert_allclose(logs[f"{name}_loss"], values.mean(), rtol=1e-5, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(logs["loss"], reference.mean_loss(terms) + decay_by_hand(params), rtol=1e-5)
    logits = reference.forward(params, x)[0]
    for name, z in zip((*EXITS, "ensemble"), [*logits, np.mean(logits, axis=0)], strict=True):
        np.testing.assert_allclose(logs[f"{name}_accuracy"], (z.argmax(axis=1) == y).mean(), rtol=1e-6)
        np.testing.assert_allclose(logs[f"{name}_crossentropy"], reference.ce(z, y).mean(), rtol=1e-5)


def test_validation_logs_are_those_of_the_validation_data():
    (x, y), (val_x, val_y) = data(8), data(7, seed=1)
    w = np.random.default_rng(2).uniform(0, 2, 7).astype("float32")
    distiller = distiller_of(metrics=["accuracy"])
    validation = tf.data.Dataset.from_tensor_slices((val_x, val_y, w)).batch(4)
    history = distiller.fit(x, y, validation_data=validation, verbose=0).history
    logs = distiller.evaluate(val_x, val_y, sample_weight=w, verbose=0, return_dict=True)
    for name, value in logs.items():
        np.testing.assert_allclose(history[f"val_{name}"], [value], rtol=1e-5, atol=1e-7, err_msg=name)


def test_compiling_twice_doubles_nothing():
    x, y = data(8)
    distiller = distiller_of(metrics=["accuracy"])
    first = distiller.evaluate(x, y, verbose=0, return_dict=True)
    counts = len(distiller.metrics), len(distiller.metrics_variables)
    distiller.compile("sgd", metrics=["accuracy"])
    assert distiller.evaluate(x, y, verbose=0, return_dict=True) == first
    assert (len(distiller.metrics), len(distiller.metrics_variables)) == counts


# Outputs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("later", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_calling_gives_the_logits_of_the_model_in_order_and_their_mean(precision, later):
    """Whatever the policy when the network was built, and when the distiller is made."""
    x, _ = data()
    keras.config.set_dtype_policy(precision)
    model = network()
    keras.config.set_dtype_policy(later)
    distiller = kx.ExitEnsembleDistiller(model)
    expected, found = model(x), distiller(x)
    assert list(found) == [*EXITS, "ensemble"]
    for name in EXITS:
        assert found[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(found[name], expected[name])
    mean = np.mean([ops.convert_to_numpy(ops.cast(expected[n], "float64")) for n in EXITS], axis=0)
    tolerance = 1e-6 if precision == "float32" else 1e-2
    np.testing.assert_allclose(ops.cast(found["ensemble"], "float64"), mean, rtol=tolerance, atol=tolerance)


def test_predict_gives_logits_in_order_and_their_mean():
    x, _ = data()
    distiller = distiller_of()
    logits = distiller.predict(x, batch_size=8, verbose=0)
    assert list(logits) == [*EXITS, "ensemble"]
    by_hand = reference.forward(parameters(), x)[0]
    for name, z in zip(logits, [*by_hand, np.mean(by_hand, axis=0)], strict=True):
        np.testing.assert_allclose(logits[name], z, rtol=1e-4, atol=1e-5)


def test_features_are_those_that_enter_the_classifiers():
    x, _ = data()
    outputs, features = distiller_of()(x, with_features=True)
    by_hand = reference.forward(parameters(), x)[1]
    for found, expected in zip(features, by_hand, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert list(outputs) == [*EXITS, "ensemble"]
    assert distiller_of(CASES["dbt"])(x, with_features=True)[1] == []


def test_the_final_exit_need_not_be_called_final():
    """Then it is the one that needs most operations, and it teaches."""
    inputs = keras.Input((6,))
    hidden = layers.Dense(5, activation="tanh")(inputs)
    outputs = {
        "a_last": layers.Dense(CLASSES)(layers.Dense(5)(hidden)),
        "b_first": layers.Dense(CLASSES)(hidden),
    }
    distiller = kx.ExitEnsembleDistiller(keras.Model(inputs, outputs), objectives.DBT(temperature=2.0))
    distiller.compile("sgd")
    x, y = vectors()
    logits = {k: v.astype("float64") for k, v in distiller.predict(x, verbose=0).items()}
    assert list(logits) == ["b_first", "a_last", "ensemble"]
    terms = reference.dbt([logits["b_first"], logits["a_last"]], y, temperature=2.0)
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["distillation_loss"], terms["distillation"].mean(), rtol=1e-5)


@pytest.mark.parametrize(
    "objective",
    [objectives.EED(), objectives.EED("mse"), objectives.BEED(), objectives.CrossEntropy()],
    ids=["eed kl", "eed mse", "beed", "cross-entropy"],
)
def test_one_exit_alone_is_trained_by_cross_entropy(objective):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, {"final": layers.Dense(CLASSES)(inputs)})
    kernel, bias = (v.numpy().astype("float64") for v in model.weights)
    distiller = kx.ExitEnsembleDistiller(model, objective)
    distiller.compile(keras.optimizers.SGD(0.1))
    x, y = vectors()
    logs = distiller.train_on_batch(x, y, np.ones(12), return_dict=True)
    logits = x @ kernel + bias
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    step = 0.1 * x.T @ (p - np.eye(CLASSES)[y]) / len(x)
    np.testing.assert_allclose(model.weights[0], kernel - step, rtol=1e-5, atol=1e-6)
    if objective.get_config().get("output_loss") == "kl":
        # A cross-entropy, as in the reference program: of an exit with itself 0.1 · T² times the entropy.
        soft = np.exp(logits / 3) / np.exp(logits / 3).sum(axis=1, keepdims=True)
        entropy = -(soft * np.log(soft)).sum(axis=1).mean()
        np.testing.assert_allclose(logs["distillation_loss"], 0.9 * entropy, rtol=1e-5)
    else:
        assert logs["distillation_loss"] == 0
    taught = logs["classification_loss"] + logs["distillation_loss"]
    np.testing.assert_allclose(logs["loss"], taught, rtol=1e-6)


def test_add_exits_and_strip_exits():
    """The backbone is trained in place, and what is left after stripping is the backbone."""
    backbone = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, padding="same", activation="relu"),
            layers.Conv2D(6, 3, 2, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )
    before = [w.copy() for w in backbone.get_weights()]
    distiller = kx.ExitEnsembleDistiller(kx.add_exits(backbone, 1, head="linear"))
    distiller.compile(keras.optimizers.SGD(0.1))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 8, 8, 3)).astype("float32"), rng.integers(0, CLASSES, 8)
    history = distiller.fit(x, y, epochs=5, verbose=0).history["loss"]
    assert history[-1] < history[0]
    assert all((a != b).any() for a, b in zip(before, backbone.get_weights(), strict=True))
    plain = kx.strip_exits(distiller.model).predict(x, verbose=0)
    np.testing.assert_allclose(plain, backbone.predict(x, verbose=0), rtol=1e-5)
    logits = distiller.predict(x, verbose=0)["final"]
    np.testing.assert_allclose(plain, reference.softmax(logits), rtol=1e-4)


# Keras's machinery ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plainly():
    """Two epochs of 7 steps in the plain graph: history and weights."""
    return trained()


def trained(**options):
    distiller = distiller_of(CASES["dbt annealed"], metrics=["accuracy"], **options)
    x, y = data()
    history = distiller.fit(x, y, batch_size=2, epochs=2, shuffle=False, verbose=0).history
    return history, [np.asarray(v) for v in distiller.weights]


@pytest.mark.parametrize(
    "options, tolerance",
    [({"steps_per_execution": 4}, 1e-6), ({"run_eagerly": True}, 1e-5), ({"jit_compile": True}, 1e-4)],
    ids=["steps_per_execution", "run_eagerly", "jit_compile"],
)
def test_every_way_to_run_a_step_gives_the_same(options, tolerance, plainly):
    """7 steps in groups of 4: the last group is short, and so is the last batch."""
    history, weights = trained(**options)
    assert set(history) == set(plainly[0])
    for name, values in plainly[0].items():
        np.testing.assert_allclose(history[name], values, rtol=tolerance, atol=1e-6, err_msg=name)
    for found, expected in zip(weights, plainly[1], strict=True):
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=1e-6)


QUICK = ("eed mse", "dbt annealed")


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in CASES if n not in QUICK)]
)
def test_the_whole_step_is_one_program_of_xla(name):
    """As TPUs need it: nothing in a step of training or evaluation runs on the host."""
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    distiller = distiller_of(CASES[name], optimizer, l2=L2, metrics=["accuracy"])
    x, y = map(tf.constant, data(8))
    distiller.train_on_batch(x, y)
    for step in (distiller.train_step, distiller.test_step):
        assert "custom-call" not in lowered(step, x, y, tf.ones(8))

    def on_the_host(batch):
        tf.py_function(lambda: None, (), ())
        return distiller.test_step(batch)

    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="EagerPyFunc"):
        lowered(on_the_host, x, y)


def lowered(step, *batch):
    """The program of XLA for one step on one batch."""
    compiled = tf.function(lambda *batch: step(batch), jit_compile=True, autograph=False)
    return compiled.experimental_get_compiler_ir(*batch)(stage="hlo")


def test_gradient_accumulation_equals_a_double_batch():
    (x, y), params, case = data(12), parameters(), CASES["eed mse"]
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    distiller = distiller_of(case, optimizer)
    distiller.fit(x, y, batch_size=3, shuffle=False, verbose=0)
    for rows in (slice(0, 6), slice(6, 12)):
        params = reference.sgd_step(params, x[rows], y[rows], case.gradients, 0.1)
    assert_parameters(distiller.model, params)


def test_averaged_weights_replace_the_weights_at_the_end():
    (x, y), params, case = data(12), parameters(), CASES["eed mse"]
    distiller = distiller_of(case, keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.6))
    distiller.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    average = None
    for rows in (slice(0, 4), slice(4, 8), slice(8, 12)):
        params = reference.sgd_step(params, x[rows], y[rows], case.gradients, 0.1)
        average = average or params
        average = {name: 0.6 * average[name] + 0.4 * params[name] for name in params}
    assert_parameters(distiller.model, average)


class Script(keras.callbacks.Callback):
    """Writes the validation accuracies that the callbacks after it shall see."""

    VALUES = (0.5, 0.6, 0.7, 0.4, 0.3, 0.2)

    def on_epoch_end(self, epoch, logs=None):
        assert "val_final_accuracy" in logs
        logs["val_final_accuracy"] = self.VALUES[epoch]


def test_callbacks_know_that_more_accuracy_is_better(tmp_path):
    x, y = data(8)
    distiller = distiller_of(metrics=["accuracy"])
    monitor, path = "val_final_accuracy", tmp_path / "best.keras"
    stopper = keras.callbacks.EarlyStopping(monitor, patience=2, restore_best_weights=True)
    saver = keras.callbacks.ModelCheckpoint(path, monitor, save_best_only=True)
    slower = keras.callbacks.ReduceLROnPlateau(monitor, factor=0.5, patience=1, min_delta=0)
    history = distiller.fit(
        x, y, epochs=6, validation_data=(x, y), callbacks=[Script(), stopper, saver, slower], verbose=0
    ).history
    assert len(history["loss"]) == 5  # 0.7 is the best, and two epochs have not beaten it
    assert (stopper.best, stopper.best_epoch) == (0.7, 2)
    assert saver.best == 0.7
    best = keras.saving.load_model(path)
    assert best.optimizer.iterations == 3
    for a, b in zip(best.model.get_weights(), distiller.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)  # the early stopper went back to the same epoch
    np.testing.assert_allclose(distiller.optimizer.learning_rate, 0.1 * 0.5**2, rtol=1e-6)


def test_keras_tuner(tmp_path):
    """Its objective needs a direction: KerasTuner knows names of Keras's own metrics only."""
    keras_tuner = pytest.importorskip("keras_tuner")
    x, y = data(16)

    def build(parameters_):
        rate = parameters_.Choice("learning_rate", [0.0, 0.5])
        return distiller_of(optimizer=keras.optimizers.SGD(rate), metrics=["accuracy"])

    def tuner(objective):
        return keras_tuner.RandomSearch(
            build,
            objective=objective,
            max_trials=2,
            directory=tmp_path,
            project_name="search",
            overwrite=True,
        )

    with pytest.raises(ValueError, match="val_final_accuracy"):
        tuner("val_final_accuracy")
    search = tuner(keras_tuner.Objective("val_final_accuracy", "max"))
    search.search(x, y, validation_data=(x, y), epochs=3, verbose=0)
    scores = {t.hyperparameters.get("learning_rate"): t.score for t in search.oracle.trials.values()}
    untrained = reference.forward(parameters(), x)[0][2].argmax(axis=1)
    np.testing.assert_allclose(scores[0.0], (untrained == y).mean(), rtol=1e-6)
    (best,) = search.get_best_models(1)
    found = best.evaluate(x, y, verbose=0, return_dict=True)["final_accuracy"]
    np.testing.assert_allclose(found, max(scores.values()), rtol=1e-6)


def test_a_frozen_network_warns_as_in_keras():
    x, y = data(8)
    distiller = distiller_of()
    distiller.model.trainable = False
    distiller.compile("sgd")
    before = distiller.model.get_weights()
    with pytest.warns(UserWarning, match="trainable"):
        distiller.fit(x, y, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, distiller.model.get_weights(), strict=True))


def test_a_frozen_body_stays_as_it_is():
    (x, y), params, case = data(8), parameters(), CASES["beed"]
    distiller = distiller_of(case)
    for name in reference.CONVS:
        distiller.model.get_layer(name).trainable = False
    distiller.compile(keras.optimizers.SGD(0.1))
    distiller.train_on_batch(x, y)
    expected = reference.sgd_step(params, x, y, case.gradients, 0.1)
    frozen = {n: params[n] if n.startswith("conv") else value for n, value in expected.items()}
    assert_parameters(distiller.model, frozen)


# Half precision -------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["always", "while the network is built"])
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_learns_what_float32_learns(precision, when):
    (x, y), params, expected = data(16), parameters(), []
    for _ in range(4):
        expected.append(reference.mean_loss(terms_by_hand(CASES["eed mse"], params, x, y)))
        params = reference.sgd_step(params, x, y, reference.eed_grad, 0.1)
    keras.config.set_dtype_policy(precision)
    model = with_parameters(network(), parameters())
    if when != "always":
        keras.config.set_dtype_policy("float32")
    distiller = kx.ExitEnsembleDistiller(model, objectives.EED("mse"))
    distiller.compile(keras.optimizers.SGD(0.1))
    scaled = isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (precision == "mixed_float16")
    if scaled:
        distiller.optimizer.build(distiller.trainable_variables)
        distiller.optimizer.dynamic_scale.assign(256.0)  # else the first steps may be skipped
    history = distiller.fit(x, y, epochs=4, verbose=0).history["loss"]
    np.testing.assert_allclose(history, expected, rtol=3e-2)
    assert history[-1] < history[0]
    assert {v.dtype for v in distiller.trainable_variables} == {"float32"}
    if scaled:
        assert distiller.optimizer.inner_optimizer.iterations == 4


def test_gradients_that_are_too_small_for_float16_are_kept_by_scaling():
    """With a weight of 1e-5 they are about 1e-8, below the smallest float16."""
    keras.config.set_dtype_policy("mixed_float16")
    (x, y), params, case = data(8), parameters(), CASES["cross-entropy"]
    distiller = distiller_of(case, keras.optimizers.SGD(1e4))
    w = np.full(8, 1e-5, "float32")
    distiller.train_on_batch(x, y, w)
    expected = reference.sgd_step(params, x, y, case.gradients, 1e4, sample_weight=w)
    for name, variable in variables(distiller.model).items():
        found = np.asarray(variable).reshape(params[name].shape) - params[name]
        step = expected[name] - params[name]
        assert np.abs(found - step).max() < 0.05 * np.abs(step).max(), name


# Saving ---------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="test_distiller")
class Pull(objectives.Objective):
    """A user's objective with an argument and a state: `L = CE_K + s n ‖z_1‖²`, n counting the batches."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def initial_state(self):
        return {"batches": 1.0}

    def terms(self, logits, features, y, state, loss):
        pull = ops.sum(ops.square(logits[0]), axis=-1)
        return {
            "classification": loss(y, logits[-1]),
            "distillation": self.scale * state["batches"] * pull,
        }

    def next_state(self, logits, state, batch_mean):
        return {"batches": state["batches"] + 1}


SAVED = {
    "dbt annealed": lambda: objectives.DBT(weight=PolynomialDecay(0.9, 20, 0.1), temperature="annealed"),
    "user": lambda: Pull(0.01),
}


@pytest.mark.parametrize("objective", SAVED.values(), ids=SAVED.keys())
def test_saving_between_two_epochs_changes_nothing(objective, tmp_path):
    params = parameters()
    params["final/kernel"] *= 25
    x, y = data()
    fit = {"batch_size": 4, "shuffle": False, "verbose": 0}

    def make():
        return distiller_of(
            Case(objective, None, None), keras.optimizers.Adam(0.01), params, metrics=["accuracy"], loss="ce"
        )

    straight, first = make(), make()
    expected = straight.fit(x, y, epochs=2, **fit).history
    first.fit(x, y, epochs=1, **fit)
    first.save(tmp_path / "distiller.keras")
    second = keras.saving.load_model(tmp_path / "distiller.keras", safe_mode=True)
    assert type(second) is type(first)
    assert type(second.objective) is type(first.objective)
    for a, b in zip(first.variables, second.variables, strict=True):
        assert a.path.split("/")[1:] == b.path.split("/")[1:]
        np.testing.assert_array_equal(a, b)
    assert scalar(second, "step") == 4
    for name in first.objective.initial_state():
        assert scalar(second, name) == scalar(first, name) > 1
    before, after = first.predict(x, verbose=0), second.predict(x, verbose=0)
    assert list(before) == list(after)
    assert all(np.array_equal(before[name], after[name]) for name in before)

    history = second.fit(x, y, epochs=1, **fit).history
    assert set(history) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values[1:], rtol=1e-6, atol=1e-7, err_msg=name)
    for a, b in zip(straight.variables, second.variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)
    for a, b in zip(straight.optimizer.variables, second.optimizer.variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9)


def test_weights_alone_can_be_saved(tmp_path):
    x, y = data()
    first = distiller_of(CASES["dbt annealed"])
    first.model.get_layer("final").bias.assign([9.0, 0, 0, 0])
    first.fit(x, y, verbose=0)
    first.save_weights(tmp_path / "a.weights.h5")
    second = distiller_of(CASES["dbt annealed"], params=parameters(1))
    second.load_weights(tmp_path / "a.weights.h5")
    for a, b in zip(first.variables, second.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert scalar(second, "temperature") == scalar(first, "temperature") > 1


@pytest.mark.parametrize("compiled", [True, False])
def test_a_copy_from_the_config_keeps_how_it_was_made(compiled):
    distiller = kx.ExitEnsembleDistiller(network(l2=L2), objectives.EED("kl", 0.5, 2.0, 0.25), name="mine")
    if compiled:
        loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.3)
        distiller.compile(keras.optimizers.SGD(0.25, momentum=0.5), loss=loss, weighted_metrics=["acc"])
    copy = kx.ExitEnsembleDistiller.from_config(distiller.get_config())
    copy.set_weights(distiller.get_weights())
    assert copy.name == "mine"
    if not compiled:
        assert not copy.compiled
        for d in (distiller, copy):
            d.compile("sgd")
    else:
        copy.compile_from_config(distiller.get_compile_config())
        np.testing.assert_allclose(copy.optimizer.learning_rate, 0.25)
    x, y = data()
    first, second = (d.evaluate(x, y, verbose=0, return_dict=True) for d in (distiller, copy))
    assert first == second
    assert any(name.endswith("_acc") for name in first) == compiled


FRESH = """
    import sys
    import numpy as np
    import keras_exitens
    import keras
    folder = sys.argv[1]
    distiller = keras.saving.load_model(folder + "/distiller.keras", safe_mode=True)
    x, y = np.load(folder + "/x.npy"), np.load(folder + "/y.npy")
    np.savez(folder + "/found.npz", **distiller.predict(x, verbose=0))
    logs = distiller.fit(x, y, shuffle=False, verbose=0).history
    np.savez(folder + "/logs.npz", **logs)
"""


def python(code, *arguments, timeout=300):
    """Runs code in a new process, in which `keras_exitens` and the reference can be imported."""
    support = pathlib.Path(reference.__file__).parent
    paths = [str(support), str(support.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_new_process_loads_it_with_one_import(tmp_path):
    x, y = data()
    distiller = distiller_of(CASES["dbt annealed"], keras.optimizers.Adam(0.01), metrics=["accuracy"])
    distiller.fit(x, y, shuffle=False, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    python(FRESH, tmp_path)
    found = np.load(tmp_path / "found.npz")
    expected = distiller.predict(x, verbose=0)
    assert set(found) == set(expected)
    for name, logits in expected.items():
        np.testing.assert_array_equal(found[name], logits, err_msg=name)
    logs, history = np.load(tmp_path / "logs.npz"), distiller.fit(x, y, shuffle=False, verbose=0).history
    for name, values in history.items():
        np.testing.assert_allclose(logs[name], values, rtol=1e-6, atol=1e-7, err_msg=name)


# What is refused ------------------------------------------------------------------------------------


def with_final(make):
    """Two exits; `make` gives the final output from a tensor `(batch, 6)`."""
    inputs = keras.Input((6,))
    return keras.Model(inputs, {"exit_1": layers.Dense(CLASSES)(inputs), "final": make(inputs)})


NOT_LOGITS = {
    "Dense(softmax)": lambda x: layers.Dense(CLASSES, activation="softmax")(x),
    "Activation(softmax)": lambda x: layers.Activation("softmax")(layers.Dense(CLASSES)(x)),
    "Softmax": lambda x: layers.Softmax()(layers.Dense(CLASSES)(x)),
    "ops.softmax": lambda x: ops.softmax(layers.Dense(CLASSES)(x)),
    "ops.nn.softmax": lambda x: keras.activations.softmax(layers.Dense(CLASSES)(x)),
    "sigmoid": lambda x: layers.Dense(CLASSES, activation="sigmoid")(x),
    "softmax, then float32": lambda x: layers.Activation("linear", dtype="float32")(
        layers.Dense(CLASSES, activation="softmax")(x)
    ),
    "softmax, then cast": lambda x: ops.cast(layers.Dense(CLASSES, activation="softmax")(x), "float32"),
    "softmax, then Reshape": lambda x: layers.Reshape((CLASSES,))(layers.Softmax()(layers.Dense(CLASSES)(x))),
    "nested": lambda x: keras.Sequential([keras.Input((6,)), layers.Dense(CLASSES, activation="softmax")])(x),
}


@pytest.mark.parametrize("final", NOT_LOGITS.values(), ids=NOT_LOGITS.keys())
def test_outputs_that_are_probabilities_are_refused(final):
    with pytest.raises(ValueError, match=r"(?s)'final'.*logits.*before softmax.*Fix"):
        kx.ExitEnsembleDistiller(with_final(final), objectives.CrossEntropy())


@pytest.mark.parametrize(
    "final",
    [
        lambda x: layers.Dense(CLASSES, activation="linear")(layers.Softmax()(x)),
        lambda x: layers.Activation("linear", dtype="float32")(layers.Dense(CLASSES)(x)),
        lambda x: layers.Reshape((CLASSES,))(layers.Dense(CLASSES)(x)),
    ],
    ids=["softmax before", "linear", "reshape"],
)
def test_outputs_that_are_logits_are_taken(final):
    distiller = kx.ExitEnsembleDistiller(with_final(final), objectives.CrossEntropy())
    assert list(distiller(np.zeros((2, 6), "float32"))) == ["exit_1", "final", "ensemble"]


def a_list():
    inputs = keras.Input((6,))
    return keras.Model(inputs, [layers.Dense(CLASSES)(inputs), layers.Dense(CLASSES)(inputs)])


def unequal():
    inputs = keras.Input((6,))
    return keras.Model(inputs, {"exit_1": layers.Dense(3)(inputs), "final": layers.Dense(CLASSES)(inputs)})


def maps():
    inputs = keras.Input((4, 4, 3))
    return keras.Model(inputs, {"exit_1": layers.Conv2D(4, 1)(inputs), "final": layers.Conv2D(4, 1)(inputs)})


@pytest.mark.parametrize(
    "model, received",
    [
        (lambda: keras.Sequential([keras.Input((6,)), layers.Dense(CLASSES)]), "Sequential"),
        (a_list, "Functional"),
        (unequal, "(None, 3)"),
        (maps, "(None, 4, 4, 4)"),
        (lambda: layers.Dense(3), "Dense"),
        (lambda: None, "None"),
    ],
    ids=["Sequential", "list", "unequal classes", "maps", "layer", "None"],
)
def test_what_is_not_a_multi_exit_model_is_refused(model, received):
    with pytest.raises(ValueError, match=r"(?s)not a multi-exit model.*add_exits") as error:
        kx.ExitEnsembleDistiller(model())
    assert received in str(error.value)


@pytest.mark.parametrize(
    "objective, received",
    [(objectives.EED, "EED"), ("eed", "'eed'"), (keras.losses.MeanSquaredError(), "mean_squared_error")],
    ids=["class", "name", "loss"],
)
def test_what_is_not_an_objective_is_refused(objective, received):
    with pytest.raises(ValueError, match=r"(?s)`objective`.*objectives\.EED\(\)") as error:
        kx.ExitEnsembleDistiller(network(), objective)
    assert received in str(error.value)
    assert ("brackets" in str(error.value)) == (objective is objectives.EED)
    assert "EED, BEED, DBT, BYOT, CrossEntropy" in str(error.value)


@pytest.mark.parametrize("given, meant", [("crossentropy", "CrossEntropy"), ("bead", "BEED"), ("dbt", "DBT")])
def test_the_name_of_an_objective_is_answered_with_that_objective(given, meant):
    with pytest.raises(ValueError, match=rf"Fix: ExitEnsembleDistiller.*objectives\.{meant}\(\)"):
        kx.ExitEnsembleDistiller(network(), given)


@pytest.mark.parametrize("name", ["distiller.h5", "distiller.hdf5"])
def test_files_that_could_not_be_read_again_are_not_written(name, tmp_path):
    distiller = kx.ExitEnsembleDistiller(network())
    early = kx.EarlyExit(distiller.model, kx.policies.MaxProbability(0.5))
    for saved in (distiller, early):
        with pytest.raises(ValueError, match=r"HDF5(?s:.*)Fix: save\(.*distiller\.keras"):
            saved.save(tmp_path / name)
    assert not any(tmp_path.iterdir())


def test_the_default_distils_outputs_and_no_features():
    """Which then need not be as wide as each other."""
    distiller = kx.ExitEnsembleDistiller(network(widths=(3, 4, 5)))
    assert distiller.objective.get_config() == objectives.EED(feature_weight=0).get_config()


@pytest.mark.parametrize("kind", [objectives.EED, objectives.BEED, objectives.BYOT])
def test_features_of_unequal_width(kind):
    """They cannot be compared, and need not be."""
    model = network(widths=(3, 4, 5))
    with pytest.raises(ValueError, match="feature_weight=0") as error:
        kx.ExitEnsembleDistiller(model, kind())
    message = str(error.value)
    assert kind.__name__ in message
    assert "{'exit_1': 3, 'exit_2': 4, 'final': 5}" in message
    distiller = kx.ExitEnsembleDistiller(model, kind(feature_weight=0))
    distiller.compile("sgd", run_eagerly=True)
    logs = distiller.train_on_batch(*data(8), return_dict=True)
    assert logs["feature_loss"] == 0
    assert logs["distillation_loss"] > 0


def test_an_exit_called_ensemble_is_refused():
    inputs = keras.Input((6,))
    model = keras.Model(
        inputs, {"ensemble": layers.Dense(CLASSES)(inputs), "final": layers.Dense(CLASSES)(inputs)}
    )
    with pytest.raises(ValueError, match=r"(?s)'ensemble'.*rename"):
        kx.ExitEnsembleDistiller(model)


def test_objectives_that_do_not_fit_the_number_of_exits_are_refused():
    with pytest.raises(ValueError, match="alpha"):
        kx.ExitEnsembleDistiller(network(), objectives.BEED(alpha=1.5))
    with pytest.raises(ValueError, match="3 weights"):
        kx.ExitEnsembleDistiller(network(), objectives.CrossEntropy([1, 1]))


class Misspelt(objectives.Objective):
    """Its term would be trained on, but counted nowhere in the logs."""

    def terms(self, logits, features, y, state, loss):
        return {"clasification": loss(y, logits[-1])}


class Empty(objectives.Objective):
    def terms(self, logits, features, y, state, loss):
        return {}


@pytest.mark.parametrize("objective, word", [(Misspelt(), "clasification"), (Empty(), "Empty")])
def test_terms_of_unknown_names_are_refused(objective, word):
    distiller = kx.ExitEnsembleDistiller(network(), objective)
    distiller.compile("sgd", run_eagerly=True)
    with pytest.raises(ValueError, match=word):
        distiller.train_on_batch(*data(8))


def test_training_before_compiling_is_refused():
    with pytest.raises(ValueError, match=r"compile\(\)"):
        kx.ExitEnsembleDistiller(network()).fit(*data(8), verbose=0)

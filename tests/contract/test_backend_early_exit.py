"""Early exit on every backend: who leaves where, with what, and who is never computed."""

import keras
import numpy as np
import pytest
from contracts import BACKEND, Batches, data, network, spread_policy, weights

import keras_exitens as kx

IMAGES, LABELS = data(70)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    made = kx.add_exits(network(), 2)
    rng = np.random.default_rng(0)
    for v in made.weights:
        if v.name == "kernel" and len(v.shape) == 2:  # surer exits, some more than others
            v.assign(rng.normal(size=v.shape) * 3)
    return made


@pytest.fixture(scope="module")
def records(model):
    return kx.collect(model, (IMAGES, LABELS), verbose=0)


@pytest.fixture(scope="module")
def policy(records):
    return spread_policy(records)


@pytest.fixture(scope="module")
def early(model, policy):
    return kx.EarlyExit(model, policy)


@pytest.fixture(scope="module")
def expected(records, policy):
    exits = policy.for_exits(3).decide(records.logits)
    assert len({*exits.tolist()}) == 3
    return exits, records.logits[exits, np.arange(len(exits))]


def agrees(found, expected, rows=slice(None)):
    exits, logits = (part[rows] for part in expected)
    assert (np.asarray(found["exit"]) == exits).all() and found["exit"].dtype == np.int32
    np.testing.assert_allclose(found["logits"], logits, atol=1e-5 * np.abs(logits).max())
    assert list(found) == ["logits", "exit", "score"]


@pytest.mark.parametrize("size", [1, 7, 16, 70])
def test_rows_leave_where_the_policy_says(early, expected, size):
    agrees(early.predict(IMAGES, batch_size=size, verbose=0), expected)


@pytest.mark.parametrize(
    "given",
    [
        lambda: {"image": IMAGES},
        lambda: [IMAGES],
        lambda: Batches(IMAGES, LABELS, size=16),
        lambda: Batches(IMAGES, size=16),
        lambda: ((IMAGES[i : i + 16], LABELS[i : i + 16]) for i in range(0, 70, 16)),
        lambda: IMAGES.astype("float64"),
        lambda: keras.ops.convert_to_tensor(IMAGES),
    ],
    ids=["dict", "list", "labelled batches", "batches", "generator", "float64", "tensor"],
)
def test_images_come_in_every_form(early, expected, given):
    agrees(early.predict(given(), verbose=0), expected)


def test_single_batches_and_calls(early, expected):
    agrees(early.predict_on_batch(IMAGES[:9]), expected, slice(9))
    called = {key: keras.ops.convert_to_numpy(value) for key, value in early(IMAGES[:9]).items()}
    agrees(called, expected, slice(9))
    nothing = early.predict(IMAGES[:0], verbose=0)
    assert nothing["logits"].shape == (0, 4) and nothing["exit"].shape == (0,)


def test_bytes_are_taken_as_floats(model, policy):
    images = np.random.default_rng(0).integers(0, 255, (9, 12, 12, 3), dtype=np.uint8)
    early = kx.EarlyExit(model, policy)
    found, by_floats = (early.predict(x, verbose=0) for x in (images, images.astype("float32")))
    assert all((found[key] == by_floats[key]).all() for key in found)


def test_wrong_images_are_refused_and_do_no_harm(model, policy, expected):
    early = kx.EarlyExit(model, policy)
    with pytest.raises(ValueError, match=r"shape \(batch, 12, 12, 3\)"):
        early.predict_on_batch(IMAGES[:, :5])
    agrees(early.predict(IMAGES, verbose=0), expected)


def test_steps_and_callbacks(early, expected):
    seen = []
    callback = keras.callbacks.LambdaCallback(on_predict_batch_end=lambda batch, logs: seen.append(batch))
    found = early.predict(Batches(IMAGES, size=16), steps=2, verbose=0, callbacks=[callback])
    agrees(found, expected, slice(32))
    assert seen == [0, 1]


def test_a_row_that_is_not_finite_goes_to_the_end_alone(early, expected):
    images = IMAGES.copy()
    images[3, 0, 0, 0], images[5, 1, 1, 1] = np.nan, np.inf
    found = early.predict(images, verbose=0)
    assert (found["exit"][[3, 5]] == 2).all() and np.isnan(found["score"][[3, 5]]).all()
    others = ~np.isin(np.arange(70), [3, 5])
    agrees({key: value[others] for key, value in found.items()}, expected, others)


class Counter(keras.layers.Layer):
    """Remembers how many rows came by, where it runs eagerly or is traced."""

    seen: list = []  # noqa: RUF012

    def call(self, x):
        self.seen.append(x.shape[0])
        return x


@pytest.mark.skipif(
    BACKEND == "tensorflow", reason="traced once, for any number of rows: see test_early_exit"
)
def test_later_stages_see_the_rows_that_go_on():
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Conv2D(4, 3, padding="same", name="first")(inputs)
    x = keras.layers.Conv2D(4, 3, padding="same")(Counter()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = kx.add_exits(keras.Model(inputs, keras.layers.Dense(3)(x)), ["first"], head="linear")
    images = np.random.default_rng(0).normal(size=(40, 4, 4, 1)).astype("float32")
    scores = kx.policies.MaxProbability(0.5).score(
        kx.collect(model, (images, np.zeros(40, int)), verbose=0).logits[0]
    )
    for going_on in (0, 13, 40):
        threshold = np.inf if going_on == 40 else float(np.sort(scores)[going_on])
        early = kx.EarlyExit(model, kx.policies.MaxProbability(threshold))
        early.predict(images[:2], verbose=0)  # cuts the network into stages, which calls the layer too
        Counter.seen.clear()
        found = early.predict(images, batch_size=40, verbose=0)
        assert (found["exit"] == 1).sum() == going_on
        padded = 14 if going_on == 13 and BACKEND == "jax" else going_on
        assert Counter.seen == ([padded] if going_on else [])


def test_what_changes_the_network_or_the_policy_shows(records, policy):
    keras.utils.set_random_seed(1)
    model = kx.add_exits(network(), 2)
    early = kx.EarlyExit(model, kx.policies.MaxProbability(float("inf")))
    first = early.predict(IMAGES[:8], verbose=0)
    assert (first["exit"] == 2).all()
    model.set_weights([w + 0.1 for w in weights(model)])
    changed = early.predict(IMAGES[:8], verbose=0)
    np.testing.assert_allclose(changed["logits"], model.predict(IMAGES[:8], verbose=0)["final"], atol=1e-5)
    assert np.abs(changed["logits"] - first["logits"]).max() > 1e-3
    early.policy = kx.policies.MaxProbability(float("-inf"))
    assert (early.predict(IMAGES[:8], verbose=0)["exit"] == 0).all()
    early.policy = kx.policies.MaxProbability(0.0, enabled=[False, True])
    assert (early.predict(IMAGES[:8], verbose=0)["exit"] == 1).all()


@pytest.mark.parametrize("kind", [kx.policies.Entropy, kx.policies.Margin, kx.policies.Patience])
@pytest.mark.parametrize("ensemble", [False, True])
def test_every_policy_does_what_it_decides(model, records, kind, ensemble):
    threshold = 2 if kind is kx.policies.Patience else 0.3
    policy = kind(threshold, ensemble=ensemble).for_exits(3)
    found = kx.EarlyExit(model, policy).predict(IMAGES, batch_size=32, verbose=0)
    simulated = policy.simulate(records.logits)
    near = np.abs(np.asarray(simulated["score"]) - threshold) < 1e-4
    near &= kind is not kx.policies.Patience  # which counts
    assert (found["exit"] == np.asarray(simulated["exit"]))[~near].all() and near.mean() < 0.1
    np.testing.assert_allclose(found["logits"][~near], np.asarray(simulated["logits"])[~near], atol=1e-4)


def test_calibrate_tradeoff_and_benchmark(model, records):
    policy = kx.calibrate(records, kx.cost(model), cost_budget=0.8)
    assert policy.calibration.cost <= 0.8
    assert "final" in str(kx.tradeoff(records, kx.cost(model)))
    found = kx.EarlyExit(model, policy).benchmark((IMAGES, LABELS))
    assert found.accuracy == pytest.approx(policy.calibration.accuracy, abs=0.02)
    assert found.rows == 70 and 0 < found.multiply_adds <= found.full_multiply_adds * 0.81
    assert found.seconds > 0 and found.full_seconds > 0


def test_collect_reads_every_form(model, records):
    weighted = np.ones(70, "float32")
    weighted[60:] = 0
    pairs = (
        (IMAGES[i : i + 16], LABELS[i : i + 16], np.arange(i, min(i + 16, 70))) for i in range(0, 70, 16)
    )
    for given, rows in (
        (Batches(IMAGES, LABELS), 70),
        (Batches(IMAGES, np.eye(4)[LABELS]), 70),
        (Batches(IMAGES, LABELS, weighted), 60),
        (pairs, 70),
    ):
        found = kx.collect(model, given, verbose=0)
        np.testing.assert_allclose(found.logits, records.logits[:, :rows], atol=1e-4)
        assert (found.labels == LABELS[:rows]).all() and found.names == ("exit_1", "exit_2", "final")
    with pytest.raises(ValueError, match="no labels"):
        kx.collect(model, Batches(IMAGES), verbose=0)
    with pytest.raises(ValueError, match=r"no data|at least one batch"):
        kx.collect(model, (batch for batch in ()), verbose=0)


def test_measured_cost_is_positive_and_grows(model):
    found = kx.measured_cost(model, batch_size=4, repeats=3)
    assert found.unit == "seconds" and (np.diff(found.cumulative) > 0).all()


def test_saved_and_loaded_it_says_the_same(early, expected, tmp_path):
    early.save(tmp_path / "early.keras")
    agrees(keras.saving.load_model(tmp_path / "early.keras").predict(IMAGES, verbose=0), expected)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow does this")
def test_what_is_tensorflows_is_refused_with_the_way_out(early, model, policy, tmp_path):
    with pytest.raises(NotImplementedError, match="leave `optimize` out"):
        kx.EarlyExit(model, policy, optimize=True)
    with pytest.raises(NotImplementedError, match=r"(?s)KERAS_BACKEND=tensorflow python -c .*onnx"):
        early.export(tmp_path / "out", format="onnx")
    with pytest.raises(NotImplementedError, match="CSVLogger"):
        kx.callbacks.ExitTensorBoard(str(tmp_path))
    config = {**early.get_config(), "optimize": True}
    with pytest.warns(UserWarning, match="optimize=True needs TensorFlow"):
        assert not kx.EarlyExit.from_config(config).optimize

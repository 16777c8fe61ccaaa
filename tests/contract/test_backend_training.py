"""The distiller on every backend: the steps of TensorFlow, and all that `fit` takes."""

import keras
import numpy as np
import parity
import pytest
from contracts import BACKEND, CLASSES, Batches, data, distiller, weights

import keras_exitens as kx

STORED = np.load(parity.FILE)
NAMES = ["exit_1", "exit_2", "final", "ensemble"]


@pytest.mark.parametrize("name", parity.CASES)
def test_five_steps_are_those_of_tensorflow(name):
    stored = {key.split("/", 1)[1]: STORED[key] for key in STORED.files if key.startswith(f"{name}/")}
    before = [stored[f"before {i}"] for i in range(sum(key.startswith("before") for key in stored))]
    found = parity.train(name, before)
    assert found.keys() == stored.keys()
    moved = [np.abs(stored[f"after {i}"] - stored[f"before {i}"]).max() for i in range(len(before))]
    assert min(moved) > 1e-5  # each weight was trained, and each statistic moved
    for key, value in stored.items():
        tolerance = 1e-4 if key.startswith("measured") else 1e-5  # 148 images through the statistics
        np.testing.assert_allclose(found[key], value, rtol=tolerance, atol=1e-5, err_msg=key)


def test_fit_with_validation_logs_every_exit():
    images, labels = data()
    made = distiller(metrics=["accuracy", keras.metrics.TopKCategoricalAccuracy(k=2, name="top2")])
    history = made.fit(
        Batches(images, labels), validation_data=Batches(images[:50], labels[:50]), epochs=2, verbose=0
    ).history
    for metric in ("accuracy", "top2"):
        assert all(len(history[f"{prefix}{name}_{metric}"]) == 2 for name in NAMES for prefix in ("", "val_"))
    assert all(t >= a for t, a in zip(history["final_top2"], history["final_accuracy"], strict=True))
    assert np.isfinite(history["val_loss"]).all()


def test_predict_gives_the_exits_in_order():
    images, _ = data(10)
    made = distiller()
    for found in (made.predict(images, verbose=0), made.predict_on_batch(images), made(images)):
        assert list(found) == NAMES
    by_hand = sum(made.predict(images, verbose=0)[name] for name in NAMES[:3]) / 3
    np.testing.assert_allclose(made.predict(images, verbose=0)["ensemble"], by_hand, atol=1e-6)


def test_accuracies_are_those_of_the_predictions():
    images, labels = data(50)
    made = distiller()
    found = made.predict(images, batch_size=20, verbose=0)
    measured = made.evaluate(images, labels, batch_size=20, verbose=0, return_dict=True)
    for name in NAMES:
        expected = (found[name].argmax(-1) == labels).mean()
        assert measured[f"{name}_accuracy"] == pytest.approx(expected, abs=1e-6)


def test_evaluate_changes_nothing():
    images, labels = data(40)
    made = distiller(kx.objectives.DBT(temperature="annealed"))
    before = weights(made)
    made.evaluate(images, labels, verbose=0)
    assert all((a == b).all() for a, b in zip(before, weights(made), strict=True))


def test_the_loss_is_the_mean_of_cross_entropies():
    """Independent arithmetic: no weights of terms, no regularisers, one ragged batch."""
    images, labels = data(37)
    made = distiller(kx.objectives.CrossEntropy())
    logits = made.predict(images, verbose=0)
    weight = np.linspace(0, 2, 37, dtype="float32")

    def crossed(z):
        z = z.astype("float64") - z.max(axis=1, keepdims=True)
        return np.log(np.exp(z).sum(axis=1)) - z[np.arange(37), labels]

    each = sum(crossed(logits[name]) for name in NAMES[:3])
    measured = made.evaluate(images, labels, batch_size=20, verbose=0, return_dict=True)["loss"]
    assert measured == pytest.approx(each.mean(), rel=1e-5)
    weighted = made.evaluate(images, labels, sample_weight=weight, batch_size=37, verbose=0, return_dict=True)
    assert weighted["loss"] == pytest.approx((each * weight).mean(), rel=1e-5)


def test_one_hot_labels_teach_what_ids_teach():
    images, labels = data(40)
    trained = []
    for given in (labels, np.eye(CLASSES, dtype="float32")[labels]):
        keras.utils.set_random_seed(0)
        made = distiller()
        made.fit(images, given, batch_size=20, shuffle=False, verbose=0)
        trained.append(weights(made))
    for a, b in zip(*trained, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "how", [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 2}], ids=str
)
def test_compiled_or_not_the_step_is_the_same(how):
    if BACKEND == "torch" and "run_eagerly" not in how:
        pytest.skip("Keras on PyTorch takes no steps_per_execution, and compiles with a compiler of C++")
    images, labels = data(64)
    trained = []
    for settings in ({}, how):
        keras.utils.set_random_seed(0)
        made = distiller(**settings)
        made.fit(images, labels, shuffle=False, verbose=0)
        trained.append(weights(made))
    for a, b in zip(*trained, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_an_ignored_class_teaches_nothing():
    images, labels = data(40)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    some = np.where(np.arange(40) % 3, labels, -1)
    made = distiller(kx.objectives.CrossEntropy(), loss=loss)
    masked = made.evaluate(images, some, batch_size=40, verbose=0, return_dict=True)
    kept = made.evaluate(images[some >= 0], labels[some >= 0], batch_size=40, verbose=0, return_dict=True)
    assert masked == pytest.approx(kept, rel=1e-5)


@pytest.mark.parametrize("wrong", [-1, CLASSES, 0.5])
def test_wrong_labels_are_never_learned(wrong):
    images, labels = data(40)
    bad = labels.astype(type(wrong) if isinstance(wrong, float) else labels.dtype)
    bad[7] = wrong
    made = distiller()
    before = weights(made.model)
    with pytest.raises(ValueError, match="Expected:"):  # arrays are looked at first
        made.fit(images, bad, verbose=0)
    assert all((a == b).all() for a, b in zip(before, weights(made.model), strict=True))
    with pytest.raises((ValueError, FloatingPointError), match=r"(?i)labels"):
        made.fit(Batches(images, bad), verbose=0)


FAILING = {
    "no labels": lambda x, y: (x, None),
    "images of another size": lambda x, y: (x[:, :9, :9], y),
    "images of other channels": lambda x, y: (x[..., :1], y),
}


@pytest.mark.parametrize("wrong", FAILING.values(), ids=FAILING.keys())
def test_a_call_that_failed_leaves_nothing_behind(wrong):
    """What comes after it trains, measures and predicts as if it had not been."""
    images, labels = data(64)
    keras.utils.set_random_seed(3)
    made = distiller()
    keras.utils.set_random_seed(3)
    other = distiller()
    other.set_weights(made.get_weights())
    x, y = wrong(images, labels)
    for failing in (
        lambda: made.fit(x, y, verbose=0),
        lambda: made.evaluate(x, y, verbose=0),
        lambda: made.train_on_batch(x, y),
        lambda: made.test_on_batch(x, y),
    ):
        if wrong is FAILING["images of another size"] and BACKEND == "torch":
            break  # a pooled network takes them there
        with pytest.raises(Exception):  # noqa: B017 - Keras's own, of many kinds
            failing()
    histories = [d.fit(images, labels, shuffle=False, verbose=0).history for d in (made, other)]
    assert histories[0].keys() == histories[1].keys()
    for name, values in histories[1].items():
        assert histories[0][name] == pytest.approx(values, rel=1e-5), name
    measured = [d.evaluate(images, labels, verbose=0, return_dict=True) for d in (made, other)]
    assert measured[0] == pytest.approx(measured[1], rel=1e-5)
    batches = [
        {name: float(value) for name, value in d.train_on_batch(images, labels, return_dict=True).items()}
        for d in (made, other)
    ]
    assert batches[0] == pytest.approx(batches[1], rel=1e-4)
    found = [d.predict(images, verbose=0)["final"] for d in (made, other)]
    np.testing.assert_allclose(*found, atol=1e-4)


def test_float16_skips_steps_that_overflow():
    images, labels = data(64)
    made = distiller(dtype="mixed_float16", optimizer=keras.optimizers.SGD(0.01))
    made.fit(images, labels, verbose=0)
    skipped = made.skipped_steps  # while the scale is still too large
    before = weights(made.model)
    trainable = [v.trainable for v in made.model.weights]
    made.train_on_batch(images * 1e9, labels)
    assert made.skipped_steps == skipped + 1
    pairs = zip(before, weights(made.model), trainable, strict=True)
    assert all((a == b).all() for a, b, moves in pairs if moves)


def test_bfloat16_trains():
    images, labels = data(64)
    made = distiller(dtype="mixed_bfloat16")
    losses = made.fit(images, labels, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert all(v.dtype == "float32" for v in made.model.trainable_weights)


def test_saved_and_loaded_it_goes_on(tmp_path):
    images, labels = data(64)
    made = distiller(kx.objectives.DBT(temperature="annealed"))
    made.fit(images, labels, shuffle=False, verbose=0)
    made.save(tmp_path / "made.keras")
    loaded = keras.saving.load_model(tmp_path / "made.keras")
    for each in (made, loaded):
        each.fit(images, labels, shuffle=False, verbose=0)
    for a, b in zip(weights(made), weights(loaded), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    assert {
        float(keras.ops.convert_to_numpy(v)) for v in made.non_trainable_variables if v.name == "step"
    } == {4}


class _Stop(keras.callbacks.Callback):
    """Stands for a machine that goes off."""

    def __init__(self, at):
        super().__init__()
        self.at, self.seen = at, 0

    def on_train_batch_end(self, batch, logs=None):
        self.seen += 1
        if self.seen == self.at:
            raise KeyboardInterrupt


def test_a_killed_training_goes_on_at_its_step(tmp_path):
    splits = kx.data.load("digits", batch_size=128, train_limit=512)

    def make():
        keras.utils.set_random_seed(0)
        inputs = x = keras.Input(splits.input_shape)
        for width in (4, 8):
            x = keras.layers.Conv2D(width, 3, strides=2, padding="same", activation="relu")(x)
            x = keras.layers.Dropout(0.2)(x)  # random numbers that must go on too
        x = keras.layers.GlobalAveragePooling2D()(x)
        model = kx.add_exits(keras.Model(inputs, keras.layers.Dense(splits.classes)(x)), 1, head="linear")
        made = kx.ExitEnsembleDistiller(model, kx.objectives.EED("kl", feature_weight=0))
        made.compile(keras.optimizers.Adam(0.01), metrics=["accuracy"])
        return made

    whole = make()
    history = whole.fit(**splits.fit_arguments(3), verbose=0).history
    first, backup = make(), kx.callbacks.StepBackup(tmp_path / "backup", every=2)
    with pytest.raises(KeyboardInterrupt):
        first.fit(**splits.fit_arguments(3), verbose=0, callbacks=[backup, _Stop(7)])
    second, backup = make(), kx.callbacks.StepBackup(tmp_path / "backup", every=2)
    done = backup.restore(second)
    assert done == 6
    again = second.fit(**splits.fit_arguments(3, start=done), verbose=0, callbacks=[backup]).history
    for a, b in zip(weights(whole), weights(second), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    assert again["loss"] == pytest.approx(history["loss"][1:], rel=1e-5)
    assert again["final_accuracy"] == pytest.approx(history["final_accuracy"][1:], rel=1e-5)


class Endless(keras.utils.PyDataset):
    """A user's batches from a step on, without end."""

    def __init__(self, start):
        super().__init__()
        self.start, (self.images, self.labels) = start, data(160)

    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        rows = slice(*(32 * ((self.start + index) % 5 + i) for i in (0, 1)))
        return self.images[rows], self.labels[rows]


def test_an_epoch_of_a_users_data_set_is_resumed_in_the_middle_with_class_weights(tmp_path):
    settings = {"steps_per_epoch": 5, "epochs": 2, "class_weight": {0: 2.0, 1: 0.5}, "verbose": 0}
    keras.utils.set_random_seed(0)
    whole = distiller()
    whole.fit(Endless(0), **settings)
    keras.utils.set_random_seed(0)
    first, backup = distiller(), kx.callbacks.StepBackup(tmp_path / "backup", every=3)
    with pytest.raises(KeyboardInterrupt):
        first.fit(Endless(0), callbacks=[backup, _Stop(4)], **settings)
    second, backup = distiller(), kx.callbacks.StepBackup(tmp_path / "backup", every=3)
    assert backup.restore(second) == 3
    second.fit(Endless(3), callbacks=[backup], **settings)
    for a, b in zip(weights(whole), weights(second), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

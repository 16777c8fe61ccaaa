"""Labels and weights that are wrong, in arrays and in data sets; export before any call; skipped steps."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from distillers import CASES, CLASSES, assert_parameters, data, distiller_of, parameters

import keras_exitens as kx


def dataset(y, **options):
    return tf.data.Dataset.from_tensor_slices((data(len(y))[0], y, *options.values())).batch(4)


def halves(rows=8):
    return np.full((rows, CLASSES), 0.5, "float32")


@pytest.mark.parametrize(
    "y, words",
    [(halves(), "do not sum to 1"), (np.full(8, 1.5, "float32"), "not whole numbers")],
    ids=["sums", "fractions"],
)
def test_labels_are_refused_in_arrays_and_in_data_sets(y, words):
    distiller = distiller_of()
    before = distiller.model.get_weights()
    x, _ = data(8)
    for act in (
        lambda: distiller.fit(x, y, verbose=0),
        lambda: distiller.fit(dataset(y), verbose=0),
        lambda: distiller.evaluate(dataset(y), verbose=0),
    ):
        with pytest.raises(ValueError, match=rf"(?s){words}.*Expected.*Fix"):
            act()
    for a, b in zip(before, distiller.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_labels_that_are_nearly_exact_are_taken():
    distiller = distiller_of(run_eagerly=True)
    thirds = np.full((8, CLASSES), 0.25, "float32") + np.float32(0.001)
    assert np.isfinite(distiller.train_on_batch(data(8)[0], thirds)).all()
    assert np.isfinite(distiller.train_on_batch(data(8)[0], np.full(8, 2.0, "float32"))).all()


def test_labels_of_unknown_rank_are_told_how_to_be_known():
    y = data(8)[1]
    unknown = dataset(y).map(lambda x, y: (x, tf.py_function(lambda v: v, [y], tf.int64)))
    with pytest.raises(ValueError, match=r"(?s)unknown rank.*ensure_shape"):
        distiller_of().fit(unknown, verbose=0)
    known = unknown.map(lambda x, y: (x, tf.ensure_shape(y, [None])))
    assert np.isfinite(distiller_of().fit(known, verbose=0).history["loss"]).all()


def test_weights_of_two_columns_are_refused():
    x, y = data(8)
    with pytest.raises(ValueError, match=r"(?s)`sample_weight`.*\(batch,\).*\(8, 4\)"):
        distiller_of(run_eagerly=True).train_on_batch(x, y, np.ones((8, CLASSES), "float32"))


def test_a_partial_of_a_loss_takes_ids():
    x, y = data(8)
    loss = functools.partial(keras.losses.categorical_crossentropy, label_smoothing=0.2)
    smooth = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
    found, expected = distiller_of(loss=loss, run_eagerly=True), distiller_of(loss=smooth, run_eagerly=True)
    for distiller in (found, expected):
        distiller.train_on_batch(x, y)
    for a, b in zip(found.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="probabilities"):
        distiller_of(loss=functools.partial(keras.losses.kl_divergence))


def test_a_distiller_never_called_can_be_exported(tmp_path):
    distiller = kx.ExitEnsembleDistiller(distiller_of().model)
    distiller.export(tmp_path / "saved", verbose=False)
    x, _ = data(5)
    loaded = tf.saved_model.load(tmp_path / "saved")
    found = loaded.serve(x)
    for name, logits in distiller(x).items():
        np.testing.assert_allclose(found[name], logits, rtol=1e-5, atol=1e-6)


def test_steps_that_loss_scaling_skips_are_counted_and_saved(tmp_path):
    x, y = data(8)
    assert distiller_of().skipped_steps == 0
    keras.config.set_dtype_policy("mixed_float16")
    distiller = distiller_of()
    distiller.optimizer.build(distiller.trainable_variables)
    distiller.optimizer.dynamic_scale.assign(2.0**17)
    distiller.fit(x, y, epochs=6, verbose=0)
    iterations = int(distiller.optimizer.inner_optimizer.iterations)
    assert 0 < distiller.skipped_steps < 6
    assert distiller.skipped_steps + iterations == 6
    assert float(distiller.optimizer.dynamic_scale) == 2.0 ** (17 - distiller.skipped_steps)
    distiller.save(tmp_path / "d.keras")
    assert keras.saving.load_model(tmp_path / "d.keras").skipped_steps == distiller.skipped_steps


def test_a_step_that_is_skipped_changes_no_weight():
    keras.config.set_dtype_policy("mixed_float16")
    distiller = distiller_of(CASES["dbt"])
    distiller.optimizer.build(distiller.trainable_variables)
    distiller.optimizer.dynamic_scale.assign(2.0**40)
    distiller.train_on_batch(*data(8))
    assert distiller.skipped_steps == 1
    assert_parameters(distiller.model, parameters(), rtol=1e-6)

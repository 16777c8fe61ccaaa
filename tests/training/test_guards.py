"""A loss that is not finite stops training, tells what it was, and reaches no checkpoint."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_exitens as kx
from keras_exitens._training.guards import NonFiniteLoss, explained

CLASSES, ROWS = 3, 12


def network():
    """Two exits on a vector. Without ReLU, which may turn NaN into 0."""
    inputs = keras.Input((5,))
    x = keras.layers.Dense(4)(inputs)
    first = keras.layers.Dense(CLASSES, name="exit_1")(x)
    x = keras.layers.Dense(4)(x)
    return keras.Model(inputs, {"exit_1": first, "final": keras.layers.Dense(CLASSES, name="final")(x)})


def compiled(objective=None, **options):
    distiller = kx.ExitEnsembleDistiller(network(), objective)
    distiller.compile(keras.optimizers.SGD(0.01), **options)
    return distiller


def data(rows=ROWS, nan_at=None):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 5)).astype("float32")
    if nan_at is not None:
        x[nan_at] = np.nan
    return x, rng.integers(0, CLASSES, rows)


def is_finite(model):
    return all(np.isfinite(w).all() for w in model.get_weights())


@pytest.mark.parametrize(
    "options",
    [{}, {"run_eagerly": True}, {"steps_per_execution": 4}, {"metrics": ["accuracy"]}],
    ids=["graph", "eager", "steps_per_execution", "metrics"],
)
def test_nan_in_an_image_stops_training_and_names_the_terms(options):
    distiller = compiled(**options)
    with pytest.raises(FloatingPointError) as error:
        distiller.fit(*data(nan_at=7), batch_size=4, epochs=3, verbose=0)
    message = str(error.value)
    for words in ("loss=nan", "classification_loss=nan", "distillation_loss=nan", "feature_loss="):
        assert words in message
    assert "epoch 1" in message
    assert "NaN in the images" in message
    assert "Fix" in message


def test_an_infinite_loss_stops_training():
    """Logits stay finite, the squares of the distillation term do not."""
    distiller = compiled(kx.objectives.EED("mse"))
    distiller.model.get_layer("final").bias.assign([1e30, 0, -1e30])
    with pytest.raises(FloatingPointError, match="distillation_loss=inf"):
        distiller.fit(*data(), verbose=0)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_nan_in_every_batch_stops_training_in_half_precision(precision):
    """Loss scaling skips steps that overflow, but nothing is learned where every step is skipped."""
    keras.config.set_dtype_policy(precision)
    distiller = compiled()
    with pytest.raises(FloatingPointError, match="loss=nan"):
        distiller.fit(*data(nan_at=slice(None)), batch_size=2, epochs=5, verbose=0)


def test_a_step_skipped_by_loss_scaling_does_not_stop_training():
    keras.config.set_dtype_policy("mixed_float16")
    distiller = compiled()
    distiller.fit(*data(), verbose=0)
    distiller.optimizer.dynamic_scale.assign(2.0**40)  # overflows at first, and is halved until it does not
    before = [v.numpy().copy() for v in distiller.trainable_variables]
    distiller.fit(*data(), batch_size=1, epochs=4, verbose=0)
    assert distiller.optimizer.dynamic_scale < 2.0**40
    assert is_finite(distiller.model)
    assert any((a != v.numpy()).any() for a, v in zip(before, distiller.trainable_variables, strict=True))


def test_training_stops_within_an_epoch():
    distiller = compiled()
    with pytest.raises(FloatingPointError, match="batch 50 of epoch 1"):
        distiller.fit(*data(300, nan_at=30), batch_size=1, shuffle=False, verbose=0)
    assert 50 <= distiller.optimizer.iterations < 100  # the hook may run in a thread of its own


@pytest.mark.parametrize("every", ["epoch", 1])
def test_no_checkpoint_of_nan_is_written(tmp_path, every):
    path = tmp_path / "model.keras"
    distiller = compiled(metrics=["accuracy"])
    distiller.fit(*data(), verbose=0)
    distiller.save(path)
    saver = keras.callbacks.ModelCheckpoint(path, save_freq=every)
    with pytest.raises(FloatingPointError):
        distiller.fit(*data(nan_at=7), batch_size=2, shuffle=False, verbose=0, callbacks=[saver])
    assert not is_finite(distiller.model)
    assert is_finite(keras.saving.load_model(path).model)


class Spoil(keras.callbacks.Callback):
    """Puts NaN into a weight when an epoch begins."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            self.model.trainable_variables[0].assign_add(np.full((5, 4), np.nan))


@pytest.mark.parametrize("every, batches", [(10, 6), (50, 30), (7, 5), (4, 6)])
def test_checkpoints_count_batches_across_epochs(tmp_path, every, batches):
    """The first batch of the second epoch is NaN; `every` batches are over in the middle of that epoch."""
    path = tmp_path / "{epoch}-{batch}.keras"
    distiller = compiled()
    callbacks = [Spoil(epoch=1), keras.callbacks.ModelCheckpoint(path, save_freq=every)]
    with pytest.raises(FloatingPointError, match="epoch 2"):
        distiller.fit(*data(batches), batch_size=1, epochs=3, verbose=0, callbacks=callbacks)
    written = list(tmp_path.iterdir())
    assert len(written) == (batches >= every)
    assert all(is_finite(keras.saving.load_model(file).model) for file in written)


def test_no_backup_of_nan_is_written(tmp_path):
    distiller = compiled()
    backup = keras.callbacks.BackupAndRestore(tmp_path, save_freq=1)
    with pytest.raises(FloatingPointError):
        distiller.fit(*data(nan_at=7), batch_size=2, shuffle=False, verbose=0, callbacks=[backup])
    resumed = compiled()
    resumed.load_weights(backup._weights_path)
    assert is_finite(resumed.model)


def test_the_best_checkpoint_stays_the_one_before_nan(tmp_path):
    path = tmp_path / "best.keras"
    distiller = compiled(metrics=["accuracy"])

    saver = keras.callbacks.ModelCheckpoint(path, "val_loss", save_best_only=True)
    with pytest.raises(FloatingPointError, match="epoch 3"):
        distiller.fit(*data(), epochs=4, validation_data=data(), verbose=0, callbacks=[Spoil(2), saver])
    loaded = keras.saving.load_model(path)
    assert is_finite(loaded.model)
    assert loaded.optimizer.iterations == 2


def test_finite_training_runs_to_its_end():
    history = compiled().fit(*data(300), batch_size=2, epochs=2, verbose=0).history
    assert len(history["loss"]) == 2
    assert history["loss"][1] < history["loss"][0]


# How it is put among the callbacks ------------------------------------------------------------------


class Epochs(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(epoch)


@pytest.mark.parametrize("wrap", [lambda c: c, lambda c: [c], lambda c: (c,)], ids=["one", "list", "tuple"])
def test_users_callbacks_are_called_and_their_list_stays(wrap):
    callback = Epochs()
    given = wrap(callback)
    kept = list(given) if isinstance(given, list | tuple) else None
    compiled().fit(*data(), epochs=2, verbose=0, callbacks=given)
    assert callback.seen == [0, 1]
    assert kept is None or list(given) == kept


def test_a_callback_list_is_guarded_too():
    distiller = compiled()
    callback = Epochs()
    callbacks = keras.callbacks.CallbackList([callback], add_history=True, model=distiller)
    for _ in range(2):
        distiller.fit(*data(), verbose=0, callbacks=callbacks)
    assert callback.seen == [0, 0]
    assert sum(isinstance(c, NonFiniteLoss) for c in callbacks.callbacks) == 1
    with pytest.raises(FloatingPointError):
        distiller.fit(*data(nan_at=0), verbose=0, callbacks=callbacks)
    assert callback.seen == [0, 0]


def test_the_guard_acts_first():
    guard, other = NonFiniteLoss.first_of([Epochs()])
    assert isinstance(guard, NonFiniteLoss)
    assert isinstance(other, Epochs)
    (alone,) = NonFiniteLoss.first_of(None)
    assert isinstance(alone, NonFiniteLoss)


@pytest.mark.parametrize("steps", [1, 3, 7, 60])
def test_batches_are_looked_at_whatever_the_stride(steps):
    """`steps_per_execution` calls the hook with the last batch of each group only."""
    guard = NonFiniteLoss(every=5)
    guard.set_model(compiled())
    for epoch in (0, 1):
        guard.on_epoch_begin(epoch)
        last = -1
        while last + steps < 4:
            last += steps
            guard.on_train_batch_end(last, {"loss": float("nan")})  # too early to be read
        with pytest.raises(FloatingPointError, match=f"epoch {epoch + 1}"):
            guard.on_train_batch_end(last + steps, {"loss": float("nan")})


def test_validation_alone_does_not_stop_training():
    x, y = data()
    history = compiled().fit(x, y, validation_data=data(nan_at=0), epochs=2, verbose=0).history
    assert np.isnan(history["val_loss"]).all()
    assert np.isfinite(history["loss"]).all()


# Labels, told by TensorFlow -------------------------------------------------------------------------


def test_only_errors_of_labels_are_put_in_other_words():
    with (
        pytest.raises(ValueError, match=r"(?s)0 … 2.*label value of 5.*valid range"),
        explained(None, 3),
    ):
        tf.nn.sparse_softmax_cross_entropy_with_logits([0, 5], np.zeros((2, 3), "float32"))
    with pytest.raises(tf.errors.InvalidArgumentError), explained(None, 3):
        tf.reshape(tf.zeros(3), (2,))
    with pytest.raises(KeyError), explained(None, 3):
        raise KeyError("other")

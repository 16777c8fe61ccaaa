import keras
import numpy as np
import pytest

import keras_exitens as kx


def torch_like_steps(w, gradients, learning_rate, momentum, l2):
    """SGD as PyTorch documents it: g = g + l2 w; v = momentum v + g; w = w - learning_rate v."""
    velocity = np.zeros_like(w)
    for g in gradients:
        velocity = momentum * velocity + (g + l2 * w)
        w = w - learning_rate * velocity
    return w


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_decay_is_l2_in_the_gradient(momentum):
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(3, 2)), rng.normal(size=(50, 3, 2))
    variable = keras.Variable(start, dtype="float32")
    optimizer = kx.optimizers.SGD(0.1, momentum=momentum, l2=0.05)
    optimizer.build([variable])
    for g in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(g, "float32")])
    expected = torch_like_steps(start, gradients, 0.1, momentum, 0.05)
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_it_differs_from_the_decoupled_decay_of_keras():
    def after(optimizer):
        variable = keras.Variable([1.0])
        optimizer.build([variable])
        for _ in range(200):
            optimizer.apply([keras.ops.zeros((1,))])
        return float(variable.numpy()[0])

    ours = after(kx.optimizers.SGD(0.1, momentum=0.9, l2=5e-4))
    decoupled = after(keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=5e-4))
    zeros = np.zeros((200, 1))
    assert ours == pytest.approx(torch_like_steps(np.ones(1), zeros, 0.1, 0.9, 5e-4)[0], rel=1e-5)
    assert ours < 0.92 < 0.98 < decoupled


def test_config_keeps_every_argument():
    optimizer = kx.optimizers.SGD(0.2, momentum=0.8, l2=0.3, nesterov=True)
    config = keras.saving.serialize_keras_object(optimizer)
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is kx.optimizers.SGD
    assert (float(copy.learning_rate), copy.momentum, copy.l2, copy.nesterov) == (
        pytest.approx(0.2),
        0.8,
        0.3,
        True,
    )


def test_bad_arguments():
    with pytest.raises(ValueError, match="l2"):
        kx.optimizers.SGD(l2=-1)
    with pytest.raises(ValueError, match="decoupled"):
        kx.optimizers.SGD(l2=1e-4, weight_decay=1e-4)

"""A part of a network at inference, as one compiled function; the same call on every backend."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import keras

from keras_exitens._backend import NAME
from keras_exitens._types import Tensor

__all__ = ["compiled"]

Values: TypeAlias = dict[str, Tensor]


def compiled(model: keras.Model) -> Callable[[Values], Values]:
    """A function from a dict of tensors to another, with the weights that the model has when it is called.

    TensorFlow traces a graph, JAX compiles by XLA, once for each shape; PyTorch runs eagerly.

    Args:
        model: functional `keras.Model` from a dict to a dict.
    """
    return {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[NAME](model)


def _tensorflow(model: keras.Model) -> Callable[[Values], Values]:
    import tensorflow as tf

    # A partial: lambdas of one line are one function to TensorFlow, which warns that it traces it too often.
    return tf.function(functools.partial(model, training=False), autograph=False)


def _jax(model: keras.Model) -> Callable[[Values], Values]:
    import jax

    @jax.jit
    def run(trainable: list[Any], others: list[Any], values: Values) -> Values:
        return model.stateless_call(trainable, others, values, training=False)[0]

    # The lists are made once: a walk through all layers would take longer than a small stage.
    trainable, others = list(model.trainable_variables), list(model.non_trainable_variables)

    def call(values: Values) -> Values:
        return run([v.value for v in trainable], [v.value for v in others], values)

    return call


def _torch(model: keras.Model) -> Callable[[Values], Values]:
    import torch

    def call(values: Values) -> Values:
        with torch.inference_mode():
            return model(values, training=False)

    return call

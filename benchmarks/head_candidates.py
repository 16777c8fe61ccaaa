"""Heads that are compared with those of the library, and are not in it.

Each is made of the same blocks as the library's, so that `add_exits` and its costs know it after `add()`.
"""

import functools
import math

import keras
from keras import layers, ops

from keras_exitens._attach import heads

__all__ = ["CANDIDATES", "add"]


def hidden(blocks, tensor):
    """A dense layer of D units, batch normalisation, ReLU."""
    if not isinstance(tensor, keras.KerasTensor):
        return blocks.project(tensor)  # which costs as much
    name = f"{blocks.name}_hidden"
    dense = layers.Dense(
        blocks.features,
        use_bias=False,
        kernel_initializer="he_normal",
        dtype=blocks.common["dtype"],
        name=f"{name}_dense",
    )
    return blocks.norm(dense(tensor), name)


def shrunk(blocks, tensor, halvings):
    """The map brought to the size of the last one, at its own width."""
    for i in range(1, halvings + 1):
        blocks.block = i
        tensor = blocks.depthwise(tensor, 2, "a")
    return tensor


def mixed_to(share, blocks, tensor, width, halvings):
    """The map at the size of the last one, its channels mixed there, to a share of the last map's width."""
    tensor = shrunk(blocks, tensor, halvings)
    blocks.block = max(halvings, 1)
    return blocks.conv(tensor, max(math.ceil(share * width), min(width, 32)), 1, 1, "b")


def mlp(blocks, tensor, width, halvings):
    return hidden(blocks, blocks.pool(tensor))


def shrink(blocks, tensor, width, halvings):
    return hidden(blocks, blocks.pool(shrunk(blocks, tensor, halvings)))


def mixed(blocks, tensor, width, halvings):
    return mixed_to(1 / 4, blocks, tensor, width, halvings)


def mixed_wide(blocks, tensor, width, halvings):
    return mixed_to(1, blocks, tensor, width, halvings)


def mixed_hidden(blocks, tensor, width, halvings):
    return hidden(blocks, blocks.pool(mixed(blocks, tensor, width, halvings)))


def light_hidden(blocks, tensor, width, halvings):
    return hidden(blocks, blocks.pool(heads.HEADS["light"](blocks, tensor, width, halvings)))


@keras.saving.register_keras_serializable(package="keras_exitens_benchmarks")
class GradientScale(layers.Layer):
    """Its input, of whose gradient it hands back a share."""

    def __init__(self, share, **kwargs):
        super().__init__(**kwargs)
        self.share = share

    def call(self, inputs):
        return self.share * inputs + (1 - self.share) * ops.stop_gradient(inputs)

    def get_config(self):
        return {**super().get_config(), "share": self.share}


def damped(head, share, blocks, tensor, width, halvings):
    """A head that hands a share of its gradient back to the network."""
    if isinstance(tensor, keras.KerasTensor):
        tensor = GradientScale(share, name=f"{blocks.name}_gradient")(tensor)
    return heads.HEADS[head](blocks, tensor, width, halvings)


CANDIDATES = {
    "mlp": mlp,
    "shrink": shrink,
    "mixed": mixed,
    "mixed_wide": mixed_wide,
    "mixed_hidden": mixed_hidden,
    "light_hidden": light_hidden,
    "light_quarter": functools.partial(damped, "light", 0.25),
    "light_32": functools.partial(heads.HEADS["light"], least=32),
}


def add():
    """Makes the candidates known to `add_exits`, in this process."""
    heads.HEADS.update(CANDIDATES)  # which says what they cost, too

"""Exit heads, and the layer that turns a classifier into logits."""

import math

import keras
from keras import layers

from keras_exitens import checks
from keras_exitens.wrapping import unwrapped

__all__ = ["HEADS", "ExitLogits", "apply_head", "data_format_of"]


@keras.saving.register_keras_serializable(package="keras_exitens")
class ExitLogits(layers.Layer):
    """Float32 logits of one exit: a classifier layer, run without its activation.

    The classifier layer is shared, not copied: it keeps its own activation for everybody else. A classifier
    that is a convolution gives a map, which is averaged over height and width. A classifier with a single
    unit, `z`, gives the two logits `[0, z]`, whose softmax is `[1 - sigmoid(z), sigmoid(z)]`.

    Args:
        classifier: a `Dense` or convolution layer with one unit (binary) or one a class.
        activation: the activation that turns these logits into the user's output, kept for `strip_exits`.

    Input: the feature `(batch, D)`, or the map `(batch, height, width, D)` for a convolution.
    Output: logits `(batch, classes)`, float32.
    """

    def __init__(self, classifier, activation="softmax", **kwargs):
        # Inputs reach the classifier in the dtype they have: its own policy decides.
        super().__init__(autocast=False, **kwargs)
        self.classifier = classifier
        self.activation = keras.activations.get(activation)

    def build(self, input_shape):
        if not self.classifier.built:
            self.classifier.build(input_shape)
        self.built = True

    def call(self, inputs):
        scores = _without_activation(self.classifier)(inputs)
        if self.classifier.activity_regularizer is not None:
            # Of what the classifier gives to everybody else, as Keras counts it: the mean over the rows.
            loss = self.classifier.activity_regularizer(self.classifier.activation(scores))
            self.add_loss(loss / keras.ops.cast(keras.ops.shape(scores)[0], loss.dtype))
        logits = keras.ops.cast(scores, "float32")
        if len(logits.shape) == 4:
            axes = (2, 3) if data_format_of(self.classifier) == "channels_first" else (1, 2)
            logits = keras.ops.mean(logits, axis=axes)
        if logits.shape[-1] == 1:
            logits = keras.ops.concatenate([keras.ops.zeros_like(logits), logits], axis=-1)
        return logits

    def compute_output_spec(self, inputs):
        units = self.classifier.units if hasattr(self.classifier, "units") else self.classifier.filters
        return keras.KerasTensor((inputs.shape[0], max(units, 2)), dtype="float32")

    def get_config(self):
        return {
            **super().get_config(),
            "classifier": keras.saving.serialize_keras_object(self.classifier),
            "activation": keras.activations.serialize(self.activation),
        }

    @classmethod
    def from_config(cls, config):
        classifier = keras.saving.deserialize_keras_object(config.pop("classifier"))
        return cls(classifier, **config)


def _without_activation(layer):
    """A view of a built layer: the same variables and settings, but no activation and no penalty on it.

    The user's layer is left alone even while it is called: it may run in another thread.
    """
    view = object.__new__(type(layer))
    vars(view).update(vars(layer), activation=keras.activations.linear, activity_regularizer=None)
    return view


def data_format_of(layer):
    """`"channels_last"` or `"channels_first"`; a Dense layer works on the last axis."""
    return getattr(layer, "data_format", "channels_last")


def _policy_of(tensor):
    """The dtype policy of the layer that a tensor comes from; operations such as `x + y` have none."""
    while True:
        operation, node_index, _ = tensor._keras_history
        if isinstance(unwrapped(operation), layers.Layer):
            return unwrapped(operation).dtype_policy
        tensor = operation._inbound_nodes[node_index].input_tensors[0]


def apply_head(head, tensor, *, width, features, halvings, data_format, name):
    """Leads a feature map to the pooled feature of one exit.

    Args:
        head: a name in `HEADS`, or a callable `(tensor, width, name) -> map or vector`.
        tensor: KerasTensor, the feature map `(batch, height, width, channels)` at the exit.
        width: int, channels of the backbone's last feature map.
        features: int, D, the width that enters the backbone's classifier.
        halvings: int, how often height and width are still halved between the exit and the last map.
        data_format: `"channels_last"` or `"channels_first"`.
        name: str, prefix of the names of the new layers.

    Returns:
        KerasTensor `(batch, D)`.
    """
    # New layers compute as the layer does that they are attached to, whatever the global policy is now.
    dtype = _policy_of(tensor)
    if callable(head):
        out = head(tensor, width, name)
    else:
        out = _Blocks(name, data_format, dtype).run(HEADS[head], tensor, width, halvings)
    if not isinstance(out, keras.KerasTensor) or len(out.shape) not in (2, 4):
        raise checks.error(
            f"The head of `{name}` does not give a feature map or a vector.",
            expected="a KerasTensor (batch, height, width, channels) or (batch, features)",
            received=repr(out),
            fix="let the callable `head(tensor, width, name)` return the output of a Keras layer",
        )
    if len(out.shape) == 4:
        out = layers.GlobalAveragePooling2D(data_format=data_format, dtype=dtype, name=f"{name}_pool")(out)
    if out.shape[-1] != features:
        out = layers.Dense(features, dtype=dtype, name=f"{name}_project")(out)
    return out


class _Blocks:
    """Builds the blocks of one head: convolution, batch normalisation, ReLU, with systematic names."""

    def __init__(self, name, data_format, dtype):
        self.name = name
        self.common = {"data_format": data_format, "dtype": dtype}
        self.axis = -1 if data_format == "channels_last" else 1
        self.block = 0

    def run(self, block, tensor, width, halvings):
        """One `block` a halving, doubling the width each time and ending at `width`."""
        if block is None:
            return tensor
        count = max(halvings, 1)
        for i in range(1, count + 1):
            self.block = i
            out_width = width if i == count else min(width, tensor.shape[self.axis] * 2)
            tensor = block(self, tensor, out_width, 2 if halvings else 1)
        return tensor

    def conv(self, tensor, width, size, strides, part):
        name = f"{self.name}_block{self.block}_{part}"
        conv = layers.Conv2D(
            width,
            size,
            strides,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            name=f"{name}_conv",
            **self.common,
        )
        return self.norm(conv(tensor), name)

    def depthwise(self, tensor, strides, part):
        name = f"{self.name}_block{self.block}_{part}"
        conv = layers.DepthwiseConv2D(
            3,
            strides,
            padding="same",
            use_bias=False,
            depthwise_initializer="he_normal",
            name=f"{name}_conv",
            **self.common,
        )
        return self.norm(conv(tensor), name)

    def norm(self, tensor, name):
        dtype = self.common["dtype"]
        tensor = layers.BatchNormalization(
            axis=self.axis, momentum=0.9, epsilon=1e-5, dtype=dtype, name=f"{name}_bn"
        )(tensor)
        return layers.ReLU(dtype=dtype, name=f"{name}_relu")(tensor)


def _conv_block(blocks, tensor, width, strides):
    return blocks.conv(tensor, width, 3, strides, "a")


def _bottleneck_block(blocks, tensor, width, strides):
    inner = math.ceil(width / 4)
    tensor = blocks.conv(tensor, inner, 1, 1, "a")
    tensor = blocks.conv(tensor, inner, 3, strides, "b")
    return blocks.conv(tensor, width, 1, 1, "c")


def _separable_block(blocks, tensor, width, strides):
    return blocks.conv(blocks.depthwise(tensor, strides, "a"), width, 1, 1, "b")


# Name of a head -> the block that is repeated once a halving (`None`: straight to pooling).
HEADS = {
    "conv": _conv_block,
    "bottleneck": _bottleneck_block,
    "separable": _separable_block,
    "linear": None,
}

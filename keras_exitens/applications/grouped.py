"""A grouped convolution that runs on TensorFlow's own kernel."""

import functools

import keras

from keras_exitens._backend import tf
from keras_exitens._types import Tensor

__all__ = ["GroupedConv2D"]


@keras.saving.register_keras_serializable(package="keras_exitens")
class GroupedConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` with `groups`, without the detour through XLA.

    Keras 3 compiles every grouped convolution with XLA, since some builds of TensorFlow cannot run it on a
    CPU; a training step takes tens of times as long as with TensorFlow's own kernel. Where that kernel works
    (with oneDNN, and on GPUs) this layer uses it; elsewhere it is Keras's layer. Weights, arguments and
    results are those of `keras.layers.Conv2D`, which it is on other backends than TensorFlow.
    """

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        if tf is None or self.data_format != "channels_last" or not _kernel_works():
            return super().convolution_op(inputs, kernel)
        return tf.nn.convolution(
            inputs, kernel, self.strides, self.padding.upper(), dilations=self.dilation_rate
        )


@functools.cache
def _kernel_works() -> bool:
    """Whether this TensorFlow convolves in groups, and differentiates that, on this machine's CPU.

    It is tried as training and inference would run it: in a graph, whose optimizer joins a convolution with
    the bias and the activation after it to a kernel of its own.
    """
    if tf.config.list_logical_devices("GPU"):
        return True
    with tf.init_scope(), tf.device("CPU"):
        try:
            tf.function(_try_kernel, autograph=False)()
        except (tf.errors.OpError, ValueError):
            return False
    return True


def _try_kernel() -> list[Tensor]:
    inputs, kernel = tf.random.normal((1, 3, 3, 2)), tf.random.normal((3, 3, 1, 2))
    result = tf.nn.convolution(inputs, kernel, 1, "SAME")
    fused = tf.nn.relu(tf.nn.bias_add(tf.nn.convolution(inputs, kernel, 1, "SAME"), tf.random.normal((2,))))
    # A GradientTape would record nothing within `init_scope`.
    return [fused, *tf.gradients(result, [inputs, kernel])]

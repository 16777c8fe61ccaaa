"""The layer by which a multi-exit network is known: public name of `_network.exit_logits`."""

from keras_exitens._network.exit_logits import ExitLogits

__all__ = ["ExitLogits"]

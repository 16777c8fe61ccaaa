"""A multi-exit model as a chain of models: public names of `_stages.split`."""

from keras_exitens._scores import handed_on
from keras_exitens._stages.split import LOGITS, Stage, split, split_heads

__all__ = ["LOGITS", "Stage", "handed_on", "split", "split_heads"]

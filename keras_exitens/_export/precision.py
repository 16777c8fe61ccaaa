"""A float32 copy of a model in half precision."""

from typing import Any

import keras

__all__ = ["in_float32"]

_HALF = ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16")


def in_float32(model: keras.Model) -> keras.Model:
    """The same network, computing in float32.

    Args:
        model: a functional `keras.Model` whose layers can all be saved and loaded.

    Returns:
        `model` itself where nothing in it is of half precision; otherwise a new model with copies of its
        weights. Its outputs differ from those of `model` by the rounding of half precision.
    """
    config = keras.saving.serialize_keras_object(model)
    in_full = _rewritten(config)
    if in_full == config:
        return model
    copy = keras.saving.deserialize_keras_object(in_full)
    copy.set_weights([keras.ops.cast(v, "float32") if _is_half(v.dtype) else v for v in model.weights])
    return copy


def _is_half(name: object) -> bool:
    return isinstance(name, str) and name in _HALF


def _rewritten(config: Any) -> Any:
    """A serialised model with float32 wherever a dtype, or the name of a dtype policy, is a half one."""
    if isinstance(config, dict):
        return {
            key: "float32" if key in ("dtype", "name") and _is_half(value) else _rewritten(value)
            for key, value in config.items()
        }
    if isinstance(config, list | tuple):
        return type(config)(_rewritten(value) for value in config)
    return config

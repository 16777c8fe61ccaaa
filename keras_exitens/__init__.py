"""Multi-exit networks for Keras, trained by exit-ensemble distillation."""

import importlib

from keras_exitens.registration import register_with_keras

__version__ = "0.1.0"

# Public name -> module that defines it. Loaded on first use (PEP 562), so that importing a light
# module such as `keras_exitens.checks` loads neither Keras nor TensorFlow.
_EXPORTS = {
    "add_exits": "attach",
    "strip_exits": "attach",
    "exit_names": "attach",
    "exit_features": "attach",
    "cost": "costs",
    "ExitCost": "costs",
    "ExitEnsembleDistiller": "distiller",
    "EarlyExit": "early_exit",
    "measured_cost": "latency",
    "ExitRecords": "records",
    "collect": "collection",
    "calibrate": "calibration",
    "tradeoff": "tradeoffs",
}
_MODULES = ("applications", "callbacks", "data", "objectives", "optimizers", "policies", "runtime", "tuner")

__all__ = [*_EXPORTS, *_MODULES]

register_with_keras()


def __getattr__(name):
    if name in __all__ and name != "runtime":
        # Before any module that imports it: once Keras is there, all modules with registered classes are
        # imported, and none of them may be half imported then.
        importlib.import_module("keras")
    if name in _EXPORTS:
        value = getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})

"""Multi-exit networks for Keras, trained by exit-ensemble distillation."""

import importlib
from typing import TYPE_CHECKING, Any

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

__all__ = [
    "EarlyExit",
    "ExitCost",
    "ExitEnsembleDistiller",
    "ExitRecords",
    "add_exits",
    "applications",
    "calibrate",
    "callbacks",
    "collect",
    "cost",
    "data",
    "exit_features",
    "exit_names",
    "measured_cost",
    "objectives",
    "optimizers",
    "policies",
    "runtime",
    "strip_exits",
    "tradeoff",
    "tuner",
]

if TYPE_CHECKING:  # the same names for type checkers and editors, which do not run `__getattr__`
    from keras_exitens import (
        applications,
        callbacks,
        data,
        objectives,
        optimizers,
        policies,
        runtime,
        tuner,
    )
    from keras_exitens.attach import add_exits, exit_features, exit_names, strip_exits
    from keras_exitens.calibration import calibrate
    from keras_exitens.collection import collect
    from keras_exitens.costs import ExitCost, cost
    from keras_exitens.distiller import ExitEnsembleDistiller
    from keras_exitens.early_exit import EarlyExit
    from keras_exitens.latency import measured_cost
    from keras_exitens.records import ExitRecords
    from keras_exitens.tradeoffs import tradeoff

register_with_keras()


if not TYPE_CHECKING:  # with this function in sight, type checkers would take any name for a public one

    def __getattr__(name: str) -> Any:
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


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

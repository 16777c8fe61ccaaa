"""Multi-exit networks for Keras, trained by exit-ensemble distillation.

Everything public is imported here, at once: so Keras knows the classes that it may have to load.
"""

import importlib as _importlib
import typing as _typing

from keras_exitens import applications as applications
from keras_exitens import callbacks as callbacks
from keras_exitens import data as data
from keras_exitens import layers as layers
from keras_exitens import objectives as objectives
from keras_exitens import optimizers as optimizers
from keras_exitens import policies as policies
from keras_exitens import runtime as runtime
from keras_exitens import serving as serving
from keras_exitens import stages as stages
from keras_exitens._attach.add_exits import add_exits as add_exits
from keras_exitens._attach.add_exits import strip_exits as strip_exits
from keras_exitens._calibration.calibrate import calibrate as calibrate
from keras_exitens._calibration.collect import collect as collect
from keras_exitens._calibration.drift import DriftMonitor as DriftMonitor
from keras_exitens._calibration.records import ExitRecords as ExitRecords
from keras_exitens._inference.early_exit import EarlyExit as EarlyExit
from keras_exitens._network.costs import ExitCost as ExitCost
from keras_exitens._network.costs import cost as cost
from keras_exitens._network.exit_network import exit_features as exit_features
from keras_exitens._network.exit_network import exit_names as exit_names
from keras_exitens._reports.tradeoff import tradeoff as tradeoff
from keras_exitens._stages.latency import measured_cost as measured_cost
from keras_exitens._training.distiller import ExitEnsembleDistiller as ExitEnsembleDistiller

__version__ = "0.1.0"
__all__ = sorted([*(name for name in globals() if not name.startswith("_")), "tuner"])

if _typing.TYPE_CHECKING:
    from keras_exitens import tuner as tuner
else:

    def __getattr__(name: str) -> _typing.Any:
        if name == "tuner":  # it is a subclass of what KerasTuner, an optional package, defines
            return _importlib.import_module("keras_exitens.tuner")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

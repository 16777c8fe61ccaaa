"""Makes the library's classes known to Keras's loading as soon as both are imported.

`keras.models.load_model` finds only classes that have been imported. The package itself is lazy, so that its
light modules load neither Keras nor TensorFlow: the modules that register classes are imported here, at once
where Keras is loaded already, and otherwise right after it is.
"""

import importlib
import importlib.abc
import importlib.util
import sys

__all__ = ["register_with_keras"]

_MODULES = (
    "layers",
    "objectives",
    "optimizers",
    "distiller",
    "policies",
    "early_exit",
    "applications.grouped",
)


def register_with_keras():
    """Imports the modules with registered classes, now or when Keras is imported."""
    if "keras" in sys.modules:
        _import_modules()
    else:
        sys.meta_path.insert(0, _AfterKeras())


def _import_modules():
    # Under another backend the library cannot run, and must not be the reason that TensorFlow is loaded.
    if sys.modules["keras"].backend.backend() == "tensorflow":
        for name in _MODULES:
            importlib.import_module(f"keras_exitens.{name}")


class _AfterKeras(importlib.abc.MetaPathFinder):
    """Finds `keras` as ever, and has the modules imported once it has run. Used once."""

    def find_spec(self, name, path=None, target=None):
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                _import_modules()

            spec.loader.exec_module = exec_module
        return spec

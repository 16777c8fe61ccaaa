"""Imports inside the library go one way only, light modules stay light, and Keras knows the classes."""

import ast
import pathlib
import subprocess
import sys

import pytest

import keras_exitens

PACKAGE = pathlib.Path(keras_exitens.__file__).parent

# From the ground up: a module may import only modules named before it.
ORDER = [
    "registration",  # names modules, but imports them when Keras is there
    "hints",  # types, for the signatures
    "checks",
    "scores",
    "wrapping",
    "runtime",
    "graph",
    "flattening",
    "layers",
    "classifier",
    "names",
    "calls",
    "products",
    "elementwise",
    "traced",
    "operation_counts",
    "costs",
    "placement",
    "attach",
    "ensemble",
    "objectives",
    "losses",
    "exit_metrics",
    "replicas",
    "guards",
    "normalization",
    "distiller",
    "backup_file",
    "step_backup",
    "policies",
    "stages",
    "latency",
    "routing",
    "records",
    "collection",
    "threshold_search",
    "schedules",
    "certificates",
    "temperatures",
    "replay",
    "calibration",
    "exit_statistics",
    "figures",
    "pages",
    "tradeoffs",
    "exit_tensorboard",
    "callbacks",
    "tuner",
    "optimizers",
    "idx",
    "sources",
    "parts",
    "batches",
    "data",
    "applications",
    "folding",
    "freezing",
    "conversion",
    "precision",
    "agreement",
    "export",
    "exit_summary",
    "early_exit",
]


def modules():
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def layer_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path):
    """Modules of the library that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield from [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("keras_exitens"):
            parts = node.module.split(".")[1:]
            yield from parts[:1] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("keras_exitens."):
                    yield alias.name.split(".")[1]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    layer = layer_of(path)
    assert layer in ORDER, f"give {path.name} its place in ORDER"
    for name in imported(path):
        assert name == layer or ORDER.index(name) < ORDER.index(layer), f"{path.name} imports {name}"


def test_nothing_reaches_into_keras_src():
    for path in modules():
        assert "keras.src" not in path.read_text(), path.name


def test_every_public_name_is_there_and_in_all():
    for name in keras_exitens.__all__:
        assert getattr(keras_exitens, name) is not None
    assert set(keras_exitens.__all__) <= set(dir(keras_exitens))
    assert set(keras_exitens.__all__) == {*keras_exitens._EXPORTS, *keras_exitens._MODULES}
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = keras_exitens.no_such_thing


@pytest.mark.parametrize("imports", ["import keras, keras_exitens", "import keras_exitens, keras"])
def test_keras_knows_the_classes_whichever_is_imported_first(imports):
    code = f"{imports}; print(keras.saving.get_registered_object('keras_exitens>ExitEnsembleDistiller'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "keras_exitens.distiller.ExitEnsembleDistiller" in done.stdout


@pytest.mark.parametrize("name", ["add_exits", "collect", "policies"])
def test_public_names_can_be_had_without_importing_keras(name):
    code = f"import keras_exitens as kx; kx.{name}; from keras_exitens import EarlyExit, data"
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


@pytest.mark.parametrize("module", ["keras_exitens", "keras_exitens.checks", "keras_exitens.scores"])
def test_light_modules_load_neither_keras_nor_tensorflow(module):
    code = f"import sys, {module}; print([m for m in ('keras', 'tensorflow', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_runtime_loads_neither_keras_nor_tensorflow():
    code = (
        "import sys, keras_exitens; keras_exitens.runtime.load;"
        "print({'keras', 'tensorflow'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

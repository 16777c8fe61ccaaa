"""The house: imports go one way, private Keras stands in one file, and Keras knows the classes."""

import ast
import functools
import pathlib
import subprocess
import sys

import keras
import pytest

import keras_exitens

PACKAGE = pathlib.Path(keras_exitens.__file__).parent

# The rooms, floor by floor from the ground up: a room may import only from floors below its own.
FLOORS = [
    ["_checks", "_types", "_scores", "_keras", "_tables", "_backend"],
    ["_graph", "_inputs", "runtime", "objectives", "policies", "optimizers", "applications", "data"],
    ["_network"],
    ["_attach", "_training", "_calibration", "_stages", "layers"],
    ["_export", "_reports", "serving", "tuner", "stages"],
    ["_inference", "callbacks"],
    ["__init__"],
]
ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Names with an underscore that belong to Python, not to Keras.
PYTHONS = {"_replace", "_getframe"}


def files():
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    return str(path.relative_to(PACKAGE))


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path):
    """Rooms of the library that a file imports from, anywhere in it."""
    package = ["keras_exitens", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        yield from (parts[1] for parts in names if parts[0] == "keras_exitens" and len(parts) > 1)


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_imports_go_one_way(path):
    room = room_of(path)
    assert room in ROOMS, f"give {room} its floor in FLOORS"
    for other in imported(path):
        # A name such as `__version__` is of the package itself.
        assert other == room or ROOMS[other] < ROOMS[room], f"{name_of(path)} imports {other}"


def for_types_only(tree):
    """What stands under `if TYPE_CHECKING:`, which no running program imports."""
    blocks = (node for node in ast.walk(tree) if isinstance(node, ast.If))
    return {part for block in blocks if "TYPE_CHECKING" in ast.unparse(block.test) for part in block.body}


def test_no_file_imports_another_in_a_circle_within_its_room():
    edges = {path: set() for path in files()}
    for path in files():
        tree = ast.parse(path.read_text())
        for node in {*ast.walk(tree)} - for_types_only(tree):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for target in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                    file = PACKAGE.parent / f"{target.replace('.', '/')}.py"
                    edges[path] |= {file} & edges.keys()
    left = dict(edges)
    while free := [path for path, targets in left.items() if not targets & left.keys()]:
        for path in free:
            del left[path]
    assert not left, [name_of(path) for path in left]


def test_the_house_is_small():
    assert len(ROOMS) <= 30
    assert len(FLOORS) <= 8
    assert {room_of(path) for path in files()} == {*ROOMS}


@functools.cache
def keras_privates():
    """Private names that objects of Keras have."""
    inputs = keras.Input((2,))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["accuracy"])
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    things = [
        *(model, keras.Model(inputs, model(inputs)), model.layers[0], inputs, optimizer),
        *(keras.metrics.MeanMetricWrapper(len), keras.metrics.SparseCategoricalAccuracy()),
        *(keras.callbacks.Callback(), keras.ops.add, keras.losses.MeanSquaredError()),
    ]
    return {name for thing in things for name in dir(thing) if name[0] == "_" and name[:2] != "__"}


def private_attributes(path):
    """Attributes beginning with an underscore that a file reads, sets or overrides, with where."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr[0] == "_" and node.attr[:2] != "__":
            yield node.attr, node.lineno
        elif isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and part.name[0] == "_" and part.name[:2] != "__":
                    yield part.name, part.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if name[:1] == "_" and name[:2] != "__":
                yield name, node.lineno


@functools.cache
def own_names():
    """Private names that this library defines: functions, and attributes set on `self`."""
    found = set()
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
            elif isinstance(node, ast.Assign):
                found |= {name.id for t in node.targets for name in ast.walk(t) if isinstance(name, ast.Name)}
    return found


@pytest.mark.parametrize("path", [p for p in files() if p.name != "_keras.py"], ids=name_of)
def test_private_keras_is_touched_in_one_file(path):
    assert "keras.src" not in path.read_text() and "tensorflow.python" not in path.read_text()
    privates, own = keras_privates(), own_names()
    for name, line in private_attributes(path):
        where = f"{name_of(path)}:{line} touches {name}"
        assert name in PYTHONS or name in own, f"{where}: let _keras.py do it, and say why"
        assert name not in privates, f"{where}, which is Keras's too"


def test_the_test_of_private_names_finds_them(tmp_path):
    file = tmp_path / "file.py"
    lines = ["x._keras_history", "class A:", "    def _flatten_layers(self): ...", "getattr(x, '_direction')"]
    file.write_text("\n".join(lines))
    found = {name for name, _ in private_attributes(file)}
    assert found == {"_keras_history", "_flatten_layers", "_direction"}
    assert {"_flatten_layers", "_direction", "_loss_tracker", "_functional", "_fn"} <= keras_privates()


def test_every_public_name_is_there_and_in_all():
    for name in keras_exitens.__all__:
        assert getattr(keras_exitens, name) is not None
    assert {"add_exits", "EarlyExit", "tuner", "objectives"} <= {*keras_exitens.__all__}
    assert set(keras_exitens.__all__) <= set(dir(keras_exitens))
    assert not any(name.startswith("_") for name in keras_exitens.__all__)
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = keras_exitens.no_such_thing


def test_each_public_name_is_listed_once():
    lines = (PACKAGE / "__init__.py").read_text().splitlines()
    for name in keras_exitens.__all__:
        assert sum(line.startswith("from ") and line.endswith(f" as {name}") for line in lines) <= 1, name


@pytest.mark.parametrize("imports", ["import keras, keras_exitens", "import keras_exitens, keras"])
def test_keras_knows_the_classes_whichever_is_imported_first(imports):
    names = ["ExitEnsembleDistiller", "EarlyExit", "ExitLogits", "EED", "Entropy", "SGD", "GroupedConv2D"]
    code = f"{imports}; [print(keras.saving.get_registered_object('keras_exitens>' + n)) for n in {names}]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line.rstrip("'>").split(".")[-1] for line in done.stdout.splitlines()] == names


@pytest.mark.parametrize("name", ["add_exits", "collect", "policies"])
def test_public_names_can_be_had_without_importing_keras(name):
    code = f"import keras_exitens as kx; kx.{name}; from keras_exitens import EarlyExit, data"
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_importing_the_library_needs_no_optional_package():
    optional = ["keras_tuner", "tensorflow_datasets", "sklearn", "matplotlib", "pandas", "tensorboard"]
    code = (
        f"import sys; [sys.modules.__setitem__(name, None) for name in {[*optional, 'onnxruntime', 'onnx']}];"
        "import keras_exitens"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

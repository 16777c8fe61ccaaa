"""The public interface has type hints, and mypy can read the README with them."""

import importlib
import inspect
import pathlib
import re
import subprocess
import sys
import types
from typing import get_args

import pytest

import keras_exitens

ROOT = pathlib.Path(__file__).parents[2]
README = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL))
MODULES = ("stages",)  # public beside those that the package itself names


def public():
    """Public functions and classes of the library, by their full names."""
    for name in keras_exitens.__all__:
        value = getattr(keras_exitens, name)
        yield from of_module(value) if inspect.ismodule(value) else [(name, value)]
    for name in MODULES:
        yield from of_module(importlib.import_module(f"keras_exitens.{name}"))


def of_module(module):
    for name in module.__all__:
        value = getattr(module, name)
        if getattr(value, "__module__", "").startswith("keras_exitens") and callable(value):
            yield f"{module.__name__}.{name}", value


def functions(name, value):
    """The functions that a user of `value` may call: itself, or the public methods that its class defines."""
    if not inspect.isclass(value):
        yield name, value
        return
    # Also what it inherits here: a backend's part of a class is a base of it.
    bases = [base for base in reversed(value.__mro__) if base.__module__.startswith("keras_exitens")]
    members = {key: member for base in [*bases, value] for key, member in vars(base).items()}
    for key, member in members.items():
        if key in ("__init__", "__call__", "__len__", "__getitem__") or not key.startswith("_"):
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if inspect.isfunction(function) and function.__module__.startswith("keras_exitens"):
                yield f"{name}.{key}", function


INTERFACE = dict(item for found in public() for item in functions(*found))


@pytest.mark.parametrize("name", INTERFACE)
def test_every_argument_and_result_has_a_type(name):
    signature = inspect.signature(INTERFACE[name])
    bare = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.annotation is parameter.empty and parameter.name not in ("self", "cls")
    ]
    assert not bare, f"{name}: no type for {bare}"
    assert signature.return_annotation is not signature.empty, f"{name}: no type for its result"


# Calls of which Keras, not the library, says what stands where.
KERAS_OWN = {"training", "return_dict", "reset_metrics"}


def takes_bool(parameter):
    alternatives = (
        get_args(parameter.annotation)
        if isinstance(parameter.annotation, types.UnionType)
        else [parameter.annotation]
    )
    return isinstance(parameter.default, bool) or bool in alternatives


@pytest.mark.parametrize("name", INTERFACE)
def test_no_boolean_is_positional(name):
    positional = [
        parameter.name
        for parameter in inspect.signature(INTERFACE[name]).parameters.values()
        if parameter.kind is not parameter.KEYWORD_ONLY and takes_bool(parameter)
    ]
    assert not {*positional} - KERAS_OWN, f"{name}: make {positional} keyword-only"


def test_the_interface_is_found():
    assert {"add_exits", "EarlyExit.predict", "keras_exitens.objectives.EED.__init__"} <= {*INTERFACE}
    assert {"keras_exitens.runtime.Runtime.predict", "keras_exitens.policies.Policy.decide"} <= {*INTERFACE}


def test_the_package_says_that_it_is_typed():
    assert (pathlib.Path(keras_exitens.__file__).parent / "py.typed").is_file()


def mypy(path):
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(path)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_mypy_reads_the_readme(tmp_path):
    path = tmp_path / "readme.py"
    path.write_text(README)
    done = mypy(path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy_finds_a_mistake_in_the_readme(tmp_path):
    path = tmp_path / "mistake.py"
    path.write_text(README + "\nkx.add_exits(backbone, exits='three')\n")
    done = mypy(path)
    assert done.returncode == 1 and '"add_exits" has incompatible type "str"' in done.stdout, done.stdout

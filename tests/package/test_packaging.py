"""What pyproject.toml, the constraints and the Makefile promise each other."""

import pathlib
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = pathlib.Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DEVELOPMENT = {"dev", "docs"}  # what no user of the library needs
OTHER_BACKENDS = {"jax", "torch"}  # in the place of TensorFlow
MAKEFILE = (ROOT / "Makefile").read_text()


def requirements():
    """All that is required, by extras too."""
    extras = [group for name, group in EXTRAS.items() if name not in {"all", *DEVELOPMENT}]
    groups = [PROJECT["dependencies"], *extras]
    return [Requirement(text) for group in groups for text in group]


def pinned(file):
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_the_lowest_versions_are_those_that_are_tested(requirement):
    (bound,) = requirement.specifier
    assert bound.operator == ">="
    tested = pinned("constraints-lowest.txt")[canonicalize_name(requirement.name)]
    release = Version(tested).release
    assert release[: len(Version(bound.version).release)] == Version(bound.version).release
    assert not any(release[len(Version(bound.version).release) :]), f"{tested} is not the lowest"


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-lowest.txt"])
def test_constraints_name_one_version_of_everything_that_is_required(file):
    versions = pinned(file)
    for requirement in [*requirements(), *map(Requirement, EXTRAS["dev"])]:
        if requirement.name != PROJECT["name"]:
            version = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{requirement}: {version}"


def test_every_extra_that_an_error_names_is_there():
    sources = "".join(path.read_text() for path in (ROOT / "keras_exitens").rglob("*.py"))
    named = set(re.findall(r'optional_import\([^,()]+, (?:extra=)?"(\w+)"\)', sources))
    assert {"data", "tuner", "tensorboard", "plots", "export"} <= named <= {*EXTRAS}


def test_all_holds_every_extra_for_users():
    (everything,) = map(Requirement, EXTRAS["all"])
    assert everything.extras == {*EXTRAS} - {"all", *DEVELOPMENT, *OTHER_BACKENDS}


def commands_of(target):
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, flags=re.MULTILINE)[1]
    return [line.split()[1:] for line in recipe.splitlines() if ".py" in line]


@pytest.mark.parametrize("command", commands_of("bench") + commands_of("wheel-test"), ids=" ".join)
def test_scripts_of_the_makefile_take_their_options(command):
    script = (ROOT / command[0]).read_text()
    for option in command[1:]:
        if option.startswith("--"):
            assert f'"{option}"' in script, f"{command[0]} has no {option}"


def test_targets_that_are_no_files_are_phony():
    phony = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, flags=re.MULTILINE)[1].split())
    assert phony == set(re.findall(r"^([a-z][\w-]*):", MAKEFILE, flags=re.MULTILINE))

"""Networks of keras.applications: a part of the table of `zoo.py`, which holds all of it."""

import keras
import pytest
import zoo

pytestmark = pytest.mark.filterwarnings("ignore:To leave early saves nothing")

# One cell a family: every head and both placements come up.
FAST = {
    "MobileNet": ("compute", "bottleneck"),
    "MobileNetV2": ("stage", "separable"),
    "EfficientNetV2B0": ("compute", "light"),
    "MobileNetV3Small": ("compute", "conv"),
    "EfficientNetB0": ("stage", "linear"),
    "ResNet50": ("stage", "bottleneck"),
    "VGG16": ("compute", "linear"),
    "ConvNeXtTiny": ("stage", "separable"),
}
OTHERS = [name for name in zoo.MODELS if name not in zoo.SMALLEST]


def test_every_network_of_keras_is_in_the_table():
    functions = {name for name in dir(keras.applications) if name[0].isupper()}
    assert set(zoo.MODELS) == functions
    assert len(zoo.MODELS) == len(functions) >= 40


@pytest.mark.parametrize("name", FAST)
def test_one_cell_of_a_family(name):
    row = zoo.measure(zoo.Network(name, count=4), *FAST[name])
    assert row["faults"] == []


@pytest.mark.sweep
@pytest.mark.parametrize("name", zoo.SMALLEST)
def test_every_cell_of_the_smallest_of_a_family(name):
    network = zoo.Network(name, count=4)
    for placement, head in zoo.CELLS:
        row = zoo.measure(network, placement, head)
        assert row["faults"] == [], (placement, head)


@pytest.mark.sweep
@pytest.mark.parametrize("name", OTHERS)
def test_the_other_networks_keep_their_values(name):
    _, row = zoo.build(zoo.Network(name), "compute", "linear")
    assert zoo.faults(row) == []


@pytest.mark.parametrize(
    ("fault", "change"),
    [
        ("exits", {"exits": ["exit_1", "final"]}),
        ("shape", {"shapes": {"exit_1": [4, 3], "exit_2": [4, 5], "exit_3": [4, 5], "final": [4, 5]}}),
        ("finite", {"finite": False}),
        ("final", {"final_error": 2e-5}),
        ("final", {"final_error": float("nan")}),
        ("final", {"spread": 1e-4}),
        ("stripped", {"stripped_error": 1e-3}),
        ("loss", {"loss_after": 7.0}),
        ("loss", {"loss_after": float("nan")}),
        ("gradient", {"without_gradient": ["conv/kernel"]}),
        ("reload", {"reloaded_equal": False}),
    ],
)
def test_a_fault_is_seen(fault, change):
    names = ["exit_1", "exit_2", "exit_3", "final"]
    row = {
        "exits": names,
        "shapes": {name: [4, 5] for name in names},
        "finite": True,
        "final_error": 1e-7,
        "stripped_error": 0.0,
        "spread": 0.3,
        "loss_before": 7.0,
        "loss_after": 6.9,
        "without_gradient": [],
        "reloaded_equal": True,
    }
    assert zoo.faults(row) == []
    assert zoo.faults(row | change) == [fault]


def test_the_table_goes_on_where_it_was_interrupted(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert zoo.missing(path, "VGG16") == zoo.CELLS
    for placement, head in zoo.CELLS[:2]:
        row = {"model": "VGG16", "placement": placement, "head": head, "pixels": 32, "network": 10**7}
        zoo.write(path, row | {"faults": [], "final_error": 3e-7})
    zoo.write(path, {"model": "VGG16", "placement": "stage", "head": "conv", "refused": "too few stages"})
    zoo.write(path, {"model": "VGG16", "placement": "stage", "head": "linear", "died": "ended with -9"})
    assert len(zoo.missing(path, "VGG16")) == len(zoo.CELLS) - 4
    assert zoo.missing(path, "VGG19") == zoo.CELLS
    page = zoo.table(zoo.read(path))
    (line,) = [line for line in page.splitlines() if line.startswith("| VGG16")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    outcomes = [""] * len(zoo.CELLS)
    outcomes[:2] = "✓", "✓"
    outcomes[zoo.CELLS.index(("stage", "conv"))] = "too few stages"
    outcomes[zoo.CELLS.index(("stage", "linear"))] = "ended with -9"
    assert cells == ["VGG16", "32", "10.0 M", *outcomes, "3.0e-07"]
    assert f"4 of {len(zoo.MODELS) * len(zoo.CELLS)} cells measured: in 2 everything holds, 1 were" in page

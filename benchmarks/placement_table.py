"""Where `placement="compute"` puts three exits in ten well-known networks: the table in docs/placement.md.

python benchmarks/placement_table.py           # shows it
python benchmarks/placement_table.py --write   # puts it into docs/placement.md
"""

import argparse
import itertools
import math
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras

import keras_exitens as kx
from keras_exitens._graph.dag import Graph

DOCUMENT = pathlib.Path(__file__).parent.parent / "docs" / "placement.md"
BEGIN, END = "<!-- made by benchmarks/placement_table.py -->\n", "<!-- end -->\n"
NETWORKS = (
    *("ResNet50", "VGG16", "DenseNet121", "ConvNeXtTiny", "Xception"),
    *("MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0", "NASNetMobile"),
)


def table(networks=NETWORKS, exits=3):
    """The table as Markdown."""
    columns = ("network", "exit", "after layer", "resolution", "live tensors", "numbers kept")
    shares = ("network so far", "own head", "to leave here")
    header = (*columns, *shares)
    lines = [f"| {' | '.join(header)} |", f"| {' | '.join(['---'] * len(header))} |"]
    for network in networks:
        lines += rows(network, exits)
    return "\n".join(lines) + "\n"


def written(text):
    """The table that stands in a document."""
    return text.partition(BEGIN)[2].partition(END)[0]


def rows(network, exits):
    keras.backend.clear_session()  # names begin again
    backbone = getattr(keras.applications, network)(weights=None, input_shape=(224, 224, 3), classes=100)
    model = kx.add_exits(backbone, exits)
    costs = kx.cost(model)
    graph = Graph.of(backbone)
    live = graph.live_after
    by_name = {step.operation.name: step for step in graph.steps}
    so_far = itertools.accumulate(costs.stages)
    early = zip(costs.names[:-1], so_far, costs.heads, costs.cumulative, strict=False)
    for name, reached, head, total in early:
        layer = before(model, name)
        tensors = live[by_name[layer].index]
        kept = sum(math.prod(t.shape[1:]) for t in tensors)
        size = "×".join(map(str, by_name[layer].outputs[0].shape[1:]))
        shares = " | ".join(f"{part / costs.backbone:.1%}" for part in (reached, head, total))
        yield f"| {network} | {name} | `{layer}` | {size} | {len(tensors)} | {kept:,} | {shares} |"


def before(model, exit_name):
    """Name of the layer that the head of an exit is attached to."""
    tensor = model.output[exit_name]
    while True:
        operation, node, _ = tensor._keras_history
        if not operation.name.startswith(exit_name):
            return operation.name
        tensor = operation._inbound_nodes[node].input_tensors[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/placement.md")
    write = parser.parse_args().write
    made = table()
    if write:
        text = DOCUMENT.read_text()
        DOCUMENT.write_text(text.replace(written(text), made))
    else:
        print(made, end="")


if __name__ == "__main__":
    main()

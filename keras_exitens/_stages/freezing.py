"""Stages as graphs whose variables have become constants, so that TensorFlow can fuse more of them."""

import re
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_exitens import _checks as checks
from keras_exitens._keras import constants_for_variables

__all__ = ["FrozenStage"]


class FrozenStage:
    """A stage with its weights as they were when it was made, for use inside a `tf.function`.

    Where it is called its operations are imported, so that the constants stand in the graph of the caller, a
    branch of `tf.cond` included: as arguments of a branch they would be no constants to TensorFlow's
    optimizer.

    Args:
        model: functional `keras.Model` from a dict of tensors to a dict of tensors, as `Stage.model`.
        carried: as in `Stage`.
        for_tensorflow: bool. Whether TensorFlow will run it, and not another runtime: see `_fusible`.

    Attributes:
        graph: `GraphDef` without variables.
        given, made: dicts, name of a tensor that goes in, or comes out -> its name in `graph`.
    """

    def __init__(self, model: keras.Model, carried: Sequence[str], *, for_tensorflow: bool = False) -> None:
        self.carried = carried
        signature = {name: tf.TensorSpec(t.shape, t.dtype, name) for name, t in model.input.items()}

        @tf.function(input_signature=[signature], autograph=False)
        def run(values: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return model(values, training=False)

        concrete = run.get_concrete_function()
        _check_constant(concrete.graph)
        frozen = constants_for_variables(concrete)
        self.graph = _fusible(frozen.graph) if for_tensorflow else frozen.graph.as_graph_def()
        # TensorFlow flattens dicts in the order of the sorted names.
        self.given = dict(zip(sorted(signature), (t.name for t in frozen.inputs), strict=True))
        self.made = dict(zip(sorted(model.output), (t.name for t in frozen.outputs), strict=True))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that this stage takes."""
        return tuple(self.given)

    def __call__(self, values: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        given = {key: values[name] for name, key in self.given.items()}
        made = tf.graph_util.import_graph_def(self.graph, given, list(self.made.values()), name="stage")
        return dict(zip(self.made, made, strict=True))


def _fusible(graph: tf.Graph) -> Any:
    """The `GraphDef` of a graph, with the additions to maps written so that TensorFlow fuses them.

    TensorFlow runs a convolution, its bias, the sum at the end of a residual block and the rectifier after it
    as one operation if the sum is an `AddN`, which never broadcasts: of `AddV2` it does not know. Biases
    become `BiasAdd`: else the optimizer draws them into that sum, away from their convolutions.
    """
    made = graph.as_graph_def()
    for node in [node for node in made.node if node.op == "AddV2"]:
        shapes = [tensor.shape for tensor in graph.get_operation_by_name(node.name).inputs]
        if any(shape.rank is None for shape in shapes) or not tf.as_dtype(node.attr["T"].type).is_floating:
            continue
        one, other = (shape.as_list() for shape in shapes)
        if len(one) == 4 and one == other and None not in one[1:]:
            node.op = "AddN"
            node.attr["N"].i = 2
            continue
        for bias, (rows, values) in enumerate(((other, one), (one, other))):
            if len(rows) == 4 and rows[-1] and values in ([rows[-1]], [1, 1, 1, rows[-1]]):
                _as_bias(made, node, bias)
                break
    return made


def _as_bias(graph: Any, node: Any, index: int) -> None:
    """Turns an `AddV2` into a `BiasAdd` of its input number `index`, along the last axis."""
    given, bias = node.input[1 - index], node.input[index]
    flat = graph.node.add(op="Const", name=f"{node.name}/one_axis")
    flat.attr["dtype"].type = tf.int32.as_datatype_enum
    flat.attr["value"].tensor.CopyFrom(tf.make_tensor_proto([-1]))
    vector = graph.node.add(op="Reshape", name=f"{node.name}/bias", input=[bias, flat.name])
    vector.attr["T"].CopyFrom(node.attr["T"])
    vector.attr["Tshape"].type = tf.int32.as_datatype_enum
    node.op = "BiasAdd"
    node.input[:2] = [given, vector.name]
    node.attr["data_format"].s = b"NHWC"


def _check_constant(graph: tf.Graph) -> None:
    """Raises where an operation writes to a variable: there will be none any more."""
    writers = [op.name for op in graph.get_operations() if re.fullmatch("Assign.*Variable.*", op.type)]
    if writers:
        raise checks.error(
            "The network cannot be optimized: a layer writes to a variable at inference.",
            expected="layers whose weights stay as they are when called with training=False",
            received=f"operation {writers[0]!r}",
            fix="pass optimize=False, or take that layer out",
        )

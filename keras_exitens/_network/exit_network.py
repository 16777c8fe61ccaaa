"""`ExitNetwork`: a multi-exit model, parsed once; all who need its exits, features or stages ask it."""

import functools
from collections.abc import Sequence
from typing import Self

import keras
from keras import layers, tree

from keras_exitens import _checks as checks
from keras_exitens._graph.dag import NOMINAL_SIZE, Graph, Step, is_map
from keras_exitens._graph.flattening import Flat, flatten
from keras_exitens._keras import functional_of, is_functional, operation_that_made
from keras_exitens._network.classifier import Classifier, check_logits, find_classifier
from keras_exitens._network.exit_logits import ExitLogits, data_format_of

__all__ = ["FINAL", "ExitNetwork", "exit_features", "exit_names"]

FINAL = "final"
_KEPT_AS = "_keras_exitens_network"


class ExitNetwork:
    """The exits of a functional model: their names, logits, features and stages.

    Get one with `ExitNetwork.of(model)`, which parses a model once. The graph of a functional model never
    changes, so what is read off it is kept. What layers can change, such as their activation, weights or
    operation counts, is not.

    Attributes:
        model: the functional model.
        graph: `Graph` of the model, nested models opened.
        inputs: structure of KerasTensors at which `graph` begins.
        logits: dict from exit name to KerasTensor `(batch, classes)` of `graph`, first exit first.
    """

    def __init__(self, model: keras.Model, known: Graph | None = None) -> None:
        self.model = model
        flat = flatten(model, known)
        self.graph, self.inputs = flat.graph, flat.inputs
        self._opened = flat.inputs is not model.input
        outputs = flat.outputs if isinstance(flat.outputs, dict) else {FINAL: flat.graph.outputs[0]}
        self.logits = {name: outputs[name] for name in _in_order(flat, outputs)}

    @classmethod
    def of(cls, model: keras.Model, *, known: Graph | None = None, plain: bool = False) -> Self:
        """The parsed form of a model, made at the first call.

        Args:
            model: the result of `add_exits`, or a functional model with a dict of logits.
            known: a graph that the model was built upon, whose shapes hold for it.
            plain: whether a functional or Sequential model with one output is taken too, as a network with
                the final exit alone.

        Raises:
            ValueError: `model` is neither.
        """
        if not (plain and is_functional(model) and _is_plain(model)):
            _check_multi_exit(model)
        model = functional_of(model)
        # Kept in the model's own `__dict__`, past Keras's tracking of attributes. A table with weak keys does
        # not do: a graph leads to every model that was called on one of its tensors, and keeps it alive.
        kept = vars(model).get(_KEPT_AS)
        if kept is None:
            kept = vars(model)[_KEPT_AS] = cls(model, known)
        return kept

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the exits, first exit first, the final one last."""
        return tuple(self.logits)

    @property
    def classes(self) -> int:
        """Number of classes: the width of the logits."""
        return self.logits[self.names[-1]].shape[-1]

    @functools.cached_property
    def increments(self) -> dict[str, tuple[list[Step], list[Step]]]:
        """For each exit, the steps that it needs beyond the exits before it: `(stage, head)`.

        The stage is what the final exit needs too; the head is what this exit needs alone.
        """
        network = self.graph.ancestors(self.logits[self.names[-1]])
        parts = zip(self.names, self.graph.increments(self.logits.values()), strict=True)
        return {
            name: ([s for s in steps if s.index in network], [s for s in steps if s.index not in network])
            for name, steps in parts
        }

    @property
    def image(self) -> keras.KerasTensor:
        """The input `(batch, height, width, channels)` of the model.

        Raises:
            ValueError: the model has several inputs, or takes no images.
        """
        inputs = self.model.inputs
        if len(inputs) != 1 or not is_map(inputs[0]):
            raise checks.error(
                "Images alone can leave early.",
                expected="a network with one input, (batch, height, width, channels)",
                received=f"inputs of shape {[tuple(t.shape) for t in inputs]}",
                fix="make what else the network takes a part of it, or run the whole network: model.predict",
            )
        return inputs[0]

    @functools.cached_property
    def probe_shape(self) -> tuple[int, ...]:
        """Shape of an image to try the network on: small, where it leaves sizes open."""
        shape = self.image.shape[1:]
        if None not in shape:
            return tuple(shape)
        sizes = (64, 96, 128, NOMINAL_SIZE, 2 * NOMINAL_SIZE, 4 * NOMINAL_SIZE)
        tried = (tuple(size if known is None else known for known in shape) for size in sizes)
        return next((probe for probe in tried if self._takes(probe)), tuple(s or NOMINAL_SIZE for s in shape))

    def _takes(self, image: tuple[int, ...]) -> bool:
        """Whether the network takes an image of this shape: it is large enough for all layers."""
        try:
            shapes = self.graph.shapes([(1, *image)])
        except ValueError:
            return False
        return all(size > 0 for step in self.graph.steps for t in step.outputs for size in shapes[id(t)])

    def stages(self, names: Sequence[str]) -> list[list[Step]]:
        """The steps from each of some exits to the next, heads of the other exits left out."""
        return self.graph.increments([self.logits[name] for name in names])

    def classifier(self, name: str) -> Classifier:
        """The classifier of an exit, as its layers are now.

        Raises:
            ValueError: the exit does not end in a single-label classifier.
        """
        return find_classifier(self.graph, self.logits[name])

    def check_logits(self) -> None:
        """Raises `ValueError` unless the outputs are logits, not probabilities."""
        for name, tensor in self.logits.items():
            check_logits(self.graph, tensor, name)

    @functools.cached_property
    def features(self) -> dict[str, keras.KerasTensor]:
        """Dict from exit name to KerasTensor `(batch, D)` of the model itself, what enters the classifier.

        Raises:
            ValueError: an exit does not end in a classifier, or is inside of a nested model.
        """
        tensors = {name: self.model.output[name] for name in self.names}
        for name, tensor in tensors.items():
            self._check_own(name, operation_that_made(tensor))
        graph = Graph.of(self.model) if self._opened else self.graph
        return {name: _pooled(find_classifier(graph, tensor)) for name, tensor in tensors.items()}

    def _check_own(self, name: str, operation: keras.Operation) -> None:
        if is_functional(operation):
            raise checks.error(
                f"The features are inside of a nested model: they are no tensors of {self.model.name!r}.",
                expected="a multi-exit model whose exits are layers of its own",
                received=f"exit {name!r} from {operation.name!r}, a model inside of {self.model.name!r}",
                fix="attach the exits to the whole network, "
                "add_exits(keras.Sequential([preprocessing, network])), "
                f"or take exit_features of {operation.name!r}",
            )


def exit_names(model: keras.Model) -> list[str]:
    """Names of the exits of a multi-exit model, first exit first, `"final"` last.

    Args:
        model: the result of `add_exits`, also after saving, loading or cloning; or a functional model with a
            dict of logits, whose exits are ordered by the number of operations they need.

    Returns:
        A list of str.

    Raises:
        ValueError: `model` is not a multi-exit model.
    """
    return list(ExitNetwork.of(model).names)


def exit_features(model: keras.Model) -> dict[str, keras.KerasTensor]:
    """The features that enter the classifiers of a multi-exit model.

    Args:
        model: the result of `add_exits`, or a functional model with a dict of logits.

    Returns:
        A dict from exit name to KerasTensor `(batch, D)`, in the order of `exit_names`. A map that enters a
        convolutional classifier is averaged over height and width.

    Raises:
        ValueError: `model` is not a multi-exit model, an exit does not end in a classifier, or the exits are
            inside of a nested model, so that their features are no tensors of `model`.
    """
    return dict(ExitNetwork.of(model).features)


def _in_order(flat: Flat, outputs: dict[str, keras.KerasTensor]) -> list[str]:
    """Names of the exits, first exit first.

    In a result of `add_exits` they are read from its `ExitLogits` layers. In a hand-built model the exit
    that needs fewer operations comes first, and one called `"final"` last.
    """
    ours = {step.operation.name for step in flat.graph.steps if isinstance(step.operation, ExitLogits)}
    if ours == set(outputs):
        # exit_2 before exit_10
        return sorted(ours, key=lambda name: (name == FINAL, len(name), name))
    depth = {name: len(flat.graph.ancestors(tensor)) for name, tensor in outputs.items()}
    return sorted(depth, key=lambda name: (name == FINAL, depth[name], name))


def _pooled(classifier: Classifier) -> keras.KerasTensor:
    if not is_map(classifier.feature):
        return classifier.feature
    return layers.GlobalAveragePooling2D(data_format=data_format_of(classifier.layer))(classifier.feature)


def _is_plain(model: keras.Model) -> bool:
    """Whether a functional or Sequential model has one output, and no dict of them."""
    return isinstance(model, keras.Sequential) or (
        not isinstance(model.output, dict) and len(tree.flatten(model.output)) == 1
    )


def _check_multi_exit(model: keras.Model) -> None:
    """Raises `ValueError` unless `model` is functional and its output is a dict of logits."""
    single = isinstance(model, keras.Sequential)
    output = model.output if is_functional(model) and not single else None
    shapes = [t.shape for t in output.values()] if isinstance(output, dict) else []
    if not shapes or any(len(shape) != 2 or shape != shapes[0] for shape in shapes):
        raise checks.error(
            "This is not a multi-exit model.",
            expected="a functional keras.Model whose output is a dict of logits, each (batch, classes)",
            received=f"{type(model).__name__} with output {output!r}",
            fix="pass its attribute `model`, the network that it trains"
            if isinstance(getattr(model, "model", None), keras.Model)
            else "make one with keras_exitens.add_exits(model), or build keras.Model(inputs, "
            "{'exit_1': logits, 'final': logits})",
        )

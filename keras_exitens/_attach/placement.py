"""Where exits go: at cuts of the backbone, chosen by compute, by stage or by name."""

import itertools
import math
import numbers
import typing
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_exitens import _checks as checks
from keras_exitens._graph.counting import count_operations
from keras_exitens._graph.dag import Graph, Shape, is_map, spatial_size
from keras_exitens._keras import is_functional, operation_that_made

__all__ = ["place"]

NEAR = 0.02  # share of the multiply-adds by which an exit may move to where less is kept


def place(
    graph: Graph,
    named: dict[str, keras.KerasTensor],
    exits: Any,
    placement: str,
    end: keras.KerasTensor,
    feature: keras.KerasTensor,
    data_format: str,
    head_cost: Callable[[keras.KerasTensor], int],
) -> list[keras.KerasTensor]:
    """Chooses the tensors that the exits are attached to.

    Args:
        graph: the `Graph` of the backbone, classifier included.
        named: dict from layer name to output tensor.
        exits: int, how many; or a list of layer names.
        placement: `"compute"` or `"stage"`, used where `exits` is a number.
        end: KerasTensor, the last feature map: no exit comes after it.
        feature: KerasTensor, what enters the classifier.
        data_format: `"channels_last"` or `"channels_first"`.
        head_cost: function from a tensor to the multiply-adds of a head there, its classifier included.

    Returns:
        A list of KerasTensors of rank 4, in the order in which the network computes them.

    Raises:
        ValueError: see `add_exits`.
    """
    checks.one_of("placement", placement, ("compute", "stage"))
    if not isinstance(exits, numbers.Integral) or isinstance(exits, bool):
        return _by_name(graph, named, exits, end)
    exits = int(checks.number("exits", exits, low=0))
    if exits == 0:
        return []
    macs = [count.multiply_adds for count in count_operations(graph, warn=False)]
    # By stage, the last map is a place of its own where hidden Dense layers come after it, as in VGG.
    cuts = _legal_cuts(graph, macs, end, feature if placement == "stage" else end, data_format)
    options = _enough(cuts, exits, placement, spatial_size(graph.nominal_shapes[id(end)], data_format))
    if placement == "stage":
        return [cut.tensor for cut in options[-exits:]]
    total = sum(macs)
    priced = [cut._replace(head=head_cost(cut.tensor)) for cut in options]
    # Where heads are so dear that so many exits cannot all save something, the caller warns of it.
    even = _most_even(priced, exits, total, bound=total) or _most_even(priced, exits, total)
    return [cut.tensor for cut in _lighter(priced, even, NEAR * total)]


class _Cut(typing.NamedTuple):
    """A point of the backbone where an exit may stand."""

    tensor: keras.KerasTensor
    width: int  # how many tensors are live there
    kept: int  # how many numbers they hold for one image
    before: int  # multiply-adds up to there
    size: Shape  # (height, width) in pixels
    head: int = 0  # multiply-adds of a head there


def _legal_cuts(
    graph: Graph, macs: list[int], end: keras.KerasTensor, limit: keras.KerasTensor, data_format: str
) -> list[_Cut]:
    """Every point at which an exit has something to classify from, and spares some of the work up to `limit`.

    In the order computed, no later than `end`. A map smaller than the last one is no such point: the squeezed
    maps of squeeze-and-excitation stand beside the path.
    """
    shapes, live = graph.nominal_shapes, graph.live_after
    inside = graph.ancestors(end)
    work = sum(macs[i] for i in graph.ancestors(limit))
    smallest = spatial_size(shapes[id(end)], data_format)
    total = 0
    cuts = []
    for step, tensors in zip(graph.steps, live, strict=True):
        total += macs[step.index]
        tensor = step.outputs[0]
        if step.index not in inside or not 0 < total < work or not is_map(tensor):
            continue
        size = spatial_size(shapes[id(tensor)], data_format)
        if any(t is tensor for t in tensors) and all(a >= b for a, b in zip(size, smallest, strict=True)):
            kept = sum(math.prod(shapes[id(t)]) for t in tensors)
            cuts.append(_Cut(tensor, len(tensors), kept, total, size))
    return cuts


def _enough(cuts: list[_Cut], wanted: int, placement: str, end_size: Shape) -> list[_Cut]:
    """The cuts to choose from: those with as few live tensors as still leave `wanted` of them."""
    options = []
    choose = _last_of_its_size if placement == "stage" else _smallest
    for width in range(1, max((cut.width for cut in cuts), default=0) + 1):
        narrow = [cut for cut in cuts if cut.width <= width]
        options = [choose(list(run)) for _, run in itertools.groupby(narrow, key=lambda cut: cut.before)]
        if placement == "stage":
            latest = {cut.size: cut for cut in options}
            options = [cut for cut in options if latest[cut.size] is cut]
            # The final classifier stands at the resolution of the last map: it comes in only at need.
            others = [cut for cut in options if cut.size != end_size]
            options = others if len(others) >= wanted else options
        if len(options) >= wanted:
            return options
    places = "stages" if placement == "stage" else "places"
    raise checks.error(
        f"The network has too few {places} for so many exits.",
        expected=f"at most {len(options)} early exit(s) in this network with placement={placement!r}",
        received=f"exits={wanted}",
        fix=f"pass exits={len(options)} or less" + (", or placement='compute'" if places == "stages" else "")
        if options
        else f"pass exits={len(options)}, or use a deeper network: this one has no inner map to leave from",
    )


def _smallest(run: list[_Cut]) -> _Cut:
    """Of the cuts between two layers that multiply, the last of those with the least to keep.

    That is after the activation and the pooling that follow a convolution, and before any padding.
    """
    return min(reversed(run), key=lambda cut: (cut.width, cut.kept))


def _last_of_its_size(run: list[_Cut]) -> _Cut:
    """Of the cuts between two layers that multiply, the last one that has the resolution of the first."""
    return [cut for cut in run if cut.size == run[0].size][-1]


def _most_even(cuts: list[_Cut], exits: int, total: int, bound: float = math.inf) -> list[_Cut]:
    """The cuts whose segments have the least sum of squared multiply-adds: the most even split.

    A segment is what an exit costs beyond the exit before it: the network from there on, and its own head.
    Dynamic programming over the cuts: exact. Ties go to the cuts with the least to keep, then to the earlier.

    Args:
        cuts: where exits may stand.
        exits: how many.
        total: multiply-adds of the network.
        bound: what it may cost to leave at an exit, the heads before it included.

    Returns:
        The cuts; none where no choice that was looked at keeps within `bound`. To each cut only the most even
        of the ways within the bound is followed.
    """
    ends = [0, *(cut.before for cut in cuts), total]
    heads = [0, *(cut.head for cut in cuts), 0]
    kept = [0, *(cut.kept for cut in cuts), 0]
    last = len(ends) - 1
    # Index of an end -> unevenness, numbers to keep, cost of the heads and path of the exits so far.
    best: dict[int, tuple[int, int, int, tuple[int, ...]]] = {0: (0, 0, 0, ())}
    for segment in range(exits + 1):
        reach = range(last, last + 1) if segment == exits else range(1, last)
        longer = {}
        for j in reach:
            steps = (
                (uneven + (ends[j] - ends[i] + heads[j]) ** 2, size + kept[j], spent + heads[j], i)
                for i, (uneven, size, spent, _) in best.items()
                if i < j and (j == last or ends[j] + spent + heads[j] <= bound)
            )
            uneven, size, spent, i = min(steps, default=(0, 0, 0, None))
            if i is not None:
                longer[j] = (uneven, size, spent, (*best[i][-1], j))
        best = longer
    return [cuts[j - 1] for j in best[last][-1][:-1]] if last in best else []


def _lighter(cuts: list[_Cut], chosen: list[_Cut], reach: float) -> list[_Cut]:
    """Moves each exit by at most `reach` multiply-adds to where least is kept, between its neighbours."""
    moved: list[_Cut] = []
    for cut, following in itertools.zip_longest(chosen, chosen[1:]):
        near = [
            other
            for other in cuts
            if abs(other.before + other.head - cut.before - cut.head) <= reach
            and (not moved or other.before > moved[-1].before)
            and (following is None or other.before < following.before)
        ]
        moved.append(min(near, key=lambda other: (other.kept, abs(other.before - cut.before))))
    return moved


def _by_name(
    graph: Graph, named: dict[str, keras.KerasTensor], exits: Any, end: keras.KerasTensor
) -> list[keras.KerasTensor]:
    """The outputs of the layers that are named, once they are known to be places for exits."""
    if isinstance(exits, str) or not isinstance(exits, list | tuple) or not exits:
        raise checks.error(
            "`exits` is neither a number nor a list of layer names.",
            expected="an int of at least 0, or a non-empty list of layer names",
            received=f"exits={exits!r}",
            fix=f"pass exits=[{exits!r}]" if isinstance(exits, str) else "pass, for instance, exits=3",
        )
    for name in exits:
        _check_name(graph, named, exits, name)
    tensors = [named[name] for name in exits]
    allowed = graph.ancestors(end)
    for name, tensor in zip(exits, tensors, strict=True):
        _check_place(graph, name, tensor, allowed, end)
    order = [producer.index for t in tensors if (producer := graph.producer(t))]
    if order != sorted(set(order)):
        in_order = sorted(set(zip(order, exits, strict=True)))
        raise checks.error(
            "The exits are repeated or out of order.",
            expected="each layer once, in the order in which the network computes them",
            received=f"exits={list(exits)!r}",
            fix=f"pass exits={[name for _, name in in_order]!r}",
        )
    return tensors


def _check_name(graph: Graph, named: dict[str, keras.KerasTensor], exits: Sequence[Any], name: Any) -> None:
    """Raises unless the network has a layer of that name."""
    if isinstance(name, str) and name in named:
        return
    body = str(name).rpartition("/")[0]
    step = graph.producer(named[body]) if body in named else None
    if step and is_functional(step.operation):
        raise checks.error(
            f"The nested model {body!r} cannot be opened: names of its layers are taken by others.",
            expected="names that are unique in the whole network",
            received=f"exits={list(exits)!r}",
            fix=f"rename the layers of {body!r}, or put the exit after it: exits=[{body!r}]",
        )
    raise checks.error(
        f"The network has no layer {name!r}.",
        expected="names of layers of the network; 'a/b' is layer b of the nested model a",
        received=f"exits={list(exits)!r}",
        fix=f"did you mean {checks.nearest(name, named)}?",
    )


def _check_place(
    graph: Graph, name: str, tensor: keras.KerasTensor, allowed: set[int], end: keras.KerasTensor
) -> None:
    """Raises unless a layer gives a map on the way to the last map, `end`, whose ancestors are `allowed`."""
    step = graph.producer(tensor)
    if step and step.index in allowed and is_map(tensor):
        return
    raise checks.error(
        f"No exit can stand at layer {name!r}.",
        expected="a layer that gives a feature map (batch, height, width, channels), no later than "
        f"the last feature map, {_layer(end)!r}",
        received=f"{name!r}, which comes after it or beside the path to the classifier"
        if step and step.index not in allowed
        else f"{name!r}, which gives shape {tuple(tensor.shape)}",
        fix="name an earlier layer of the network",
    )


def _layer(tensor: keras.KerasTensor) -> str:
    return operation_that_made(tensor).name

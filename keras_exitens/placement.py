"""Where exits go: at cuts of the backbone, chosen by compute, by stage or by name."""

import typing

import keras

from keras_exitens import checks
from keras_exitens.costs import multiply_adds
from keras_exitens.graph import is_map, spatial_size

__all__ = ["place"]


def place(graph, named, exits, placement, end, data_format):
    """Chooses the tensors that the exits are attached to.

    Args:
        graph: the `Graph` of the backbone, classifier included.
        named: dict from layer name to output tensor.
        exits: int, how many; or a list of layer names.
        placement: `"compute"` or `"stage"`, used where `exits` is a number.
        end: KerasTensor, the last feature map: no exit comes after it.
        data_format: `"channels_last"` or `"channels_first"`.

    Returns:
        A list of KerasTensors of rank 4, in the order in which the network computes them.

    Raises:
        ValueError: see `add_exits`.
    """
    if isinstance(exits, int) and not isinstance(exits, bool):
        checks.one_of("placement", placement, ("compute", "stage"))
        if checks.number("exits", exits, low=0) == 0:
            return []
        macs = multiply_adds(graph)
        cuts = _legal_cuts(graph, macs, end, data_format, exits)
        chosen = _by_compute(cuts, exits, sum(macs)) if placement == "compute" else _by_stage(cuts, exits)
        return [cut.tensor for cut in chosen]
    return _by_name(graph, named, exits, end)


class _Cut(typing.NamedTuple):
    """A point of the backbone where an exit may stand."""

    tensor: keras.KerasTensor
    width: int  # how many tensors are live there
    before: int  # multiply-adds up to there
    size: tuple  # (height, width) in pixels


def _legal_cuts(graph, macs, end, data_format, wanted):
    """Cuts with as few live tensors as still leave `wanted` of them, one for each run of cheap layers.

    Between two layers that multiply, the last cut of one resolution is taken: after the activation that
    follows a convolution, before the padding or pooling that follows the activation.
    """
    shapes, live = graph.shapes(), graph.live_after()
    inside = graph.ancestors(end) - {graph.producer(end).index}
    total = 0
    cuts = []
    for step, tensors in zip(graph.steps, live, strict=True):
        total += macs[step.index]
        tensor = step.outputs[0]
        if step.index in inside and is_map(tensor) and any(t is tensor for t in tensors):
            cuts.append(_Cut(tensor, len(tensors), total, spatial_size(shapes[id(tensor)], data_format)))
    widest = max((cut.width for cut in cuts), default=0)
    runs = []
    for width in range(1, widest + 1):
        runs = _last_of_runs([cut for cut in cuts if cut.width <= width])
        if len(runs) >= wanted:
            return runs
    raise checks.error(
        "The network has too few places for so many exits.",
        expected=f"at most {len(runs)} early exit(s) in this network",
        received=f"exits={wanted}",
        fix=f"pass exits={len(runs)} or less"
        if runs
        else "use a deeper network: this one has no inner feature map",
    )


def _last_of_runs(cuts):
    return [
        cut
        for cut, after in zip(cuts, [*cuts[1:], None], strict=True)
        # Before the first multiplication there is nothing to classify from.
        if cut.before and (after is None or (after.before, after.size) != (cut.before, cut.size))
    ]


def _by_compute(cuts, exits, total):
    """The cuts whose segments have the least sum of squared multiply-adds: the most even split.

    Dynamic programming over the cuts: exact, and ties go to the earlier cut.
    """
    ends = [0, *(cut.before for cut in cuts), total]
    last = len(ends) - 1
    # best[j] = (cost, path) of reaching end j with the exits placed so far
    best = {0: (0, ())}
    for segment in range(exits + 1):
        reach = [last] if segment == exits else range(1, last)
        best = {
            j: min((cost + (ends[j] - ends[i]) ** 2, (*path, j)) for i, (cost, path) in best.items() if i < j)
            for j in reach
            if any(i < j for i in best)
        }
    _, path = best[last]
    return [cuts[j - 1] for j in path[:-1]]


def _by_stage(cuts, exits):
    """The last cut of each spatial resolution, the latest `exits` of them."""
    stages = {}
    for cut in cuts:
        stages[cut.size] = cut
    chosen = list(stages.values())
    if len(chosen) < exits:
        raise checks.error(
            "The network has too few stages for so many exits.",
            expected=f"at most {len(chosen)} early exit(s): one for each spatial resolution",
            received=f"exits={exits}, placement='stage'",
            fix=f"pass exits={len(chosen)}, or placement='compute'",
        )
    return chosen[len(chosen) - exits :]


def _by_name(graph, named, exits, end):
    if isinstance(exits, str) or not isinstance(exits, list | tuple) or not exits:
        raise checks.error(
            "`exits` is neither a number nor a list of layer names.",
            expected="an int of at least 0, or a non-empty list of layer names",
            received=f"exits={exits!r}",
            fix=f"pass exits=[{exits!r}]" if isinstance(exits, str) else "pass, for instance, exits=3",
        )
    allowed = graph.ancestors(end)
    tensors = []
    for name in exits:
        if name not in named:
            raise checks.error(
                f"The network has no layer {name!r}.",
                expected="names of layers of the network; 'a/b' is layer b of the nested model a",
                received=f"exits={list(exits)!r}",
                fix=f"did you mean {checks.nearest(name, named)}?",
            )
        tensor = named[name]
        step = graph.producer(tensor)
        if step is None or step.index not in allowed or not is_map(tensor):
            after = step is not None and step.index not in allowed
            raise checks.error(
                f"No exit can stand at layer {name!r}.",
                expected="a layer that gives a feature map (batch, height, width, channels), no later than "
                f"the last feature map, {_layer(end)!r}",
                received=f"{name!r}, which comes after it or beside the path to the classifier"
                if after
                else f"{name!r}, which gives shape {tuple(tensor.shape)}",
                fix="name an earlier layer of the network",
            )
        tensors.append(tensor)
    order = [graph.producer(t).index for t in tensors]
    if order != sorted(set(order)):
        in_order = sorted(set(zip(order, exits, strict=True)))
        raise checks.error(
            "The exits are repeated or out of order.",
            expected="each layer once, in the order in which the network computes them",
            received=f"exits={list(exits)!r}",
            fix=f"pass exits={[name for _, name in in_order]!r}",
        )
    return tensors


def _layer(tensor):
    operation = tensor._keras_history.operation
    return operation.name if isinstance(operation, keras.Operation) else "the input"

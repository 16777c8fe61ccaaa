"""How sure a classifier is of each row and which rows go on, over an array module given as an argument.

The same lines serve NumPy on a device, and Keras's tensors in a compiled graph: `xp` is `numpy` or
`keras.ops`. All scores grow with confidence; a row whose logits are not finite has the score NaN, which is
never enough.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

__all__ = [
    "SCORES",
    "Scored",
    "agreement",
    "entropy",
    "goes_on",
    "handed_on",
    "margin",
    "max_probability",
    "observe",
    "running_mean",
]

Array: TypeAlias = Any  # of `xp`
State: TypeAlias = dict[str, Array]
Scored: TypeAlias = Callable[[Array, State], tuple[Array, State]]


def max_probability(xp: Any, logits: Array) -> Array:
    """The probability of the most probable class: `max softmax(z)`, in `[1 / classes, 1]`.

    Args:
        xp: the array module.
        logits: `(rows, classes)`, float.

    Returns:
        `(rows,)`.

    Reference: Hendrycks & Gimpel, A Baseline for Detecting Misclassified Examples, arXiv 1610.02136.
    """
    return 1 / xp.sum(_exponentials(xp, logits)[1], axis=-1)


def entropy(xp: Any, logits: Array) -> Array:
    """One minus the entropy of `softmax(z)` as a fraction of the largest possible: `1 - H / ln(classes)`.

    Args and returns as `max_probability`; in `[0, 1]`.

    Reference: Teerapittayanon et al., BranchyNet, arXiv 1709.01686, which leaves where `H` is small enough.
    """
    shifted, e = _exponentials(xp, logits)
    total = xp.sum(e, axis=-1)
    inner = xp.sum(xp.where(e > 0, e * shifted, 0 * e), axis=-1) / total  # 0 · ln 0 = 0
    return 1 - (xp.log(total) - inner) / math.log(logits.shape[-1])


def margin(xp: Any, logits: Array) -> Array:
    """The probability of the most probable class less that of the second: in `[0, 1]`.

    Args and returns as `max_probability`.

    Reference: Scheffer et al., Active Hidden Markov Models for Information Extraction, 2001.
    """
    shifted, e = _exponentials(xp, logits)
    first = xp.argmax(logits, axis=-1)
    is_first = xp.arange(logits.shape[-1]) == first[..., None]
    second = xp.max(xp.where(is_first, -math.inf, shifted), axis=-1)
    return (1 - xp.exp(second)) / xp.sum(e, axis=-1)


# Scores that depend on the logits of one exit alone, by the name of the policy.
SCORES = {"max_probability": max_probability, "entropy": entropy, "margin": margin}


def agreement(xp: Any, logits: Array, state: State | None = None) -> tuple[Array, State]:
    """How many exits in a row, this one included, have predicted the same class.

    Args:
        xp: the array module.
        logits: `(rows, classes)`, float.
        state: what the call for the exit before gave, for the same rows; `None` or empty at the first.

    Returns:
        `(score, state)`: float counts `(rows,)`, and a dict of arrays `(rows,)`.

    Reference: Zhou et al., BERT Loses Patience, arXiv 2006.04152.
    """
    known = xp.all(xp.isfinite(logits), axis=-1)
    label = xp.where(known, xp.argmax(logits, axis=-1), -1)
    count = xp.ones_like(logits[:, 0])
    if state and "label" in state:
        count = xp.where(label == state["label"], state["count"] + 1, count)
    return xp.where(known, count, math.nan), {"label": label, "count": count}


def running_mean(logits: Array, count: int, state: State | None = None) -> tuple[Array, State]:
    """The mean of the logits of the exits so far.

    Args:
        logits: `(rows, classes)`.
        count: int, how many exits that is, this one included.
        state: what the call for the exit before gave, for the same rows; `None` at the first.

    Returns:
        `(mean, state)`: the mean `(rows, classes)`, and a dict of arrays with `rows` rows.
    """
    total = logits if state is None else state["total"] + logits
    return total / count, {"total": total}


def observe(
    scored: Scored,
    logits: Array,
    temperature: float,
    count: int | None = None,
    state: State | None = None,
) -> tuple[Array, Array, State]:
    """Scores the rows that have come to one exit.

    Args:
        scored: function of logits `(rows, classes)` and a state that gives scores `(rows,)` and a state.
        logits: `(rows, classes)`, those of this exit alone.
        temperature: what the logits are divided by before they are scored.
        count: int, how many exits the mean is taken over, this one included, where the mean of the logits
            is scored; `None` where the exit is scored alone.
        state: what the call for the exit before gave, for the same rows; `None` at the first.

    Returns:
        `(logits, score, state)`: the logits that come out for a row that leaves here, the score `(rows,)`,
        and a dict of arrays with one entry a row, to be passed on.
    """
    carried: State = {}
    state = state or {}
    if count is not None:
        logits, carried = running_mean(logits, count, state if "total" in state else None)
    score, more = scored(logits / temperature, state)
    return logits, score, {**carried, **more}


def goes_on(xp: Any, score: Array, threshold: Any) -> Array:
    """Which rows go on: those whose score does not reach the threshold, and those without a score.

    NaN is asked for by name. `not (score >= threshold)` holds for it too, but TensorFlow's graph optimizer
    turns that into `score < threshold`, which does not.
    """
    return xp.logical_or(score < threshold, xp.isnan(score))


def handed_on(values: dict[str, Array], made: dict[str, Array], carried: Sequence[str]) -> dict[str, Array]:
    """What the next stage of a chain gets: of what there was and what was made, the tensors needed later.

    Args:
        values: dict of tensors, those that this stage got.
        made: dict of tensors, those that it gave.
        carried: names, as in `Stage`.

    Returns:
        A dict of tensors.
    """
    return {name: made[name] if name in made else values[name] for name in carried}


def _exponentials(xp: Any, logits: Array) -> tuple[Array, Array]:
    """`z - max z` and its exponential; NaN wherever a row holds NaN or +∞."""
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    return shifted, xp.exp(shifted)

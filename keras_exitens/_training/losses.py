"""The loss given to `compile`, as a function of labels and logits that gives one value per sample."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras

from keras_exitens import _checks as checks
from keras_exitens._inputs.labels import one_hot
from keras_exitens._types import Tensor
from keras_exitens.objectives import cross_entropy

__all__ = ["ignored_class", "is_of_keras", "per_sample"]

_FIX = "keras.losses.SparseCategoricalCrossentropy(from_logits=True), or loss=None for cross-entropy"
# Losses of probabilities that cannot be told to take logits.
_PROBABILITIES_ONLY = ("kldivergence", "poisson", "categoricalgeneralizedcrossentropy")
# Losses of one score a label, compared with labels 0 and 1.
_BINARY = ("binarycrossentropy", "binaryfocalcrossentropy")


def per_sample(loss: Any, classes: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Turns what a user gives to `compile(loss=)` into a function `(y, logits) -> (batch,)`.

    Args:
        loss: `None` (cross-entropy from logits, sparse or categorical by the rank of the labels), the name
            of a Keras loss (taken from logits, also where Keras by that name means probabilities), a
            `keras.losses.Loss` on logits, or a function `(y, logits)` that gives one value per sample.
        classes: number of logits.

    Raises:
        ValueError: the loss wants probabilities, reduces in a way of its own, or is not for class scores.
    """
    if loss is None:
        return cross_entropy
    if isinstance(loss, str):
        loss = _by_name(loss, classes)
    if loss is cross_entropy:
        return loss
    inner = loss.func if isinstance(loss, functools.partial) else loss
    kind = type(loss).__name__ if isinstance(loss, keras.losses.Loss) else getattr(inner, "__name__", "")
    _check_kind(kind)
    if isinstance(loss, keras.losses.Loss):
        _check_loss(loss)
        function = loss.call
    elif callable(loss) and not isinstance(loss, type):
        function = _from_logits(loss)
    else:
        raise checks.error(
            "`loss` is not a loss.",
            expected="None, the name of a Keras loss, a keras.losses.Loss, or a function (y, logits)",
            received=f"loss={loss!r}",
            fix=_FIX,
        )
    name = getattr(loss, "name", None) or kind or repr(loss)
    takes = "sparse" if "sparse" in kind.lower() else "one-hot" if is_of_keras(inner) else "any"

    def values(y: Tensor, logits: Tensor) -> Tensor:
        result = function(_as_taken(y, takes, name, logits), logits)
        if len(result.shape) != 1:
            raise checks.error(
                f"The loss {name!r} does not give one value per sample.",
                expected="shape (batch,)",
                received=f"shape {tuple(result.shape)}",
                fix="return the unreduced loss: it is weighted and averaged by the distiller",
            )
        return result

    return values


def ignored_class(loss: Any) -> int | None:
    """The class id whose rows a loss of Keras ignores: its `ignore_class`, or `None`."""
    if isinstance(loss, functools.partial):
        return loss.keywords.get("ignore_class")
    return getattr(loss, "ignore_class", None) if isinstance(loss, keras.losses.Loss) else None


def _by_name(name: str, classes: int) -> Any:
    if _plain(name) in ("crossentropy", "ce") or (classes == 2 and _plain(name) == "binarycrossentropy"):
        return cross_entropy
    _check_kind(name)
    loss = keras.losses.get(name)
    if isinstance(loss, keras.losses.Loss) and "from_logits" in loss.get_config():
        return type(loss).from_config({**loss.get_config(), "from_logits": True})
    return loss


def _from_logits(function: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A Keras loss function told that it gets logits; any other function as it is."""
    if "from_logits" not in inspect.signature(function).parameters:
        return function
    return lambda y, logits: function(y, logits, from_logits=True)


def _plain(name: str) -> str:
    return name.lower().replace("_", "")


def _check_kind(name: str) -> None:
    """Refuses a Keras loss, by the name of its class or function, that does not fit logits over classes."""
    if _plain(name) in _PROBABILITIES_ONLY:
        raise checks.error(
            f"The loss {name!r} compares probabilities, but exits give logits.",
            expected="a loss that can be computed from logits",
            received=f"loss={name!r}",
            fix=_FIX,
        )
    if _plain(name) in _BINARY:
        raise checks.error(
            "A binary loss does not fit: each exit gives one logit a class, two for a binary network.",
            expected="a loss over classes, from logits",
            received=f"loss={name!r}",
            fix=_FIX,
        )


def _check_loss(loss: keras.losses.Loss) -> None:
    kind = type(loss).__name__
    if loss.get_config().get("from_logits") is False:
        raise checks.error(
            "The loss wants probabilities, but exits give logits.",
            expected=f"{kind}(from_logits=True)",
            received=f"{kind}(from_logits=False)",
            fix=f"pass from_logits=True; or {_FIX}",
        )
    if loss.reduction != "sum_over_batch_size":
        raise checks.error(
            "The loss reduces the batch in a way of its own.",
            expected="the default reduction, 'sum_over_batch_size'",
            received=f"{kind}(reduction={loss.reduction!r})",
            fix="leave `reduction` out; change the learning rate where the sum was meant",
        )


def is_of_keras(thing: Any) -> bool:
    """Whether a loss or metric is one of Keras's own: of those it is known which labels they take."""
    owner = thing if inspect.isfunction(thing) else type(thing)
    return owner.__module__.partition(".")[0] == "keras"


def _as_taken(y: Tensor, takes: str, name: str, logits: Tensor) -> Tensor:
    probabilities = len(y.shape) == len(logits.shape)
    if takes == "one-hot" and not probabilities:
        return one_hot(y, logits.shape[-1], logits.dtype)
    if takes == "sparse" and probabilities:
        raise checks.error(
            f"The loss {name!r} takes class ids, but the labels are probabilities.",
            expected="labels of shape (batch,)",
            received=f"labels of shape {tuple(y.shape)}",
            fix="pass loss=None, which takes both, or keras.losses.CategoricalCrossentropy(from_logits=True)",
        )
    return y

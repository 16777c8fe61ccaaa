"""Tells whether a network or a policy has other attributes than when a graph was made of it."""

from collections.abc import Iterable
from typing import Any

__all__ = ["Settings"]


class Settings:
    """The attributes of some objects as they were: dtype policies, activations, variables, thresholds.

    A graph that was traced holds what the attributes were then. Quantisation and LoRA give a layer other
    variables; what is assigned to is seen, not what is changed inside of an array or list.
    """

    def __init__(self, objects: Iterable[Any]) -> None:
        self._seen = [(vars(thing), dict(vars(thing))) for thing in objects]

    def changed(self) -> bool:
        """Whether any attribute is another one, was added or taken away."""
        try:
            return any(now != then for now, then in self._seen)
        except Exception:  # what has no truth value when compared, such as arrays: they are other objects
            return True

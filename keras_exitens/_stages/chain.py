"""The stages of a model, as `EarlyExit` runs them: with its own weights, or with constants in their place."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_exitens._network.exit_network import ExitNetwork
from keras_exitens._scores import handed_on
from keras_exitens._stages.folding import fold
from keras_exitens._stages.freezing import FrozenStage
from keras_exitens._stages.split import LOGITS, Stage, split
from keras_exitens._stages.watching import Values

__all__ = ["Chain"]


class Chain:
    """The stages of a model that end at some of its exits.

    A plain object, so that Keras does not track (and save) the layers a second time.

    Attributes:
        exits: names of the exits, the final one last.
        live: `Stage`s, whose weights are those of the model.
    """

    def __init__(self, model: keras.Model, exits: Sequence[str]) -> None:
        self.exits = tuple(exits)
        self.live = split(model, exits)
        self._probe = ExitNetwork.of(model).probe_shape
        self._frozen: list[FrozenStage] | None = None
        self._values: list[Values] = []

    def outdated(self, stages: int | None = None, first: Sequence[tf.Tensor] | None = None) -> bool:
        """Whether the constants are not there yet, or no longer the weights.

        Args:
            stages: how many stages to look at, the first ones; by default all.
            first: what `read_first` gave in a graph that ran just now.
        """
        if self._frozen is None:
            return True
        known = [first] + [None] * len(self._values)
        pairs = zip(self._values[:stages], known, strict=False)
        return any(values.changed(read) for values, read in pairs)

    def read_first(self) -> list[tf.Tensor]:
        """The weights of the first stage, which every image needs; for use in the graph that runs it."""
        return self._values[0].read()

    def current(self) -> list[FrozenStage]:
        """Stages with the weights as constants, as the weights are now."""
        if self._frozen is None or self.outdated():
            values = self._watched()
            folded = [fold(stage.model) for stage in self.live]
            same = _agree(self.live, folded, self._probe)
            models = folded if same else [stage.model for stage in self.live]
            carried = [stage.carried for stage in self.live]
            self._frozen = [
                FrozenStage(*pair, for_tensorflow=True) for pair in zip(models, carried, strict=True)
            ]
            self._values = values
        return self._frozen

    def _watched(self) -> list[Values]:
        """The variables of each stage that no earlier one has, as they are now."""
        seen: set[int] = set()
        result = []
        for stage in self.live:
            new = [v.value for v in stage.model.variables if id(v) not in seen]
            seen.update(id(v) for v in stage.model.variables)
            result.append(Values(new))
        return result


def _agree(stages: Sequence[Stage], folded: Sequence[keras.Model], probe: tuple[int, ...]) -> bool:
    """Whether folding changes no logit by more than 1e-5 of the largest, on two random images."""
    name, images = next(iter(stages[0].model.input.items()))
    random = np.random.default_rng(0).normal(size=(2, *probe))
    values = others = {name: tf.cast(random, images.dtype)}
    for stage, model in zip(stages, folded, strict=True):
        made = stage(values)
        by_folded = model({name: others[name] for name in stage.inputs}, training=False)
        difference = tf.reduce_max(tf.abs(made[LOGITS] - by_folded[LOGITS]))
        if not difference <= 1e-5 * tf.reduce_max(tf.abs(made[LOGITS])):
            return False
        values = handed_on(values, made, stage.carried)
        others = handed_on(others, by_folded, stage.carried)
    return True

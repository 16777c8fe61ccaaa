"""How an exported network compares with the model it was made from."""

import dataclasses
import math

import keras
import numpy as np

from keras_exitens import _checks as checks
from keras_exitens._network.exit_network import ExitNetwork
from keras_exitens._tables import Report, aligned
from keras_exitens.policies import Policy
from keras_exitens.runtime import Runtime

__all__ = ["Agreement", "measure", "verify"]


@dataclasses.dataclass(frozen=True)
class Agreement(Report):
    """How an exported network compares with its model on some images.

    Attributes:
        rows: int, how many images.
        same_exit: float, share of the rows that leave at the same exit.
        same_class: float, share of the rows that are given the same class.
        logit_difference: float, the largest among the rows with the same exit; `None` if there are none.
    """

    rows: int
    same_exit: float
    same_class: float
    logit_difference: float | None

    def table(self) -> str:
        """One line a figure."""
        difference = "" if self.logit_difference is None else f"{self.logit_difference:.3g}"
        return aligned(
            [
                ("images", f"{self.rows:,}"),
                ("same exit", f"{self.same_exit:.2%}"),
                ("same class", f"{self.same_class:.2%}"),
                ("largest difference of a logit", difference),
            ]
        )


def measure(network: Runtime, model: keras.Model, policy: Policy, images: np.ndarray) -> Agreement:
    """Compares what an exported network and its model say of images.

    Args:
        network: a `runtime.Runtime`.
        model: the multi-exit model.
        policy: its `Policy`, with settings for each exit.
        images: array `(rows, height, width, channels)`.

    Returns:
        An `Agreement`.
    """
    found = network.predict(images)
    wanted = policy.simulate(_logits(network, model, images))
    same = found["exit"] == wanted["exit"]
    differences = np.abs(found["logits"] - wanted["logits"])[same]
    return Agreement(
        rows=len(images),
        same_exit=float(np.mean(same)),
        same_class=float(np.mean(found["logits"].argmax(-1) == wanted["logits"].argmax(-1))),
        logit_difference=float(differences.max()) if differences.size else None,
    )


def verify(network: Runtime, model: keras.Model, policy: Policy, tolerance: float = 1e-3) -> None:
    """Raises unless each exit of an exported network gives the logits of its model for two random images.

    Args:
        network, model, policy: as in `measure`.
        tolerance: float, what the logits may differ by, as a fraction of the largest.

    Raises:
        RuntimeError: they differ by more, or are not finite.
    """
    network_in = ExitNetwork.of(model)
    images = _random_images(network_in.probe_shape, network_in.image.dtype)
    logits = _logits(network, model, images)
    exits = len(network.exit_names)
    for index in policy.enabled_exits(exits):
        thresholds = ([math.inf] * index + [-math.inf] * (exits - index))[: exits - 1]
        here = type(policy).from_config({**policy.get_config(), "thresholds": thresholds})
        wanted = here.simulate(logits)["logits"]
        difference = np.max(np.abs(network.predict(images, thresholds=thresholds)["logits"] - wanted))
        largest = np.max(np.abs(wanted))
        if not difference <= tolerance * largest:
            raise checks.error(
                f"The exported stages disagree with the model at {network.exit_names[index]!r}.",
                expected=f"logits within {tolerance:g} of the largest, {largest:.3g}",
                received=f"a difference of {difference:.3g}",
                fix="use format='tf_saved_model', and report the network to keras_exitens",
                kind=RuntimeError,
            )


def _random_images(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Two images, one about zero and one of bytes: a network that rescales sees nothing in the first."""
    rng = np.random.default_rng(0)
    if "float" not in dtype:
        return rng.integers(0, 128, (2, *shape)).astype(dtype)
    return np.stack([rng.normal(size=shape), rng.integers(0, 256, shape)]).astype(dtype)


def _logits(network: Runtime, model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Logits of all exits by the model, `(K, rows, classes)`."""
    outputs = model.predict(images, batch_size=32, verbose=0)
    return np.stack([np.asarray(outputs[name], "float32") for name in network.exit_names])

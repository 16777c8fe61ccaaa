"""How an exported network compares with the model it was made from."""

import math

import numpy as np

from keras_exitens import checks

__all__ = ["images_of", "measure", "verify"]


def images_of(data):
    """Images as one array, from an array or from batches with or without labels."""
    if hasattr(data, "__array__"):
        return np.asarray(data)
    batches = [batch[0] if isinstance(batch, tuple | list) else batch for batch in data]
    return np.concatenate([np.asarray(batch) for batch in batches])


def measure(network, model, policy, images):
    """Compares what an exported network and its model say of images.

    Args:
        network: a `runtime.Runtime`.
        model: the multi-exit model.
        policy: its `Policy`, with settings for each exit.
        images: array `(rows, height, width, channels)`.

    Returns:
        A dict: `"rows"`; `"same_exit"` and `"same_class"`, fractions of the rows; `"logit_difference"`, the
        largest among the rows with the same exit, `None` if there are none.
    """
    found = network.predict(images)
    wanted = policy.simulate(_logits(network, model, images))
    same = found["exit"] == wanted["exit"]
    differences = np.abs(found["logits"] - wanted["logits"])[same]
    return {
        "rows": len(images),
        "same_exit": float(np.mean(same)),
        "same_class": float(np.mean(found["logits"].argmax(-1) == wanted["logits"].argmax(-1))),
        "logit_difference": float(differences.max()) if differences.size else None,
    }


def verify(network, model, policy, tolerance=1e-3):
    """Raises unless each exit of an exported network gives the logits of its model for two random images.

    Args:
        network, model, policy: as in `measure`.
        tolerance: float, what the logits may differ by, as a fraction of the largest.

    Raises:
        RuntimeError: they differ by more, or are not finite.
    """
    (pixels,) = model.inputs
    shape = [64 if size is None else size for size in pixels.shape[1:]]
    rng = np.random.default_rng(0)
    # One about zero and one of bytes: a network that rescales sees next to nothing in the first.
    images = np.stack([rng.normal(size=shape), rng.integers(0, 256, shape)])
    if "float" not in pixels.dtype:
        images = rng.integers(0, 128, images.shape)
    images = images.astype(pixels.dtype)
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


def _logits(network, model, images):
    """Logits of all exits by the model, `(K, rows, classes)`."""
    outputs = model.predict(images, batch_size=32, verbose=0)
    return np.stack([np.asarray(outputs[name], "float32") for name in network.exit_names])

"""`DriftMonitor`: a monitor whose reference are calibration records."""

from typing import Any

import numpy as np

from keras_exitens import _checks as checks
from keras_exitens._calibration.records import ExitRecords
from keras_exitens.policies import Policy
from keras_exitens.runtime import Monitor

__all__ = ["DriftMonitor"]


class DriftMonitor(Monitor):
    """Says whether the images that come still look, to the exits, like those that the thresholds were set on.

    ```python
    monitor = kx.DriftMonitor(records, policy)
    for images in stream:
        report = monitor.update(early.predict(images))
        if report.alarm:
            ...  # collect labels of fresh images, and calibrate again
    ```

    It needs no labels: it reads where each image leaves and with which score. Where these change, the
    accuracy that was promised for the thresholds may no longer hold. It sees no change that leaves exits and
    scores as they were, and does not know whether a change does harm.

    Tell it in the order in which images came, not in which they were answered: easy ones are answered sooner.

    For images that are drawn independently, as those of `records` were, the probability of an alarm is at
    most `alpha` over the whole run, however long; images of one scene one after the other (video) are not
    independent, and raise it. That holds exactly where the thresholds were not chosen on `records`
    themselves; where they were, nearly (`docs/howto/serving.md` has what was measured).

    Args:
        records: `ExitRecords`, of images like those that will come: the calibration records.
        policy: the `Policy` in use, with thresholds.
        alpha: float in (0, 1), 0.01 by default.
        seed: int. Ties between scores are broken at random, reproducibly.

    Methods: `update(outputs)` and `report()` give a `runtime.DriftReport`, `reset()` begins again,
    `save(path)` writes the reference, for `runtime.Monitor.load`, which needs NumPy alone.

    Raises:
        ValueError: a policy for another number of exits, an `alpha` out of range.

    Reference: Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World, 2005, section 7.1.
    """

    def __init__(self, records: ExitRecords, policy: Policy, alpha: float = 0.01, seed: int = 0) -> None:
        for name, value, kind in (("records", records, ExitRecords), ("policy", policy, Policy)):
            if not isinstance(value, kind):
                raise checks.error(
                    f"`{name}` is of another kind.",
                    expected=f"{kind.__name__}",
                    received=f"{type(value).__name__}",
                    fix="kx.DriftMonitor(kx.collect(model, data), kx.calibrate(...))",
                )
        outputs: dict[str, Any] = policy.simulate(records.logits)
        super().__init__({k: np.asarray(outputs[k]) for k in ("exit", "score")}, records.names, alpha, seed)

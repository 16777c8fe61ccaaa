"""When a row leaves: policies over the logits of the exits, as Keras-serialisable objects."""

from keras_exitens import _checks as checks
from keras_exitens.policies.calibration import Calibration as Calibration
from keras_exitens.policies.confidence import Entropy as Entropy
from keras_exitens.policies.confidence import Margin as Margin
from keras_exitens.policies.confidence import MaxProbability as MaxProbability
from keras_exitens.policies.patience import Patience as Patience
from keras_exitens.policies.policy import Policy as Policy

__all__ = ["Calibration", "Entropy", "Margin", "MaxProbability", "Patience", "Policy", "get"]

_POLICIES = {
    "max_probability": MaxProbability,
    "entropy": Entropy,
    "margin": Margin,
    "patience": Patience,
}


def get(name: str | type[Policy]) -> type[Policy]:
    """The policy class of a name: `"max_probability"`, `"entropy"`, `"margin"` or `"patience"`.

    A subclass of `Policy` is given back as it is.
    """
    if isinstance(name, type) and issubclass(name, Policy):
        return name
    return _POLICIES[checks.one_of("policy", name, tuple(_POLICIES))]

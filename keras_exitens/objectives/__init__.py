"""How the exits of a multi-exit network teach each other.

An objective is a pure function of one batch:

    terms, new_state = objective(logits, features, y, state)

with, for K exits in order (the final one last),

- `logits`: K tensors `(batch, classes)`; `features`: K tensors `(batch, D)`, or `None` where
  `objective.uses_features` is false;
- `y`: labels `(batch,)`, or class probabilities `(batch, classes)`;
- `state`: dict of scalar tensors: `"step"`, the number of training steps so far, and whatever
  `initial_state()` names;
- `terms`: dict from `"classification"`, `"distillation"` and `"feature"` to one loss per sample, `(batch,)`,
  weights included. The loss of the batch is the mean of their sum;
- `new_state`: the state after this batch, without `"step"`.

Weights of terms may be numbers or `keras.optimizers.schedules.LearningRateSchedule`s of the training step.
Below, z are logits, f features, p_T(z) = softmax(z / T), H(q, p) = -sum q log p, and sg stops gradients.
"""

from keras_exitens.objectives.beed import BEED
from keras_exitens.objectives.byot import BYOT
from keras_exitens.objectives.dbt import DBT
from keras_exitens.objectives.deep_supervision import CrossEntropy
from keras_exitens.objectives.eed import EED
from keras_exitens.objectives.objective import Objective, cross_entropy

__all__ = ["BEED", "BYOT", "DBT", "EED", "CrossEntropy", "Objective", "cross_entropy"]

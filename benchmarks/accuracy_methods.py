"""The ways to train that benchmarks/accuracy.py compares, by name, and candidates for better ones.

Each is a function from the number of training steps to an objective. The candidates are small changes of
exit-ensemble distillation, to find out what costs it accuracy at the final exit; none is part of the library.
"""

import keras
from keras import ops

from keras_exitens import objectives
from keras_exitens.objectives.distances import softened_cross_entropy

__all__ = ["METHODS", "PAPER", "REMEDIES", "SECOND", "Listening", "OnlyBetter", "Ramp", "RunningLoss", "make"]


@keras.saving.register_keras_serializable(package="keras_exitens_benchmarks")
class Ramp(keras.optimizers.schedules.LearningRateSchedule):
    """A weight that grows from 0 to `top` over the first `steps` steps, and stays."""

    def __init__(self, top, steps):
        self.top, self.steps = top, steps

    def __call__(self, step):
        return self.top * ops.minimum(ops.cast(step, "float32") / self.steps, 1.0)

    def get_config(self):
        return {"top": self.top, "steps": self.steps}


class _Teaching(objectives.EED):
    """EED with soft labels whose teacher and students a subclass chooses."""

    def __init__(self, output_weight=0.1, temperature=3.0, feature_weight=1.0):
        super().__init__("kl", output_weight, temperature, feature_weight)

    def shares(self, exits, state):
        """Weight of each exit in the teacher, summing to 1."""
        return [1 / exits] * exits

    def students(self, exits):
        """Indices of the exits that are taught."""
        return range(exits)

    def teacher(self, logits, shares, student):
        """The logits that teach the student of this index, before gradients are stopped."""
        return sum(s * z for s, z in zip(shares, logits, strict=True))

    def gate(self, i, y, teacher, student, loss):
        """For each sample, how far the teacher may teach this student, of index i: 0 to 1."""
        return 1.0

    def terms(self, logits, features, y, state, loss):
        exits = len(logits)
        shares = self.shares(exits, state)
        model = ops.stop_gradient(sum(s * f for s, f in zip(shares, features, strict=True)))
        soft, feature = 0.0, 0.0
        for i in self.students(exits):
            teacher = ops.stop_gradient(self.teacher(logits, shares, i))
            gate = self.gate(i, y, teacher, logits[i], loss)
            soft += gate * softened_cross_entropy(teacher, logits[i], self.temperature)
            active = ops.cast(ops.logical_or(features[i] > 0, model > 0), features[i].dtype)
            feature += gate * ops.mean(active * ops.square(features[i] - model), axis=-1)
        return {
            "classification": sum(loss(y, z) for z in logits),
            "distillation": self.output_weight * self.temperature**2 * soft,
            "feature": self.feature_weight * feature,
        }


@keras.saving.register_keras_serializable(package="keras_exitens_benchmarks")
class OnlyBetter(_Teaching):
    """Each exit is taught only the samples on which the ensemble's loss is below its own."""

    def gate(self, i, y, teacher, student, loss):
        return ops.stop_gradient(ops.cast(loss(y, teacher) < loss(y, student), teacher.dtype))


@keras.saving.register_keras_serializable(package="keras_exitens_benchmarks")
class SureFeatures(objectives.EED):
    """EED("kl") in which features are taught as far as the ensemble knows the image.

    The weight of `L_F` is, sample by sample, the largest probability of the ensemble (`of="any"`) or that of
    the right class, `exp(-CE)` (`of="right"`).
    """

    def __init__(self, of="any", **kwargs):
        super().__init__(**kwargs)
        self.of = of

    def terms(self, logits, features, y, state, loss):
        terms = super().terms(logits, features, y, state, loss)
        teacher = sum(logits) / len(logits)
        known = ops.exp(-loss(y, teacher)) if self.of == "right" else ops.max(ops.softmax(teacher), axis=-1)
        return {**terms, "feature": ops.stop_gradient(known) * terms["feature"]}


@keras.saving.register_keras_serializable(package="keras_exitens_benchmarks")
class EarlyStudents(_Teaching):
    """The ensemble teaches the early exits; the final one learns from labels alone."""

    def students(self, exits):
        return range(exits - 1)


@keras.saving.register_keras_serializable(package="keras_exitens_benchmarks")
class NeverItself(_Teaching):
    """The final exit is taught by the mean of the early ones; those by the whole ensemble."""

    def teacher(self, logits, shares, student):
        if student < len(logits) - 1:
            return super().teacher(logits, shares, student)
        return sum(logits[:-1]) / (len(logits) - 1)


@keras.saving.register_keras_serializable(package="keras_exitens_benchmarks")
class HeldOut(_Teaching):
    """Each exit is taught as far as the ensemble is better than it on images that train nothing.

    Its weight is `clip((accuracy of the ensemble - accuracy of the exit) / 0.05, 0, 1)`, of the last epoch.
    """

    def __init__(self, exits, **kwargs):
        super().__init__(**kwargs)
        self.advantage = keras.Variable([0.0] * exits, trainable=False)

    def gate(self, i, y, teacher, student, loss):
        return self.advantage[i]

    def hear(self, logs):
        exits = [*(f"exit_{i}" for i in range(1, self.advantage.shape[0])), "final"]
        gains = [logs["val_ensemble_accuracy"] - logs[f"val_{name}_accuracy"] for name in exits]
        self.advantage.assign([min(max(gain / 0.05, 0.0), 1.0) for gain in gains])


class Gap(keras.optimizers.schedules.LearningRateSchedule):
    """A weight that grows from 0 to `top` as the final exit knows its training images better than others.

    It is `top * clip((training accuracy - validation accuracy) / 0.2, 0, 1)`, of the last epoch.
    """

    def __init__(self, top):
        self.top = top
        self.value = keras.Variable(0.0, trainable=False)

    def __call__(self, step):
        return ops.convert_to_tensor(self.value)

    def hear(self, logs):
        gap = (logs["final_accuracy"] - logs["val_final_accuracy"]) / 0.2
        self.value.assign(self.top * min(max(gap, 0.0), 1.0))

    def get_config(self):
        return {"top": self.top}


class Listening(keras.callbacks.Callback):
    """Tells an objective, and the weights of its terms, the accuracies of each epoch: `hear(logs)`."""

    def __init__(self, objective):
        super().__init__()
        self.told = [part for part in (objective, *vars(objective).values()) if hasattr(part, "hear")]

    def on_epoch_end(self, epoch, logs=None):
        for part in self.told:
            part.hear(logs)


@keras.saving.register_keras_serializable(package="keras_exitens_benchmarks")
class Standardised(objectives.EED):
    """EED("mse") of logits that are centred and scaled over the classes, image by image."""

    def _output_loss(self, teacher, student):
        def scaled(z):
            z = z - ops.mean(z, axis=-1, keepdims=True)
            return z / ops.sqrt(ops.mean(ops.square(z), axis=-1, keepdims=True) + 1e-6)

        return ops.mean(ops.square(scaled(student) - scaled(teacher)), axis=-1)


@keras.saving.register_keras_serializable(package="keras_exitens_benchmarks")
class LaterWeighsMore(_Teaching):
    """The teacher of BEED: weights `β^(i-1) / sum_j β^(j-1)`, here in EED's loss."""

    def __init__(self, beta=1.6, **kwargs):
        super().__init__(**kwargs)
        self.beta = beta

    def shares(self, exits, state):
        total = sum(self.beta**i for i in range(exits))
        return [self.beta**i / total for i in range(exits)]

    def get_config(self):
        config = super().get_config()
        del config["output_loss"]
        return config


@keras.saving.register_keras_serializable(package="keras_exitens_benchmarks")
class RunningLoss(_Teaching):
    """Teacher weights that follow the exits: `w_i = (1/L_i)^p / sum_j (1/L_j)^p`, L a running mean loss.

    Args:
        exits: int, all of them.
        power: p.
        memory: share of the running mean that is kept in each step.
    """

    def __init__(self, exits, power=2.0, memory=0.98, **kwargs):
        super().__init__(**kwargs)
        self.exits, self.power, self.memory = exits, power, memory

    def initial_state(self):
        return {f"loss_{i}": 1.0 for i in range(self.exits)}

    def shares(self, exits, state):
        inverse = [(1 / ops.maximum(state[f"loss_{i}"], 1e-3)) ** self.power for i in range(exits)]
        return [weight / sum(inverse) for weight in inverse]

    def __call__(self, logits, features, y, state, *, loss=objectives.cross_entropy, batch_mean=ops.mean):
        terms, _ = super().__call__(logits, features, y, state, loss=loss, batch_mean=batch_mean)
        running = {}
        for i, z in enumerate(logits):
            now = batch_mean(loss(y, ops.stop_gradient(z)))
            running[f"loss_{i}"] = self.memory * state[f"loss_{i}"] + (1 - self.memory) * now
        return terms, running

    def get_config(self):
        config = super().get_config()
        del config["output_loss"]
        return config


# In the order of the tables. "plain" has no early exits at all.
PAPER = {
    "plain": lambda steps, exits: objectives.CrossEntropy(),
    "cross-entropy": lambda steps, exits: objectives.CrossEntropy(),
    "dbt": lambda steps, exits: objectives.DBT(),
    "byot": lambda steps, exits: objectives.BYOT(),
    "eed-mse": lambda steps, exits: objectives.EED("mse"),
    "eed-kl": lambda steps, exits: objectives.EED("kl"),
    "beed": lambda steps, exits: objectives.BEED(),
}
REMEDIES = {
    # Distillation grows from nothing over the first third of the training.
    "eed-mse-ramp": lambda steps, exits: objectives.EED(
        "mse", Ramp(1.0, steps / 3), 3.0, Ramp(1.0, steps / 3)
    ),
    "eed-kl-ramp": lambda steps, exits: objectives.EED("kl", Ramp(0.1, steps / 3), 3.0, Ramp(1.0, steps / 3)),
    # No comparison of features.
    "eed-mse-output": lambda steps, exits: objectives.EED("mse", feature_weight=0),
    "eed-kl-output": lambda steps, exits: objectives.EED("kl", feature_weight=0),
    # A weaker hand.
    "eed-mse-quarter": lambda steps, exits: objectives.EED("mse", 0.25, 3.0, 0.25),
    # Other teachers and students.
    "eed-kl-beta": lambda steps, exits: LaterWeighsMore(),
    "eed-kl-running": lambda steps, exits: RunningLoss(exits),
    "eed-kl-better": lambda steps, exits: OnlyBetter(),
    "eed-kl-early": lambda steps, exits: EarlyStudents(),
    # BEED with less of its strong distillation: α^k T² is far more than EED's 0.1 T².
    "beed-soft": lambda steps, exits: objectives.BEED(alpha=1.0, temperature=1.0),
}
# A second round, for one objective that is good where networks under-fit and where they over-fit.
SECOND = {
    # The weight of the second authors' program, ten times that of the first.
    "eed-kl-strong": lambda steps, exits: objectives.EED("kl", 1.0, feature_weight=0),
    "eed-kl-itself": lambda steps, exits: NeverItself(),
    "eed-kl-sure": lambda steps, exits: SureFeatures(),
    "eed-kl-right": lambda steps, exits: SureFeatures("right"),
    "eed-kl-held": lambda steps, exits: HeldOut(exits),
    "eed-mse-scaled": lambda steps, exits: Standardised("mse", feature_weight=0),
    "eed-kl-gap": lambda steps, exits: objectives.EED("kl", Gap(1.0), feature_weight=0),
    "eed-mse-gap": lambda steps, exits: objectives.EED("mse", Gap(1.0), feature_weight=Gap(1.0)),
}
METHODS = PAPER | REMEDIES | SECOND


def make(method, steps, exits):
    """The objective of a method, for a training of `steps` steps of a network with `exits` exits in all."""
    return METHODS[method](steps, exits)

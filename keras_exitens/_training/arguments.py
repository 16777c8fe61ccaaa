"""What a distiller is given, and whether it fits together."""

import difflib
from collections.abc import Sequence
from typing import Any

import keras

from keras_exitens import _checks as checks
from keras_exitens._inputs import replicas
from keras_exitens._network.exit_network import ExitNetwork
from keras_exitens.objectives import Objective

__all__ = ["ENSEMBLE", "check_objective", "check_strategy", "matching_features", "refuse_loss_weights"]

ENSEMBLE = "ensemble"
NAMES = "EED", "BEED", "DBT", "BYOT", "CrossEntropy"


def check_objective(objective: Any, names: Sequence[str]) -> None:
    """Raises unless `objective` is one that can teach exits of these names."""
    if not isinstance(objective, Objective):
        wanted = objective.__name__ if isinstance(objective, type) else str(objective)
        similar = difflib.get_close_matches(wanted.lower(), [name.lower() for name in NAMES], 1)
        named = next((name for name in NAMES if name.lower() in similar), "EED")
        raise checks.error(
            "`objective` is not an objective.",
            expected=f"an instance of a class in keras_exitens.objectives: {', '.join(NAMES)}, or your own",
            received=f"objective={objective!r}",
            fix=f"ExitEnsembleDistiller(model, keras_exitens.objectives.{named}())"
            + (", with brackets" if isinstance(objective, type) else ""),
        )
    objective.check(len(names))
    if ENSEMBLE in names:
        raise checks.error(
            "An exit is called 'ensemble'.",
            expected="any other name: 'ensemble' is the mean of all exits",
            received=f"exits {names}",
            fix="rename that output of the model",
        )


def matching_features(network: ExitNetwork, objective: Objective) -> list[keras.KerasTensor]:
    """The features of the exits where the objective compares them, else none."""
    if not objective.uses_features:
        return []
    features = network.features
    widths = {name: tensor.shape[-1] for name, tensor in features.items()}
    if len(set(widths.values())) > 1:
        raise checks.error(
            f"{type(objective).__name__} compares the features of the exits, and they differ in width.",
            expected="features of one width, as add_exits makes them",
            received=f"widths {widths}",
            fix="pass an objective with feature_weight=0, or give all classifiers inputs of one width",
        )
    return list(features.values())


def refuse_loss_weights(loss_weights: Any) -> None:
    """Raises where `compile` is given `loss_weights`."""
    if loss_weights is not None:
        raise checks.error(
            "`loss_weights` is not taken.",
            expected="weights of exits and terms as arguments of the objective",
            received=f"loss_weights={loss_weights!r}",
            fix="for instance ExitEnsembleDistiller(model, objectives.CrossEntropy(weights=[...]))",
        )


def check_strategy(strategy: replicas.Strategy, optimizer: Any, steps_per_execution: int) -> None:
    """Raises where optimizer or steps do not go with the strategy."""
    if isinstance(optimizer, keras.optimizers.Optimizer):
        replicas.check_scope("optimizer", optimizer.variables, strategy)
    if strategy.num_replicas_in_sync > 1 and steps_per_execution != 1:
        raise checks.error(
            "Several steps in one execution do not work on several replicas: Keras's own loop fails.",
            expected="steps_per_execution=1",
            received=f"{steps_per_execution=} on {strategy.num_replicas_in_sync} replicas",
            fix="leave `steps_per_execution` out",
        )

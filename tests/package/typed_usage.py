"""What type checkers see of the library; never run, but read by mypy (`make lint`).

`assert_type` fixes the types of results. A line that ends in `type: ignore` is a mistake that mypy has
to find: where it does not, it reports the comment as unused.
"""

from typing import Any, assert_type

import keras
import numpy as np

import keras_exitens as kx
from keras_exitens import stages
from keras_exitens._export.manifest import Manifest
from keras_exitens._inference.benchmark import Benchmark
from keras_exitens._reports.tradeoff import Tradeoff


def results_have_types(backbone: keras.Model, images: np.ndarray, labels: np.ndarray) -> None:
    model = kx.add_exits(backbone, exits=["block_3", "block_6"], head="separable", name="m")
    kx.add_exits(backbone, exits=("block_3",), placement="stage")
    kx.add_exits(backbone, 2, head=lambda tensor, width, name: tensor)
    assert_type(kx.exit_names(model), list[str])
    kx.strip_exits(model, exit="exit_1", activation=None)

    distiller = kx.ExitEnsembleDistiller(model, kx.objectives.EED("kl", temperature=4, feature_weight=0))
    distiller.compile(optimizer="sgd", metrics=["accuracy"])
    splits = kx.data.load("digits", batch_size=64, augment=None)
    distiller.fit(**splits.fit_arguments(epochs=1), callbacks=[kx.callbacks.StepBackup("backup", every=200)])
    assert_type(splits.class_names, tuple[str, ...])
    assert_type(distiller.classes, int)

    costs = kx.cost(model)
    assert_type(costs.cumulative, tuple[float, ...])
    assert_type(costs.table("layer"), str)
    assert_type(kx.measured_cost(model, batch_size=4), kx.ExitCost)

    records = kx.collect(model, (images, labels), batch_size=8)
    assert_type(records, kx.ExitRecords)
    policy = kx.calibrate(records, costs, max_accuracy_drop=0.01, policy=kx.policies.Margin)
    assert_type(policy, kx.policies.Policy)
    assert_type(kx.policies.Entropy([0.5, 0.7]).for_exits(3), kx.policies.Entropy)
    assert_type(kx.tradeoff(records, [1.0, 2.0, 3.0], chosen=policy), Tradeoff)

    early = kx.EarlyExit(model, policy, optimize=True)
    assert_type(early.predict(images)["exit"], np.ndarray)
    assert_type(early.benchmark((images, labels)), Benchmark)
    assert_type(early.export("folder", format="onnx"), Manifest)
    assert_type(kx.runtime.load("folder", threads=2), kx.runtime.Runtime)
    assert_type(kx.runtime.load("folder").predict(images, thresholds=0.5), dict[str, np.ndarray])
    assert_type(stages.split(model), tuple[stages.Stage, ...])

    kx.applications.WideResNet(28, 4, input_shape=(32, 32, 3), classes=10, width=0.5)
    kx.optimizers.SGD(0.1, momentum=0.9, l2=5e-4)
    kx.tuner.ExitHyperModel(lambda: backbone, exits=2, objective=("eed", "dbt"), temperature=(1.0, 4.0))


@keras.saving.register_keras_serializable("my_package")
class Energy(kx.policies.Policy):
    def score(self, logits: Any) -> Any:
        return keras.ops.logsumexp(logits, axis=-1)


@keras.saving.register_keras_serializable("my_package")
class FirstExit(kx.objectives.Objective):
    uses_features = True

    def terms(self, logits: list[Any], features: Any, y: Any, state: Any, loss: Any) -> dict[str, Any]:
        return {"classification": loss(y, logits[0])}


def mistakes_are_found(model: keras.Model, records: kx.ExitRecords) -> None:
    kx.add_exits(model, exits=2.5)  # type: ignore[arg-type]
    kx.add_exits(model, placement="middle")  # type: ignore[arg-type]
    kx.add_exits(model, exits="block_3")  # type: ignore[arg-type]
    kx.add_exits(model, 3, "stage")  # type: ignore[call-arg]
    kx.add_exit(model)  # type: ignore[attr-defined]
    kx.ExitEnsembleDistiller(model, kx.objectives.EED)  # type: ignore[arg-type]
    kx.objectives.EED(output_loss="l1")  # type: ignore[arg-type]
    kx.objectives.DBT(temperature="annealing")  # type: ignore[arg-type]
    kx.policies.MaxProbability("0.9")  # type: ignore[arg-type]
    kx.calibrate(records, kx.cost)  # type: ignore[arg-type]
    kx.calibrate(records, [1.0], max_drop=0.1)  # type: ignore[call-arg]
    kx.EarlyExit(model, 0.9)  # type: ignore[arg-type]
    kx.data.load("digits", augment="flip")  # type: ignore[arg-type]
    kx.callbacks.StepBackup("backup", every="epoch")  # type: ignore[arg-type]
    kx.runtime.load("folder").predict([1.0], batch_size="8")  # type: ignore[arg-type]
    _ = kx.tradeoff(records, [1.0]).points.accuracy  # type: ignore[attr-defined]
    kx.applications.VGG11(classes="ten")  # type: ignore[arg-type]
    kx.tuner.ExitHyperModel(model, exits="three", optimizer="sgd")  # type: ignore[arg-type]

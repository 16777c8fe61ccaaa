"""Writes the files beside it: what a version of the library saves, for later versions to load.

    python tests/data/saved/make.py FOLDER

Run with the commit whose formats are to be kept. What lies here was written by commit f422472 (0.1.0, before
the package was divided into folders), Keras 3.15.1, TensorFlow 2.21.0.
"""

import json
import pathlib
import sys

import keras
import numpy as np

import keras_exitens as kx
from keras_exitens.applications.grouped import GroupedConv2D


def network():
    """Three convolutions, one of them grouped."""
    x = image = keras.Input((8, 8, 3), name="image")
    for i, layer in enumerate((keras.layers.Conv2D, GroupedConv2D, keras.layers.Conv2D)):
        groups = {"groups": 2} if layer is GroupedConv2D else {}
        x = layer(4, 3, 2 if i else 1, padding="same", use_bias=False, name=f"conv_{i}", **groups)(x)
        x = keras.layers.ReLU(name=f"relu_{i}")(keras.layers.BatchNormalization(name=f"norm_{i}")(x))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, keras.layers.Dense(4, activation="softmax", name="classifier")(x), name="small")


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(7)
    rng = np.random.default_rng(7)
    images = rng.normal(size=(12, 8, 8, 3)).astype("float32")
    labels = rng.integers(0, 4, 12)
    model = kx.add_exits(network(), 2, head="separable")
    objective = kx.objectives.DBT(weight=0.25, temperature="annealed")
    distiller = kx.ExitEnsembleDistiller(model, objective)
    distiller.compile(kx.optimizers.SGD(0.05, momentum=0.9, l2=1e-3), metrics=["accuracy"])
    backup = kx.callbacks.StepBackup(folder / "training.backup", every=2)
    distiller.fit(images, labels, batch_size=4, epochs=2, shuffle=False, callbacks=[backup], verbose=0)
    (folder / "training.backup.previous").unlink()

    model.save(folder / "network.keras")
    kx.strip_exits(model).save(folder / "stripped.keras")
    distiller.save(folder / "distiller.keras")
    records = kx.collect(model, (images, labels), verbose=0)
    records.save(folder / "records.npz")
    policy = kx.calibrate(records, kx.cost(model), max_accuracy_drop=0.2, policy="entropy", temperature=True)
    scores = policy.score(records.logits)
    split = kx.policies.Entropy([float(np.median(score)) for score in scores[:2]], [1.0, 1.5, 2.0])
    split.calibration = policy.calibration
    early = kx.EarlyExit(model, split)
    early.save(folder / "early.keras")
    for format in ("onnx", "litert"):
        early.export(folder / format, format=format)
    objectives = [
        kx.objectives.EED("kl", 0.2, 2.0, 0.5),
        kx.objectives.BEED(1.1, 1.5, 2.0, 0.2),
        kx.objectives.BYOT(0.2, 2.0, 0.1, True),
        kx.objectives.DBT(0.25, "annealed"),
        kx.objectives.CrossEntropy([1.0, 2.0, 3.0]),
    ]
    policies = [
        policy,
        kx.policies.MaxProbability([0.6, 0.7], [1.0, 2.0, 1.5], [True, False], ensemble=True),
        kx.policies.Margin(0.25),
        kx.policies.Patience(2),
    ]
    texts = [keras.saving.serialize_keras_object(thing) for thing in (*objectives, *policies)]
    (folder / "objects.json").write_text(json.dumps(texts, indent=1) + "\n")
    logits = model.predict(images, verbose=0)
    found = early.predict(images, verbose=0)
    np.savez(
        folder / "expected.npz",
        images=images,
        labels=labels,
        **{f"logits_{name}": value for name, value in logits.items()},
        **{f"early_{name}": value for name, value in found.items()},
        stripped=kx.strip_exits(model).predict(images, verbose=0),
        step=distiller._state["step"].numpy(),
        temperature=distiller._state["temperature"].numpy(),
    )


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).absolute())

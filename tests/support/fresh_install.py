"""What has to work where the wheel alone is installed, without any extra: `wheel.py` runs this file there.

It must stand in a folder without the library, so that the installed one is imported.
"""

import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def the_installed_package_is_meant():
    import keras_exitens

    folder = pathlib.Path(keras_exitens.__file__).parent
    assert folder.is_relative_to(sys.prefix), f"{folder} is not that of {sys.prefix}"
    assert (folder / "py.typed").is_file()
    assert keras_exitens.__version__ == importlib.metadata.version("keras-exitens")
    assert not hasattr(keras_exitens, "no_such_name")


def the_runtime_of_an_export_needs_no_keras():
    from keras_exitens._export.export import _write_runtime

    _write_runtime(pathlib.Path("exitens_runtime"))
    code = "import sys, exitens_runtime; print(sorted({'keras', 'tensorflow'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout


def all_public_names_are_there():
    import keras_exitens as kx

    for name in sorted({*kx.__all__} - {"tuner"}):  # the tuner is one of the extras
        assert getattr(kx, name) is not None


def a_network_is_trained_and_routed():
    """Gives the parts that what is optional starts from."""
    import keras
    import numpy as np

    import keras_exitens as kx

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(64, 16, 16, 3)).astype("float32"), rng.integers(0, 4, 64)
    backbone = kx.applications.ResNet18(input_shape=(16, 16, 3), classes=4, width=1 / 16)
    model = kx.add_exits(backbone, exits=2)
    distiller = kx.ExitEnsembleDistiller(model)
    distiller.compile(optimizer=kx.optimizers.SGD(0.01, momentum=0.9), metrics=["accuracy"])
    before = [np.copy(weight) for weight in backbone.get_weights()]
    history = distiller.fit(images, labels, batch_size=16, epochs=1, verbose=0).history
    assert np.isfinite(history["loss"]).all() and "final_accuracy" in history
    assert any((old != new).any() for old, new in zip(before, backbone.get_weights(), strict=True))

    records = kx.collect(model, (images, labels), verbose=0)
    costs = kx.cost(model)
    policy = kx.calibrate(records, costs, cost_budget=0.7)
    early = kx.EarlyExit(model, policy)
    found = early.predict(images, verbose=0)
    assert found["logits"].shape == (64, 4) and set(found["exit"]) <= {0, 1, 2}
    logits = distiller.predict(images, verbose=0)
    for i, name in enumerate(kx.exit_names(model)):
        rows = found["exit"] == i
        np.testing.assert_allclose(found["logits"][rows], logits[name][rows], rtol=1e-4, atol=1e-4)
    everyone = kx.EarlyExit(model, kx.policies.MaxProbability(0.0)).predict(images, verbose=0)
    assert (everyone["exit"] == 0).all()

    early.export("saved")
    early.save("early.keras")
    again = keras.saving.load_model("early.keras").predict(images, verbose=0)
    np.testing.assert_allclose(again["logits"], found["logits"], rtol=1e-4, atol=1e-4)
    print(costs)
    print(kx.tradeoff(records, costs).table().splitlines()[0])
    return kx, early, records, costs


def what_is_missing_is_named(kx, early, records, costs):
    """Every use of an optional package that is not here says which extra brings it."""
    tradeoff = kx.tradeoff(records, costs)
    uses = [
        ("sklearn", "data", lambda: kx.data.load("digits")),
        ("tensorflow_datasets", "data", lambda: kx.data.load("cifar10")),
        ("keras_tuner", "tuner", lambda: kx.tuner),
        ("tensorboard", "tensorboard", lambda: kx.callbacks.ExitTensorBoard()),
        ("matplotlib", "plots", tradeoff.plot),
        ("matplotlib", "plots", lambda: tradeoff.to_html("page.html")),
        ("pandas", "plots", tradeoff.frame),
        ("ai_edge_litert", "export", lambda: early.export("litert", format="litert")),
        ("onnxruntime", "export", lambda: early.export("onnx", format="onnx")),
    ]
    for module, extra, use in uses:
        if importlib.util.find_spec(module) is not None:
            raise AssertionError(f"{module} is installed: this is no environment without extras")
        try:
            use()
        except ImportError as error:
            assert f'pip install "keras-exitens[{extra}]"' in str(error), error
            print(f"without {module}: names keras-exitens[{extra}]")
        else:
            raise AssertionError(f"no error without {module}")


if __name__ == "__main__":
    the_installed_package_is_meant()
    the_runtime_of_an_export_needs_no_keras()
    all_public_names_are_there()
    what_is_missing_is_named(*a_network_is_trained_and_routed())
    print("the installed wheel works")

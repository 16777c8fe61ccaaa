"""Exports: what LiteRT, ONNX Runtime and TensorFlow make of them, and what is refused."""

import importlib
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
from unittest import mock

import harness
import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from keras import layers

import keras_exitens as kx
from keras_exitens import _scores as scores
from keras_exitens import policies, runtime
from keras_exitens._export.precision import in_float32
from keras_exitens._stages import chain

DEVICE = ("litert", "onnx")


def small():
    """A skip crosses every cut; with grouped convolution, exact GELU and fixed normalisation."""
    inputs = keras.Input((16, 16, 3), name="pixels")
    x = layers.Normalization(mean=[120, 128, 130], variance=[4000, 5000, 6000])(inputs)
    x = layers.Conv2D(8, 3, 2, padding="same", name="cut_1")(x)
    y = layers.Conv2D(8, 3, padding="same", groups=4)(x)
    y = layers.Activation("gelu", name="cut_2")(layers.LayerNormalization()(y))
    x = layers.concatenate([x, y, layers.AveragePooling2D(2)(inputs)])
    return keras.Model(inputs, harness.classify(harness.conv(x, 12, 2)), name="small")


def nested():
    base = keras.applications.MobileNetV2(
        weights=None, include_top=False, input_shape=(64, 64, 3), alpha=0.35, name="base"
    )
    return keras.Sequential(
        [
            keras.Input((64, 64, 3)),
            layers.Rescaling(1 / 127.5, offset=-1),
            base,
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.2),
            layers.Dense(5, activation="softmax"),
        ]
    )


def from_keras(name, size=32):
    def make():
        make_model = getattr(keras.applications, name)
        return make_model(weights=None, input_shape=(size, size, 3), classes=5)

    make.__name__ = name
    return make


def resnet18():
    return kx.applications.ResNet18(input_shape=(32, 32, 3), classes=5, width=0.125)


FAST = [small, harness.nested]
LARGE = [
    resnet18,
    nested,
    from_keras("MobileNetV3Small"),
    from_keras("ResNet50"),
    from_keras("DenseNet121"),
    from_keras("EfficientNetB0"),
    from_keras("ConvNeXtTiny"),
    from_keras("InceptionV3", 75),
    from_keras("NASNetMobile"),
]


def images(model, rows=1000, seed=1):
    """Images unlike in contrast and colour, so that the scores differ; bytes where the network rescales."""
    rng = np.random.default_rng(seed)
    shape = model.inputs[0].shape[1:]
    x = rng.normal(size=(rows, *shape)) * rng.uniform(0.1, 3, (rows, 1, 1, 1))
    x += rng.normal(size=(rows, 1, 1, shape[-1]))
    rescales = any(isinstance(layer, layers.Rescaling | layers.Normalization) for layer in model.layers)
    return np.clip(128 + 64 * x, 0, 255).astype("float32") if rescales else x.astype("float32")


def logits_of(model, x):
    outputs = model.predict(x, batch_size=100, verbose=0)
    return np.stack([outputs[name] for name in kx.exit_names(model)])


def halving(logits):
    """Thresholds of `max_probability` that about half of those reach that come to an exit.

    In the widest gap of the middle tenth: of two neighbours that differ by less than rounding does, no
    runtime can be expected to tell which leaves.
    """
    thresholds, here = [], np.ones(logits.shape[1], bool)
    for z in logits[:-1]:
        score = scores.max_probability(np, z)
        ordered = np.sort(score[here])
        middle = ordered[len(ordered) * 45 // 100 : len(ordered) * 55 // 100 + 2]
        widest = np.diff(middle).argmax()
        thresholds.append(float(middle[widest : widest + 2].mean()))
        here &= score < thresholds[-1]
    return thresholds


def early_exit(network, rows=200):
    """A network with three exits, conditioned as after training; half of what comes to an exit leaves there.

    The logits of each class have a spread of 1.
    """
    model = harness.randomise(kx.add_exits(network(), exits=2, head="linear"))
    x = images(model, rows)
    harness.settle(model, x[:200])
    for name, z in zip(kx.exit_names(model), logits_of(model, x), strict=True):
        classifier = model.get_layer(name).classifier
        kernel, bias = classifier.get_weights()
        scale = 1 / z.std(axis=0)
        assert scale.max() < 1000
        classifier.set_weights([kernel * scale, (bias - z.mean(axis=0)) * scale])
    return kx.EarlyExit(model, policies.MaxProbability(halving(logits_of(model, x))))


def check_contract(early, x, format, folder):
    """Same logits at every exit; same exit but for rows within 1e-5 of a threshold, one in a thousand."""
    early.export(folder, format)
    loaded = runtime.load(folder, threads=2)
    logits = logits_of(early.model, x)
    for k in range(3):
        thresholds = ([math.inf] * k + [-math.inf] * 2)[:2]
        found = loaded.predict(x[:100], thresholds=thresholds)
        assert set(found["exit"]) == {k}
        np.testing.assert_allclose(found["logits"], logits[k, :100], atol=1e-4, rtol=0)
    found, wanted = loaded.predict(x), early.policy.simulate(logits)
    assert set(wanted["exit"]) == {0, 1, 2}
    score = np.stack([scores.max_probability(np, z) for z in logits[:-1]], axis=1)
    near = (np.abs(score - early.policy.thresholds) <= 1e-5).any(axis=1)
    assert near.sum() <= len(x) / 1000
    np.testing.assert_array_equal(found["exit"][~near], wanted["exit"][~near])
    np.testing.assert_allclose(found["logits"][~near], wanted["logits"][~near], atol=1e-4, rtol=0)
    np.testing.assert_allclose(found["score"][~near], wanted["score"][~near], atol=5e-5, rtol=0)


@pytest.mark.parametrize("format", DEVICE)
@pytest.mark.parametrize("network", FAST, ids=lambda f: f.__name__)
def test_contract(network, format, tmp_path):
    early = early_exit(network, 1000)
    check_contract(early, images(early.model), format, tmp_path / "export")


@pytest.mark.sweep
@pytest.mark.parametrize("format", DEVICE)
@pytest.mark.parametrize("network", LARGE, ids=lambda f: f.__name__)
def test_contract_of_large_networks(network, format, tmp_path):
    early = early_exit(network, 1000)
    check_contract(early, images(early.model), format, tmp_path / "export")


@pytest.fixture(scope="module")
def trained():
    """A ResNet18 that has learned digits, with half of what comes to an exit leaving there; and images."""
    keras.utils.set_random_seed(0)
    splits = kx.data.load("digits", batch_size=64, seed=0)
    backbone = kx.applications.ResNet18(input_shape=splits.input_shape, classes=splits.classes, width=0.25)
    model = kx.add_exits(backbone, exits=2)
    distiller = kx.ExitEnsembleDistiller(model)
    schedule = keras.optimizers.schedules.CosineDecay(0.05, 12 * splits.steps_per_epoch)
    distiller.compile(keras.optimizers.SGD(schedule, momentum=0.9), metrics=["accuracy"])
    distiller.fit(**splits.fit_arguments(epochs=12), verbose=0)
    parts = (splits.test, splits.calibration, splits.validation)
    batches = [batch for part in parts for batch in part.as_numpy_iterator()]
    x, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    x = np.concatenate([x, x[:, ::-1], x[:, :, ::-1]])[:1000]  # and some that it has to be unsure of
    logits = logits_of(model, x)
    assert np.mean(logits[-1, : len(labels)].argmax(-1) == labels[:1000]) > 0.9
    return kx.EarlyExit(model, policies.MaxProbability(halving(logits))), x


@pytest.mark.slow
@pytest.mark.parametrize("format", DEVICE)
def test_contract_of_a_trained_network(trained, format, tmp_path):
    check_contract(*trained, format, tmp_path / "export")


@pytest.mark.slow
def test_trained_network_is_folded(trained):
    """Folding is exact enough on trained weights, and changes no decision but at a threshold."""
    early, x = trained
    optimized = kx.EarlyExit(early.model, early.policy, optimize=True)
    with mock.patch.object(chain, "FrozenStage", wraps=chain.FrozenStage) as frozen:
        found = optimized.predict(x, batch_size=100, verbose=0)
    norms = [
        layer
        for call in frozen.call_args_list
        for layer in call.args[0].layers
        if isinstance(layer, layers.BatchNormalization)
    ]
    assert len(frozen.call_args_list) == 3 and not norms
    wanted = early.policy.simulate(logits_of(early.model, x))
    same = found["exit"] == wanted["exit"]
    assert same.mean() >= 0.999
    np.testing.assert_allclose(found["logits"][same], wanted["logits"][same], atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def early():
    keras.utils.set_random_seed(0)
    return early_exit(small)


@pytest.fixture(scope="module")
def exports(early, tmp_path_factory):
    """Folders of the same network in all formats, not to be changed."""
    folder = tmp_path_factory.mktemp("exports")
    labels = ["a", "b", "c", "d", "ë"]
    x = images(early.model, 50)
    for format in DEVICE:
        early.export(folder / format, format, labels=labels, representative_data=x)
    early.export(folder / "tf_saved_model", labels=labels)
    return folder


def run(code, *arguments, without=()):
    """Runs a program in a process of its own, in which some packages cannot be imported."""
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in without)
    program = f"import sys\n{blocked}import numpy as np\n{code}"
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd="/",
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("format", DEVICE)
def test_an_export_holds_one_package_and_no_loose_modules(exports, format):
    """A folder on `sys.path` gives programs one name to import, no more."""
    found = {path.name for path in (exports / format).iterdir() if path.suffix == ".py" or path.is_dir()}
    assert found == {"exitens_runtime"}
    files = [path for path in (exports / format / "exitens_runtime").iterdir() if path.is_file()]
    assert files and {path.suffix for path in files} == {".py"}


@pytest.mark.parametrize("format", DEVICE)
def test_runs_from_its_folder_without_the_library_and_without_tensorflow(early, exports, format, tmp_path):
    x = images(early.model, 64)
    np.save(tmp_path / "x.npy", x)
    code = """
folder, place = sys.argv[1:]
sys.path.insert(0, folder)
import exitens_runtime as runtime
network = runtime.load(folder)
assert runtime.__file__.startswith(folder) and network.labels[-1] == "ë"
np.savez(place + "/found.npz", **network.predict(np.load(place + "/x.npy")))
"""
    shutil.copytree(exports / format, tmp_path / "moved")
    run(code, tmp_path / "moved", tmp_path, without=["keras_exitens", "keras", "tensorflow"])
    found, wanted = np.load(tmp_path / "found.npz"), early.predict(x, verbose=0)
    np.testing.assert_array_equal(found["exit"], wanted["exit"])
    np.testing.assert_allclose(found["logits"], wanted["logits"], atol=1e-4, rtol=0)


def test_saved_model_in_a_process_with_tensorflow_alone(early, exports, tmp_path):
    x = images(early.model, 64)
    np.save(tmp_path / "x.npy", x)
    code = """
import tensorflow as tf
folder, place = sys.argv[1:]
x = np.load(place + "/x.npy")
loaded = tf.saved_model.load(folder)
serve, serve_with = (loaded.signatures[name] for name in ("serving_default", "with_thresholds"))
np.savez(place + "/found.npz", **serve(images=tf.constant(x)))
for rows in (0, 1, 7):
    np.savez(place + f"/found_{rows}.npz", **serve(images=tf.constant(x[:rows])))
never = serve_with(images=tf.constant(x), thresholds=tf.constant([np.inf, np.inf]))
np.savez(place + "/never.npz", **never)
"""
    run(code, exports / "tf_saved_model", tmp_path, without=["keras_exitens", "keras"])
    found, wanted = dict(np.load(tmp_path / "found.npz")), early.predict(x, verbose=0)
    np.testing.assert_array_equal(found["exit"], wanted["exit"])
    for key in ("logits", "score"):
        np.testing.assert_allclose(found[key], wanted[key], atol=1e-5)
    for rows in (0, 1, 7):
        part = np.load(tmp_path / f"found_{rows}.npz")
        np.testing.assert_array_equal(part["exit"], wanted["exit"][:rows])
        np.testing.assert_allclose(part["logits"], wanted["logits"][:rows], atol=1e-5)
    never = np.load(tmp_path / "never.npz")
    assert set(never["exit"]) == {2}
    np.testing.assert_allclose(never["logits"], logits_of(early.model, x)[-1], atol=1e-5)


def test_saved_model_as_tensorflow_serving_runs_it(early, tmp_path):
    """Serving takes the highest version under a name, its tag `serve`, and runs a signature in a session."""
    early.export(tmp_path / "network" / "1")
    x = images(early.model, 40)
    x[3, 5, 5] = np.nan
    wanted = early.predict(x, verbose=0)
    assert wanted["exit"][3] == 2 and np.isnan(wanted["score"][3])
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(tmp_path / "network" / "1"))
        signature = meta.signature_def["serving_default"]
        assert signature.method_name == "tensorflow/serving/predict"
        assert set(signature.inputs) == {"images"}
        assert set(meta.signature_def["with_thresholds"].inputs) == {"images", "thresholds"}
        given = signature.inputs["images"]
        assert [size.size for size in given.tensor_shape.dim] == [-1, 16, 16, 3]
        results = {key: tensor.name for key, tensor in signature.outputs.items()}
        for rows in (1, 40, 7, 0):
            found = session.run(results, {given.name: x[:rows]})
            assert {key: value.dtype.name for key, value in found.items()} == {
                "logits": "float32",
                "exit": "int32",
                "score": "float32",
            }
            np.testing.assert_array_equal(found["exit"], wanted["exit"][:rows])
            np.testing.assert_allclose(found["score"], wanted["score"][:rows], atol=1e-5)
            np.testing.assert_allclose(found["logits"], wanted["logits"][:rows], atol=1e-5)
        signature = meta.signature_def["with_thresholds"]
        names = {key: tensor.name for key, tensor in signature.inputs.items()}
        everybody = {names["images"]: x, names["thresholds"]: [-np.inf, -np.inf]}
        exits = session.run(signature.outputs["exit"].name, everybody)
        np.testing.assert_array_equal(exits, np.where(np.arange(40) == 3, 2, 0))


def test_saved_model_with_constants(early, tmp_path):
    optimized = kx.EarlyExit(early.model, early.policy, optimize=True)
    optimized.export(tmp_path / "export")
    x = images(early.model, 33)
    found = tf.saved_model.load(tmp_path / "export").signatures["serving_default"](images=tf.constant(x))
    wanted = early.predict(x, verbose=0)
    np.testing.assert_array_equal(found["exit"], wanted["exit"])
    np.testing.assert_allclose(found["logits"], wanted["logits"], atol=1e-4)


@keras.saving.register_keras_serializable("test_export")
class Largest(policies.Policy):
    def score(self, logits):
        return keras.ops.max(logits, axis=-1)


def test_policy_of_ones_own(early, tmp_path):
    x = images(early.model, 64)
    threshold = float(np.median(logits_of(early.model, x)[0].max(-1)))
    own = kx.EarlyExit(early.model, Largest(threshold))
    own.export(tmp_path / "export")
    found = tf.saved_model.load(tmp_path / "export").signatures["serving_default"](images=tf.constant(x))
    wanted = own.predict(x, verbose=0)
    assert {0, 2} <= set(wanted["exit"])
    np.testing.assert_array_equal(found["exit"], wanted["exit"])
    for format in DEVICE:
        with pytest.raises(ValueError, match=r"The policy Largest cannot run without TensorFlow"):
            own.export(tmp_path / format, format)
    assert os.listdir(tmp_path) == ["export"]


@pytest.mark.parametrize(
    "policy",
    [
        policies.Entropy([0.2, 0.3], [2.0, 0.5, 1.0], enabled=[False, True], ensemble=True),
        policies.Patience(2, ensemble=True),
        policies.Margin([math.inf, -math.inf]),
        policies.MaxProbability(0.5, enabled=False),
    ],
    ids=lambda p: type(p).__name__,
)
def test_every_setting_survives(early, policy, tmp_path):
    other = kx.EarlyExit(early.model, policy)
    x = images(early.model, 200)
    manifest = other.export(tmp_path / "export", "onnx", representative_data=x)
    assert manifest.agreement.same_exit == 1
    assert manifest.agreement.logit_difference < 1e-4
    stages = [stage["exit"] for stage in manifest.stages]
    assert stages == [other.exit_names[i] for i in policy.enabled_exits(3)]


def test_manifest(early, exports):
    for format in DEVICE:
        text = (exports / format / runtime.MANIFEST).read_text()
        assert "NaN" not in text and "Infinity" not in text
        manifest = runtime.read_manifest(exports / format)
        assert manifest["agreement"]["rows"] == 50 and manifest["agreement"]["same_exit"] == 1
        assert manifest["labels"] == ["a", "b", "c", "d", "ë"]
        assert manifest["versions"]["tensorflow"] == tf.__version__
        assert manifest["policy"]["thresholds"] == list(early.policy.thresholds)
        first, *_ = manifest["stages"]
        assert first["inputs"] == [{"name": "pixels", "shape": [None, 16, 16, 3], "dtype": "float32"}]
        assert (exports / format).stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask():
    current = os.umask(0)
    os.umask(current)
    return current


@pytest.mark.parametrize(("quantize", "error"), [("float16", 0.01), ("int8", 0.1)])
def test_quantisation(early, exports, quantize, error, tmp_path):
    x = images(early.model, 40)
    manifest = early.export(tmp_path / "export", "litert", quantize=quantize, representative_data=x)
    assert manifest.quantize == quantize
    assert runtime.read_manifest(tmp_path / "export") == json.loads(json.dumps(manifest.to_dict()))
    assert {t["dtype"] for stage in manifest.stages for t in stage["inputs"]} == {"float32"}
    network = runtime.load(tmp_path / "export")
    found = network.predict(x, thresholds=math.inf)["logits"]
    exact = runtime.load(exports / "litert").predict(x, thresholds=math.inf)["logits"]
    assert 0 < np.abs(found - exact).mean() < error * exact.std()
    found, wanted = network.predict(x), early.policy.simulate(logits_of(early.model, x))
    same = found["exit"] == wanted["exit"]
    classes = [r["logits"].argmax(axis=-1) for r in (found, wanted)]
    assert manifest.agreement.to_dict() == {
        "rows": 40,
        "same_exit": same.mean(),
        "same_class": np.mean(classes[0] == classes[1]),
        "logit_difference": np.abs(found["logits"] - wanted["logits"])[same].max(),
    }


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_float32_copy(precision):
    keras.config.set_dtype_policy(precision)
    model = harness.randomise(kx.add_exits(harness.nested(), exits=2, head="linear"))
    keras.config.set_dtype_policy("float32")
    copy = in_float32(model)
    assert {layer.compute_dtype for layer in harness.all_layers(copy)} == {"float32"}
    assert {v.dtype for v in copy.trainable_variables} == {"float32"}
    x = harness.images(model)
    for half, full in zip(model(x).values(), copy(x).values(), strict=True):
        np.testing.assert_allclose(half, full, atol=0.03 * np.abs(full).max())
    assert in_float32(copy) is copy


@pytest.mark.parametrize("format", DEVICE)
def test_half_precision_runs_in_float32(format, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = harness.randomise(kx.add_exits(harness.sequential(), exits=1))
    keras.config.set_dtype_policy("float32")
    kx.EarlyExit(model, policies.MaxProbability(math.inf)).export(tmp_path / "export", format)
    x = harness.images(model)
    found = runtime.load(tmp_path / "export").predict(x)["logits"]
    np.testing.assert_allclose(found, in_float32(model)(x)["final"], atol=1e-4)


# What is refused, and what is left behind.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "did you mean 'litert'"),
        ({"format": "onnx", "quantize": "int8"}, "`quantize` with 'litert'"),
        ({"quantize": "float16"}, "`quantize` with 'litert'"),
        ({"representative_data": np.zeros((1, 16, 16, 3))}, "does not go with this format"),
        ({"format": "litert", "quantize": "int8"}, "needs images to read ranges from"),
        ({"format": "litert", "quantize": "int4"}, "'int8' or 'float16'"),
        ({"labels": ["a", "b"]}, "a list of 5 names"),
        ({"labels": "abcde"}, "a list of 5 names"),
    ],
)
def test_arguments_that_do_not_go_together(early, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        early.export(tmp_path / "export", **options)
    assert not os.listdir(tmp_path)


def test_nothing_but_an_export_is_replaced(early, exports, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("all of it")
    (tmp_path / "file").write_text("too")
    for name in ("folder", "file"):
        with pytest.raises(FileExistsError, match="is not an export"):
            early.export(tmp_path / name)
    assert (tmp_path / "folder" / "thesis.txt").read_text() == "all of it"
    shutil.copytree(exports / "onnx", tmp_path / "export")
    (tmp_path / "empty").mkdir()
    for name in ("export", "empty"):
        early.export(tmp_path / name)
        assert runtime.read_manifest(tmp_path / name)["format"] == "tf_saved_model"
    assert not list((tmp_path / "export").glob("*.onnx"))
    assert sorted(os.listdir(tmp_path)) == ["empty", "export", "file", "folder"]


@pytest.mark.parametrize("format", DEVICE)
def test_operation_that_the_format_has_not(format, exports, tmp_path):
    class Sorted(layers.Layer):
        def call(self, x):
            return tf.map_fn(lambda row: tf.strings.to_number(tf.strings.as_string(row)), x)

    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, name="cut")(inputs)
    model = keras.Model(inputs, harness.classify(harness.conv(Sorted()(x), 4)))
    model = kx.add_exits(model, exits=["cut"], head="linear")
    shutil.copytree(exports / "onnx", tmp_path / "export")
    before = (tmp_path / "export" / runtime.MANIFEST).read_bytes()
    with pytest.raises(RuntimeError, match=r"(?s)ends at 'final' of .* cannot be converted to .*Sorted"):
        kx.EarlyExit(model, policies.MaxProbability(0.5)).export(tmp_path / "export", format)
    assert os.listdir(tmp_path) == ["export"]
    assert (tmp_path / "export" / runtime.MANIFEST).read_bytes() == before


def test_stages_that_disagree_are_not_exported(early, tmp_path, monkeypatch):
    export = importlib.import_module("keras_exitens._export.export")
    right = export.to_onnx

    def wrong(stage, path):
        other = harness.randomise(keras.models.clone_model(stage.model), seed=9)
        right(type(stage)(stage.exit, other, stage.carried), path)

    monkeypatch.setattr(export, "to_onnx", wrong)
    with pytest.raises(RuntimeError, match="disagree with the model at 'exit_1'"):
        early.export(tmp_path / "export", "onnx")
    assert not os.listdir(tmp_path)


@pytest.fixture
def copied(exports, tmp_path):
    shutil.copytree(exports / "onnx", tmp_path / "export")
    return tmp_path / "export"


def edit(folder, **changes):
    path = pathlib.Path(folder, runtime.MANIFEST)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_damaged_manifests(copied, exports):
    with pytest.raises(ValueError, match="does not run here"):
        runtime.load(exports / "tf_saved_model")
    manifest = json.loads((copied / runtime.MANIFEST).read_text())
    for missing in ("exits", "classes", "input", "policy", "stages", "labels"):
        left = {key: value for key, value in manifest.items() if key != missing}
        (copied / runtime.MANIFEST).write_text(json.dumps(left))
        with pytest.raises(ValueError, match=f"manifest in .* is incomplete.*\n.*\n.*{missing}"):
            runtime.load(copied)
    (copied / runtime.MANIFEST).write_text(json.dumps({**manifest, "stages": manifest["stages"][:-1]}))
    with pytest.raises(ValueError, match="incomplete"):
        runtime.load(copied)
    (copied / runtime.MANIFEST).write_text(json.dumps({**manifest, "schema": runtime.SCHEMA + 1}))
    with pytest.raises(ValueError, match="newer than this runtime"):
        runtime.load(copied)
    for text in (json.dumps(manifest)[:100], "", "[]", "{}", '{"made_by": "somebody", "schema": 1}', "\x00"):
        (copied / runtime.MANIFEST).write_text(text)
        with pytest.raises(ValueError, match="not an export, or its manifest is damaged"):
            runtime.load(copied)
    (copied / runtime.MANIFEST).unlink()
    with pytest.raises(ValueError, match="not an export"):
        runtime.load(copied)
    with pytest.raises(ValueError, match="not an export"):
        runtime.load(copied / "nowhere")


def test_damaged_stages(copied):
    stage = copied / "stage_2.onnx"
    content = stage.read_bytes()
    for damaged in (content[:-1], b"", content[:-1] + bytes([content[-1] ^ 1])):
        stage.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"stage 'stage_2.onnx' .* is damaged or missing"):
            runtime.load(copied)
    stage.unlink()
    with pytest.raises(ValueError, match="no such file"):
        runtime.load(copied)


def test_stages_do_not_take_each_others_processor(exports, monkeypatch):
    """Threads of a stage that is done would poll on, while the next one wants to run."""
    settings = []
    session = onnxruntime.InferenceSession

    def watched(path, options, **kwargs):
        settings.append(options.get_session_config_entry("session.force_spinning_stop"))
        return session(path, options, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", watched)
    runtime.load(exports / "onnx")
    assert settings == ["1"] * 3


@pytest.mark.parametrize(("format", "package"), [("litert", "ai-edge-litert"), ("onnx", "onnxruntime")])
def test_engine_that_is_not_installed(exports, format, package):
    code = """
folder = sys.argv[1]
sys.path.insert(0, folder)
import exitens_runtime as runtime
try:
    runtime.load(folder)
except ImportError as error:
    print(error)
"""
    module = {"litert": "ai_edge_litert.interpreter", "onnx": "onnxruntime"}[format]
    assert f"pip install {package}" in run(code, exports / format, without=[module, "tensorflow"])

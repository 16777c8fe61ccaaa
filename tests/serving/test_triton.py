"""A real Triton Inference Server, with its Python backend, serves what `export(format="triton")` wrote."""

import concurrent.futures
import json
import re

import exports
import harness
import numpy as np
import pytest
import triton_server

import keras_exitens as kx
from keras_exitens import runtime

served = [
    pytest.mark.serving,
    pytest.mark.skipif(not triton_server.available(), reason="make .venv-triton/.ready"),
]
STAGES = ["exit_1", "exit_2", "exit_3", "final"]


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return exports.exported(tmp_path_factory.mktemp("triton") / "repository", "triton", backend="python")


@pytest.fixture(scope="module")
def server(export, tmp_path_factory):
    with triton_server.serving(export.folder, tmp_path_factory.mktemp("server")) as running:
        yield running


class TestServed:
    pytestmark = served

    @pytest.mark.parametrize("rows", [1, 3, 30])
    def test_requests_of_every_size_are_answered_as_by_early_exit(self, server, export, rows):
        starts = range(0, len(export.images) - rows + 1, rows)
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda i: server.infer("served", export.images[i : i + rows]), starts))
        found = {key: np.concatenate([a[key] for a in answers]) for key in answers[0]}
        exports.check(found, export.outputs, export.policy, slice(0, len(found["exit"])))

    def test_rows_of_different_requests_share_the_batches_of_later_stages(self, server, export):
        before = {name: server.statistics(f"served_{name}") for name in STAGES}
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            list(pool.map(lambda image: server.infer("served", image[None]), export.images))
        for name, share in zip(STAGES, (1, 0.6, 0.3, 0.1), strict=True):
            after = server.statistics(f"served_{name}")
            rows = after["inference_count"] - before[name]["inference_count"]
            batches = after["execution_count"] - before[name]["execution_count"]
            assert rows == round(share * len(export.images))
            assert rows > batches, name

    @pytest.mark.parametrize(
        "images, says",
        [
            (np.full((1, 32, 32, 3), np.nan, "float32"), "not finite"),
            (np.zeros((1, 31, 32, 3), "float32"), "unexpected shape"),
            (np.zeros((1, 32, 32, 3), "float64"), "data-type"),
            (np.zeros((40, 32, 32, 3), "float32"), "batch-size"),
        ],
        ids=["NaN", "shape", "dtype", "too many"],
    )
    def test_bad_requests_are_told_why(self, server, images, says):
        with pytest.raises(ValueError, match=says):
            server.infer("served", images)


@pytest.mark.serving
@pytest.mark.skipif(not triton_server.available(), reason="make .venv-triton/.ready")
def test_thresholds_stand_in_the_configuration(export, tmp_path):
    import shutil

    repository = shutil.copytree(export.folder, tmp_path / "repository")
    config = repository / "served/config.pbtxt"
    config.write_text(
        config.read_text() + 'parameters { key: "thresholds" value { string_value: "2 2 -1" } }\n'
    )
    (tmp_path / "server").mkdir()
    with triton_server.serving(repository, tmp_path / "server") as running:
        assert set(running.infer("served", export.images[:20])["exit"]) == {2}


# What is written


def test_the_repository_runs_without_triton_too(export):
    found = runtime.load(export.folder).predict(export.images)
    exports.check(found, export.outputs, export.policy)


def fields(config):
    """`name`, `backend` and tensors of a `config.pbtxt`."""
    tensors = re.findall(r'(input|output) \{ name: "(.+?)" data_type: (\w+) dims: \[ (.*?) \]', config)
    return {
        "name": re.search(r'^name: "(.*)"$', config, re.M)[1],
        "backend": re.search(r'^backend: "(.*)"$', config, re.M)[1],
        "tensors": {(way, name): (kind, dims) for way, name, kind, dims in tensors},
    }


def test_configurations_say_what_onnx_has(tmp_path):
    import onnxruntime

    made = exports.exported(tmp_path / "repository", "triton", shares=(0.5, 0.5), rows=20)
    manifest = json.loads((tmp_path / "repository/exits.json").read_text())
    kinds = {"tensor(float)": "TYPE_FP32"}
    for stage in manifest["stages"]:
        folder = tmp_path / "repository" / stage["triton_model"]
        found = fields((folder / "config.pbtxt").read_text())
        assert (found["name"], found["backend"]) == (folder.name, "onnxruntime")
        assert sorted(path.name for path in (folder / "1").iterdir()) == ["model.onnx"]
        session = onnxruntime.InferenceSession(str(folder / "1/model.onnx"))
        for way, tensors in (("input", session.get_inputs()), ("output", session.get_outputs())):
            for tensor in tensors:
                kind, dims = found["tensors"].pop((way, tensor.name))
                assert kind == kinds[tensor.type]
                assert dims == ", ".join(str(n) if isinstance(n, int) else "-1" for n in tensor.shape[1:])
        assert not found["tensors"]
    router = tmp_path / "repository" / manifest["model"]
    assert json.loads((router / "1/exits.json").read_text()) == manifest
    assert fields((router / "config.pbtxt").read_text())["backend"] == "python"
    assert made.policy.thresholds == tuple(manifest["policy"]["thresholds"])


def test_sizes_that_are_open_stay_open(tmp_path):
    model = kx.add_exits(harness.any_size(), 1, head="linear")
    early = kx.EarlyExit(model, kx.policies.MaxProbability(0.5))
    early.export(tmp_path / "repository", format="triton")
    router = fields((tmp_path / "repository" / model.name / "config.pbtxt").read_text())
    assert router["tensors"]["input", "images"][1] == "-1, -1, 3"


@pytest.mark.parametrize(
    "options, says",
    [
        ({"format": "triton", "backend": "tensorrt"}, "`backend`"),
        ({"format": "onnx", "backend": "python"}, "`backend` with 'triton'"),
        ({"format": "triton", "quantize": "int8"}, "does not go with this format"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_written(options, says, tmp_path):
    model = kx.add_exits(harness.dense_concat(), 1, head="linear")
    early = kx.EarlyExit(model, kx.policies.MaxProbability(0.5))
    with pytest.raises(ValueError, match=says):
        early.export(tmp_path / "repository", **options)
    assert not (tmp_path / "repository").exists()

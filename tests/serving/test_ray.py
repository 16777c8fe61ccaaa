"""A real Ray Serve on this machine: answers, refusals, batches, faults, new thresholds."""

import concurrent.futures
import io
import json
import os
import signal
import time
import urllib.error
import urllib.request

import exports
import keras
import numpy as np
import pytest
from leaving import leaving

import keras_exitens as kx

ray = pytest.importorskip("ray")
from ray import serve  # noqa: E402
from ray.serve.exceptions import BackPressureError  # noqa: E402

pytestmark = pytest.mark.serving
STAGES = ["exit_1", "exit_2", "exit_3", "final"]
PORT = 8123


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return exports.exported(tmp_path_factory.mktemp("serving") / "export", "onnx")


@pytest.fixture(scope="module")
def reference(export, tmp_path_factory):
    path = tmp_path_factory.mktemp("drift") / "drift.json"
    kx.DriftMonitor(export.records, export.policy).save(path)
    return path


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"port": PORT})
    yield
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def handle(cluster, export, reference):
    app = kx.serving.ray_app(export.folder, max_batch_size=16, batch_wait_timeout_s=0.02, drift=reference)
    return serve.run(app)


def post(body, kind="application/json", accept="*/*"):
    """`(status, body)` of a request over HTTP."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/predict", body, {"content-type": kind, "accept": accept}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read()


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def together(results):
    return {key: np.concatenate([r[key] for r in results]) for key in results[0]}


def counts(name):
    return serve.get_deployment_handle(name, "default").stats.remote().result()


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_requests_of_every_size_are_answered_as_by_early_exit(handle, export, rows):
    starts = range(0, len(export.images) - rows + 1, rows)
    answers = [handle.predict.remote(export.images[i : i + rows]) for i in starts]
    found = together([answer.result() for answer in answers])
    assert {key: value.dtype.name for key, value in found.items()} == {
        "logits": "float32",
        "exit": "int32",
        "score": "float32",
    }
    exports.check(found, export.outputs, export.policy, slice(0, len(found["exit"])))


def test_rows_of_different_requests_share_the_batches_of_later_stages(handle, export):
    before = {name: counts(name) for name in STAGES}
    answers = [handle.predict.remote(image) for image in export.images]
    exports.check(together([answer.result() for answer in answers]), export.outputs, export.policy)
    for name, share in zip(STAGES, (1, 0.6, 0.3, 0.1), strict=True):
        after = counts(name)
        rows, batches = (after[key] - before[name][key] for key in ("rows", "batches"))
        assert rows == round(share * len(export.images))
        assert rows >= 1.2 * batches, f"{name}: {rows} rows in {batches} batches, of one row a request"


def drift():
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/drift") as answer:
        return json.load(answer)


def test_easy_images_are_answered_sooner_and_that_is_no_drift(handle, export):
    """The requests of the reference itself, many at once: the monitor is told of them in their order."""
    before = drift()["rows"]
    for answer in [handle.predict.remote(image) for image in export.images]:
        answer.result()
    wait_for(lambda: drift()["rows"] == before + len(export.images))
    assert not drift()["alarm"]


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.1)


def test_json_and_npy_over_http(handle, export):
    images = export.images[:5]
    status, body = post(json.dumps({"images": images.tolist()}).encode())
    assert status == 200
    found = {key: np.array(value) for key, value in json.loads(body).items()}
    exports.check(found, export.outputs, export.policy, slice(0, 5))
    status, body = post(npy(images), "application/x-npy", "application/x-npz")
    assert status == 200
    exports.check(dict(np.load(io.BytesIO(body))), export.outputs, export.policy, slice(0, 5))
    status, body = post(npy(images[0]))
    assert (status, json.loads(body)["exit"]) == (200, [int(export.outputs["exit"][0])])
    status, body = post(npy(images[:0]))
    assert (status, json.loads(body)["exit"]) == (200, [])


def test_thresholds_of_one_request_are_its_own(handle, export):
    images = export.images[:20]
    others = [handle.predict.remote(image) for image in export.images]
    for thresholds, exit_ in ((-1.0, 0), ([2.0, 2.0, 2.0], 3)):
        status, body = post(json.dumps({"images": images.tolist(), "thresholds": thresholds}).encode())
        assert status == 200 and set(json.loads(body)["exit"]) == {exit_}
    exports.check(together([r.result() for r in others]), export.outputs, export.policy)
    status, body = post(json.dumps({"images": images.tolist(), "thresholds": [0.5]}).encode())
    assert status == 422 and b"not thresholds for this network" in body


NAN = np.zeros((2, 32, 32, 3), "float32")
NAN[1, 3, 4, 0] = np.nan
BAD = {
    "NaN": (npy(NAN), "image 1"),
    "infinite": (npy(np.full((1, 32, 32, 3), np.inf, "float32")), "not finite"),
    "size": (npy(np.zeros((2, 31, 32, 3), "float32")), "(2, 31, 32, 3)"),
    "channels": (npy(np.zeros((2, 32, 32, 1), "float32")), "not images for this network"),
    "complex": (npy(np.zeros((2, 32, 32, 3), "complex64")), "complex64"),
    "pickled": (npy(np.array([{}])), "allow_pickle"),
    "cut off": (npy(np.zeros((2, 32, 32, 3), "float32"))[:500], "not understood"),
    "garbage": (b"\x00\x01garbage", "not understood"),
    "empty": (b"", "not understood"),
    "ragged": (b'{"images": [[1, 2], [3]]}', "not understood"),
    "words": (b'{"images": [["a"]]}', "not understood"),
    "no images": (b'{"pixels": []}', "KeyError"),
    "a list": (b"[1, 2]", "not understood"),
    "JSON's NaN": (b'{"images": NaN}', "not images"),
}


@pytest.mark.parametrize("body, says", BAD.values(), ids=BAD.keys())
def test_bad_requests_are_told_why_and_disturb_nobody(handle, export, body, says):
    good = [handle.predict.remote(image) for image in export.images[:30]]
    status, answer = post(body)
    assert status == 422 and says in json.loads(answer)["error"]
    exports.check(together([r.result() for r in good]), export.outputs, export.policy, slice(0, 30))


def test_health_and_drift_are_told(handle, export):
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health") as answer:
        health = json.load(answer)
    assert health["exits"] == STAGES and health["status"] == "ready"
    np.testing.assert_allclose([float(t) for t in health["thresholds"]], export.policy.thresholds, rtol=1e-6)
    hard = export.images[export.outputs["exit"] == 3]
    for answer in [handle.predict.remote(hard) for _ in range(8)]:
        answer.result()
    wait_for(lambda: drift()["alarm"])
    assert drift()["exit_names"] == STAGES


def replica_pid(name):
    """Process of a stage: Ray names its processes after the deployment."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if f"ServeReplica:default:{name}".encode() in file.read():
                    found.append(int(pid))
        except OSError:
            pass
    return found


def test_a_killed_stage_gives_no_wrong_answer_and_comes_back(handle, export):
    """Under load, the second stage's process is killed: what is in flight is asked again or fails cleanly."""
    (pid,) = replica_pid("exit_2")
    answered, failed = 0, 0

    def ask(i):
        try:
            return handle.predict.remote(export.images[i : i + 2]).result(timeout_s=60)
        except Exception as problem:
            return problem

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        futures = [(i, pool.submit(ask, i)) for i in range(0, 160, 2)]
        time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        for i, future in futures:
            found = future.result()
            if isinstance(found, Exception):
                failed += 1
            else:
                answered += 1
                exports.check(found, export.outputs, export.policy, slice(i, i + 2))
    print(f"killed stage: {answered} answered, {failed} failed cleanly")
    assert answered + failed == 80 and answered >= 40
    found = handle.predict.remote(export.images[:40]).result(timeout_s=60)
    exports.check(found, export.outputs, export.policy, slice(0, 40))
    assert replica_pid("exit_2") != [pid]


@pytest.mark.parametrize("way", ["broadcast", "run again"])
def test_new_thresholds_drop_nothing(handle, export, reference, way):
    """While requests come without a pause, the thresholds are changed, twice."""
    stop, replicas = False, {name: replica_pid(name) for name in STAGES}
    seen = []

    def ask():
        while not stop:
            seen.append(handle.predict.remote(export.images[:4]).result(timeout_s=60)["exit"].tolist())

    options = {"max_batch_size": 16, "batch_wait_timeout_s": 0.02, "drift": reference}
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        loops = [pool.submit(ask) for _ in range(3)]
        try:
            for thresholds in (-1.0, 2.0):
                if way == "broadcast":
                    handle.broadcast("set_thresholds", thresholds).results(timeout_s=30)
                else:
                    serve.run(kx.serving.ray_app(export.folder, thresholds=thresholds, **options))
                wanted = [0] * 4 if thresholds < 0 else [3] * 4
                # Some that were on their way come in later: three by the new ones are enough.
                wait_for(lambda wanted=wanted: seen[-3:] == [wanted] * 3, seconds=60)
        finally:
            stop = True
        for loop in loops:
            loop.result()  # raises what a request raised
    usual = export.outputs["exit"][:4].tolist()
    # A request that has set out keeps its thresholds: every answer is wholly by one of the three.
    assert {tuple(exits) for exits in seen} <= {tuple(usual), (0,) * 4, (3,) * 4}
    print(f"{way}: {len(seen)} requests, none dropped")
    if way == "broadcast":
        assert {name: replica_pid(name) for name in STAGES} == replicas, "no replica was started anew"
    handle.broadcast("set_thresholds", export.policy.thresholds).results(timeout_s=30)


def test_a_queue_over_its_limit_answers_503(cluster, export):
    """An app of its own whose stages take one request and let none wait."""
    few = {"max_ongoing_requests": 1, "max_queued_requests": 1}
    app = kx.serving.ray_app(
        export.folder, chained=False, batch_wait_timeout_s=0.2, stage_options={"final": few}
    )
    other = serve.run(app, name="full", route_prefix="/full")
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        request = urllib.request.Request(f"http://127.0.0.1:{PORT}/full/predict", npy(export.images[:2]))

        def ask(_):
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return answer.status, json.load(answer)
            except urllib.error.HTTPError as refused:
                return refused.code, json.load(refused)

        answers = list(pool.map(ask, range(40)))
    statuses = [status for status, _ in answers]
    assert set(statuses) == {200, 503}
    assert all(a["exit"] == export.outputs["exit"][:2].tolist() for s, a in answers if s == 200)
    assert all("try again" in a["error"] for s, a in answers if s == 503)
    with pytest.raises(BackPressureError):
        [r.result() for r in [other.predict.remote(export.images[:1]) for _ in range(30)]]
    serve.delete("full")


def test_litert_stages_are_served_too(cluster, tmp_path):
    made = exports.exported(tmp_path / "litert", "litert", shares=(0.5, 0.5), rows=40)
    app = kx.serving.ray_app(made.folder, stage_options={"exit_1": {"threads": 1, "max_batch_size": 4}})
    found = serve.run(app, name="litert", route_prefix="/litert").predict.remote(made.images).result()
    exports.check(found, made.outputs, made.policy)
    serve.delete("litert")


def test_images_of_several_sizes_share_no_batch_and_are_all_answered(cluster, tmp_path):
    """The network takes any size; requests of two sizes wait for one stage at a time."""
    conv = {"padding": "same", "activation": "relu"}
    backbone = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Conv2D(8, 3, **conv),
            keras.layers.Conv2D(16, 3, strides=2, **conv),
            keras.layers.Conv2D(16, 3, **conv),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(5, activation="softmax"),
        ]
    )
    model = kx.add_exits(backbone, 1, head="linear")
    rng = np.random.default_rng(0)
    images = {n: rng.normal(size=(40, n, n, 3)).astype("float32") for n in (16, 24)}
    records = kx.collect(model, (images[16], np.zeros(40, int)), verbose=0)
    policy = kx.policies.MaxProbability(leaving(records.logits, (0.5, 0.5))[0])
    early = kx.EarlyExit(model, policy)
    early.export(tmp_path / "any", format="onnx")
    app = kx.serving.ray_app(tmp_path / "any", max_batch_size=8, batch_wait_timeout_s=0.02)
    handle = serve.run(app, name="any", route_prefix="/any")
    answers = [(n, handle.predict.remote(images[n][i])) for i in range(40) for n in (16, 24)]
    found = [(n, answer.result(timeout_s=60)) for n, answer in answers]
    for n in (16, 24):
        outputs = early.predict(images[n], verbose=0)
        exports.check(together([r for size, r in found if size == n]), outputs, policy)
    serve.delete("any")


def test_what_an_app_cannot_be_made_of(export, tmp_path):
    with pytest.raises(ValueError, match="is not an export"):
        kx.serving.ray_app(tmp_path)
    with pytest.raises(ValueError, match="did you mean 'exit_1'"):
        kx.serving.ray_app(export.folder, stage_options={"exit1": {}})
    with pytest.raises(ValueError, match="option of a stage"):
        kx.serving.ray_app(export.folder, stage_options={"router": {"threads": 2}})
    with pytest.raises(ValueError, match="`max_batch_size`"):
        kx.serving.ray_app(export.folder, max_batch_size=0)
    with pytest.raises(ValueError, match="`batch_wait_timeout_s`"):
        kx.serving.ray_app(export.folder, batch_wait_timeout_s=-1)
    with pytest.raises(ValueError, match="not thresholds for this network"):
        kx.serving.ray_app(export.folder, thresholds=[0.5])
    with pytest.raises(ValueError, match="no reference of a drift monitor"):
        kx.serving.ray_app(export.folder, drift=tmp_path / "nothing.json")

"""Starts a real Triton Inference Server from the wheel `nvidia-pytriton`, which holds its Python backend."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-triton"
_NAMES = {"FP32": "float32", "INT32": "int32"}


class Server:
    """A running server: `infer` asks it, by the protocol of KServe (v2) in JSON or with binary tensors."""

    def __init__(self, process, port, log):
        self.process, self.log = process, log
        self.address = f"http://127.0.0.1:{port}/v2"

    def ready(self, what="health/ready"):
        try:
            with urllib.request.urlopen(f"{self.address}/{what}", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def infer(self, model, images, name="images", timeout=60):
        """Dict of arrays; raises `ValueError` with the server's words where it refuses."""
        images = np.ascontiguousarray(images)
        kinds = {"float32": "FP32", "float64": "FP64", "uint8": "UINT8", "int32": "INT32"}
        head = {
            "inputs": [
                {
                    "name": name,
                    "shape": list(images.shape),
                    "datatype": kinds[images.dtype.name],
                    "parameters": {"binary_data_size": images.nbytes},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
        text = json.dumps(head).encode()
        request = urllib.request.Request(
            f"{self.address}/models/{model}/infer",
            text + images.tobytes(),
            {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"},
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                length, body = int(answer.headers["Inference-Header-Content-Length"]), answer.read()
        except urllib.error.HTTPError as refused:
            raise ValueError(refused.read().decode()) from refused
        found, start = {}, length
        for output in json.loads(body[:length])["outputs"]:
            size = output["parameters"]["binary_data_size"]
            dtype = _NAMES[output["datatype"]]
            found[output["name"]] = np.frombuffer(body[start : start + size], dtype).reshape(output["shape"])
            start += size
        return {key: value[:, 0] if key in ("exit", "score") else value for key, value in found.items()}

    def statistics(self, model):
        with urllib.request.urlopen(f"{self.address}/models/{model}/stats", timeout=10) as answer:
            return json.load(answer)["model_stats"][0]


def available():
    return (ENVIRONMENT / "bin/python").exists()


@contextlib.contextmanager
def serving(repository, folder, seconds=120):
    """A server of a model repository; ended when the block is left.

    Args:
        repository: path.
        folder: path, for the log and the backends.
        seconds: float, how long it may take to be ready.
    """
    (packages,) = (ENVIRONMENT / "lib").glob("python*/site-packages")
    version = packages.parent.name.removeprefix("python")
    triton = packages / "pytriton/tritonserver"
    backends = pathlib.Path(folder, "backends")
    shutil.copytree(triton / "backends", backends)
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python")
    (backends / "python" / stub.name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    prefix = subprocess.run(
        [ENVIRONMENT / "bin/python", "-c", "import sys; print(sys.base_prefix)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{packages / 'nvidia_pytriton.libs'}:{prefix}/lib",
        "PYTHONPATH": str(packages),
        "PYTHONHOME": prefix,
        "PATH": f"{ENVIRONMENT / 'bin'}:{os.environ['PATH']}",
    }
    log = pathlib.Path(folder, "triton.log")
    command = [
        *(triton / "bin/tritonserver", f"--model-repository={repository}"),
        *(f"--backend-directory={backends}", f"--http-port={port}", "--http-address=127.0.0.1"),
        *("--allow-grpc=false", "--allow-metrics=false", "--exit-timeout-secs=5"),
    ]
    with log.open("w") as sink:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=sink, stderr=sink, env=environment, start_new_session=True
        )
    server = Server(process, port, log)
    try:
        end = time.monotonic() + seconds
        while not server.ready():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(log.read_text()[-4000:])
            time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(15)

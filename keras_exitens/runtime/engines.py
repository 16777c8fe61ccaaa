"""What runs the file of a stage: LiteRT or ONNX Runtime, each imported when it is needed."""

import functools
import pathlib
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from .. import _checks as checks

__all__ = ["ENGINES", "Run"]

Run: TypeAlias = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def _litert(path: pathlib.Path, threads: int) -> Run:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as cause:
        raise _missing("ai-edge-litert") from cause
    run = Interpreter(model_path=str(path), num_threads=threads).get_signature_runner()
    return lambda values: run(**values)


def _onnx(path: pathlib.Path, threads: int) -> Run:
    try:
        import onnxruntime
    except ImportError as cause:
        raise _missing("onnxruntime") from cause
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Each stage has threads of its own. By default those of one stage go on polling for work when it is done,
    # and take the processor from the next stage: that made a chain take nearly three times as long.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    run = functools.partial(session.run, names)
    return lambda values: dict(zip(names, run(values), strict=True))


# A format -> what makes a file of it, and a number of threads, into a function.
ENGINES: dict[str, Callable[[pathlib.Path, int], Run]] = {
    "litert": _litert,
    "onnx": _onnx,
    "triton": _onnx,
}


def _missing(package: str) -> Exception:
    return checks.error(
        f"This export runs on {package}.",
        expected=f"{package} to be installed",
        received="an environment without it",
        fix=f"pip install {package}",
        kind=ImportError,
    )

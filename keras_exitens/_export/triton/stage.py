"""A stage of an exported multi-exit network in Triton's Python backend, by ONNX Runtime.

Written by keras_exitens, for servers without Triton's own ONNX Runtime backend, which is faster.
"""

import json
import pathlib

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self._taken = [tensor["name"] for tensor in config["input"]]
        self._given = [tensor["name"] for tensor in config["output"]]
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(
            str(pathlib.Path(__file__).with_name("model.onnx")), options, providers=["CPUExecutionProvider"]
        )

    def execute(self, requests):
        """All requests of a batch together: Triton hands them over one by one."""
        given = [
            [pb.get_input_tensor_by_name(request, name).as_numpy() for name in self._taken]
            for request in requests
        ]
        together = [np.concatenate(arrays) for arrays in zip(*given, strict=True)]
        made = self._session.run(self._given, dict(zip(self._taken, together, strict=True)))
        ends = np.cumsum([len(arrays[0]) for arrays in given])[:-1]
        parts = zip(*(np.split(array, ends) for array in made), strict=True)
        return [
            pb.InferenceResponse([pb.Tensor(*pair) for pair in zip(self._given, part, strict=True)])
            for part in parts
        ]

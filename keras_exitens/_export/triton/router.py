"""The router of an exported multi-exit network in Triton: asks the stages, one after the other.

Written by keras_exitens. Each request goes on by itself, so that rows of different requests that go on meet
in the batches of the next stage, which Triton's dynamic batching makes. Thresholds can be set in
`config.pbtxt`:

    parameters { key: "thresholds" value { string_value: "0.9 0.8 0.7" } }
"""

import asyncio
import json
import pathlib
import sys

import numpy as np
import triton_python_backend_utils as pb

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))

import exitens_runtime  # noqa: E402


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self._network = exitens_runtime.load(HERE, threads=1, stages=())
        given = config.get("parameters", {}).get("thresholds", {}).get("string_value")
        manifest = self._network.manifest
        self._thresholds = self._network.thresholds(
            [float(t) for t in (given.split() if given else manifest["policy"]["thresholds"])]
        )
        self._models = [stage["triton_model"] for stage in manifest["stages"]]
        self._given = [[t["name"] for t in stage["outputs"]] for stage in manifest["stages"]]

    async def execute(self, requests):
        return await asyncio.gather(*(self._answer(request) for request in requests))

    async def _answer(self, request):
        try:
            images = pb.get_input_tensor_by_name(request, self._network.manifest["input"]["name"]).as_numpy()
            result = await self._route(images)
        except Exception as problem:
            return pb.InferenceResponse(error=pb.TritonError(str(problem)))
        return pb.InferenceResponse([pb.Tensor(name, value) for name, value in result.items()])

    async def _route(self, images):
        rows = self._network.start(images)
        if not rows.finite.all():
            raise ValueError("some pixels are not finite: NaN or infinity")
        answers, here = self._network.answers(len(images)), np.arange(len(images))
        for number in range(len(self._models)):
            made = await self._run(number, rows)
            found, going_on, rows = self._network.observe(number, rows, made, self._thresholds)
            answers.put(here[~going_on], found, ~going_on)
            here = here[going_on]
            if not len(here):
                break
        return answers.arrays

    async def _run(self, number, rows):
        inputs = self._network.stages[number].inputs.items()
        request = pb.InferenceRequest(
            model_name=self._models[number],
            requested_output_names=self._given[number],
            inputs=[
                pb.Tensor(name, np.ascontiguousarray(rows.values[name], dtype)) for name, dtype in inputs
            ],
            preferred_memory=pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = await request.async_exec()
        if response.has_error():
            raise RuntimeError(response.error().message())
        found = ((name, pb.get_output_tensor_by_name(response, name)) for name in self._given[number])
        return {name: tensor.as_numpy() for name, tensor in found}

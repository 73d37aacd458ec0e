"""The `model.py` of Triton's python backend: it runs the ONNX file beside it, and is Triton's to import, not ours."""

from typing import Final

MODEL_PY: Final = '''\
"""Runs model.onnx, which lies beside this file, with ONNX Runtime. Called by Triton's python backend."""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One session for each instance."""

    def initialize(self, args):
        """Load the file as the configuration says."""
        config = json.loads(args["model_config"])
        parameters = config.get("parameters", {})
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", {}).get("string_value", 0))
        # Threads that spin for work between runs take the cores from the server that brings it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        provider = ("CPUExecutionProvider", {})
        if args["model_instance_kind"] == "GPU":
            # TF32 would round inputs to 10 bits.
            provider = ("CUDAExecutionProvider", {"device_id": args["model_instance_device_id"], "use_tf32": "0"})
        file = Path(__file__).parent / "model.onnx"
        self._session = ort.InferenceSession(str(file), options, providers=[provider])
        if provider[0] not in self._session.get_providers():
            raise RuntimeError(f"ONNX Runtime has no {provider[0]} here")
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._outputs = [node.name for node in self._session.get_outputs()]

    def execute(self, requests):
        """Run all requests of a batch at once."""
        batches = [[self._array(request, name) for name in self._inputs] for request in requests]
        shapes = {tuple(array.shape[1:] for array in batch) for batch in batches}
        if len(shapes) > 1:  # Triton has put items of several shapes together
            return [self._answer(self._run(batch)) for batch in batches]
        sizes = [len(batch[0]) for batch in batches]
        joined = batches[0] if len(batches) == 1 else [np.concatenate(arrays) for arrays in zip(*batches)]
        outputs = self._run(joined)
        ends = np.cumsum(sizes)
        return [self._answer([array[end - size : end] for array in outputs]) for size, end in zip(sizes, ends)]

    def _array(self, request, name):
        return pb_utils.get_input_tensor_by_name(request, name).as_numpy()

    def _run(self, batch):
        return self._session.run(self._outputs, dict(zip(self._inputs, batch)))

    def _answer(self, arrays):
        tensors = [pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in zip(self._outputs, arrays)]
        return pb_utils.InferenceResponse(output_tensors=tensors)
'''

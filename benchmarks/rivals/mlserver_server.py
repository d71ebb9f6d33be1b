"""The trivial model in MLServer with adaptive batching; runs in an environment of its own.

    python mlserver_server.py MODEL.onnx PORT REQUEST_FILE

Writes the request that the client is to send, then serves until it is killed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse

SIDE = 256


class Onnx(MLModel):  # type: ignore[misc]
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = self.settings.parameters.uri
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        frames = NumpyCodec.decode_input(payload.inputs[0])
        loop = asyncio.get_running_loop()
        outputs = await loop.run_in_executor(None, self._session.run, ["class_logits"], {"frames": frames})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("class_logits", outputs[0])])


def request() -> bytes:
    tensor = pb.ModelInferRequest.InferInputTensor(name="frames", datatype="UINT8", shape=[1, SIDE, SIDE, 3])
    message: Any = pb.ModelInferRequest(model_name="trivial", inputs=[tensor])
    message.raw_input_contents.append(np.full((SIDE, SIDE, 3), 100, np.uint8).tobytes())
    return bytes(message.SerializeToString())


async def main(model: str, port: str, request_file: str) -> None:
    Path(request_file).write_bytes(request())
    # parallel_workers=0 serves in the same process, the faster way on two cores.
    settings = Settings(
        host="127.0.0.1",
        grpc_port=int(port),
        http_port=int(port) + 1,
        metrics_port=int(port) + 2,
        parallel_workers=0,
        debug=False,
        grpc_max_message_length=-1,
    )
    server = MLServer(settings)
    parameters = ModelParameters(uri=model)
    batching = {"max_batch_size": 8, "max_batch_time": 0.005}
    await server.start([ModelSettings(name="trivial", implementation=Onnx, parameters=parameters, **batching)])


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

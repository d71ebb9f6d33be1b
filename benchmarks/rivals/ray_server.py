"""The trivial model in Ray Serve with dynamic batching over gRPC; runs in an environment of its own.

    python ray_server.py MODEL.onnx PORT REQUEST_FILE

Speaks Ray's own example service (``UserDefinedService``), with the pixels in the message's string field as latin-1.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import ray
from ray import serve
from ray.serve.config import gRPCOptions
from ray.serve.generated import serve_pb2

SIDE = 256


@serve.deployment(max_ongoing_requests=64, ray_actor_options={"num_cpus": 1})
class Onnx:
    def __init__(self, model: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.005)
    async def infer(self, frames: list[Any]) -> list[float]:
        outputs = self._session.run(["class_logits"], {"frames": np.stack(frames)})[0]
        return [float(row.max()) for row in outputs]

    async def __call__(self, message: Any) -> Any:
        pixels = np.frombuffer(message.name.encode("latin-1"), np.uint8).reshape(SIDE, SIDE, 3)
        return serve_pb2.UserDefinedResponse(greeting=str(await self.infer(pixels)))


def main(model: str, port: str, request_file: str) -> None:
    pixels = np.full((SIDE, SIDE, 3), 100, np.uint8)  # below 128, so that UTF-8 is one byte a pixel
    Path(request_file).write_bytes(
        serve_pb2.UserDefinedMessage(name=pixels.tobytes().decode("latin-1")).SerializeToString()
    )
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    functions = ["ray.serve.generated.serve_pb2_grpc.add_UserDefinedServiceServicer_to_server"]
    serve.start(grpc_options=gRPCOptions(port=int(port), grpc_servicer_functions=functions))
    serve.run(Onnx.bind(model), route_prefix="/", name="trivial")
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main(*sys.argv[1:])

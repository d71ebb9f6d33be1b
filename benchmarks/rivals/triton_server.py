"""The trivial model in Triton (its wheel ``nvidia-pytriton``) with dynamic batching; runs in an environment of its own.

python triton_server.py MODEL.onnx PORT REQUEST_FILE
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import tritonclient.grpc as client
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

SIDE = 256


def request() -> bytes:
    tensor = client.InferInput("frames", [1, SIDE, SIDE, 3], "UINT8")
    tensor.set_data_from_numpy(np.full((1, SIDE, SIDE, 3), 100, np.uint8))
    made = client._utils._get_inference_request(
        model_name="trivial", inputs=[tensor], model_version="", request_id="", outputs=None, sequence_id=0,
        sequence_start=False, sequence_end=False, priority=0, timeout=None, parameters=None,
    )  # fmt: skip
    return bytes(made.SerializeToString())


def main(model: str, port: str, request_file: str) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    @batch  # type: ignore[misc]
    def infer(frames: Any) -> dict[str, Any]:
        return {"class_logits": session.run(["class_logits"], {"frames": frames})[0]}

    Path(request_file).write_bytes(request())
    config = TritonConfig(grpc_port=int(port), http_port=int(port) + 1, metrics_port=int(port) + 2, log_verbose=0)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="trivial",
            infer_func=infer,
            inputs=[Tensor(name="frames", dtype=np.uint8, shape=(SIDE, SIDE, 3))],
            outputs=[Tensor(name="class_logits", dtype=np.float32, shape=(-1,))],
            config=ModelConfig(max_batch_size=8, batcher=DynamicBatcher(max_queue_delay_microseconds=5000)),
        )
        triton.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The least that can be called a server: grpc.aio, a queue, onnxruntime. What ours is measured against.

    python -m benchmarks.bare_server MODEL.onnx READY_FILE

Raw RGB8 frames of the model's own size in, the class logits' largest and the anomaly score out. No deadlines, no
checks, no decoding, no judgement, no regions, no limits, no orderly end.
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime

from protos.inspection.v1 import inspection_pb2 as pb
from protos.inspection.v1 import inspection_pb2_grpc as pb_grpc

MAX_BATCH = 8


class Bare(pb_grpc.InspectionServiceServicer):
    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._queue: asyncio.Queue[tuple[Any, asyncio.Future[float]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1)
        self._loop = asyncio.create_task(self._drive())

    async def Inspect(self, request: pb.InspectRequest, context: Any) -> pb.InspectResponse:  # noqa: N802, ARG002
        raw = request.raw
        pixels = np.frombuffer(raw.data, np.uint8).reshape(raw.height, raw.width, 3)
        answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((pixels, answer))
        return pb.InspectResponse(request_id=request.request_id, verdict=pb.PASS, anomaly_score=await answer)

    async def _drive(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while len(batch) < MAX_BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            frames = np.stack([pixels for pixels, _ in batch])
            outputs = await loop.run_in_executor(self._thread, self._session.run, None, {"frames": frames})
            for (_, answer), row in zip(batch, outputs[0], strict=True):
                if not answer.done():
                    answer.set_result(float(row.max()))


async def main(model: str, ready_file: str) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    pb_grpc.add_InspectionServiceServicer_to_server(Bare(session), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    Path(ready_file).write_text(f"127.0.0.1:{port}")
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

"""An ONNX Runtime session with buffers that never move: what CUDA graphs need, and what spares a GPU allocations.

A *lane* holds page-locked host buffers and device buffers for the largest batch. Two lanes let one caller's frames
travel while another's are computed. Each (lane, batch bucket) has an IO binding and a CUDA graph of its own; a batch of
another size is padded up to the next bucket.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vision.engine import Precision
from vision.errors import BundleError
from vision.types import ModelOutputs

Array = NDArray[Any]

_LANES = 2
# The first run allocates, the second captures the CUDA graph, the third replays it.
_WARM_UP_RUNS = 3
_NO_GRAPH = -1


class Device(Protocol):
    """Memory and copies of one device; ``name`` is ONNX Runtime's word for it."""

    name: str

    def host(self, shape: tuple[int, ...], kind: Any) -> Array: ...
    def stream(self) -> Any: ...
    def to_device(self, address: int, host: Array, stream: Any) -> None: ...
    def to_host(self, host: Array, address: int, stream: Any) -> None: ...
    def wait(self, stream: Any) -> None: ...


class BoundEngine:
    """See the module. Every bucket is warm when the constructor returns.

    Args:
        session: of one of our graphs, with a fixed height and width.
        buckets: batch sizes, ascending; a larger batch is cut up.
        graphs: whether the session captures CUDA graphs.
    """

    def __init__(
        self,
        session: Any,
        device: Device,
        *,
        provider: str,
        precision: Precision,
        fallback: bool,
        buckets: Sequence[int],
        graphs: bool,
    ) -> None:
        self.provider = provider
        self.precision = precision
        self.fallback = fallback
        self._buckets = tuple(buckets)
        self._names = [output.name for output in session.get_outputs()]
        # CUDA graphs belong to the thread that captured them: every run, warm-up included, happens in this one.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._lanes: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
        shapes = self._thread.submit(_output_shapes, session, self._names).result()
        for number in range(_LANES):
            first_graph = 1 + number * len(self._buckets) if graphs else None
            lane = _Lane(session, device, self._buckets, shapes, first_graph)
            self._thread.submit(lane.warm_up).result()
            self._lanes.put(lane)

    def run(self, frames: NDArray[np.uint8]) -> ModelOutputs:
        """See ``vision.engine.Engine``."""
        largest = self._buckets[-1]
        parts = [self._run(frames[start : start + largest]) for start in range(0, len(frames), largest)]
        if len(parts) == 1:
            return ModelOutputs(**parts[0])
        return ModelOutputs(**{name: np.concatenate([part[name] for part in parts]) for name in self._names})

    def close(self) -> None:
        """See ``vision.engine.Engine``. Graphs are let go in the thread that captured them."""

        def let_go() -> None:
            while not self._lanes.empty():
                self._lanes.get_nowait()

        self._thread.submit(let_go).result()
        self._thread.shutdown()

    def _run(self, frames: NDArray[np.uint8]) -> dict[str, Array]:
        bucket = next(place for place, size in enumerate(self._buckets) if size >= len(frames))
        lane = self._lanes.get()
        try:
            lane.load(frames, self._buckets[bucket])
            self._thread.submit(lane.compute, bucket).result()
            return lane.unload(len(frames))
        finally:
            self._lanes.put(lane)


class _Lane:
    """Buffers on both sides, and one IO binding a bucket on the same device addresses."""

    def __init__(
        self,
        session: Any,
        device: Device,
        buckets: Sequence[int],
        shapes: dict[str, tuple[int, ...]],
        first_graph: int | None,
    ) -> None:
        import onnxruntime as ort

        self._session, self._device, self._stream = session, device, device.stream()
        largest = buckets[-1]
        frame = _frame_shape(session)
        self._frames = device.host((largest, *frame), np.uint8)
        self._frames[:] = 0  # rows that pad a first small batch
        self._results = {name: device.host((largest, *shape), np.float32) for name, shape in shapes.items()}

        def on_device(shape: tuple[int, ...], kind: Any) -> Any:
            return ort.OrtValue.ortvalue_from_shape_and_type([largest, *shape], kind, device.name, 0)

        self._input = on_device(frame, np.uint8)
        self._outputs = {name: on_device(shape, np.float32) for name, shape in shapes.items()}
        self._bindings = []
        for place, size in enumerate(buckets):
            binding = session.io_binding()
            binding.bind_input("frames", device.name, 0, np.uint8, [size, *frame], self._input.data_ptr())
            for name, shape in shapes.items():
                address = self._outputs[name].data_ptr()
                binding.bind_output(name, device.name, 0, np.float32, [size, *shape], address)
            options = ort.RunOptions()
            graph = _NO_GRAPH if first_graph is None else first_graph + place
            options.add_run_config_entry("gpu_graph_id", str(graph))
            self._bindings.append((binding, options))

    def warm_up(self) -> None:
        """Every bucket, until its graph is captured."""
        self._device.to_device(self._input.data_ptr(), self._frames, self._stream)
        self._device.wait(self._stream)
        for place in range(len(self._bindings)):
            for _ in range(_WARM_UP_RUNS):
                self.compute(place)

    def load(self, frames: NDArray[np.uint8], rows: int) -> None:
        """Copy frames to the device, with what is left of older ones up to ``rows``."""
        self._frames[: len(frames)] = frames
        self._device.to_device(self._input.data_ptr(), self._frames[:rows], self._stream)
        self._device.wait(self._stream)

    def compute(self, bucket: int) -> None:
        """Returns when the outputs are there: ONNX Runtime waits for its stream."""
        binding, options = self._bindings[bucket]
        self._session.run_with_iobinding(binding, options)

    def unload(self, rows: int) -> dict[str, Array]:
        """The first rows of every output, in memory of their own."""
        for name, result in self._results.items():
            self._device.to_host(result[:rows], self._outputs[name].data_ptr(), self._stream)
        self._device.wait(self._stream)
        return {name: result[:rows].copy() for name, result in self._results.items()}


def _frame_shape(session: Any) -> tuple[int, int, int]:
    _, height, width, channels = session.get_inputs()[0].shape
    if not isinstance(height, int) or not isinstance(width, int):
        raise BundleError(
            f"on a GPU the model's input must have a fixed height and width, it has [{height}, {width}]; "
            "export it with `defectlens export`"
        )
    return height, width, int(channels)


def _output_shapes(session: Any, names: list[str]) -> dict[str, tuple[int, ...]]:
    """Without the batch; asked by running one frame, since a graph need not say them."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(_NO_GRAPH))
    values = session.run(names, {"frames": np.zeros((1, *_frame_shape(session)), np.uint8)}, options)
    return {name: value.shape[1:] for name, value in zip(names, values, strict=True)}

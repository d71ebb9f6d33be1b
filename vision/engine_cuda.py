"""ONNX Runtime on an NVIDIA GPU, through CUDA or TensorRT: which options, and the buffers' way to the device."""

from __future__ import annotations

import ctypes
import logging
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from vision.engine import NAMES, EngineOptions, Precision
from vision.engine_bound import Array, BoundEngine
from vision.engine_onnxruntime import open_session
from vision.errors import BundleError, ProviderError

_MIB = 1024 * 1024
_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind
_NON_BLOCKING = 1  # cudaStreamNonBlocking: copies do not wait for kernels of another stream, nor they for copies
_log = logging.getLogger(__name__)


def open_cuda(model: Path, name: str, precision: Precision, options: EngineOptions, *, fallback: bool) -> BoundEngine:
    """An engine on the first GPU; ``name`` is ``cuda`` or ``tensorrt``.

    Raises:
        ProviderError: the provider cannot be loaded, or does not take the whole graph.
    """
    import onnxruntime as ort

    if NAMES[name] not in ort.get_available_providers():
        raise ProviderError(f"this onnxruntime was built without it; it has {', '.join(ort.get_available_providers())}")
    ort.preload_dlls()
    graphs = name == "cuda"
    try:
        session = open_session(model, _providers(model, name, precision, options, graphs=graphs))
    except BundleError as error:
        # With CUDA graphs a session refuses to start if one layer has no kernel on the GPU.
        if not graphs:
            raise
        _log.warning("CUDA graphs are not used: %s", error)
        graphs = False
        session = open_session(model, _providers(model, name, precision, options, graphs=False))
    used = session.get_providers()[0]
    if used != NAMES[name]:
        raise ProviderError(
            f"ONNX Runtime uses {used}: no usable GPU, or its CUDA libraries do not fit this onnxruntime-gpu"
        )
    return BoundEngine(
        session,
        CudaDevice(),
        provider=used,
        precision=precision,
        fallback=fallback,
        buckets=options.buckets,
        graphs=graphs,
    )


def _providers(
    model: Path, name: str, precision: Precision, options: EngineOptions, *, graphs: bool
) -> list[tuple[str, dict[str, str]]]:
    cuda = {
        "device_id": "0",
        # TF32 keeps 10 bits of the mantissa: it is not the fp32 that the bundle's tolerance speaks of.
        "use_tf32": "0",
        "enable_cuda_graph": "1" if graphs else "0",
        # The arena would otherwise double itself with every growth, past what other processes on the GPU need.
        "arena_extend_strategy": "kSameAsRequested",
    }
    if options.gpu_memory_mib:
        cuda["gpu_mem_limit"] = str(options.gpu_memory_mib * _MIB)
    chain = [(NAMES["cuda"], cuda), (NAMES["cpu"], {})]
    if name == "cuda":
        return chain
    _, height, width, _ = open_session(model, [NAMES["cpu"]]).get_inputs()[0].shape
    # One profile for every bucket: from a single frame to the largest batch, tuned for the largest.
    profile = {
        kind: f"frames:{count}x{height}x{width}x3"
        for kind, count in (("min", 1), ("opt", options.max_batch), ("max", options.max_batch))
    }
    tensorrt = {
        "device_id": "0",
        "trt_fp16_enable": "1" if precision == "fp16" else "0",
        **{f"trt_profile_{kind}_shapes": shape for kind, shape in profile.items()},
    }
    if options.gpu_memory_mib:
        tensorrt["trt_max_workspace_size"] = str(options.gpu_memory_mib * _MIB)
    if options.cache is not None:
        options.cache.mkdir(parents=True, exist_ok=True)
        folder = str(options.cache)
        tensorrt |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": folder}
        tensorrt |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": folder}
    return [(NAMES["tensorrt"], tensorrt), *chain]


class CudaDevice:
    """Page-locked host memory, and copies on streams of their own, straight from the CUDA runtime.

    Raises:
        ProviderError: the runtime cannot be loaded, or a call of it fails.
    """

    name = "cuda"

    def __init__(self) -> None:
        for version in ("13", "12"):
            try:
                self._runtime = ctypes.CDLL(f"libcudart.so.{version}")  # loaded already by `ort.preload_dlls`
                break
            except OSError:
                continue
        else:
            raise ProviderError("the CUDA runtime (libcudart.so.13 or .12) cannot be loaded")
        self._runtime.cudaMemcpyAsync.argtypes = (
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p
        )  # fmt: skip
        self._runtime.cudaStreamSynchronize.argtypes = (ctypes.c_void_p,)
        self._runtime.cudaHostAlloc.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)
        self._runtime.cudaFreeHost.argtypes = (ctypes.c_void_p,)

    def host(self, shape: tuple[int, ...], kind: Any) -> Array:
        """A page-locked array: the copy engine reads it by itself, at the full speed of the bus."""
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        place = ctypes.c_void_p()
        self._call("cudaHostAlloc", ctypes.byref(place), size, 0)
        buffer = (ctypes.c_uint8 * size).from_address(place.value or 0)
        # Views keep `buffer` alive, and the memory goes with it.
        weakref.finalize(buffer, self._runtime.cudaFreeHost, place)
        return np.frombuffer(buffer, kind).reshape(shape)

    def stream(self) -> ctypes.c_void_p:
        """A stream that waits for no other one; it ends with the object."""
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(stream), _NON_BLOCKING)
        weakref.finalize(stream, self._runtime.cudaStreamDestroy, ctypes.c_void_p(stream.value))
        return stream

    def to_device(self, address: int, host: Array, stream: Any) -> None:
        """Start a copy; ``wait`` ends it."""
        self._call("cudaMemcpyAsync", address, host.ctypes.data, host.nbytes, _TO_DEVICE, stream)

    def to_host(self, host: Array, address: int, stream: Any) -> None:
        """Likewise, back."""
        self._call("cudaMemcpyAsync", host.ctypes.data, address, host.nbytes, _TO_HOST, stream)

    def wait(self, stream: Any) -> None:
        """Until every copy of the stream has arrived."""
        self._call("cudaStreamSynchronize", stream)

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._runtime, function)(*arguments)
        if code:
            raise ProviderError(f"{function} failed with CUDA error {code}; see the driver's log (dmesg, nvidia-smi)")

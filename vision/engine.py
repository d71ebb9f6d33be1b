"""``engine.run(frames) -> outputs``: one interface, whatever computes. The runtimes are loaded when they are opened.

=============  ==========================  =====================================================================
provider       precisions                  what it is
=============  ==========================  =====================================================================
``cpu``        fp32, int8                  ONNX Runtime on the CPU
``cuda``       fp32, fp16                  ONNX Runtime on an NVIDIA GPU, with fixed buffers and CUDA graphs
``tensorrt``   fp32, fp16                  the same through TensorRT; only on request, building takes minutes
``openvino``   fp32, bf16, fp16, int8      OpenVINO on the CPU; the optional extra ``openvino``
``auto``       fp32                        CUDA where it works, the CPU elsewhere
=============  ==========================  =====================================================================
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vision.errors import ProviderError, SettingsError
from vision.preprocess import InputSpec
from vision.types import ModelOutputs

Provider = Literal["auto", "cpu", "cuda", "tensorrt", "openvino"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]

PRECISIONS: dict[str, tuple[Precision, ...]] = {
    "auto": ("fp32",),
    "cpu": ("fp32", "int8"),
    "cuda": ("fp32", "fp16"),
    "tensorrt": ("fp32", "fp16"),
    "openvino": ("fp32", "bf16", "fp16", "int8"),
}
"""What each provider computes in."""
# TensorRT rebuilds per shape and has been silently wrong on transformers: only on request, never by "auto".
_CHAINS: dict[str, tuple[str, ...]] = {
    "cpu": ("cpu",),
    "cuda": ("cuda", "cpu"),
    "tensorrt": ("tensorrt", "cuda", "cpu"),
    "openvino": ("openvino", "cpu"),
    "auto": ("cuda", "cpu"),
}
NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINO",
}
"""How engines call themselves in every reply."""
_log = logging.getLogger(__name__)


class Engine(Protocol):
    """What runs a bundle's graph. ``run`` may be called from several threads at once."""

    @property
    def provider(self) -> str:
        """What really computes, e.g. ``CPUExecutionProvider`` or ``OpenVINO``."""
        ...

    @property
    def precision(self) -> Precision:
        """What it really computes in."""
        ...

    @property
    def fallback(self) -> bool:
        """Whether ``provider`` or ``precision`` is another one than was asked for."""
        ...

    def run(self, frames: NDArray[np.uint8]) -> ModelOutputs:
        """uint8 ``[N, H, W, 3]`` RGB of the bundle's input size in, one ``ModelOutputs`` of N rows out."""
        ...

    def close(self) -> None:
        """Give the model's memory back now; ``run`` must not be called any more.

        Python alone would do it much later: its collector does not see how large a model is.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How an engine runs.

    Args:
        threads: of one inference on the CPU; 0 leaves the choice to the runtime.
        max_batch: most frames of one ``run`` that the engine prepares for; larger ones are cut up on a GPU.
        gpu_memory_mib: most device memory that the runtime's arena takes; 0 sets no limit.
        cpu_arena: ONNX Runtime keeps what one run on the CPU leaves free for the next, in pieces that double. A fifth
            faster with batches of 8; with large frames, one by one, as fast and twice the memory.
        cache: folder where TensorRT and OpenVINO keep what they built; without it they build at every start.
    """

    threads: int = 0
    max_batch: int = 8
    gpu_memory_mib: int = 0
    cpu_arena: bool = True
    cache: Path | None = None

    def fitting(self, spec: InputSpec) -> EngineOptions:
        """The same for frames of this size: large ones go in smaller batches, and alone without an arena."""
        return replace(
            self,
            max_batch=spec.most_frames(self.max_batch),
            cpu_arena=self.cpu_arena and not spec.goes_alone,
        )

    @property
    def buckets(self) -> tuple[int, ...]:
        """Powers of two up to ``max_batch``, and that itself: the batch sizes that get a program of their own."""
        powers = [2**power for power in range(self.max_batch.bit_length()) if 2**power < self.max_batch]
        return (*powers, self.max_batch)


def reduced_file(model: Path, precision: Precision) -> Path:
    """Where the model of fewer bits lies: ``model.int8.onnx`` beside ``model.onnx``, which itself is fp32."""
    return model if precision == "fp32" else model.with_suffix(f".{precision}.onnx")


def needs_file(provider: str, precision: Precision) -> bool:
    """Whether the model must have been reduced beforehand: OpenVINO and TensorRT make 16 bits of fp32 themselves."""
    return precision == "int8" or (precision == "fp16" and provider == "cuda")


def check_choice(provider: str, precision: str) -> None:
    """Raise SettingsError unless there is such a provider and it can, on some machine, compute in ``precision``."""
    if provider not in _CHAINS:
        raise SettingsError(f"unknown provider {provider!r}; choose one of {', '.join(_CHAINS)}")
    if precision not in PRECISIONS[provider]:
        able = " or ".join(name for name, known in PRECISIONS.items() if precision in known)
        raise SettingsError(
            f"the provider {provider} computes in {' or '.join(PRECISIONS[provider])}, not in {precision!r}; "
            + (f"choose {able}" if able else "there is no such precision")
        )


def open_engine(
    model: Path,
    *,
    provider: Provider = "auto",
    precision: Precision = "fp32",
    strict: bool = False,
    options: EngineOptions | None = None,
) -> Engine:
    """Load ``model.onnx`` (or its reduced sibling) on the provider asked for, or on the next best one.

    Args:
        provider: what is asked for; ``auto`` takes CUDA where it works and the CPU elsewhere.
        precision: what is asked for; a fallback to a provider without it computes in fp32.
        strict: raise instead of falling back.

    Raises:
        ProviderError: ``strict`` and the provider, or its precision, is not to be had.
        SettingsError: no such provider, or it never has this precision; or the bundle has no file of that precision.
        BundleError: the file is no model that this product exported.
    """
    check_choice(provider, precision)
    chain = _CHAINS[provider]
    if provider == "auto" and not _cuda_device_present():
        chain = ("cpu",)  # the best that this machine's devices allow, and so no fallback
    problems: list[str] = []
    for name in chain:
        used: Precision = precision if precision in PRECISIONS[name] else "fp32"
        try:
            engine = _open(model, name, used, options or EngineOptions(), fallback=bool(problems))
        except ProviderError as error:
            problems.append(f"execution provider {NAMES[name]} was asked for, but {error}")
            if strict:
                raise ProviderError(
                    f"{problems[-1]}; mend the installation or start without --strict-provider"
                ) from error
            continue
        if problems:
            _log.warning("FALLBACK: %s; %s in %s is used instead", "; ".join(problems), NAMES[name], used)
        return engine
    raise ProviderError("; ".join(problems))


def _open(model: Path, name: str, precision: Precision, options: EngineOptions, *, fallback: bool) -> Engine:
    """Raises ProviderError where the provider, or the precision on it, is not to be had on this machine."""
    path = reduced_file(model, precision) if needs_file(name, precision) else model
    if path != model and not path.is_file():
        raise SettingsError(
            f"{model.parent} has no {path.name}, which {name} needs for {precision}; "
            f"make it with `defectlens export --quantize {precision}`"
        )
    if name == "openvino":
        if importlib.util.find_spec("openvino") is None:
            raise ProviderError("the package openvino is not installed (pip install 'defectlens[openvino]')")
        from vision.engine_openvino import OpenVinoEngine

        return OpenVinoEngine(path, precision, options, fallback=fallback)
    if name == "cpu":
        from vision.engine_onnxruntime import CpuEngine

        return CpuEngine(path, precision, options, fallback=fallback)
    if not _cuda_device_present():
        raise ProviderError("no usable GPU was found")
    from vision.engine_cuda import open_cuda

    return open_cuda(path, name, precision, options, fallback=fallback)


def _cuda_device_present() -> bool:
    """Whether an NVIDIA device node exists: asking CUDA itself on a machine without one prints errors."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/nvidia0").exists() or Path("/dev/dxg").exists()

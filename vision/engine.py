"""``engine.run(frames) -> outputs``: the only place that knows onnxruntime."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vision.errors import BundleError, ProviderError, SettingsError
from vision.types import OUTPUT_NAMES, ModelOutputs

Provider = Literal["auto", "cpu", "cuda", "tensorrt"]

_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
# TensorRT rebuilds per shape and has been silently wrong on transformers: only on request, never by "auto".
_CHAINS: dict[str, tuple[str, ...]] = {
    "cpu": ("cpu",),
    "cuda": ("cuda", "cpu"),
    "tensorrt": ("tensorrt", "cuda", "cpu"),
    "auto": ("cuda", "cpu"),
}
# Outputs of every model; the others are there only if training gave it what they need.
_ALWAYS = {"class_logits", "saliency_map", "attention_map"}
_log = logging.getLogger(__name__)


class Engine:
    """One ONNX Runtime session on one execution provider. ``run`` may be called from several threads at once.

    Args:
        model: path of ``model.onnx``.
        provider: what is asked for; ``auto`` takes CUDA where it works and the CPU elsewhere.
        strict: raise instead of falling back when ``provider`` is not what the session really uses.
        threads: intra-op threads on the CPU; 0 leaves the choice to ONNX Runtime.

    Raises:
        ProviderError: ``strict`` and the provider is not to be had.
        BundleError: the file is no model that this product exported.
    """

    def __init__(self, model: Path, *, provider: Provider = "auto", strict: bool = False, threads: int = 0) -> None:
        import onnxruntime as ort  # takes 0.2 s, which `--help` need not pay

        if provider not in _CHAINS:
            raise SettingsError(f"unknown provider {provider!r}; choose one of {', '.join(_CHAINS)}")
        ort.set_default_logger_severity(4)  # a missing CUDA device is reported below, once and in our words
        available = ort.get_available_providers()
        cuda_usable = _cuda_device_present()
        chain = [
            _NAMES[name] for name in _CHAINS[provider] if _NAMES[name] in available and (name == "cpu" or cuda_usable)
        ]
        if cuda_usable:
            ort.preload_dlls()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        try:
            self._session: Any = ort.InferenceSession(str(model), options, providers=chain)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise BundleError(f"{model} cannot be loaded by ONNX Runtime {ort.__version__}: {error}") from error
        self._providers: tuple[str, ...] = tuple(self._session.get_providers())
        # "auto" promises the best provider that this machine's devices allow.
        wanted = chain[0] if provider == "auto" else _NAMES[provider]
        self.fallback = self.provider != wanted
        """Whether ``provider`` is another one than was asked for."""
        self._check_provider(wanted, strict)
        self._outputs = [output.name for output in self._session.get_outputs()]
        inputs = [(value.name, value.type) for value in self._session.get_inputs()]
        complete = _ALWAYS <= set(self._outputs) <= set(OUTPUT_NAMES)
        if inputs != [("frames", "tensor(uint8)")] or not complete:
            raise BundleError(
                f"{model} is no defectlens model: it takes {inputs} and gives {self._outputs}; "
                "export it with `defectlens export`"
            )

    @property
    def provider(self) -> str:
        """The execution provider that is really used, e.g. ``CPUExecutionProvider``."""
        return self._providers[0]

    def run(self, frames: NDArray[np.uint8]) -> ModelOutputs:
        """uint8 ``[N, H, W, 3]`` RGB of the bundle's input size in, one ``ModelOutputs`` of N rows out."""
        values: Sequence[Any] = self._session.run(self._outputs, {"frames": frames})
        return ModelOutputs(**dict(zip(self._outputs, values, strict=True)))

    def close(self) -> None:
        """Give the model's memory back now; ``run`` must not be called any more.

        Python alone would do it much later: its collector does not see how large a session is.
        """
        del self._session

    def _check_provider(self, wanted: str, strict: bool) -> None:
        if not self.fallback:
            return
        message = (
            f"execution provider {wanted} was asked for, but ONNX Runtime uses {self.provider}: no usable GPU, or its "
            "CUDA libraries do not fit this onnxruntime-gpu"
        )
        if strict:
            raise ProviderError(f"{message}; mend the installation or start without --strict-provider")
        _log.warning("FALLBACK: %s", message)


def _cuda_device_present() -> bool:
    """Whether an NVIDIA device node exists: asking CUDA itself on a machine without one prints errors."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/nvidia0").exists() or Path("/dev/dxg").exists()

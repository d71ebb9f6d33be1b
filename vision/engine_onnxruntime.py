"""ONNX Runtime: sessions on any of its providers, and the engine on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision.engine import NAMES, EngineOptions, Precision
from vision.errors import BundleError
from vision.types import OUTPUT_NAMES, ModelOutputs

# Outputs of every model; the others are there only if training gave it what they need.
_ALWAYS = {"class_logits", "saliency_map", "attention_map"}


def open_session(
    model: Path, providers: Sequence[str | tuple[str, Mapping[str, str]]], *, threads: int = 0, arena: bool = True
) -> Any:
    """An ``onnxruntime.InferenceSession`` of one of our graphs.

    Raises:
        BundleError: the file is no model that this product exported.
    """
    import onnxruntime as ort  # takes 0.2 s, which `--help` need not pay

    ort.set_default_logger_severity(4)  # a missing device is reported by the caller, once and in our words
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = arena
    options.log_severity_level = 4
    # Threads that wait actively take the cores that decoding needs: beside it, 1.5 times slower (docs/experiments.md).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(str(model), options, providers=list(providers))
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise BundleError(f"{model} cannot be loaded by ONNX Runtime {ort.__version__}: {error}") from error
    inputs = [(value.name, value.type.removeprefix("tensor(").removesuffix(")")) for value in session.get_inputs()]
    check_graph(model, inputs, [output.name for output in session.get_outputs()])
    return session


def check_graph(model: Path, inputs: Sequence[tuple[str, str]], outputs: Iterable[str]) -> None:
    """Refuse graphs of others; ``inputs`` are names and element types.

    Raises:
        BundleError: as said.
    """
    outputs = list(outputs)
    if list(inputs) != [("frames", "uint8")] or not _ALWAYS <= set(outputs) <= set(OUTPUT_NAMES):
        raise BundleError(
            f"{model} is no defectlens model: it takes {list(inputs)} and gives {outputs}; "
            "export it with `defectlens export`"
        )


class CpuEngine:
    """ONNX Runtime on the CPU. Shapes stay free there: padding would only cost time."""

    provider = NAMES["cpu"]

    def __init__(self, model: Path, precision: Precision, options: EngineOptions, *, fallback: bool) -> None:
        self.precision = precision
        self.fallback = fallback
        self._session = open_session(model, [NAMES["cpu"]], threads=options.threads, arena=options.cpu_arena)
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, frames: NDArray[np.uint8]) -> ModelOutputs:
        """See ``vision.engine.Engine``."""
        values: Sequence[Any] = self._session.run(self._outputs, {"frames": frames})
        return ModelOutputs(**dict(zip(self._outputs, values, strict=True)))

    def close(self) -> None:
        """See ``vision.engine.Engine``."""
        del self._session

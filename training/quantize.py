"""Models of fewer bits beside ``model.onnx``: written only if they are as accurate, and shown with what they gain."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from training.probes import Probes
from vision.batching import stacked
from vision.bundle import MODEL, Bundle
from vision.console import say
from vision.engine import Engine, EngineOptions, Precision, open_engine, reduced_file
from vision.measuring import one_round
from vision.preprocess import InputSpec
from vision.types import Frame

# Layers that 8 bits cost nothing measurable on trained models (docs/experiments.md): the backbone's 1x1 convolutions,
# which hold most of the arithmetic. Depthwise layers lose up to 5 points of image AUROC; attention, read-out and
# localizer hold little arithmetic and make the scores.
_BACKBONE = "detector.backbone"
_LARGEST_BATCH = 8
_SPEED_ROUNDS = 15


def write_reduced(folder: Path, precision: Precision, probes: Probes) -> None:
    """Write ``model.<precision>.onnx`` into the folder of a bundle to be; see ``prove_reduced``."""
    source, target = folder / MODEL, reduced_file(folder / MODEL, precision)
    say(f"reducing the model to {precision}")
    if precision == "fp16":
        _write_half(source, target)
    else:
        _write_int8(source, target, probes.ranges)


def prove_reduced(bundle: Bundle, precision: Precision) -> dict[str, Any]:
    """Accuracy and speed of the reduced model on the CPU beside fp32's, from the same run.

    Raises:
        ParityError: the model lost too much, with the figures.
    """
    spec = bundle.manifest.input
    model, options = bundle.path / MODEL, EngineOptions().fitting(spec)
    full = open_engine(model, provider="cpu", options=options)
    # Not by `open_engine`: 16 bits are for the GPU, and computed here only to be checked.
    reduced = _on_cpu(reduced_file(model, precision), precision, options)
    accuracy = bundle.measure(reduced, bundle.check_frames())
    figures = {
        "check_frames": accuracy.frames,
        "image_auroc": {"fp32": accuracy.expected_auroc, precision: accuracy.auroc},
        "verdict_flips": accuracy.flips,
        "ms_a_frame": _speed({"fp32": full, precision: reduced}, bundle.golden()[0], spec.most_frames(_LARGEST_BATCH)),
    }
    _show(precision, figures)
    accuracy.check(precision, "the reduced model on the CPU")
    bundle.replay_golden(reduced)
    return figures


def _on_cpu(model: Path, precision: Precision, options: EngineOptions) -> Engine:
    from vision.engine_onnxruntime import CpuEngine

    return CpuEngine(model, precision, options, fallback=False)


def _speed(engines: Mapping[str, Engine], frames: Frame, most: int) -> dict[str, dict[str, float]]:
    """p50 ms a frame by batch size, 1 and ``most``, and precision."""
    sizes = sorted({1, most})
    cases = {(size, name): (engine, size) for size in sizes for name, engine in engines.items()}
    one_round(cases, frames)  # the first runs allocate
    rounds = [one_round(cases, frames) for _ in range(_SPEED_ROUNDS)]
    return {
        f"batch {size}": {name: float(np.median([times[size, name] for times in rounds])) for name in engines}
        for size in sizes
    }


def _show(precision: str, figures: Mapping[str, Any]) -> None:
    auroc = figures["image_auroc"]
    say(f"{'':24}{'fp32':>10}{precision:>10}   on {figures['check_frames']} check frames, ONNX Runtime on the CPU")
    if auroc[precision] is not None:
        say(f"{'image AUROC':24}{auroc['fp32']:10.4f}{auroc[precision]:10.4f}")
    say(f"{'verdicts that change':24}{'':10}{figures['verdict_flips']:10.1%}")
    for size, times in figures["ms_a_frame"].items():
        say(f"{'ms a frame, ' + size:24}{times['fp32']:10.2f}{times[precision]:10.2f}")


def _write_int8(source: Path, target: Path, frames: Frame) -> None:
    """Static, per channel, QDQ: 8-bit weights, and 8-bit activations whose ranges the frames tell."""
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            self._batches = stacked(frames, InputSpec(*frames.shape[1:3]).most_frames(_LARGEST_BATCH))

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"frames": batch}

    nodes = [node.name for node in onnx.load(source).graph.node if _pays_in_int8(node)]
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it recommends preprocessing, which loses the names that layers are chosen by
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            q.quantize_static(
                source,
                target,
                Reader(),
                quant_format=q.QuantFormat.QDQ,
                per_channel=True,
                activation_type=q.QuantType.QUInt8,
                weight_type=q.QuantType.QInt8,
                op_types_to_quantize=["Conv"],
                nodes_to_quantize=nodes,
                calibrate_method=q.CalibrationMethod.MinMax,
            )
    finally:
        root.setLevel(level)


def _pays_in_int8(node: onnx.NodeProto) -> bool:
    attributes = {attribute.name: attribute for attribute in node.attribute}
    origin = next((entry.value for entry in node.metadata_props if entry.key == "namespace"), "")
    return (
        node.op_type == "Conv"
        and _BACKBONE in origin
        and list(attributes["kernel_shape"].ints) == [1, 1]
        and ("group" not in attributes or attributes["group"].i == 1)
    )


def _write_half(source: Path, target: Path) -> None:
    """fp16 inside; frames stay uint8 and outputs float32, so that nothing around the graph changes."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of every weight too small for 16 bits
        model = convert_float_to_float16(onnx.load(source), keep_io_types=True)
    onnx.save(model, target)

"""A real bundle around a tiny model that anyone can check by hand.

The model looks at the brightness of 8x8-pixel cells. A cell's anomaly is how far it is from mid grey; bright cells
speak for the class ``bright``, dark ones for ``dark``. The frame's anomaly score is that of its worst cell.
"""

from __future__ import annotations

import zlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from serving.messages import Timings
from serving.pipeline import FrameResult
from serving.stages import EncodedMaps
from vision.bundle import MODEL, write_golden, write_manifest
from vision.bundle import Manifest as BundleManifest
from vision.calibration.probability import ClassCalibration
from vision.decision import OperatingPoint
from vision.drift.reference import make_reference, write_reference
from vision.engine import EngineOptions, open_engine
from vision.explanations import ClassCheck, Estimate, Explanations
from vision.preprocess import InputSpec
from vision.seen import Seen, write_seen
from vision.types import Inspection, ModelOutputs, Verdict

CELL = 8
GREY = 128
CLASSES = ("good", "bright", "dark")
CALIBRATION = tuple(float(value) for value in np.linspace(0.0, 0.1, 99, dtype=np.float32))
OPERATING_POINT = OperatingPoint(0.3, 0.2, 0.25, evidence="99 made-up good parts")
# The tiny model's logits have no bias, and its score is the largest cell alone. One class was found wanting.
EXPLAINED = Explanations(
    biases=(0.0, 0.0, 0.0),
    top_share=0.001,
    evidence_scale=(0.05, 0.5, 0.5),
    checks={
        "bright": ClassCheck("passed", "made up", 9, Estimate(0.8, 0.7, 0.9), Estimate(0.1, 0.05, 0.15)),
        "dark": ClassCheck("failed", "made up", 9, Estimate(0.1, 0.05, 0.15), Estimate(0.1, 0.05, 0.15)),
        "good": ClassCheck("unchecked", "made up"),
    },
    measured="made-up frames",
)
CLASS_POLICY: dict[str, Any] = {"class_thresholds": {"bright": 0.9, "dark": 0.9}, "unknown_below": 0.5}
CLASS_CALIBRATION = ClassCalibration(
    "temperature", (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), 60, {"good": 0.5, "bright": 0.25, "dark": 0.25}, "made up"
)
NO_ANOMALY_POINT = OperatingPoint(None, None, None, class_threshold=0.6, evidence="made up")


def make_bundle(
    folder: Path,
    *,
    name: str = "fake",
    version: str = "1",
    height: int = 64,
    width: int = 96,
    anomaly: bool = True,
    class_map: bool = True,
    white_level: int = 65535,
    work: int = 0,
    image_threshold: float = 0.3,
    damage_golden: bool = False,
    explanations: Explanations | None = None,
    good_frames: int = 0,
    probabilities: bool = False,
    seen: Seen | None = None,
) -> Path:
    """Write a bundle that ``load_bundle`` accepts.

    Args:
        anomaly: False gives a model that never saw a good part: only the classes ``bright`` and ``dark``.
        work: makes inference slow: so many products of 512x512 matrices a batch.
        image_threshold: of the operating point; below 0 every part is a reject.
        damage_golden: expected outputs that no runtime will ever give, with digests that fit.
        good_frames: so many ``textured`` parts make a reference for drift; 0 makes none.
        probabilities: class scores are calibrated, and a class of 0.9 makes a reject.
        seen: what images the model is said to have seen; None, as earlier versions had it, says nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spec = InputSpec(height, width, white_level)
    onnx.save(_model(height, width, anomaly=anomaly, class_map=class_map, work=work), folder / MODEL)
    frames = np.stack([part(height, width), part(height, width, spot=255), part(height, width, spot=0)])
    outputs = open_engine(folder / MODEL, provider="cpu", options=EngineOptions(threads=1)).run(frames)
    if damage_golden:
        outputs = ModelOutputs(outputs.class_logits + 1.0, outputs.saliency_map, outputs.attention_map)
    write_golden(folder, frames, outputs)
    if good_frames:
        good = [textured(f"good {index}", height, width) for index in range(good_frames)]
        scores = open_engine(folder / MODEL, provider="cpu", options=EngineOptions(threads=1)).run(np.stack(good))
        write_reference(folder, make_reference(good, anomaly_scores=scores.anomaly_score))
    thresholds = {"image_threshold": image_threshold, "review_threshold": min(image_threshold, 0.2)}
    if seen is not None:
        write_seen(folder, seen)
    point = replace(OPERATING_POINT, **thresholds) if anomaly else NO_ANOMALY_POINT
    manifest = BundleManifest(
        name=name,
        version=version,
        created="2025-01-01T00:00:00+00:00",
        input=spec,
        classes=CLASSES if anomaly else CLASSES[1:],
        good_class="good" if anomaly else None,
        predicts_by_anomaly_score=False,
        operating_point=replace(point, **CLASS_POLICY) if probabilities else point,
        class_calibration=CLASS_CALIBRATION if probabilities else None,
        calibration_scores=CALIBRATION if anomaly else (),
        metrics={"image_auroc": 1.0},
        parity={"largest": 0.0},
        provenance={"data": "made up"},
        explanations=explanations,
    )
    write_manifest(folder, manifest)
    return folder


def part(height: int = 64, width: int = 96, *, spot: int = GREY, at: tuple[int, int] = (16, 24)) -> NDArray[np.uint8]:
    """A grey part, uint8 ``[H, W, 3]``, with a 16x16 spot whose top left corner is at (row, column)."""
    frame = np.full((height, width, 3), GREY, np.uint8)
    frame[at[0] : at[0] + 16, at[1] : at[1] + 16] = spot
    return frame


def textured(name: str, height: int = 64, width: int = 96) -> NDArray[np.uint8]:
    """A good part with a grain of its own, uint8 ``[H, W, 3]``: a plate with two bores on a darker ground."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    grain = cv2.GaussianBlur(rng.normal(0.0, 14.0, (height, width)).astype(np.float32), (0, 0), 0.7)
    pixels = np.full((height, width), GREY * rng.uniform(0.98, 1.02), np.float32) + grain
    pixels[:6], pixels[-6:], pixels[:, :6], pixels[:, -6:] = GREY - 14, GREY - 14, GREY - 14, GREY - 14
    for column in (width // 4, 3 * width // 4):
        cv2.circle(pixels, (column, height // 2), 4, GREY - 22.0, -1)
    pixels += rng.normal(0.0, 1.0, pixels.shape)
    grey = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def frame_result(verdict: Verdict = Verdict.PASS, **milliseconds: float) -> FrameResult:
    """What a pipeline says about a frame; every stage took 1 ms, all together 6, unless ``decode_ms=...`` says else."""
    nothing = np.zeros((0, 0, 0), np.float32)
    inspection = Inspection(
        verdict=verdict,
        reason="made up",
        predicted=CLASSES[0],
        class_scores=np.zeros(0, np.float32),
        class_logits=np.zeros(0, np.float32),
        anomaly_score=None,
        calibrated_anomaly_score=None,
        regions=(),
        anomaly_map=None,
        saliency_map=nothing,
        attention_map=nothing,
        class_map=None,
        frame_height=64,
        frame_width=96,
    )
    stages = {field.name: 1.0 for field in fields(Timings)} | {"total_ms": 6.0} | milliseconds
    return FrameResult(inspection, EncodedMaps(), b"", Timings(**stages), batch_size=4)


def _model(height: int, width: int, *, anomaly: bool, class_map: bool, work: int) -> onnx.ModelProto:
    grid = [height // CELL, width // CELL]
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(name: str, value: Any, kind: Any = np.float32) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    for name, axes in {"channel": [3], "plane": [1, 2], "planes": [2, 3], "one": [1]}.items():
        constant(name, axes, np.int64)
    pixels = node("Cast", ["frames"], "pixels", to=TensorProto.FLOAT)
    grey = node("ReduceMean", [pixels, "channel"], "grey", keepdims=0)
    cells = node(
        "AveragePool",
        [node("Unsqueeze", [grey, "one"], "image")],
        "cells",
        kernel_shape=[CELL, CELL],
        strides=[CELL, CELL],
    )
    scaled = node("Div", [cells, constant("white", 255.0)], "scaled")
    deviation = node("Sub", [scaled, constant("middle", GREY / 255.0)], "deviation")
    bright = node("Relu", [deviation], "bright")
    dark = node("Relu", [node("Neg", [deviation], "negative")], "dark")
    size = node("Add", [bright, dark], "size")
    # A good part has evidence everywhere; each cell's deviation takes some away.
    good = node("Sub", [constant("base", 2.0 / (grid[0] * grid[1])), size], "good")
    planes = [good, bright, dark] if anomaly else [bright, dark]
    saliency = node("Concat", planes, "saliency_map", axis=1)
    total = node("ReduceSum", [saliency, "planes"], "total", keepdims=0)
    outputs = ["class_logits", "saliency_map", "attention_map"]
    shapes = {
        "class_logits": ["N", len(planes)],
        "saliency_map": ["N", len(planes), *grid],
        "attention_map": ["N", len(planes), *grid],
        "anomaly_score": ["N"],
        "anomaly_map": ["N", *grid],
        "class_map": ["N", 2, *grid],
    }
    exponent = node("Exp", [saliency], "exponent")
    mass = node("ReduceSum", [exponent, "planes"], "mass", keepdims=1)
    node("Div", [exponent, mass], "attention_map")
    if anomaly:
        node("Squeeze", [size, "one"], "anomaly_map")
        node("ReduceMax", ["anomaly_map", "plane"], "anomaly_score", keepdims=0)
        outputs += ["anomaly_score", "anomaly_map"]
        if class_map:
            both = node("Concat", [bright, dark], "both", axis=1)
            node("Softmax", [both], "class_map", axis=1)
            outputs.append("class_map")
    extra = constant("nothing", 0.0)
    if work:
        rows = constant("rows", np.full((512, 512), 1e-3))
        product = node("Mul", [rows, node("ReduceMean", [grey], "brightness", keepdims=0)], "product")
        for index in range(work):
            product = node("MatMul", [product, rows], f"product{index}")
        extra = node("Mul", [node("ReduceMean", [product], "sum", keepdims=0), "nothing"], "zero")
    node("Add", [total, extra], "class_logits")
    graph = helper.make_graph(
        nodes,
        "fake",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", height, width, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model

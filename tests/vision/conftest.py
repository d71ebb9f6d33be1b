"""A tiny ONNX model with arithmetic that can be checked by hand, and a bundle around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from vision.bundle import MODEL, Manifest, write_golden, write_manifest
from vision.decision import OperatingPoint
from vision.engine import open_engine
from vision.preprocess import InputSpec

CELL = 8
CLASSES = ("good", "scratch")


def write_tiny_model(path: Path, *, anomaly: bool = True, input_name: str = "frames") -> None:
    """Brightness is the anomaly: ``anomaly_map`` = mean of each 8x8 cell / 255, the score is its largest value."""
    nodes = [
        helper.make_node("Cast", [input_name], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "white"], ["unit"]),
        helper.make_node("ReduceMean", ["unit", "last"], ["grey"], keepdims=0),
        helper.make_node("Unsqueeze", ["grey", "one"], ["plane"]),
        helper.make_node("AveragePool", ["plane"], ["cells"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        helper.make_node("Neg", ["cells"], ["against"]),
        helper.make_node("Concat", ["against", "cells"], ["saliency_map"], axis=1),
        helper.make_node("ReduceSum", ["saliency_map", "spatial"], ["class_logits"], keepdims=0),
        helper.make_node("Abs", ["saliency_map"], ["attention_map"]),
    ]
    outputs = [("class_logits", ["n", 2]), ("saliency_map", ["n", 2, "h", "w"]), ("attention_map", ["n", 2, "h", "w"])]
    if anomaly:
        nodes.append(helper.make_node("Squeeze", ["cells", "one"], ["anomaly_map"]))
        nodes.append(helper.make_node("ReduceMax", ["anomaly_map", "map_axes"], ["anomaly_score"], keepdims=0))
        outputs += [("anomaly_score", ["n"]), ("anomaly_map", ["n", "h", "w"])]
    constants = [
        helper.make_tensor("white", TensorProto.FLOAT, [], [255.0]),
        helper.make_tensor("last", TensorProto.INT64, [1], [3]),
        helper.make_tensor("one", TensorProto.INT64, [1], [1]),
        helper.make_tensor("spatial", TensorProto.INT64, [2], [2, 3]),
        helper.make_tensor("map_axes", TensorProto.INT64, [2], [1, 2]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(input_name, TensorProto.UINT8, ["n", "height", "width", 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def tiny_frames() -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (3, 32, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / MODEL
    write_tiny_model(path)
    return path


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        name="tiny",
        version="1",
        created="2026-01-01T00:00:00Z",
        input=InputSpec(32, 64),
        classes=CLASSES,
        good_class="good",
        predicts_by_anomaly_score=False,
        operating_point=OperatingPoint(0.8, 0.7, 0.6, evidence="made up for a test"),
        calibration_scores=(0.1, 0.2, 0.3, 0.4),
        metrics={"image_auroc": 0.9, "per_fold": {1: 0.8, 10: 0.9, 2: 0.7}},
    )


@pytest.fixture
def bundle_folder(tmp_path: Path, manifest: Manifest) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_tiny_model(folder / MODEL)
    write_golden(folder, tiny_frames(), open_engine(folder / MODEL, provider="cpu").run(tiny_frames()))
    (folder / "LICENSE.txt").write_text("weights: MIT\n")
    write_manifest(folder, manifest)
    return folder


@pytest.fixture
def forge(bundle_folder: Path) -> Callable[[Callable[[dict[str, object]], None]], Path]:
    """Change ``bundle.json`` as a skilled forger would: its own digest is made to fit again."""
    import json

    from vision.manifest import MANIFEST, _document_digest

    def change(edit: Callable[[dict[str, object]], None]) -> Path:
        path = bundle_folder / MANIFEST
        document = json.loads(path.read_text())
        edit(document)
        document["manifest_sha256"] = _document_digest(document)
        path.write_text(json.dumps(document))
        return bundle_folder

    return change

"""Exported graphs answer like torch, and a graph that does not is never written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.images import make_folder
from training import export as export_module
from training.data import read_data
from training.export import OPSET, check_parity, export_bundle
from training.options import TrainOptions
from training.run import Run, load_run, train_run
from training.torch_engine import TorchEngine
from vision.bundle import load_bundle
from vision.drift.reference import REFERENCE, bundle_reference
from vision.engine import open_engine
from vision.engine_onnxruntime import CpuEngine
from vision.errors import ParityError, SettingsError
from vision.model.mixers import Block
from vision.parity import MAP_TOLERANCE, SCORE_TOLERANCE
from vision.types import OUTPUT_NAMES, ModelOutputs

pytestmark = pytest.mark.slow  # the exporter takes 10 s and more


def _run(tmp_path: Path, options: TrainOptions, labels: dict[str, int]) -> Run:
    root = make_folder(tmp_path / "data", train=labels)
    return train_run(read_data(root), replace(options, epochs=1), tmp_path / "run", resume=False)


@pytest.mark.parametrize(
    ("labels", "outputs"),
    [
        ({"good": 24}, {"anomaly_score", "anomaly_map"}),
        ({"good": 24, "crack": 60, "fray": 12}, {"anomaly_score", "anomaly_map", "class_map"}),
        ({"crack": 24, "fray": 24}, {"anomaly_map", "class_map"}),
    ],
    ids=["normal-only", "masks", "no-good-class"],
)
def test_a_bundle_answers_like_torch_at_any_batch_size(
    tmp_path: Path, options: TrainOptions, labels: dict[str, int], outputs: set[str]
) -> None:
    run = _run(tmp_path, options, labels)
    bundle = export_bundle(run, tmp_path / "bundle")
    assert load_bundle(tmp_path / "bundle").digest == bundle.digest
    engine = bundle.engine(provider="cpu")
    for size in (1, 3, 9):
        frames = run.golden[np.arange(size) % len(run.golden)]
        expected, got = TorchEngine(run.detector).run(frames), engine.run(frames)
        for name in OUTPUT_NAMES:
            one, other = getattr(expected, name), getattr(got, name)
            if name in outputs or name in ("class_logits", "saliency_map", "attention_map", "embedding"):
                tolerance = MAP_TOLERANCE if name == "anomaly_map" else SCORE_TOLERANCE
                np.testing.assert_allclose(one, other, atol=tolerance, rtol=0, err_msg=name)
            else:
                assert one is None
                assert other is None
        # Saliency is the computation, in the graph too: the rest is the bias, which the bundle carries.
        rest = got.class_logits - got.saliency_map.sum(axis=(2, 3))
        told = bundle.manifest.explanations
        assert told is not None
        np.testing.assert_allclose(rest, np.broadcast_to(told.biases, rest.shape), atol=1e-4)
        np.testing.assert_allclose(told.biases, run.detector.readout.bias.detach().numpy(), atol=1e-5)
        assert told.checks == {}
    report = bundle.manifest.parity
    assert set(report["batches"]) == {"1", "2", "7", "7 identical rows"}
    with pytest.raises(SettingsError, match="never overwritten"):
        export_bundle(run, tmp_path / "bundle")


def test_frames_too_large_for_a_batch_are_never_in_one(
    tmp_path: Path, options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(tmp_path, options, {"good": 24, "crack": 6})
    assert len(run.golden) > 1
    monkeypatch.setattr("vision.preprocess._BATCH_PIXELS", run.golden.shape[1] * run.golden.shape[2])
    batches = set()
    for kind in (CpuEngine, TorchEngine):

        def counted(self: Any, frames: np.ndarray, real: Any = kind.run) -> ModelOutputs:
            batches.add(len(frames))
            return real(self, frames)  # type: ignore[no-any-return]

        monkeypatch.setattr(kind, "run", counted)
    bundle = export_bundle(run, tmp_path / "bundle", quantize=["fp16"])
    assert set(bundle.manifest.parity["batches"]) == {"1"}
    assert bundle.replay_golden(bundle.engine(provider="cpu"))
    assert batches == {1}


def test_a_bundle_of_enough_good_images_can_watch_cameras(tmp_path: Path, options: TrainOptions) -> None:
    run = _run(tmp_path, options, {"good": 100})
    assert load_run(tmp_path / "run").reference is not None
    bundle = export_bundle(run, tmp_path / "bundle")
    assert REFERENCE in bundle.manifest.files
    reference = bundle_reference(bundle)
    assert reference is not None
    assert reference.frames == 100
    # Pictures of all of them, but scores and embeddings of those alone that the model never saw.
    unseen = len(bundle.manifest.calibration_scores)
    np.testing.assert_allclose(reference.values["anomaly_score"], bundle.manifest.calibration_scores)
    assert len(reference.values["embedding"]) == unseen < 20
    outputs = bundle.engine(provider="cpu").run(run.golden[:1])
    assert outputs.embedding is not None
    assert reference.cloud is not None
    assert 0.0 < reference.cloud.distance(outputs.embedding[0]) < 100.0


def test_a_graph_that_disagrees_leaves_nothing_behind(
    tmp_path: Path, options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(tmp_path, options, {"good": 24})
    real = CpuEngine.run

    def off(self: CpuEngine, frames: np.ndarray) -> ModelOutputs:
        outputs = real(self, frames)
        assert outputs.anomaly_score is not None
        return replace(outputs, anomaly_score=outputs.anomaly_score + np.float32(2e-4))

    monkeypatch.setattr(CpuEngine, "run", off)
    with pytest.raises(ParityError, match=r"anomaly_score differs by 0\.000[12]\d* \(tolerance 0\.0001\)"):
        export_bundle(run, tmp_path / "out" / "bundle")
    assert list((tmp_path / "out").iterdir()) == []


def test_rows_that_influence_each_other_are_found(
    tmp_path: Path, options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(tmp_path, options, {"good": 24})
    path = tmp_path / "model.onnx"
    export_module._write_onnx(run.detector.cpu().eval(), run.golden, path)
    engine, reference = open_engine(path, provider="cpu"), TorchEngine(run.detector)
    assert check_parity(reference, engine, run.golden)["spread_of_identical_rows"] <= 1e-4
    real = CpuEngine.run

    def mixed_up(self: CpuEngine, frames: np.ndarray) -> ModelOutputs:
        outputs = real(self, frames)
        scores = outputs.class_logits + np.linspace(0, 0.01, len(frames), dtype=np.float32)[:, None]
        return replace(outputs, class_logits=scores)

    monkeypatch.setattr(CpuEngine, "run", mixed_up)
    with pytest.raises(ParityError, match="class_logits differs"):
        check_parity(reference, engine, run.golden)


class _Dense(torch.nn.Module):
    """A block of dense attention over so many tokens that all pairs of them would fill a line PC."""

    grid = (41, 33)

    def __init__(self) -> None:
        super().__init__()
        self.block = Block("dense", 8, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.block(tokens, self.grid))


def test_a_graph_of_dense_attention_never_holds_all_pairs_of_a_large_frame() -> None:
    length = _Dense.grid[0] * _Dense.grid[1]
    program = torch.onnx.export(
        _Dense().eval(), (torch.randn(1, length, 8),), dynamo=True, opset_version=OPSET, verbose=False
    )
    assert program is not None
    shapes = [
        [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in program.model_proto.graph.value_info
    ]
    assert any(shape[-2:] == [1024, length] for shape in shapes)  # a strip
    assert not any(shape[-2:] == [length, length] for shape in shapes)

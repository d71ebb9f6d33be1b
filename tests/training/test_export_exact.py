"""In the exported graph too, the maps add up: at several input sizes, and for camera frames of any size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnxruntime import InferenceSession
from torch import nn

from tests.vision.test_exact import picture
from tests.vision.test_model import VARIANTS
from training import export as export_module
from vision.engine import Engine, open_engine
from vision.explanations import EXACT, score_shares
from vision.model.detector import Detector
from vision.model.readout import AdditiveReadout
from vision.preprocess import InputSpec, to_model_input

pytestmark = pytest.mark.slow  # the exporter takes 10 s and more


class Exported(NamedTuple):
    engine: Engine
    bias: np.ndarray
    spec: InputSpec


@pytest.fixture(
    scope="module",
    params=[("masks", 96, 128), ("everything", 64, 224), ("no good class", 160, 64)],
    ids=lambda param: f"{param[0].replace(' ', '-')}-{param[1]}x{param[2]}",
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    variant, height, width = request.param
    torch.manual_seed(0)
    detector = Detector(replace(VARIANTS[variant], height=height, width=width)).eval()
    with torch.no_grad():  # as loud as a trained one
        for parameter in detector.readout.parameters():
            parameter.mul_(3.0)
        detector.readout.bias.normal_(0.0, 2.0)
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    export_module._write_onnx(detector, picture(height, width, "noise", 0)[None], path)
    engine = open_engine(path, provider="cpu")
    return Exported(engine, detector.readout.bias.detach().numpy(), InputSpec(height, width))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(9, 700),
    st.integers(9, 700),
    st.sampled_from(["noise", "flat", "spot"]),
    st.integers(0, 9999),
    st.integers(1, 3),
)
def test_maps_add_up_in_the_graph(
    exported: Exported, height: int, width: int, kind: str, seed: int, batch: int
) -> None:
    frames = [to_model_input(picture(height, width, kind, seed + index), exported.spec) for index in range(batch)]
    outputs = exported.engine.run(np.stack(frames))
    total = exported.bias + outputs.saliency_map.sum(axis=(2, 3), dtype=np.float64)
    np.testing.assert_allclose(total, outputs.class_logits, atol=EXACT, rtol=0)
    if outputs.anomaly_map is None:
        return
    for values, score in zip(outputs.anomaly_map, outputs.anomaly_score, strict=True):
        assert abs(float((score_shares(values) * values).sum(dtype=np.float64)) - float(score)) <= EXACT


class _Gathering(nn.Module):
    """A read-out's last step alone: what places of a frame say, gathered to logits."""

    def __init__(self, readout: AdditiveReadout) -> None:
        super().__init__()
        self.readout = readout

    def forward(self, scores: torch.Tensor, values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.readout.gather(scores, values, mask, 9.0)[:2]


def test_maps_of_large_frames_add_up_in_the_graph(tmp_path: Path) -> None:
    """A frame of 1536x1024 px has 98,304 places: added up one after the other, they are off by more than is allowed."""
    rng = np.random.default_rng(0)
    readout = AdditiveReadout(8, 3, guided=True).eval()
    # A few places say most, and all others a little: what is lost of each of these is what goes missing.
    inputs = {
        "scores": rng.normal(0, 4, (1, 3, 64, 96)).astype(np.float32),
        "values": rng.normal(90, 9, (1, 3, 64, 96)).astype(np.float32),
        "mask": rng.normal(3, 0.1, (1, 256, 384)).astype(np.float32),
    }
    path = tmp_path / "gather.onnx"
    torch.onnx.export(
        _Gathering(readout).eval(),
        tuple(torch.from_numpy(value) for value in inputs.values()),
        str(path),
        input_names=list(inputs),
        opset_version=export_module.OPSET,
        dynamo=True,
        verbose=False,
    )
    logits, contributions = InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, inputs)
    total = readout.bias.detach().numpy() + contributions.sum(axis=(2, 3), dtype=np.float64)
    np.testing.assert_allclose(total, logits, atol=EXACT, rtol=0)


def test_every_size_was_really_exported(exported: Exported) -> None:
    """And the read-out of a model with a mask is as fine as the mask."""
    outputs = exported.engine.run(np.zeros((1, exported.spec.height, exported.spec.width, 3), np.uint8))
    stride = 16 if outputs.anomaly_map is None else 4
    assert outputs.saliency_map.shape[2:] == (exported.spec.height // stride, exported.spec.width // stride)

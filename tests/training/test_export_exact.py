"""In the exported graph too, the maps add up: at several input sizes, and for camera frames of any size."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.vision.test_exact import picture
from tests.vision.test_model import VARIANTS
from training import export as export_module
from vision.engine import Engine, open_engine
from vision.explanations import EXACT, score_shares
from vision.model.detector import Detector
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


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
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


def test_every_size_was_really_exported(exported: Exported) -> None:
    """And the read-out of a model with a mask is as fine as the mask."""
    outputs = exported.engine.run(np.zeros((1, exported.spec.height, exported.spec.width, 3), np.uint8))
    stride = 16 if outputs.anomaly_map is None else 4
    assert outputs.saliency_map.shape[2:] == (exported.spec.height // stride, exported.spec.width // stride)

"""A tiny backbone with weights from a file, so that tests train in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from training.options import TrainOptions
from vision.model.backbone import Backbone

TINY = "test_efficientnet"


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(Backbone(TINY).net.state_dict(), path)
    return path


@pytest.fixture
def options(tiny_weights: Path) -> TrainOptions:
    return TrainOptions(backbone=TINY, weights=str(tiny_weights), size=64, epochs=2, batch=8, device="cpu")

"""The torch model behind the same interface as ``vision.engine.Engine``: the reference for every runtime."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from vision.model.detector import Detector
from vision.types import OUTPUT_NAMES, ModelOutputs


class TorchEngine:
    """``run(frames) -> outputs`` in float32, whatever precision the model was trained in."""

    def __init__(self, detector: Detector, device: torch.device | str = "cpu") -> None:
        self._detector = detector.eval().to(device)
        self._device = torch.device(device)
        self.provider = f"torch {self._device.type}"

    @torch.no_grad()
    def run(self, frames: NDArray[np.uint8]) -> ModelOutputs:
        """uint8 ``[N, H, W, 3]`` RGB to the outputs of N frames."""
        outputs = self._detector(torch.from_numpy(frames).to(self._device))
        values = {name: getattr(outputs, name) for name in OUTPUT_NAMES}
        arrays = {name: value.float().cpu().numpy() for name, value in values.items() if value is not None}
        return ModelOutputs(**arrays)

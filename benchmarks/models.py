"""Bundles and frames that servers are measured with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from serving.messages import EncodedImage, FrameRequest, Outputs, RawImage
from serving.wire import request_to_proto
from tests.fakes import make_bundle
from vision.bundle import Manifest
from vision.decision import OperatingPoint
from vision.preprocess import InputSpec

SIDE = 256
CLASSES = ("good", "defect")


def trivial_bundle(folder: Path) -> Path:
    """A model that costs next to nothing, 256x256: what is left is the server."""
    return make_bundle(folder, name="trivial", height=SIDE, width=SIDE)


def untrained_bundle(folder: Path) -> Path:
    """The packaged backbone's whole model at 256x256 with every head. Its scores mean nothing; its cost is real."""
    import torch  # takes seconds, which a run with --bundle need not pay

    from training.export import export_bundle
    from training.run import Run
    from vision.model.config import ModelConfig
    from vision.model.detector import Detector

    torch.manual_seed(0)
    config = ModelConfig("tf_efficientnet_lite0", SIDE, SIDE, CLASSES, "good", reconstruction=True, class_map=True)
    manifest = Manifest(
        name="untrained",
        version="1",
        created="",
        input=InputSpec(SIDE, SIDE),
        classes=CLASSES,
        good_class="good",
        predicts_by_anomaly_score=False,
        operating_point=OperatingPoint(1.0, 0.5, 1.0, evidence="none: this model was never trained"),
        calibration_scores=(0.0,),
    )
    golden = np.stack([photo(SIDE, SIDE, seed) for seed in range(3)])
    return export_bundle(Run(Detector(config).eval(), manifest, golden, {}, probes=None), folder).path


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Something with the detail of a camera's picture, uint8 ``[H, W, 3]`` RGB."""
    random = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.float32)
    for scale in (64, 16, 4, 1):
        noise = random.standard_normal((height // scale + 2, width // scale + 2, 3)).astype(np.float32)
        picture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR) * scale**0.5
    return np.clip(128 + 6 * picture, 0, 255).astype(np.uint8)


def grey() -> NDArray[np.uint8]:
    """A good part for the trivial model; what the other servers are sent too."""
    return np.full((SIDE, SIDE, 3), 100, np.uint8)


def jpeg(frame: NDArray[np.uint8], height: int, width: int) -> bytes:
    """An RGB frame as a camera of that size would compress it."""
    enlarged = cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", enlarged[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def message(image: bytes | NDArray[np.uint8], *, timeout_ms: int = 0) -> bytes:
    """A request as it travels: verdict, scores and regions are asked for."""
    sent = EncodedImage(image) if isinstance(image, bytes) else RawImage.from_frame(image)
    request = FrameRequest(sent, camera_id="benchmark", timeout_ms=timeout_ms, outputs=Outputs())
    return request_to_proto(replace(request, request_id="r")).SerializeToString()

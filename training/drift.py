"""What good frames look like, for the server's watch over cameras; made at the end of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from training.stores import FrameStore, GoodPictures
from vision.batching import stacked
from vision.console import say
from vision.drift.reference import FEWEST_FRAMES, Reference, make_reference
from vision.model.detector import Detector
from vision.types import FloatArray


def drift_reference(
    detector: Detector, stores: Mapping[str, FrameStore], calibration_scores: Sequence[float]
) -> Reference | None:
    """The reference of a run; None, and a word why, where there are too few good images.

    Signals of the picture alone are taken from every good image of the training folder: nothing was fitted to them, and
    calibration alone is a few stretches of production and no fair sample of it (docs/decisions/0019). What the model
    says, its scores and embeddings, is taken from calibration images alone, which it never saw.
    """
    good = detector.config.good_class
    if good is None:
        return None
    frames = GoodPictures([stores[name] for name in ("train", "validation", "calibration")], good)
    if len(frames) < FEWEST_FRAMES:
        say(f"no reference for drift: {len(frames)} good images, at least {FEWEST_FRAMES} are needed")
        return None
    unseen = GoodPictures([stores["calibration"]], good)
    return make_reference(
        frames,
        anomaly_scores=np.array(calibration_scores, np.float32),
        embeddings=_embeddings(detector, unseen),
    )


@torch.no_grad()
def _embeddings(detector: Detector, frames: GoodPictures) -> FloatArray:
    device = next(detector.parameters()).device
    detector.eval()
    parts = [
        detector(torch.from_numpy(batch).to(device)).embedding.cpu().numpy()
        for batch in stacked(frames, detector.config.inference_batch)
    ]
    return np.concatenate(parts)

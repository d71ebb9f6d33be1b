"""Values that cross boundaries: frozen, validated once at construction, never a bare dict."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vision.errors import SettingsError

Frame = NDArray[np.uint8]
"""A camera frame: ``[H, W]`` grey or ``[H, W, 3]`` RGB, uint8, 0..255."""

FloatArray = NDArray[np.float32]


class Verdict(enum.IntEnum):
    """What is to happen to the part. An unset field is never a pass."""

    UNSPECIFIED = 0
    PASS = 1
    REJECT = 2
    REVIEW = 3
    NO_VERDICT = 4


@dataclass(frozen=True, slots=True)
class Box:
    """Axis-aligned box in frame pixels; ``x`` and ``y`` are the top left corner, inside the frame."""

    x: int
    y: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.x < 0 or self.y < 0 or self.width < 1 or self.height < 1:
            raise SettingsError(f"a box needs x, y >= 0 and width, height >= 1; got {self}")


@dataclass(frozen=True, slots=True)
class DefectRegion:
    """A connected area of the anomaly map at or above the pixel threshold.

    ``label`` is a defect class, ``"anomaly"`` where none is known, or ``"unknown defect"`` where the frame is one.
    ``score`` is the largest value of the anomaly map inside the region. ``mask`` is bool ``[box.height, box.width]``,
    ``area_px`` its count of true pixels, both in frame pixels.
    """

    label: str
    score: float
    box: Box
    mask: NDArray[np.bool_]
    area_px: int


@dataclass(frozen=True, slots=True)
class ModelOutputs:
    """One batch out of the graph, float32 throughout; the field names are the graph's output names.

    ``class_logits`` ``[N, C]``; ``saliency_map`` ``[N, C, h, w]``, the contributions that add up to the logit (minus
    its bias); ``attention_map`` ``[N, C, h, w]``, each class's query over the tokens, adding up to 1.
    ``anomaly_score`` ``[N]`` and ``anomaly_map`` ``[N, h', w']``, raw, higher is worse: None where the model never saw
    a good part, but for the map of one that saw masks of defects. ``class_map`` ``[N, D, h', w']``, per pixel which of
    the D defect classes it is *if* it is defective (adding up to 1 over D): None where no masks of labelled defects
    were given. ``embedding`` ``[N, E]``: what the frame is like as a whole, for comparison with other frames; None in
    bundles of earlier versions.
    """

    class_logits: FloatArray
    saliency_map: FloatArray
    attention_map: FloatArray
    anomaly_score: FloatArray | None = None
    anomaly_map: FloatArray | None = None
    class_map: FloatArray | None = None
    embedding: FloatArray | None = None

    def __len__(self) -> int:
        return int(self.class_logits.shape[0])

    def row(self, index: int) -> ModelOutputs:
        """The outputs of one frame, still with a leading dimension of 1."""
        part = slice(index, index + 1)
        return ModelOutputs(
            *(None if (value := getattr(self, name)) is None else value[part] for name in OUTPUT_NAMES)  # type: ignore[arg-type]
        )


OUTPUT_NAMES = (
    "class_logits",
    "saliency_map",
    "attention_map",
    "anomaly_score",
    "anomaly_map",
    "class_map",
    "embedding",
)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known about one frame after judgement. Maps stay on the model's grid; see ``postprocess.resize_map``.

    ``class_scores`` has one value a class, in the order of the bundle's classes, adding up to 1; they are scores, not
    calibrated probabilities. Those are in ``class_probabilities``, likewise, and None where the bundle has nothing to
    calibrate with. ``anomaly_score`` is raw; ``calibrated_anomaly_score`` in 0..1 is the share of good calibration
    images that score lower (1 − conformal p-value). ``reason`` says in words why the verdict is what it is.
    ``class_hits``: defect classes that reach their class thresholds, the surest first. ``is_unknown``: a defect by its
    anomaly score that no class explains; ``predicted`` and the regions' labels then say "unknown defect".
    """

    verdict: Verdict
    reason: str
    predicted: str
    class_scores: FloatArray
    class_logits: FloatArray
    anomaly_score: float | None
    calibrated_anomaly_score: float | None
    regions: tuple[DefectRegion, ...]
    anomaly_map: FloatArray | None
    saliency_map: FloatArray
    attention_map: FloatArray
    class_map: FloatArray | None
    frame_height: int
    frame_width: int
    class_probabilities: FloatArray | None = None
    class_hits: tuple[str, ...] = ()
    is_unknown: bool = False

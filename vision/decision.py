"""From scores to verdicts. The operating point is data in the bundle; nothing of it is baked into the graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vision.calibration.evidence import Evidence
from vision.errors import SettingsError
from vision.types import FloatArray, Verdict

UNKNOWN = "unknown defect"
"""The label of a frame that is a reject by its anomaly score and that no class explains."""

ClassHit = tuple[str, float]
"""A defect class and its calibrated probability."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Thresholds of one bundle; a score ``>=`` its threshold is a hit.

    ``image_threshold``, ``review_threshold`` and ``pixel_threshold`` are on the raw anomaly scale; the first two are
    None where the model has no anomaly score, the third where it has no anomaly map. ``class_threshold`` (0..1, on
    class scores) is used only there. ``class_thresholds`` (0..1, by defect class, on calibrated probabilities): a frame
    that reaches one is a REJECT whatever its anomaly score. ``class_pixel_thresholds``: in place of ``pixel_threshold``
    where a defect class is favoured that has one of its own. ``unknown_below``: a REJECT by the anomaly score is an
    unknown defect where the defect classes together have a lower calibrated probability; None where it is never said.
    ``evidence`` states in words how the point was chosen, on how many images, and what it promises; ``basis`` states
    the same in fields (bundles of earlier versions: None).
    """

    image_threshold: float | None
    review_threshold: float | None
    pixel_threshold: float | None
    class_threshold: float = 0.5
    evidence: str = ""
    class_thresholds: dict[str, float] = field(default_factory=dict)
    class_pixel_thresholds: dict[str, float] = field(default_factory=dict)
    unknown_below: float | None = None
    basis: Evidence | None = None

    def __post_init__(self) -> None:
        image, review, pixel = three = (self.image_threshold, self.review_threshold, self.pixel_threshold)
        if (image is None) != (review is None) or (image is not None and pixel is None):
            raise SettingsError(
                "an operating point has image, review and pixel threshold, the pixel threshold alone (a model without "
                f"an anomaly score), or none; got {three}"
            )
        if not all(math.isfinite(value) for value in three if value is not None):
            raise SettingsError(f"thresholds must be finite numbers; got {three}")
        if image is not None and review is not None and review > image:
            raise SettingsError(
                f"review_threshold ({review}) must not be above image_threshold ({image}): parts between them go to "
                "review"
            )
        if not 0.0 <= self.class_threshold <= 1.0:
            raise SettingsError(f"class_threshold must be in 0..1; got {self.class_threshold}")
        # At 0 every part would be a reject, and nobody means that.
        if wrong := {name: value for name, value in self.class_thresholds.items() if not 0.0 < value <= 1.0}:
            raise SettingsError(f"class_thresholds must be above 0 and at most 1; got {wrong}")
        if self.class_pixel_thresholds and self.pixel_threshold is None:
            raise SettingsError("classes have pixel thresholds of their own only beside a pixel_threshold")
        if wrong := {name: value for name, value in self.class_pixel_thresholds.items() if not math.isfinite(value)}:
            raise SettingsError(f"class_pixel_thresholds must be finite numbers; got {wrong}")
        if self.unknown_below is not None and not 0.0 <= self.unknown_below <= 1.0:
            raise SettingsError(f"unknown_below must be in 0..1; got {self.unknown_below}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> OperatingPoint:
        """From what ``dataclasses.asdict`` and JSON made of it; entries that earlier versions did not know may miss."""
        basis = values.get("basis")
        return cls(**{**values, "basis": None if basis is None else Evidence.from_dict(basis)})

    def class_hits(self, probabilities: Mapping[str, float]) -> tuple[ClassHit, ...]:
        """The defect classes whose calibrated probability reaches their threshold, the surest first."""
        hits = [
            (name, probability)
            for name, least in self.class_thresholds.items()
            if (probability := probabilities[name]) >= least
        ]
        hits.sort(key=lambda hit: -hit[1])
        return tuple(hits)

    def is_unknown(self, anomaly_score: float, defect_probability: float) -> bool:
        """Whether a frame is a defect that no class explains: the anomaly is high, and the classes say good."""
        return (
            self.unknown_below is not None
            and self.image_threshold is not None
            and anomaly_score >= self.image_threshold
            and defect_probability < self.unknown_below
        )


def decide(
    point: OperatingPoint,
    anomaly_score: float | None,
    best_defect: str,
    best_defect_score: float,
    *,
    class_hits: tuple[ClassHit, ...] = (),
) -> tuple[Verdict, str]:
    """The verdict and the reason for it, in words.

    A defect class that reaches its threshold makes a REJECT. So does an anomaly score at or above ``image_threshold``;
    at or above ``review_threshold`` it makes a REVIEW, else the part is a PASS. Without an anomaly score (the model
    never saw a good part) the part is a REJECT also if its best defect class reaches ``class_threshold``, and a REVIEW
    otherwise: such a model can never pass a part.

    Args:
        best_defect_score: 0..1, of the class that scores highest.
        class_hits: what ``OperatingPoint.class_hits`` gave.
    """
    if anomaly_score is not None and not math.isfinite(anomaly_score):
        return Verdict.NO_VERDICT, f"the anomaly score is {anomaly_score}, not a finite number"
    if not math.isfinite(best_defect_score):
        return Verdict.NO_VERDICT, f"the class scores are {best_defect_score}, not finite numbers"
    by_class = ""
    if class_hits:
        name, probability = class_hits[0]
        by_class = f"{name} probability {probability:.3f} >= class threshold {point.class_thresholds[name]:.3f}"
    if point.image_threshold is None or point.review_threshold is None:
        if by_class:
            return Verdict.REJECT, by_class
        if best_defect_score >= point.class_threshold:
            return (
                Verdict.REJECT,
                f"{best_defect} {best_defect_score:.3f} >= class threshold {point.class_threshold:.3f}",
            )
        return Verdict.REVIEW, f"no defect class reaches {point.class_threshold:.3f}, and this model knows no good part"
    if anomaly_score is None:
        return Verdict.NO_VERDICT, "the operating point asks for an anomaly score and the model gave none"
    return _decide_by_score(point, anomaly_score, point.image_threshold, point.review_threshold, by_class)


def _decide_by_score(
    point: OperatingPoint, score: float, image: float, review: float, by_class: str
) -> tuple[Verdict, str]:
    """``by_class``: the reason that a class gives for a reject; empty where none does."""
    basis = point.basis
    if score >= image:
        note = basis.image_note if basis else ""
        reason = f"anomaly score {score:.4g} >= image threshold {image:.4g}{note}"
        return Verdict.REJECT, f"{reason}; {by_class}" if by_class else reason
    if by_class:
        return Verdict.REJECT, f"{by_class}; anomaly score {score:.4g} < image threshold {image:.4g}"
    note = basis.review_note if basis else ""
    if score >= review:
        return Verdict.REVIEW, f"anomaly score {score:.4g} >= review threshold {review:.4g}{note}"
    return Verdict.PASS, f"anomaly score {score:.4g} < review threshold {review:.4g}{note}"


def softmax_of(values: Sequence[float]) -> list[float]:
    """Of one frame, in plain Python: for a handful of classes several times faster than NumPy."""
    top = max(values)
    exponentials = [math.exp(value - top) for value in values]
    total = sum(exponentials)
    return [value / total for value in exponentials]


def softmax(logits: FloatArray) -> FloatArray:
    """Over the last axis, in float64 inside, so that equal logits give equal scores on every machine."""
    if logits.ndim == 1:
        return np.array(softmax_of(logits.tolist()), np.float32)
    values = logits.astype(np.float64)
    values = np.exp(values - values.max(axis=-1, keepdims=True))
    scores: FloatArray = (values / values.sum(axis=-1, keepdims=True)).astype(np.float32)
    return scores


def calibrated_score(anomaly_score: float, calibration_scores: FloatArray) -> float:
    """1 − p, where p = (1 + #{calibration scores >= score}) / (n + 1) is the conformal p-value of a good part.

    Source: Vovk, Gammerman, Shafer, *Algorithmic Learning in a Random World* (2005), section 2.2.
    ``calibration_scores`` is sorted, ascending.
    """
    count = len(calibration_scores)
    at_or_above = count - int(np.searchsorted(calibration_scores, np.float32(anomaly_score), side="left"))
    return 1.0 - (1 + at_or_above) / (count + 1)

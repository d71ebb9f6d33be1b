"""From scores to verdicts. The operating point is data in the bundle; nothing of it is baked into the graph."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vision.errors import SettingsError
from vision.types import FloatArray, Verdict


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Thresholds of one bundle; a score ``>=`` its threshold is a hit.

    ``image_threshold``, ``review_threshold`` and ``pixel_threshold`` are on the raw anomaly scale and None where the
    model has no anomaly score. ``class_threshold`` (0..1, on class scores) is used only there. ``evidence`` states in
    words how the point was chosen, on how many images, and what it promises.
    """

    image_threshold: float | None
    review_threshold: float | None
    pixel_threshold: float | None
    class_threshold: float = 0.5
    evidence: str = ""

    def __post_init__(self) -> None:
        three = (self.image_threshold, self.review_threshold, self.pixel_threshold)
        if any(value is None for value in three) != all(value is None for value in three):
            raise SettingsError(f"an operating point has all three anomaly thresholds or none; got {three}")
        if self.image_threshold is not None and self.review_threshold is not None:
            if not all(math.isfinite(value) for value in three if value is not None):
                raise SettingsError(f"thresholds must be finite numbers; got {three}")
            if self.review_threshold > self.image_threshold:
                raise SettingsError(
                    f"review_threshold ({self.review_threshold}) must not be above image_threshold "
                    f"({self.image_threshold}): parts between them go to review"
                )
        if not 0.0 <= self.class_threshold <= 1.0:
            raise SettingsError(f"class_threshold must be in 0..1; got {self.class_threshold}")


def decide(
    point: OperatingPoint, anomaly_score: float | None, best_defect: str, best_defect_score: float
) -> tuple[Verdict, str]:
    """The verdict and the reason for it, in words.

    With an anomaly score, it alone decides: at or above ``image_threshold`` REJECT, at or above ``review_threshold``
    REVIEW, else PASS. Without one (the model never saw a good part) the part is a REJECT if its best defect class
    reaches ``class_threshold`` and a REVIEW otherwise: such a model can never pass a part.
    """
    if anomaly_score is not None and not math.isfinite(anomaly_score):
        return Verdict.NO_VERDICT, f"the anomaly score is {anomaly_score}, not a finite number"
    if not math.isfinite(best_defect_score):
        return Verdict.NO_VERDICT, f"the class scores are {best_defect_score}, not finite numbers"
    if point.image_threshold is None or point.review_threshold is None:
        if best_defect_score >= point.class_threshold:
            return (
                Verdict.REJECT,
                f"{best_defect} {best_defect_score:.3f} >= class threshold {point.class_threshold:.3f}",
            )
        return Verdict.REVIEW, f"no defect class reaches {point.class_threshold:.3f}, and this model knows no good part"
    if anomaly_score is None:
        return Verdict.NO_VERDICT, "the operating point asks for an anomaly score and the model gave none"
    if anomaly_score >= point.image_threshold:
        return Verdict.REJECT, f"anomaly score {anomaly_score:.4g} >= image threshold {point.image_threshold:.4g}"
    if anomaly_score >= point.review_threshold:
        return Verdict.REVIEW, f"anomaly score {anomaly_score:.4g} >= review threshold {point.review_threshold:.4g}"
    return Verdict.PASS, f"anomaly score {anomaly_score:.4g} < review threshold {point.review_threshold:.4g}"


def softmax(logits: FloatArray) -> FloatArray:
    """Over the last axis, in float64 inside, so that equal logits give equal scores on every machine."""
    if logits.ndim == 1:  # of one frame: NumPy's way takes three times as long for a handful
        peak = float(logits.max())
        exponentials = [math.exp(value - peak) for value in logits.tolist()]
        total = sum(exponentials)
        return np.array([value / total for value in exponentials], np.float32)
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


def conformal_threshold(calibration_scores: FloatArray, max_overkill: float) -> float:
    """The smallest score that a good part reaches or exceeds with a probability of at most ``max_overkill``.

    It lies just above the ⌈(n+1)(1−α)⌉-th smallest of the n calibration scores; the promise is marginal and holds while
    good parts stay exchangeable with the calibration images. Needs n >= 1/α − 1.

    Raises:
        SettingsError: fewer calibration scores than the bound needs, or a bound outside 0..1.
    """
    if not 0.0 < max_overkill < 1.0:
        raise SettingsError(f"an overkill bound lies between 0 and 1, both excluded; got {max_overkill:g}")
    count = len(calibration_scores)
    # 1e-9: (n+1)(1−α) must not be lifted to the next integer by rounding (100 × 0.99 = 99.00000000000001).
    rank = math.ceil((count + 1) * (1.0 - max_overkill) - 1e-9)
    if rank > count:
        needed = math.ceil(1.0 / max_overkill - 1e-9) - 1
        raise SettingsError(
            f"an overkill bound of {max_overkill:g} needs at least {needed} good calibration images; got {count}, "
            f"{needed - count} more are missing"
        )
    return float(np.nextafter(np.sort(calibration_scores)[rank - 1], np.float32(np.inf), dtype=np.float32))

"""What follows from a frame's scores alone: verdict, reason, label. Regions and maps come in ``postprocess``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vision.decision import UNKNOWN, decide, softmax
from vision.manifest import Manifest
from vision.types import FloatArray, Verdict


@dataclass(frozen=True, slots=True)
class Judgement:
    """``class_scores`` ``[C]``; ``probabilities`` ``[C]`` or None, as in ``Inspection``. ``best_defect``: the defect
    class that is likeliest if the part is defective at all.
    """

    verdict: Verdict
    reason: str
    predicted: str
    class_scores: FloatArray
    probabilities: FloatArray | None
    class_hits: tuple[str, ...]
    is_unknown: bool
    best_defect: str


def judge_scores(class_logits: FloatArray, anomaly_score: float | None, manifest: Manifest) -> Judgement:
    """Judge one frame by its class logits ``[C]`` and anomaly score."""
    point, calibration, classes = manifest.operating_point, manifest.class_calibration, manifest.classes
    scores = softmax(class_logits)
    shares = scores.tolist() if calibration is None else calibration.probabilities(class_logits.tolist())
    hits: tuple[tuple[str, float], ...] = ()
    is_unknown = False
    if calibration is not None and manifest.good_class is not None and anomaly_score is not None:
        is_unknown = point.is_unknown(anomaly_score, 1.0 - shares[classes.index(manifest.good_class)])
    if point.class_thresholds:
        hits = point.class_hits(dict(zip(classes, shares, strict=True)))
    _, best = max((share, -index) for index, share in enumerate(shares) if classes[index] != manifest.good_class)
    verdict, reason = decide(point, anomaly_score, classes[-best], float(scores[-best]), class_hits=hits)
    is_unknown = is_unknown and not hits and verdict is Verdict.REJECT
    if is_unknown:
        predicted, reason = UNKNOWN, f"{reason}; {UNKNOWN}: no class explains it"
    elif manifest.predicts_by_anomaly_score and anomaly_score is not None and point.image_threshold is not None:
        is_good = anomaly_score < point.image_threshold
        predicted = str(manifest.good_class) if is_good else classes[-best]
    else:
        predicted = classes[shares.index(max(shares))]
    return Judgement(
        verdict=verdict,
        reason=reason,
        predicted=predicted,
        class_scores=scores,
        probabilities=None if calibration is None else np.array(shares, np.float32),
        class_hits=tuple(name for name, _ in hits),
        is_unknown=is_unknown,
        best_defect=classes[-best],
    )

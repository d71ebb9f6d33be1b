"""What follows from a frame's scores alone: verdict, reason, label. Regions and maps come in ``postprocess``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vision.decision import UNKNOWN, ClassHit, decide, softmax
from vision.manifest import Manifest
from vision.types import FloatArray, Verdict


class Judgement(NamedTuple):
    """``class_scores`` ``[C]``; ``probabilities`` ``[C]`` or None, as in ``Inspection``. ``best_defect``: the defect
    class that is likeliest if the part is defective at all. A tuple, because every frame makes one.
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
    given = scores.tolist()
    shares = given if calibration is None else calibration.probabilities(class_logits.tolist())
    best = max(manifest.defect_places, key=shares.__getitem__)
    hits: tuple[ClassHit, ...] = ()
    if point.class_thresholds:
        hits = point.class_hits(dict(zip(classes, shares, strict=True)))
    verdict, reason = decide(point, anomaly_score, classes[best], given[best], class_hits=hits)
    is_unknown = False
    if verdict is Verdict.REJECT and not hits and calibration is not None and anomaly_score is not None:
        is_unknown = point.is_unknown(anomaly_score, sum(shares[place] for place in manifest.defect_places))
    if is_unknown:
        predicted, reason = UNKNOWN, f"{reason}; {UNKNOWN}: no class explains it"
    elif manifest.predicts_by_anomaly_score and anomaly_score is not None and point.image_threshold is not None:
        predicted = str(manifest.good_class) if anomaly_score < point.image_threshold else classes[best]
    else:
        predicted = classes[shares.index(max(shares))]
    return Judgement(
        verdict,
        reason,
        predicted,
        scores,
        None if calibration is None else np.array(shares, np.float32),
        tuple(name for name, _ in hits) if hits else (),
        is_unknown,
        classes[best],
    )

"""Measure a predictor on labelled images: ``report.json``, ``report.html`` and ``predictions.jsonl``."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training import metrics
from training.data import DataSet, Sample
from training.decision_figures import probability_figures, promise_figures
from training.drawn import Overlays
from training.gallery import Gallery
from training.metrics import F64, NAN
from training.pixel_metrics import MAX_FPR
from training.predictor import BundlePredictor, EnginePredictor, Predictor
from training.report import write_html
from training.scan import relative
from training.tally import PixelTally
from vision.bundle import MODEL, Manifest
from vision.console import plain, track
from vision.decision import UNKNOWN
from vision.errors import DataError
from vision.postprocess import ANOMALY
from vision.types import FloatArray, Inspection, Verdict

Flags = NDArray[np.bool_]

__all__ = ["BundlePredictor", "EnginePredictor", "Prediction", "Predictor", "evaluate"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is kept of one image; ``truth`` is its label in the model's words, ``anomaly`` for an unnamed defect, and
    ``unknown defect`` for a class that the model does not know, where it can say so.
    """

    sample: Sample
    truth: str
    predicted: str
    class_scores: FloatArray
    class_probabilities: FloatArray | None
    class_hits: tuple[str, ...]
    is_unknown: bool
    anomaly_score: float | None
    calibrated_anomaly_score: float | None
    verdict: Verdict
    reason: str


def evaluate(
    predictor: Predictor,
    data: DataSet,
    samples: Sequence[Sample],
    out: Path,
    *,
    seed: int = 0,
    overlays: Overlays | None = None,
) -> dict[str, Any]:
    """Measure ``predictor`` on ``samples`` of ``data``, write the three files into ``out`` and return the report.

    Overkill is counted over images that are certainly good, escapes over defects; a part that goes to review is
    overkill when it is good and no escape when it is not. Intervals are 95 % bootstrap intervals over images.
    ``overlays``, open, gets every image too.

    Raises:
        DataError: there is no sample.
    """
    if not samples:
        raise DataError(f"there is no image to evaluate in {data.root}; add test/good/ and test/<defect>/")
    manifest = predictor.manifest
    out.mkdir(parents=True, exist_ok=True)
    tally, gallery, clock = PixelTally(samples, manifest), Gallery(), _Clock()
    predictions = []
    inspections = clock.timed(predictor.predict(samples))
    for sample, inspection in zip(samples, track(inspections, "Evaluating", total=len(samples)), strict=True):
        prediction = _prediction(sample, inspection, manifest)
        predictions.append(prediction)
        tally.add(sample, inspection)
        if overlays is not None:
            overlays.add(sample, inspection)
        gallery.add(sample, prediction.truth, inspection)
    report = _figures(predictions, tally, manifest, seed)
    report["counts"] = dict(sorted(Counter(sample.label for sample in samples).items()))
    report["images"] = len(samples)
    report["timings"] = clock.figures(len(samples))
    report["data"] = data.root.name
    report["data_digest"] = data.digest
    report["bundle"] = _identity(predictor)
    report["provider"] = predictor.provider
    report["notes"] = _notes(predictions, manifest, report) + tally.notes + list(data.remarks)
    report = {name: plain(value) for name, value in report.items()}
    _write_predictions(out / "predictions.jsonl", predictions, data.root, manifest)
    (out / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_html(report, predictions, gallery, manifest, data.white_level, out / "report.html")
    return report


def _prediction(sample: Sample, inspection: Inspection, manifest: Manifest) -> Prediction:
    truth = sample.label
    if sample.is_defect and truth not in manifest.classes:
        if ANOMALY in manifest.classes:
            truth = ANOMALY
        elif manifest.operating_point.unknown_below is not None:
            truth = UNKNOWN
    return Prediction(
        sample=sample,
        truth=truth,
        predicted=inspection.predicted,
        class_scores=inspection.class_scores,
        class_probabilities=inspection.class_probabilities,
        class_hits=inspection.class_hits,
        is_unknown=inspection.is_unknown,
        anomaly_score=inspection.anomaly_score,
        calibrated_anomaly_score=inspection.calibrated_anomaly_score,
        verdict=inspection.verdict,
        reason=inspection.reason,
    )


def _figures(predictions: Sequence[Prediction], tally: PixelTally, manifest: Manifest, seed: int) -> dict[str, Any]:
    truth = [one.truth for one in predictions]
    predicted = [one.predicted for one in predictions]
    labels = [*manifest.classes, *sorted((set(truth) | set(predicted)) - set(manifest.classes))]
    counts = metrics.confusion_matrix(truth, predicted, labels)
    report: dict[str, Any] = {}
    intervals: dict[str, tuple[float, float]] = {}
    scores, is_defect = _scored(predictions)
    for name, metric in _SCORE_METRICS.items():
        report[name] = metric(scores, is_defect, np.ones(len(scores)))
        resampled = partial(metric, scores, is_defect)
        intervals[name] = metrics.bootstrap_interval(resampled, len(scores), seed)
    report["image_f1_max_threshold"] = metrics.f1_max(scores, is_defect)[1]
    for name, hits in _shares(predictions).items():
        report[name] = float(hits.mean()) if len(hits) else NAN
        intervals[name] = metrics.share_interval(hits, seed)
    report["per_class"] = {name: asdict(one) for name, one in metrics.per_class(counts, labels).items()}
    report["confusion_matrix"] = {"labels": labels, "counts": counts.tolist()}
    pixels = tally.figures(seed)
    report["pixel_auroc"] = pixels.auroc if pixels else NAN
    report["pixel_ap"] = pixels.average_precision if pixels else NAN
    report["aupro"] = pixels.aupro if pixels else NAN
    report["aupro_max_fpr"] = MAX_FPR
    report["miou"], intervals["miou"] = tally.miou(seed)
    intervals.update(pixels.intervals if pixels else {})
    report["verdicts"] = {
        verdict.name: sum(one.verdict is verdict for one in predictions)
        for verdict in Verdict
        if verdict is not Verdict.UNSPECIFIED
    }
    report["operating_point"] = asdict(manifest.operating_point)
    report["promise"] = promise_figures(predictions, manifest.operating_point)
    report["class_probabilities"] = probability_figures(predictions, manifest, seed)
    report["intervals"] = {name: value for name, value in intervals.items() if np.isfinite(value).all()}
    return report


_SCORE_METRICS: dict[str, Callable[[F64, Flags, F64], float]] = {
    "image_auroc": metrics.image_auroc,
    "image_ap": metrics.average_precision,
    "image_f1_max": lambda scores, is_defect, weights: metrics.f1_max(scores, is_defect, weights)[0],
}


def _scored(predictions: Sequence[Prediction]) -> tuple[F64, Flags]:
    """Scores and truth of the images that score metrics are over: ambiguous ones are neither good nor defects."""
    scores = np.asarray([NAN if one.anomaly_score is None else one.anomaly_score for one in predictions], np.float64)
    is_defect = np.asarray([one.sample.is_defect for one in predictions])
    chosen = np.isfinite(scores) & ~np.asarray([one.sample.is_ambiguous for one in predictions])
    return scores[chosen], is_defect[chosen]


def _shares(predictions: Sequence[Prediction]) -> dict[str, Flags]:
    """Each rate as one flag an image, over the images that it is about."""
    is_defect = np.asarray([one.sample.is_defect for one in predictions])
    is_good = ~is_defect & ~np.asarray([one.sample.is_ambiguous for one in predictions])
    passed = np.asarray([one.verdict is Verdict.PASS for one in predictions])
    return {
        "accuracy": np.asarray([one.truth == one.predicted for one in predictions]),
        "overkill_rate": ~passed[is_good],
        "escape_rate": passed[is_defect],
        "review_rate": np.asarray([one.verdict is Verdict.REVIEW for one in predictions]),
    }


def _notes(predictions: Sequence[Prediction], manifest: Manifest, report: dict[str, Any]) -> list[str]:
    notes = []
    ambiguous = sum(one.sample.is_ambiguous for one in predictions)
    if not manifest.has_anomaly_score:
        notes.append(
            "There is no anomaly score: the model never saw a good part. It tells defect classes apart and can never "
            "pass a part, so that image_auroc, image_ap and image_f1_max are not defined."
        )
    elif not np.isfinite(report["image_auroc"]):
        notes.append("image_auroc needs good and defective images; these images are of one kind only.")
    if ambiguous:
        notes.append(
            f"{ambiguous} images are ambiguous (defect probability above 0 and below 0.5): they are left out of "
            "image_auroc, image_ap, image_f1_max, the overkill rate and the pixel metrics, and count in accuracy."
        )
    unknown = sorted({one.truth for one in predictions} - {*manifest.classes, UNKNOWN})
    if unknown:
        notes.append(f"The model does not know the class {', '.join(unknown)}; these images always count as wrong.")
    renamed = sorted({one.sample.label for one in predictions if one.sample.label != one.truth})
    if renamed and ANOMALY in manifest.classes:
        notes.append(f"The model was trained on good parts alone: {', '.join(renamed)} count as {ANOMALY!r}.")
    elif renamed:
        notes.append(f"The model does not know {', '.join(renamed)}; the right answer is {UNKNOWN!r}.")
    if chosen := manifest.provenance.get("input"):
        notes.append(f"Input: {chosen}.")
    broken = sum(one.verdict is Verdict.NO_VERDICT for one in predictions)
    if broken:
        notes.append(f"{broken} images got no verdict; those without a finite score are left out of image_auroc.")
    return notes


def _identity(predictor: Predictor) -> dict[str, Any]:
    manifest = predictor.manifest
    model = manifest.files.get(MODEL)
    return {
        "name": manifest.name,
        "version": manifest.version,
        "digest": predictor.digest,
        "model_digest": None if model is None else model.sha256,
    }


def _write_predictions(path: Path, predictions: Sequence[Prediction], root: Path, manifest: Manifest) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for one in predictions:
            line = {
                "path": relative(one.sample.path, root),
                "label": one.sample.label,
                "truth": one.truth,
                "is_defect": one.sample.is_defect,
                "is_ambiguous": one.sample.is_ambiguous,
                "predicted": one.predicted,
                "class_scores": dict(zip(manifest.classes, map(float, one.class_scores), strict=True)),
                "class_probabilities": None
                if one.class_probabilities is None
                else dict(zip(manifest.classes, map(float, one.class_probabilities), strict=True)),
                "class_hits": one.class_hits,
                "unknown_defect": one.is_unknown,
                "anomaly_score": one.anomaly_score,
                "calibrated_anomaly_score": one.calibrated_anomaly_score,
                "verdict": one.verdict.name,
                "reason": one.reason,
            }
            stream.write(json.dumps(plain(line), ensure_ascii=False) + "\n")


class _Clock:
    """Time spent inside the predictor alone, and not in what evaluation does with its answers."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def timed(self, inspections: Iterator[Inspection]) -> Iterator[Inspection]:
        while True:
            start = time.perf_counter()
            inspection = next(inspections, None)
            self._seconds += time.perf_counter() - start
            if inspection is None:
                return
            yield inspection

    def figures(self, frames: int) -> dict[str, float]:
        seconds = max(self._seconds, 1e-9)
        return {"seconds": seconds, "ms_per_frame": 1000 * seconds / frames, "frames_per_second": frames / seconds}

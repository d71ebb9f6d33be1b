"""``report.html``: one self-contained file, without a single outside resource."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from markupsafe import Markup

from training.data import read_frame
from training.decision_figures import reliability_bins
from training.gallery import Gallery, Shown
from training.pages import page_template
from training.plots import precision_recall_figure, reliability_figure, roc_figure, score_figure
from vision.bundle import Manifest
from vision.overlay import render_overlay

if TYPE_CHECKING:
    from training.evaluate import Prediction

_PICTURE_SIDE_PX = 900
_JPEG_QUALITY = 82

_HEADLINES = (
    ("image_auroc", "Image AUROC", "good and defective images told apart by the anomaly score"),
    ("accuracy", "Class accuracy", "predicted label equals the true one"),
    ("overkill_rate", "Overkill rate", "good parts not passed ÷ good parts"),
    ("escape_rate", "Escape rate", "defective parts passed ÷ defective parts"),
    ("aupro", "AUPRO", "regions found, up to 30 % false positive pixels"),
    ("pixel_auroc", "Pixel AUROC", "good and defective pixels told apart"),
)
_FURTHER = (
    ("image_ap", "Image average precision"),
    ("image_f1_max", "Image F1, best threshold"),
    ("pixel_ap", "Pixel average precision"),
    ("miou", "Mean IoU, defects and background"),
    ("review_rate", "Review rate"),
)
_RATES = {"overkill_rate", "escape_rate", "review_rate"}


class _Figure(NamedTuple):
    name: str
    value: str
    interval: str
    meaning: str = ""


class _Picture(NamedTuple):
    uri: str
    path: str
    truth: str
    predicted: str
    verdict: str
    reason: str


def write_html(
    report: dict[str, Any],
    predictions: Sequence[Prediction],
    gallery: Gallery,
    manifest: Manifest,
    white_level: int,
    out: Path,
) -> None:
    """Render the report.

    Args:
        report: as it is written to ``report.json``: None where a figure is missing.
        predictions: of every image, for the curves.
        gallery: the images to show.
        manifest: of the model, for overlays and the operating point.
        white_level: of the data, see ``vision.preprocess.InputSpec``.
        out: the file to write.
    """
    page = page_template(Path(__file__).with_name("report.html")).render(
        report=report,
        headlines=[_figure(report, *entry) for entry in _HEADLINES],
        further=[_figure(report, *entry) for entry in _FURTHER if report[entry[0]] is not None],
        figures=_figures(predictions, manifest),
        matrix=_matrix(report),
        gallery={
            heading: [_picture(one, manifest, white_level) for one in shown]
            for heading, shown in gallery.groups().items()
        },
        number=_number,
        percent=lambda share: _number(share, as_rate=True),
    )
    out.write_text(page, encoding="utf-8")


def _figures(predictions: Sequence[Prediction], manifest: Manifest) -> dict[str, Markup]:
    drawn = _reliability(predictions, manifest)
    scored = [
        one
        for one in predictions
        if one.anomaly_score is not None and np.isfinite(one.anomaly_score) and not one.sample.is_ambiguous
    ]
    if not scored:
        return _markup(drawn)
    scores = np.asarray([one.anomaly_score for one in scored], np.float64)
    is_defect = np.asarray([one.sample.is_defect for one in scored])
    point = manifest.operating_point
    thresholds = {}
    if point.image_threshold is not None and point.review_threshold is not None:
        thresholds["reject from"] = point.image_threshold
        if point.review_threshold < point.image_threshold:
            thresholds["review from"] = point.review_threshold
    good = next((one.sample.label for one in scored if not one.sample.is_defect), None)
    labels = sorted({one.sample.label for one in scored}, key=lambda label: (label != good, label))
    groups = {label: scores[[one.sample.label == label for one in scored]] for label in labels}
    drawn["scores"] = score_figure(groups, good, thresholds)
    if is_defect.any() and not is_defect.all():
        drawn["roc"] = roc_figure(scores, is_defect, thresholds)
        drawn["precision_recall"] = precision_recall_figure(scores, is_defect)
    return _markup(drawn)


def _reliability(predictions: Sequence[Prediction], manifest: Manifest) -> dict[str, str]:
    bins = reliability_bins(predictions, manifest)
    if bins is None:
        return {}
    drawn = {
        "reliability": reliability_figure(
            bins["class score"], bins["probability"], "the most probable class is right", "Reliability of the class"
        )
    }
    if "probability of a defect" in bins:
        drawn["reliability_of_defects"] = reliability_figure(
            bins["score of a defect"],
            bins["probability of a defect"],
            "the part is defective",
            "Reliability of being defective",
        )
    return drawn


def _markup(drawn: dict[str, str]) -> dict[str, Markup]:
    # The drawings are made here, and class names in them were escaped when the SVG was written.
    return {name: Markup(svg) for name, svg in drawn.items()}  # noqa: S704


def _matrix(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the confusion matrix; ``share`` 0..1 of the row shades a cell, a single mistake visibly."""
    labels, counts = report["confusion_matrix"]["labels"], report["confusion_matrix"]["counts"]
    return [
        {
            "label": label,
            "cells": [
                {"count": count, "share": max(0.12, count / sum(row)) if count else 0.0, "hit": place == index}
                for place, count in enumerate(row)
            ],
        }
        for index, (label, row) in enumerate(zip(labels, counts, strict=True))
    ]


def _figure(report: dict[str, Any], key: str, name: str, meaning: str = "") -> _Figure:
    value, interval = report[key], report["intervals"].get(key)
    as_rate = key in _RATES
    shown = "" if value is None or interval is None else " – ".join(_number(end, as_rate) for end in interval)
    return _Figure(name, _number(value, as_rate), shown, meaning)


def _number(value: float | None, as_rate: bool = False) -> str:
    """A figure for people: rates in per cent, a dash where there is none."""
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if as_rate else f"{value:.3f}"


def _picture(shown: Shown, manifest: Manifest, white_level: int) -> _Picture:
    inspection = shown.inspection
    overlay = render_overlay(read_frame(shown.sample.path, white_level), inspection, manifest)
    scale = min(1.0, _PICTURE_SIDE_PX / max(overlay.shape[:2]))
    if scale < 1.0:
        size = (round(overlay.shape[1] * scale), round(overlay.shape[0] * scale))
        overlay = cv2.resize(overlay, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    bgr = cv2.cvtColor(overlay, cv2.COLOR_RGB2BGR)
    jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
    return _Picture(
        uri="data:image/jpeg;base64," + base64.b64encode(jpeg).decode(),
        path=f"{shown.sample.path.parent.name}/{shown.sample.path.name}",
        truth=shown.sample.label,
        predicted=inspection.predicted,
        verdict=inspection.verdict.name,
        reason=inspection.reason,
    )

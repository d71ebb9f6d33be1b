"""``report.html`` of ``defectlens explain``: one self-contained file, figures first, then pictures side by side."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from training.explain.heads import MOST_LOSS
from training.explain.measure import Measured
from training.explain.methods import METHODS, OURS
from training.explain.results import METRICS, MOST_CORRELATION
from training.pages import page_template
from vision.decision import softmax
from vision.drawing import BACKGROUND, CONTOUR, INK, Canvas, blend, fitting, put_text
from vision.explanations import evidence
from vision.postprocess import resize_map
from vision.types import FloatArray

_EACH = 2  # frames of a class
_PICTURE_PX, _GAP_PX, _TITLE_PX = 220, 6, 30
_STRENGTH = 0.75
_JPEG_QUALITY = 85


class _Tile(NamedTuple):
    name: str
    value: str
    meaning: str


class _Cell(NamedTuple):
    title: str
    uri: str


class _Row(NamedTuple):
    label: str
    path: str
    score: float
    cells: list[_Cell]


def write_report(report: dict[str, Any], measured: Sequence[Measured], sheets: dict[str, Path], out: Path) -> None:
    """Render the report.

    Args:
        report: as it is written to ``explain.json``.
        measured: of every frame, for the pictures.
        sheets: by block, contact sheets of its heads.
    """
    randomisation = report["randomisation"]
    page = page_template(Path(__file__).with_name("explain.html")).render(
        report=report,
        tiles=_tiles(report),
        advice=advice(report),
        ours=("saliency", "attention"),
        stages=list(randomisation[OURS]) if randomisation else [],
        most_correlation=MOST_CORRELATION,
        pictures=_pictures(measured),
        sheets={block: _data_uri(path.read_bytes(), "png") for block, path in sheets.items()},
        head_lines=head_lines(report["heads"]),
        replacement_lines=_replacement_lines(report["replacement"]),
        number=_number,
    )
    out.write_text(page, encoding="utf-8")


def _tiles(report: dict[str, Any]) -> list[_Tile]:
    times = report["times_random"]
    tiles = [
        _Tile(
            "Evidence on the defect, times random",
            f"{times['value']:.1f}×",
            f"{times['low']:.1f} – {times['high']:.1f}; at least 3 is promised",
        )
    ]
    for name, metric in METRICS.items():
        if metric.required:
            standing = report["comparison"][name][OURS]
            figure = standing["figure"]
            tiles.append(
                _Tile(f"{metric.title}: {standing['verdict']}", _number(figure["value"]), "best or tied is promised")
            )
    checks = report["checks"].values()
    passed, failed = (sum(check["status"] == status for check in checks) for status in ("passed", "failed"))
    tiles.append(_Tile("Classes whose saliency passed", str(passed), f"{failed} failed, others were not measured"))
    return tiles


def advice(report: dict[str, Any]) -> list[str]:
    """What a reader should make of it, in words."""
    lines = [
        "Overlays show contributions: what every place adds to the class's logit. With the class's bias the whole map "
        "is the logit, exactly: the explanation is the computation."
    ]
    worse = [
        metric.title.lower()
        for name, metric in METRICS.items()
        if metric.required and report["comparison"][name]["attention"]["verdict"] == "worse"
    ]
    found = report["randomisation"].get("attention", {})
    stays = found and list(found.values())[-1]["value"] > MOST_CORRELATION
    if worse or stays:
        why = [*([f"it is surely worse on {', '.join(worse)}"] if worse else [])]
        why += ["it hardly changes when the weights are random"] if stays else []
        lines.append(f"Raw attention is misleading here: {' and '.join(why)}. Do not decide by it.")
    else:
        lines.append(
            "Raw attention did no worse on these frames. It still says only where a class looks, and not whether what "
            "it finds there speaks for the class or against it; for that, take the contributions."
        )
    failed = [name for name, check in report["checks"].items() if check["status"] == "failed"]
    if failed:
        lines.append(f"The saliency of {', '.join(failed)} failed its check and is drawn in grey: do not go by it.")
    return lines


def head_lines(heads: list[dict[str, Any]] | None) -> list[str]:
    """Which heads the model would not miss, in words."""
    if heads is None:
        return ["No head was silenced; see the notes."]
    if not heads:
        return ["The model has no attention, and so no heads."]
    spare = [f"{head['block']} head {head['head']}" for head in heads if not head["is_missed"]]
    lines = [
        f"Each of {len(heads)} heads was silenced in turn on the validation part. A head is spare if losing it costs, "
        f"with 95 % confidence, at most {100 * MOST_LOSS:.0f} points of accuracy and of image AUROC.",
        f"Spare, one at a time: {', '.join(spare)}." if spare else "None is spare.",
    ]
    worst = max(heads, key=lambda head: head["accuracy_loss"]["value"])
    loss = worst["accuracy_loss"]
    lines.append(
        f"Missed most: {worst['block']} head {worst['head']}, {100 * loss['value']:.1f} points of accuracy "
        f"({100 * loss['low']:.1f} to {100 * loss['high']:.1f})."
    )
    return lines


def _replacement_lines(figures: dict[str, Any]) -> list[str]:
    lines = [
        f"Replacing patches, checked: the mean class score is {figures['class_score_whole']:.3f} on the frames as they "
        f"are and {figures['class_score_all_replaced']:.3f} when every patch is replaced."
    ]
    if "good_score_patched" in figures:
        lines.append(
            f"Good parts keep a mean good score of {figures['good_score_patched']:.3f} with "
            f"{figures['patched_share']:.0%} of their patches replaced at random ({figures['good_score_whole']:.3f} as "
            "they are): near that, the seams of what is replaced are not taken for defects."
        )
    return lines


def _pictures(measured: Sequence[Measured]) -> list[_Row]:
    rows: list[_Row] = []
    for one in measured:
        label = one.subject.sample.label
        if sum(row.label == label for row in rows) < _EACH:
            rows.append(_row(one))
    return sorted(rows, key=lambda row: row.label)


def _row(one: Measured) -> _Row:
    subject = one.subject
    cells = [_cell(title, picture) for title, picture in _pictures_of(one).items()]
    score = float(softmax(one.logits)[subject.target])
    return _Row(subject.sample.label, subject.sample.path.name, score, cells)


def _pictures_of(one: Measured) -> dict[str, Canvas]:
    """By title: what replaces patches, the frame, and the frame under every map, all with the mask's outline."""
    subject = one.subject
    height, width = subject.frame.shape[:2]
    scale = _PICTURE_PX / max(height, width)
    size = (round(width * scale), round(height * scale))
    small = np.asarray(cv2.resize(subject.frame, size, interpolation=cv2.INTER_AREA), np.uint8)
    mask = (cv2.resize(subject.mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)
    outline, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    replaced = np.asarray(cv2.resize(subject.reference, size, interpolation=cv2.INTER_AREA), np.uint8)
    pictures = {"Replaced by": replaced, "Frame": _outlined(small, outline)}
    for name, values in one.maps.items():
        pictures[METHODS[name].title] = _outlined(blend(small, _share(values, size), _STRENGTH), outline)
    return pictures


def strip(measured: Sequence[Measured]) -> Canvas:
    """The pictures of some frames as one, a row a frame; uint8 ``[H, W, 3]`` RGB."""
    rows = [_pictures_of(one) for one in measured]
    height, width = rows[0]["Frame"].shape[:2]
    step = (height + _GAP_PX, width + _GAP_PX)
    canvas: Canvas = np.empty((_TITLE_PX + len(rows) * step[0], len(rows[0]) * step[1] + _GAP_PX, 3), np.uint8)
    canvas[:] = BACKGROUND
    for row, pictures in enumerate(rows):
        for column, (title, picture) in enumerate(pictures.items()):
            left, top = _GAP_PX + column * step[1], _TITLE_PX + row * step[0]
            canvas[top : top + height, left : left + width] = picture
            if row == 0:
                text, size = fitting(title, 0.45, width)
                put_text(canvas, text, left, 8, size, INK)
    return canvas


def _share(values: FloatArray, size: tuple[int, int]) -> FloatArray:
    shown = evidence(resize_map(values, size[1], size[0]))
    return np.asarray(shown / max(float(shown.max()), 1e-12), np.float32).clip(0, 1)


def _outlined(picture: Canvas, outline: Sequence[Any]) -> Canvas:
    drawn = picture.copy()
    cv2.drawContours(drawn, outline, -1, CONTOUR, 1)
    return drawn


def _cell(title: str, picture: Canvas) -> _Cell:
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
    return _Cell(title, _data_uri(data, "jpeg"))


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"

"""The picture an inspector decides by: the frame as it is, beside (or above) the same frame under a map.

The frame is never coloured where it is shown as it is: contours run around a region, labels stand outside every region.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.bundle import Manifest
from vision.drawing import (
    BACKGROUND,
    CONTOUR,
    INK,
    SOFT_INK,
    Canvas,
    blend,
    fitting,
    nearest_free,
    printable,
    put_text,
    put_text_with_halo,
    put_verdict,
    text_size,
)
from vision.errors import SettingsError, UnknownClassError
from vision.explanations import evidence
from vision.postprocess import resize_map
from vision.scales import Scale, anomaly_scale, evidence_scale
from vision.types import FloatArray, Frame, Inspection

# Long side of a pane in pixels: small frames are enlarged until text beside them is readable, large ones reduced.
_SMALLEST_PANE, _LARGEST_PANE = 480, 900
_SMALLEST_SHORT_SIDE = 160
# From this width : height on, the panes stand one below the other.
_STACKED_FROM = 2.0
_COLUMN = 340  # at least, so that a legend has room for its numbers
_MARGIN, _HEADER, _NOTE, _FOOTER = 14, 78, 34, 96
_LABELS = 8  # more would cover the part


def render_overlay(
    frame: Frame,
    inspection: Inspection,
    manifest: Manifest,
    *,
    class_name: str | None = None,
    full_colour: float | None = None,
) -> NDArray[np.uint8]:
    """Draw one inspected frame.

    Args:
        frame: as it was inspected.
        inspection: of this very frame.
        manifest: the bundle's classes, calibration scores, operating point and explanations; they fix the colours, so
            that any two frames of the model can be compared.
        class_name: show the evidence for this class (its positive contributions to the logit) instead of the anomaly
            map. A model without an anomaly map shows that of the predicted class anyway. Evidence of a class that
            failed its check is drawn in grey.
        full_colour: the map's value from which colours are full; None takes the bundle's.

    Returns:
        uint8 ``[H, W, 3]`` RGB; a pane's long side is 480 to 900 px, whatever the frame's size.

    Raises:
        UnknownClassError: the model has no class of this name.
        SettingsError: the inspection is of a frame of another size, or ``full_colour`` is no number above 0.
    """
    if full_colour is not None and not (math.isfinite(full_colour) and full_colour > 0):
        raise SettingsError(f"the value of full colour must be a finite number above 0; got {full_colour}")
    if class_name is not None and class_name not in manifest.classes:
        raise UnknownClassError(f"no class {class_name!r} to show; choose one of {', '.join(manifest.classes)}")
    if frame.shape[:2] != (inspection.frame_height, inspection.frame_width):
        raise SettingsError(
            f"the inspection is of a {inspection.frame_width}x{inspection.frame_height} frame, "
            f"this one has {frame.shape[1]}x{frame.shape[0]} pixels; draw the frame that was inspected"
        )
    pane = _to_pane(frame)
    height, width = pane.shape[:2]
    values, scale = _map_and_scale(inspection, manifest, class_name, full_colour)
    heat = blend(pane, scale.share(resize_map(values, height, width)), grey=scale.muted)
    marked, note = _mark_regions(pane, heat, inspection)
    if scale.outline is not None:
        _outline(heat, scale.outline)

    stacked = width >= _STACKED_FROM * height
    column = max(width, _COLUMN)
    across, down = (1, 2) if stacked else (2, 1)
    size = (_HEADER + down * height + (down - 1) * _NOTE + _FOOTER, _MARGIN + across * (column + _MARGIN))
    canvas: Canvas = np.empty((*size, 3), np.uint8)
    canvas[:] = BACKGROUND
    _put_header(canvas, inspection, manifest)
    for index, picture in enumerate((marked, heat)):
        left = _MARGIN + (0 if stacked else index * (column + _MARGIN))
        top = _HEADER + (index * (height + _NOTE) if stacked else 0)
        inset = left + (column - width) // 2
        canvas[top : top + height, inset : inset + width] = picture
        if index == 0:
            text, letters = fitting(note, 0.45, column)
            put_text(canvas, text, left, top + height + 10, letters, SOFT_INK)
        else:
            _put_legend(canvas, scale, left, top + height + 8, column)
    return canvas


def _to_pane(frame: Frame) -> Canvas:
    """The frame at the size it is drawn in, grey or colour as it is, always three equal or true channels."""
    height, width = frame.shape[:2]
    long, short = max(height, width), min(height, width)
    wanted = max(1.0, _SMALLEST_PANE / long, _SMALLEST_SHORT_SIDE / short)
    factor = min(wanted, _LARGEST_PANE / long)
    if factor != 1.0:
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR).astype(
            np.uint8, copy=False
        )
    return np.repeat(frame[:, :, None], 3, axis=2) if frame.ndim == 2 else np.ascontiguousarray(frame)


def _map_and_scale(
    inspection: Inspection, manifest: Manifest, class_name: str | None, full_colour: float | None
) -> tuple[FloatArray, Scale]:
    pixel_threshold = manifest.operating_point.pixel_threshold
    if class_name is None and inspection.anomaly_map is not None and pixel_threshold is not None:
        return inspection.anomaly_map, anomaly_scale(inspection, manifest, pixel_threshold, full_colour)
    name = class_name or inspection.predicted
    if name not in manifest.classes:  # an unknown defect: of the classes, the likeliest
        name = manifest.classes[int(inspection.class_scores.argmax())]
    values = evidence(inspection.saliency_map[manifest.classes.index(name)])
    return values, evidence_scale(inspection, manifest, name, full_colour)


def _mark_regions(pane: Canvas, heat: Canvas, inspection: Inspection) -> tuple[Canvas, str]:
    """Contours on both panes, labels on a copy of the first; what to write below it."""
    height, width = pane.shape[:2]
    marked = pane.copy()
    covered = np.zeros((height, width), np.uint8)
    factors = (width / inspection.frame_width, height / inspection.frame_height)
    boxes = []
    for region in inspection.regions:
        left, top = int(region.box.x * factors[0]), int(region.box.y * factors[1])
        right = min(width, max(left + 1, math.ceil((region.box.x + region.box.width) * factors[0])))
        bottom = min(height, max(top + 1, math.ceil((region.box.y + region.box.height) * factors[1])))
        mask = region.mask.astype(np.uint8) * 255
        way = cv2.INTER_LINEAR if right - left > region.box.width else cv2.INTER_AREA
        mask = cv2.resize(mask, (right - left, bottom - top), interpolation=way).astype(np.uint8, copy=False)
        covered[top:bottom, left:right] |= (mask >= min(128, int(mask.max()))).astype(np.uint8)
        boxes.append((left, top, right, bottom))
    # Two pixels of distance: the line runs around the defect and not over its edge.
    around = cv2.dilate(covered, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))).astype(np.uint8, copy=False)
    contours, _ = cv2.findContours(around, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    for picture, colour in ((marked, CONTOUR), (heat, INK)):
        cv2.drawContours(picture, contours, -1, (0, 0, 0), 2, cv2.LINE_AA)
        cv2.drawContours(picture, contours, -1, colour, 1, cv2.LINE_AA)
    homeless = _put_labels(marked, around, boxes, inspection)
    marked[covered > 0] = pane[covered > 0]  # the line from a label may cross another region: the defect comes first
    count = len(inspection.regions)
    note = f"frame {inspection.frame_width} x {inspection.frame_height} px"
    if inspection.anomaly_map is not None:
        note += f", {count or 'no'} region{'s' if count != 1 else ''}"
    return marked, "; ".join([note, *homeless])


def _outline(heat: Canvas, cells: FloatArray) -> None:
    """A thin line around the cells that make the score; where they are many, it follows their outer edge."""
    height, width = heat.shape[:2]
    inside = cv2.resize((cells > 0).astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(inside.astype(np.uint8, copy=False), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(heat, contours, -1, CONTOUR, 1)


def _put_labels(
    picture: Canvas, around: NDArray[np.uint8], boxes: list[tuple[int, int, int, int]], inspection: Inspection
) -> list[str]:
    """Label the regions of the highest score at the nearest place that no region covers; the labels with no place."""
    taken = around.copy()
    homeless = []
    for region, (left, top, right, bottom) in list(zip(inspection.regions, boxes, strict=True))[:_LABELS]:
        text = f"{printable(region.label)} {region.score:.3g}"
        width, height = text_size(text, 0.42)
        place = nearest_free(taken, width + 6, height + 4, (left, top, right, bottom))
        if place is None:
            homeless.append(text)
            continue
        x, y = place
        taken[y : y + height + 4, x : x + width + 6] = 1
        near = (min(max(x + width // 2, left), right), min(max(y + height // 2, top), bottom))
        start = (min(max(near[0], x), x + width + 6), min(max(near[1], y), y + height + 4))
        if math.dist(start, near) > 24:  # too far to be understood without a line; it ends at the region's box
            cv2.line(picture, start, near, CONTOUR, 1, cv2.LINE_AA)
        put_text_with_halo(picture, text, x + 3, y + 2, 0.42, CONTOUR)
    return homeless


def _put_header(canvas: Canvas, inspection: Inspection, manifest: Manifest) -> None:
    room = canvas.shape[1] - 2 * _MARGIN
    colour = put_verdict(canvas, inspection.verdict, _MARGIN, 12, 30)
    x = put_text(canvas, inspection.verdict.name.replace("_", " "), _MARGIN + 42, 14, 0.9, colour, bold=True)
    text, size = fitting(_prediction_line(inspection, manifest), 0.65, room - x - 12)
    put_text(canvas, text, x + 22, 19, size, INK)
    text, size = fitting(_score_line(inspection, manifest), 0.48, room)
    put_text(canvas, text, _MARGIN, 55, size, SOFT_INK)


def _prediction_line(inspection: Inspection, manifest: Manifest) -> str:
    if inspection.is_unknown:
        return f"{printable(inspection.predicted)}: no class explains it"
    place = manifest.classes.index(inspection.predicted)
    sure = f"class score {float(inspection.class_scores[place]):.3f}"
    if inspection.class_probabilities is not None:
        sure = f"probability {float(inspection.class_probabilities[place]):.3f}"
    return f"predicted {printable(inspection.predicted)} ({sure})"


def _score_line(inspection: Inspection, manifest: Manifest) -> str:
    point = manifest.operating_point
    if inspection.anomaly_score is None or point.image_threshold is None:
        return (
            f"no anomaly score: this model never saw a good part; reject from class score {point.class_threshold:.3g}"
        )
    return (
        f"anomaly score {inspection.anomaly_score:.4g} (raw)    review from {point.review_threshold:.4g}    "
        f"reject from {point.image_threshold:.4g}"
    )


def _put_legend(canvas: Canvas, scale: Scale, left: int, top: int, width: int) -> None:
    """A bar of the colours as they look over a grey part, with numbers and what they measure."""
    shares = np.tile(np.linspace(0, 1, width, dtype=np.float32), (12, 1))
    part = np.full((12, width, 3), 96, np.uint8)
    canvas[top : top + 12, left : left + width] = blend(part, shares, grey=scale.muted)
    first = put_text(canvas, f"{scale.low:.3g}", left, top + 18, 0.42, INK) + 8
    text = f">= {scale.high:.3g}"
    last = left + width - text_size(text, 0.42)[0]
    put_text(canvas, text, last, top + 18, 0.42, INK)
    if scale.mark is not None:
        x = left + round(scale.position(scale.mark) * (width - 1))
        cv2.line(canvas, (x, top - 3), (x, top + 15), (0, 0, 0), 4)
        cv2.line(canvas, (x, top - 3), (x, top + 15), (255, 255, 255), 2)
        text = f"pixel threshold {scale.mark:.3g}"
        wide = text_size(text, 0.42)[0]
        put_text(canvas, text, max(first, min(x - wide // 2, last - 8 - wide)), top + 18, 0.42, INK)
    for row, line in enumerate((scale.title, *scale.notes)):
        text, size = fitting(line, 0.42, width)
        put_text(canvas, text, left, top + 36 + 17 * row, size, SOFT_INK)

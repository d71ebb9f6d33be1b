"""From the model's outputs to what is said about a frame; the one path for evaluation and serving."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.decision import UNKNOWN, calibrated_score
from vision.judgement import Judgement, judge_scores
from vision.manifest import Manifest
from vision.types import Box, DefectRegion, FloatArray, Inspection, ModelOutputs, Verdict

ANOMALY = "anomaly"
"""The label of a defect whose class is not known."""

# Regions of larger frames are found on a map of so many pixels a cell of the model's grid, each way, and scaled. Finer
# ones show nothing but the interpolation, and of a large defect cost more than the model: 50 ms at 1280x1024.
_REGION_PIXELS = 8
_MAX_REGIONS = 100


def resize_map(values: FloatArray, height: int, width: int) -> FloatArray:
    """A map ``[h, w]`` stretched bilinearly to frame pixels ``[height, width]``; the inverse of the input's stretch."""
    return cv2.resize(values.astype(np.float32, copy=False), (width, height), interpolation=cv2.INTER_LINEAR).astype(
        np.float32, copy=False
    )


def has_regions(outputs: ModelOutputs, manifest: Manifest) -> bool:
    """Whether ``judge`` would search for regions: some value of the one frame's map reaches the pixel threshold."""
    point = manifest.operating_point
    if outputs.anomaly_map is None or point.pixel_threshold is None:
        return False
    return _reaches(outputs.anomaly_map, min((point.pixel_threshold, *point.class_pixel_thresholds.values())))


def _reaches(anomaly_map: FloatArray, thresholds: float | FloatArray) -> bool:
    """Stretching bilinearly makes no value larger: looking here spares good parts the work on frame pixels."""
    return bool((anomaly_map >= thresholds).any())


def cell_thresholds(
    anomaly_map: FloatArray, class_map: FloatArray | None, manifest: Manifest, *, passed: bool
) -> float | FloatArray | None:
    """From what value on a cell of the map is part of a defect: one value, or each cell's own ``[h, w]`` where the
    class that ``class_map`` ``[D, h, w]`` favours there has one. None of a model that has no map.

    A part that is not passed shall always show where: if no cell reaches its class's threshold, the usual one counts.
    """
    point = manifest.operating_point
    if point.pixel_threshold is None or class_map is None or not point.class_pixel_thresholds:
        return point.pixel_threshold
    usual = point.pixel_threshold
    own = [point.class_pixel_thresholds.get(name, usual) for name in manifest.defect_classes]
    thresholds = np.array(own, np.float32)[class_map.argmax(axis=0)]
    return thresholds if passed or _reaches(anomaly_map, thresholds) else usual


def reached(values: FloatArray, thresholds: float | FloatArray) -> NDArray[np.bool_]:
    """Where a map that is stretched already reaches ``thresholds`` (as of ``cell_thresholds``)."""
    if isinstance(thresholds, np.ndarray):
        thresholds = resize_map(thresholds, *values.shape)
    return np.asarray(values >= thresholds)


def judge(
    outputs: ModelOutputs, manifest: Manifest, frame_height: int, frame_width: int, *, regions: bool = True
) -> Inspection:
    """Judge one frame.

    Args:
        outputs: of exactly one frame (``ModelOutputs.row``).
        manifest: the bundle's classes, calibration scores and operating point.
        frame_height, frame_width: of the frame as it came in, in pixels.
        regions: find the defect regions too; the verdict does not depend on them.
    """
    score = None if outputs.anomaly_score is None else float(outputs.anomaly_score[0])
    judged = judge_scores(outputs.class_logits[0], score, manifest)
    anomaly_map = None if outputs.anomaly_map is None else outputs.anomaly_map[0]
    class_map = None if outputs.class_map is None else outputs.class_map[0]
    found: tuple[DefectRegion, ...] = ()
    if regions and anomaly_map is not None:
        named = None if judged.is_unknown else class_map
        thresholds = cell_thresholds(anomaly_map, named, manifest, passed=judged.verdict is Verdict.PASS)
        if thresholds is not None:
            found = find_regions(
                anomaly_map,
                thresholds,
                frame_height,
                frame_width,
                class_map=named,
                defect_classes=manifest.defect_classes,
                default_label=_default_label(judged, manifest),
            )
    return Inspection(
        verdict=judged.verdict,
        reason=judged.reason,
        predicted=judged.predicted,
        class_scores=judged.class_scores,
        class_logits=outputs.class_logits[0],
        anomaly_score=score,
        calibrated_anomaly_score=None if score is None else calibrated_score(score, manifest.calibration_array),
        regions=found,
        anomaly_map=anomaly_map,
        saliency_map=outputs.saliency_map[0],
        attention_map=outputs.attention_map[0],
        class_map=class_map,
        frame_height=frame_height,
        frame_width=frame_width,
        class_probabilities=judged.probabilities,
        class_hits=judged.class_hits,
        is_unknown=judged.is_unknown,
    )


def _default_label(judged: Judgement, manifest: Manifest) -> str:
    """Of regions that no class map names."""
    if judged.is_unknown:
        return UNKNOWN
    return judged.best_defect if judged.predicted != manifest.good_class else ANOMALY


def find_regions(
    anomaly_map: FloatArray,
    thresholds: float | FloatArray,
    frame_height: int,
    frame_width: int,
    *,
    class_map: FloatArray | None = None,
    defect_classes: Sequence[str] = (),
    default_label: str = ANOMALY,
) -> tuple[DefectRegion, ...]:
    """Connected areas (8-neighbourhood) of the map at or above ``thresholds``, highest score first, at most 100.

    A region takes the class that ``class_map`` ``[D, h, w]`` favours inside it, else ``default_label``.
    """
    if not _reaches(anomaly_map, thresholds):
        return ()
    rows, columns = anomaly_map.shape
    height, width = min(frame_height, _REGION_PIXELS * rows), min(frame_width, _REGION_PIXELS * columns)
    values = resize_map(anomaly_map, height, width)
    hits = reached(values, thresholds).astype(np.uint8)
    if not hits.any():
        return ()  # a frame smaller than the map's grid can lose a hit; OpenCV crashes on a picture without pixels
    x, y, across, down = cv2.boundingRect(hits)
    # Labelling costs by the pixel: of a large frame with a small defect, only the surroundings of the hits.
    around = hits[y : y + down, x : x + across]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(around, connectivity=8)
    found = []
    for index in range(1, count):
        left, top, across, down = (int(value) for value in stats[index, :4])
        inside = labels[top : top + down, left : left + across] == index
        window = np.s_[y + top : y + top + down, x + left : x + left + across]
        found.append((float(values[window][inside].max()), window, inside))
    found.sort(key=lambda item: -item[0])
    favoured = None if class_map is None else partial(_favoured, class_map, (height, width), defect_classes)
    return tuple(
        _region(
            score,
            window,
            inside,
            (frame_height / height, frame_width / width),
            (frame_height, frame_width),
            default_label if favoured is None else favoured(window, inside),
        )
        for score, window, inside in found[:_MAX_REGIONS]
    )


def _favoured(
    class_map: FloatArray,
    size: tuple[int, int],
    defect_classes: Sequence[str],
    window: tuple[slice, slice],
    inside: NDArray[np.bool_],
) -> str:
    """The class whose plane, stretched to ``size``, is largest on average inside the region.

    Stretching is linear, so that the region can be brought to the planes instead: of a large frame, stretching every
    plane would cost as much as the model.
    """
    down, across = (
        resize_map(np.eye(cells, dtype=np.float32), pixels, cells)[part]  # [pixels, cells]: what a cell adds to a pixel
        for cells, pixels, part in zip(class_map.shape[1:], size, window, strict=True)
    )
    weights = down.T @ (inside.astype(np.float32) @ across)
    return defect_classes[int(np.argmax((class_map * weights).sum(axis=(1, 2))))]


def _region(
    score: float,
    window: tuple[slice, slice],
    inside: NDArray[np.bool_],
    factors: tuple[float, float],
    frame_size: tuple[int, int],
    label: str,
) -> DefectRegion:
    top, left = int(window[0].start * factors[0]), int(window[1].start * factors[1])
    bottom = min(frame_size[0], max(top + 1, round(window[0].stop * factors[0])))
    right = min(frame_size[1], max(left + 1, round(window[1].stop * factors[1])))
    mask = inside
    if factors != (1.0, 1.0):
        shape = (right - left, bottom - top)
        mask = cv2.resize(inside.astype(np.uint8), shape, interpolation=cv2.INTER_NEAREST).astype(bool)
    return DefectRegion(label, score, Box(left, top, right - left, bottom - top), mask, int(mask.sum()))

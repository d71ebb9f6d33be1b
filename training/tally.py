"""Pixel metrics of an evaluation: which images count, at which size, and against which mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data import Sample, read_mask
from training.metrics import NAN, bootstrap_draws, miou, percentile_interval
from training.pixel_metrics import PixelCounter, PixelFigures, score_bins
from vision.bundle import Manifest
from vision.console import track
from vision.postprocess import cell_thresholds, reached, resize_map
from vision.types import FloatArray, Inspection, Verdict

MAX_SIDE_PX = 1024
"""Larger frames are measured at this long side: a 20-megapixel map holds no more than the model's grid anyway."""


@dataclass(frozen=True, slots=True)
class _Kept:
    sample: Sample
    anomaly_map: FloatArray
    height: int
    width: int


class PixelTally:
    """Takes inspections as they come; the figures are made at the end, once the range of the scores is known.

    Counted are defect images with a mask and good images, whose pixels are all good. Defects without a mask and
    ambiguous images are left out.
    """

    def __init__(self, samples: Sequence[Sample], manifest: Manifest) -> None:
        self._manifest = manifest
        self._wanted = any(sample.mask is not None and sample.is_defect for sample in samples)
        self._kept: list[_Kept] = []
        self._confusions: list[NDArray[np.int64]] = []
        self._shrunk = 0
        self._notes: list[str] = []
        if not self._wanted:
            self._notes.append("There are no pixel metrics: no image of a defect has a mask.")
        elif manifest.operating_point.pixel_threshold is None:
            self._notes.append(
                "There are no pixel metrics: the model has no anomaly map, for it saw neither a good part nor a mask."
            )

    def add(self, sample: Sample, inspection: Inspection) -> None:
        """Keep what the metrics need of one image."""
        counts = sample.mask is not None if sample.is_defect else not sample.is_ambiguous
        if not self._wanted or not counts or inspection.anomaly_map is None:
            return
        if not np.isfinite(inspection.anomaly_map).all():
            self._notes.append(f"{sample.path.name} is left out of the pixel metrics: its map holds infinite values.")
            return
        height, width = inspection.frame_height, inspection.frame_width
        scale = min(1.0, MAX_SIDE_PX / max(height, width))
        self._shrunk += scale < 1.0
        kept = _Kept(sample, inspection.anomaly_map, max(1, round(height * scale)), max(1, round(width * scale)))
        self._kept.append(kept)
        if inspection.class_map is not None and (not sample.is_defect or sample.label in self._manifest.defect_classes):
            self._confusions.append(self._confusion(kept, inspection, inspection.class_map))

    def figures(self, seed: int) -> PixelFigures | None:
        """AUROC, AP and AUPRO with intervals, or None where there is nothing to measure."""
        if not self._kept:
            return None
        pixels = sum(kept.height * kept.width for kept in self._kept)
        counter = PixelCounter(score_bins((kept.anomaly_map for kept in self._kept), pixels))
        for kept in track(self._kept, "Pixel metrics"):
            counter.add(resize_map(kept.anomaly_map, kept.height, kept.width), _mask(kept))
        return counter.figures(seed)

    def miou(self, seed: int) -> tuple[float, tuple[float, float]]:
        """Mean IoU over defect classes and background, with its interval; NaN where there is no class map."""
        if not self._confusions:
            return NAN, (NAN, NAN)
        each = np.stack(self._confusions)
        draws = bootstrap_draws(len(each), seed, 1000)
        drawn = np.tensordot(draws, each, axes=1)
        return miou(each.sum(axis=0)), percentile_interval(np.asarray([miou(counts) for counts in drawn]))

    @property
    def notes(self) -> list[str]:
        shrunk = f"{self._shrunk} frames have a side above {MAX_SIDE_PX} px; their pixels are measured at that side."
        return [*self._notes, *([shrunk] if self._shrunk else [])]

    def _confusion(self, kept: _Kept, inspection: Inspection, class_map: FloatArray) -> NDArray[np.int64]:
        """``[truth, predicted]`` of one image; 0 is background, then the defect classes in the bundle's order."""
        defects = self._manifest.defect_classes
        named, passed = None if inspection.is_unknown else class_map, inspection.verdict is Verdict.PASS
        thresholds = cell_thresholds(kept.anomaly_map, named, self._manifest, passed=passed)
        values = resize_map(kept.anomaly_map, kept.height, kept.width)
        hits = reached(values, math.inf if thresholds is None else thresholds)
        planes = np.stack([resize_map(plane, kept.height, kept.width) for plane in class_map])
        predicted = np.where(hits, planes.argmax(axis=0) + 1, 0)
        mask = _mask(kept)
        truth = np.zeros_like(predicted)
        if mask is not None:
            truth[mask] = defects.index(kept.sample.label) + 1
        size = len(defects) + 1
        return np.bincount((truth * size + predicted).ravel(), minlength=size * size).reshape(size, size)


def _mask(kept: _Kept) -> NDArray[np.bool_] | None:
    """The mask at the size of measurement: a pixel is defective if anything in it is, so that no defect disappears."""
    if kept.sample.mask is None or not kept.sample.is_defect:
        return None
    mask = read_mask(kept.sample.mask)
    if mask.shape == (kept.height, kept.width):
        return mask
    area = cv2.resize(mask.astype(np.float32), (kept.width, kept.height), interpolation=cv2.INTER_AREA)
    return np.asarray(area > 0)

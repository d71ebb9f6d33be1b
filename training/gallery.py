"""The worst mistakes of an evaluation, kept while the inspections stream by: only a few frames are ever held."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import NamedTuple

from training.data import Sample
from vision.types import Inspection

_EACH = 6


class Shown(NamedTuple):
    """One image of the gallery; ``badness`` orders it, ``number`` breaks ties by who came first."""

    badness: float
    number: int
    sample: Sample
    truth: str
    inspection: Inspection


@dataclass
class Gallery:
    """Good images with the highest scores, defects with the lowest, and labels that are most surely wrong."""

    _good: list[Shown] = field(default_factory=list)
    _defects: list[Shown] = field(default_factory=list)
    _wrong: list[Shown] = field(default_factory=list)
    _seen: int = 0

    def add(self, sample: Sample, truth: str, inspection: Inspection) -> None:
        """Look at one image, and keep it if it is among the worst so far."""
        self._seen += 1
        score = inspection.anomaly_score
        if score is not None and math.isfinite(score) and not sample.is_ambiguous:
            if sample.is_defect:
                self._keep(self._defects, -score, sample, truth, inspection)
            else:
                self._keep(self._good, score, sample, truth, inspection)
        if truth != inspection.predicted:
            self._keep(self._wrong, float(inspection.class_scores.max()), sample, truth, inspection)

    def groups(self) -> dict[str, list[Shown]]:
        """Heading to images, the worst first; a wrong label that is shown already is not shown twice."""
        good, defects, wrong = (sorted(heap, reverse=True) for heap in (self._good, self._defects, self._wrong))
        before = {shown.number for shown in (*good, *defects)}
        groups = {
            "Good parts with the highest anomaly scores": good,
            "Defects with the lowest anomaly scores": defects,
            "Other wrong labels": [shown for shown in wrong if shown.number not in before],
        }
        return {heading: shown[:_EACH] for heading, shown in groups.items() if shown}

    def _keep(self, heap: list[Shown], badness: float, sample: Sample, truth: str, inspection: Inspection) -> None:
        shown = Shown(badness, -self._seen, sample, truth, inspection)
        # Three times as many as are shown: of the wrong labels, those in the other groups drop out.
        if len(heap) < 3 * _EACH:
            heapq.heappush(heap, shown)
        else:
            heapq.heappushpop(heap, shown)

"""A candidate on trial: it sees a share of the frames that its predecessor answers, and is never heard."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from serving.logs import Event
from serving.messages import FrameRequest, Outputs
from serving.served import Served
from vision.errors import DefectLensError, SettingsError
from vision.types import Inspection, Verdict

_KEPT = 1000
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one version says of a frame."""

    verdict: Verdict
    predicted: str
    anomaly_score: float | None

    @classmethod
    def of(cls, inspection: Inspection) -> Opinion:
        return cls(inspection.verdict, inspection.predicted, inspection.anomaly_score)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A frame about which two versions disagree: another verdict or another predicted class."""

    request_id: str
    camera_id: str
    part_id: str
    lot: str
    serving: Opinion
    candidate: Opinion


class Shadow:
    """Counts and keeps what a candidate says differently. seen = compared + failed + in flight; skipped frames were due
    but met a busy candidate: it must never slow the serving version down, so one frame at a time is on trial.

    Args:
        share: 0 < share <= 1, of the frames. Every 1/share-th frame is due, so a short trial sees its share too.
    """

    def __init__(self, candidate: Served, share: float) -> None:
        if not 0.0 < share <= 1.0:
            raise SettingsError(f"the share of frames that a candidate sees must be above 0 and at most 1; got {share}")
        self.candidate = candidate
        self.share = share
        self.seen = self.compared = self.failed = self.skipped = self.disagreements = 0
        self.largest_score_difference = 0.0
        self.kept: deque[Disagreement] = deque(maxlen=_KEPT)
        self._due = 0.0
        self._trial: asyncio.Task[None] | None = None

    async def show(self, request: FrameRequest, request_id: str, inspection: Inspection) -> None:
        """Put an answered frame on trial, if it is due.

        Returns at once, unless the frame lies in a camera's memory: the answer, which comes next, hands that back, so
        the frame is copied first.
        """
        self._due += self.share
        if self._due < 1.0:
            return
        self._due -= 1.0
        if self._trial is not None and not self._trial.done():
            self.skipped += 1
            return
        self.seen += 1
        alone = replace(request, request_id=request_id, timeout_ms=0, outputs=Outputs())
        own = asyncio.Event()
        self._trial = asyncio.create_task(self._compare(alone, Opinion.of(inspection), own), name="shadow")
        if request.image is not None and isinstance(request.image.data, memoryview):
            await own.wait()

    async def settle(self) -> None:
        """Wait for the comparison in work; it still counts."""
        if self._trial is not None:
            await asyncio.wait({self._trial})

    async def _compare(self, request: FrameRequest, serving: Opinion, own: asyncio.Event) -> None:
        try:
            image = request.image
            if image is not None and isinstance(image.data, memoryview):
                request = replace(request, image=replace(image, data=await asyncio.to_thread(_copy, image.data)))
        finally:
            own.set()
        try:
            result = await self.candidate.pipeline.inspect(request, watched=False)
        except DefectLensError as error:
            self.failed += 1
            _log.warning(Event("shadow_failed", request_id=request.request_id, message=str(error)))
            return
        candidate = Opinion.of(result.inspection)
        self.compared += 1
        if serving.anomaly_score is not None and candidate.anomaly_score is not None:
            difference = abs(serving.anomaly_score - candidate.anomaly_score)
            self.largest_score_difference = max(self.largest_score_difference, difference)
        if (serving.verdict, serving.predicted) != (candidate.verdict, candidate.predicted):
            self.disagreements += 1
            self.kept.append(
                Disagreement(request.request_id, request.camera_id, request.part_id, request.lot, serving, candidate)
            )


def _copy(data: memoryview) -> memoryview:
    """By numpy, which lets other threads run meanwhile."""
    return memoryview(np.frombuffer(data, np.uint8).copy().data)

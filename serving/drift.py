"""The watch over cameras: one monitor for each camera of a served bundle, fed in the threads that frames go through."""

from __future__ import annotations

import logging
import threading
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from serving.accounting import LONGEST_NAME, MAX_CAMERAS
from serving.live import CameraDrift, DriftAlarm, ServerStatus
from serving.logs import Event
from serving.messages import ModelIdentity, WatchInfo
from vision.drift.monitor import Monitor
from vision.drift.reference import SIGNALS, Reference
from vision.drift.rules import Rules
from vision.drift.signals import Look
from vision.drift.states import Alarm, Drift, Report
from vision.types import ModelOutputs

_log = logging.getLogger(__name__)


class DriftWatch:
    """Of one bundle. Any thread may call it; frames of one camera wait for each other, those of others do not.

    The first ``MAX_CAMERAS`` cameras are watched, later ones and those with names of unusual length are not: names come
    from callers, and must not fill memory.

    Args:
        frames_per_alarm: the promise; see ``vision.drift.betting``.
        against_calibration: compare cameras with the reference, and not only with their own first frames.
        compares_embeddings: False below fp32, where rounding moves them from the reference's.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        reference: Reference,
        model: ModelIdentity,
        *,
        frames_per_alarm: int,
        against_calibration: bool,
        compares_embeddings: bool,
        clock: Callable[[], float],
    ) -> None:
        if not compares_embeddings:
            values = {name: column for name, column in reference.values.items() if name != "embedding"}
            reference = replace(reference, values=values, cloud=None)
        self.model = model
        self._rules = Rules(reference, frames_per_alarm, against_calibration=against_calibration)
        self._against_calibration = against_calibration
        self._clock = clock
        self._cameras: dict[str, tuple[Monitor, threading.Lock]] = {}
        self._lock = threading.Lock()

    @property
    def info(self) -> WatchInfo:
        """What is watched, and what an alarm means."""
        return WatchInfo(
            signals=tuple(signal.name for signal in self._rules.signals),
            reference_frames=self._rules.reference.frames,
            frames_per_false_alarm=self._rules.frames_per_alarm,
            against_calibration=self._against_calibration,
        )

    def look(self, pixels: NDArray[np.uint8]) -> Look:
        """Measure the model's input."""
        return self._rules.reference.eyes.look(pixels)

    def feed(self, camera: str, look: Look, outputs: ModelOutputs) -> Drift | None:
        """Take in a frame that the model has answered; the camera's state, None if it is not watched.

        Args:
            outputs: of this frame alone.
        """
        found = self._find(camera)
        if found is None:
            return None
        monitor, lock = found
        score = None if outputs.anomaly_score is None else float(outputs.anomaly_score[0])
        embedding = None if outputs.embedding is None else outputs.embedding[0]
        with lock:
            before = monitor.drift.state
            drift, begun = monitor.feed(look, anomaly_score=score, embedding=embedding, now=self._clock())
        for alarm in begun:
            words = {"signal": alarm.signal, "change": words_of(alarm), "since_frame": alarm.since_frame}
            _log.warning(Event("drift_alarm", camera=camera, state=drift.state.name, **words, model=self.model.name))
        if before.is_alarm and not drift.state.is_alarm:
            _log.info(Event("drift_over", camera=camera, model=self.model.name))
        return drift

    def forget(self, camera: str) -> bool:
        """Begin anew with a camera; whether there was anything to be forgotten."""
        with self._lock:
            known = self._cameras.pop(camera, None) is not None
        if known:
            _log.warning(Event("camera_forgotten", camera=camera, model=self.model.name))
        return known

    def reports(self) -> dict[str, CameraDrift]:
        """What is known of every camera."""
        with self._lock:
            cameras = dict(self._cameras)
        now, reports = self._clock(), {}
        for camera, (monitor, lock) in cameras.items():
            with lock:
                report = monitor.report()
            reports[camera] = _tell(report, self.model, now)
        return reports

    def _find(self, camera: str) -> tuple[Monitor, threading.Lock] | None:
        with self._lock:
            found = self._cameras.get(camera)
            if found is None and len(self._cameras) < MAX_CAMERAS and len(camera) <= LONGEST_NAME:
                # The same stream gives the same answers: coins depend on the camera's name alone.
                found = Monitor(self._rules, seed=zlib.crc32(camera.encode())), threading.Lock()
                self._cameras[camera] = found
            return found


def words_of(alarm: Alarm) -> str:
    """What has changed and how, for example ``less sharp``."""
    signal = SIGNALS[alarm.signal]
    return signal.higher if alarm.shift > 0 else signal.lower


def _tell(report: Report, model: ModelIdentity, now: float) -> CameraDrift:
    alarms = tuple(
        DriftAlarm(
            signal=alarm.signal,
            against_calibration=alarm.against_calibration,
            frame=alarm.frame,
            since_frame=alarm.since_frame,
            raised_s_ago=now - alarm.time,
            since_s_ago=now - alarm.since,
            shift=alarm.shift,
            log10_odds=alarm.evidence,
            words=words_of(alarm),
            advice=SIGNALS[alarm.signal].advice,
        )
        for alarm in report.alarms
    )
    return CameraDrift(model, report.drift, report.frames, alarms, report.levels, report.alarms_so_far)


def with_drift(status: ServerStatus, watches: Iterable[DriftWatch]) -> ServerStatus:
    """The live picture with what the watches say beside each camera's counts."""
    reports = [watch.reports() for watch in watches]
    cameras = tuple(
        replace(camera, drift=tuple(report[camera.camera_id] for report in reports if camera.camera_id in report))
        for camera in status.cameras
    )
    return replace(status, cameras=cameras)

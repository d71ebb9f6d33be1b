"""What ``defectlens inspect`` does: frames of a source through a server, one JSON line and perhaps one overlay each."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

import numpy as np

from serving.client import InspectionClient
from serving.messages import FrameRequest, InspectionReply, Outputs, StreamAnswer
from serving.sources import FileSource, SourceFrame, VideoSource
from vision.console import plain, say, track
from vision.errors import DefectLensError, SupersededError
from vision.lot_page import LotPage
from vision.types import Verdict

# More bad frames than this are in the file of answers, not on the screen.
_SHOWN_ERRORS = 10


@dataclass
class Tally:
    """What the frames of one run came to."""

    frames: int = 0
    by_verdict: Counter[str] = field(default_factory=Counter)
    errors: int = 0
    superseded: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0
    provider: str | None = None
    broken: DefectLensError | None = None

    def figures(self) -> dict[str, Any]:
        """Latencies are over the frames that got an answer of the model; None without any."""
        p50, p99 = np.percentile(self.latencies_ms, [50, 99]).tolist() if self.latencies_ms else (None, None)
        return {
            "frames": self.frames,
            "verdicts": sum(self.by_verdict.values()),
            "by_verdict": dict(self.by_verdict),
            "errors": self.errors,
            "superseded": self.superseded,
            "p50_ms": p50,
            "p99_ms": p99,
            "frames_per_second": self.frames / self.seconds if self.seconds else 0.0,
            "provider": self.provider,
        }


class Inspecting:
    """One run over one source.

    Args:
        answers: where the JSON lines go.
        overlays: folder for the overlays; None asks for none.
        overlay_class: whose evidence they show; empty: the anomaly map.
        page: where every overlay is shown too, open; only with ``overlays``.
        rate: frames per second at most; None sends as fast as answers come.
        in_flight: frames that are out at once.
        camera: name that the frames go under; empty for none.
    """

    def __init__(
        self,
        answers: IO[str],
        *,
        overlays: Path | None = None,
        overlay_class: str = "",
        page: LotPage | None = None,
        rate: float | None = None,
        in_flight: int = 4,
        camera: str = "",
    ) -> None:
        self.stop = threading.Event()
        self._answers = answers
        self._overlays = overlays
        self._overlay_class = overlay_class
        self._page = page
        self._rate = rate
        self._in_flight = in_flight
        self._camera = camera
        self._tally = Tally()
        self._out: dict[str, SourceFrame] = {}
        self._unreadable: SimpleQueue[SourceFrame] = SimpleQueue()
        self._written: set[str] = set()

    def run(self, client: InspectionClient, source: FileSource | VideoSource) -> Tally:
        """Inspect until the source ends, ``stop`` is set or the server is lost; every frame sent is in the tally."""
        start = time.monotonic()
        total = len(source) if isinstance(source, FileSource) else source.length
        # A live camera does not wait for a slow server: what it shows now counts, not what it showed.
        stream = client.inspect_stream(
            self._requests(source), in_flight=self._in_flight, newest_frame_wins=source.is_live
        )
        try:
            for answer in track(stream, "inspect", total=total, unit="frames"):
                self._note(answer)
                self._note_unreadable()
        except DefectLensError as error:
            self._tally.broken = error
        self._note_unreadable()
        self._tally.seconds = time.monotonic() - start
        return self._tally

    def _requests(self, source: FileSource | VideoSource) -> Iterator[FrameRequest]:
        outputs = Outputs(overlay=self._overlays is not None, overlay_class=self._overlay_class)
        due = time.monotonic()
        for index, frame in enumerate(source):
            if self._rate is not None:
                self.stop.wait(max(0.0, due - time.monotonic()))
                due = max(due + 1.0 / self._rate, time.monotonic())
            if self.stop.is_set():
                return
            if frame.image is None:
                self._unreadable.put(frame)
                continue
            request = FrameRequest(frame.image, f"{index:06d}/{frame.name}", self._camera, outputs=outputs)
            self._out[request.request_id] = SourceFrame(frame.name, frame.path)
            yield request

    def _note(self, answer: StreamAnswer) -> None:
        frame = self._out.pop(answer.request_id)
        if answer.reply is None:
            self._note_error(frame, answer.error or DefectLensError("no answer"), answer.latency_ms)
            return
        reply, tally = answer.reply, self._tally
        if tally.provider is None and reply.provider_fallback:
            say(f"warning: the server runs on {reply.provider}, which is not the provider it was started for")
        tally.frames += 1
        tally.provider = reply.provider
        tally.by_verdict[reply.inspection.verdict.name] += 1
        tally.latencies_ms.append(answer.latency_ms)
        self._write(describe_reply(frame, reply, self._save_overlay(frame, reply)))

    def _note_unreadable(self) -> None:
        while not self._unreadable.empty():
            frame = self._unreadable.get()
            self._note_error(frame, frame.error or DefectLensError("no image"), 0.0)

    def _note_error(self, frame: SourceFrame, error: DefectLensError, latency_ms: float) -> None:
        self._tally.frames += 1
        if isinstance(error, SupersededError):  # as asked for, and nobody's fault
            self._tally.superseded += 1
        else:
            self._tally.errors += 1
            if self._tally.errors <= _SHOWN_ERRORS:
                say(f"no verdict: {frame.path}: {error}")
            elif self._tally.errors == _SHOWN_ERRORS + 1:
                say("no verdict for more frames; see the answers")
        named = {"type": type(error).__name__, "message": str(error)}
        verdict = Verdict.NO_VERDICT.name
        line = {"path": frame.path, "verdict": verdict, "reason": str(error), "latency_ms": latency_ms, "error": named}
        self._write(line)

    def _write(self, line: dict[str, Any]) -> None:
        self._answers.write(json.dumps(plain(line), ensure_ascii=False) + "\n")
        self._answers.flush()

    def _save_overlay(self, frame: SourceFrame, reply: InspectionReply) -> Path | None:
        if self._overlays is None or reply.overlay_jpeg is None:
            return None
        name = Path(frame.name).with_suffix(".jpg").as_posix()
        if name in self._written:  # part.png beside part.bmp
            name = f"{frame.name}.jpg"
        self._written.add(name)
        path = self._overlays / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(reply.overlay_jpeg)
        if self._page is not None:
            found = reply.inspection
            self._page.add(frame.name, found.verdict, found.reason, found.anomaly_score, reply.overlay_jpeg)
        return path


def describe_reply(frame: SourceFrame, reply: InspectionReply, overlay: Path | None) -> dict[str, Any]:
    """One answer as it stands in the file of answers."""
    inspection = reply.inspection
    return {
        "path": frame.path,
        "verdict": inspection.verdict.name,
        "reason": inspection.reason,
        "predicted": inspection.predicted,
        "class_scores": dict(zip(reply.classes, inspection.class_scores.tolist(), strict=True)),
        "class_probabilities": None
        if inspection.class_probabilities is None
        else dict(zip(reply.classes, inspection.class_probabilities.tolist(), strict=True)),
        "class_hits": inspection.class_hits,
        "unknown_defect": inspection.is_unknown,
        "anomaly_score": inspection.anomaly_score,
        "calibrated_anomaly_score": inspection.calibrated_anomaly_score,
        "regions": [
            {"label": region.label, "score": region.score, "box": asdict(region.box), "area_px": region.area_px}
            for region in inspection.regions
        ],
        "frame_width": inspection.frame_width,
        "frame_height": inspection.frame_height,
        "timings": asdict(reply.timings),
        "latency_ms": reply.latency_ms,
        "batch_size": reply.batch_size,
        "model": asdict(reply.model),
        "provider": reply.provider,
        "provider_fallback": reply.provider_fallback,
        "precision": reply.precision,
        "drift": None if reply.drift is None else {**asdict(reply.drift), "state": reply.drift.state.name},
        "overlay": overlay,
        "error": None,
    }

"""What happened to every frame: one log line each, and counts that add up."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from serving.messages import FrameRequest
from serving.pipeline import FrameResult
from vision.errors import DefectLensError
from vision.types import Verdict

_log = logging.getLogger("serving.frames")


@dataclass(slots=True)
class FrameRecord:
    """What one frame came to; filled in by whoever answers it."""

    request_id: str
    request: FrameRequest | None = None
    result: FrameResult | None = None


@dataclass(slots=True)
class Telemetry:
    """Counts since the start. Always: received = judged + not judged + errors + in flight."""

    received: int = 0
    in_flight: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def judged(self) -> int:
        return sum(self.verdicts.values()) - self.not_judged

    @property
    def not_judged(self) -> int:
        """Frames that went through the model but got NO_VERDICT, such as a score that is no number."""
        return self.verdicts[Verdict.NO_VERDICT.name]

    @property
    def adds_up(self) -> bool:
        return self.received == self.judged + self.not_judged + sum(self.errors.values()) + self.in_flight

    @contextmanager
    def frame(self, request_id: str) -> Iterator[FrameRecord]:
        """Count one frame from its receipt to its answer, its error or the loss of its caller."""
        record = FrameRecord(request_id)
        self.received += 1
        self.in_flight += 1
        try:
            yield record
            self._answered(record)
        except (DefectLensError, asyncio.CancelledError) as error:
            name = "Cancelled" if isinstance(error, asyncio.CancelledError) else type(error).__name__
            self.errors[name] += 1
            _log.warning("event=error %s error=%s message=%r", _names(record), name, str(error))
            raise
        except BaseException as error:
            self.errors[type(error).__name__] += 1
            _log.exception("event=bug %s", _names(record))
            raise
        finally:
            self.in_flight -= 1

    def figures(self) -> dict[str, Any]:
        """The counts, for a JSON line."""
        return {
            "received": self.received,
            "judged": self.judged,
            "not_judged": self.not_judged,
            "errors": dict(self.errors),
            "in_flight": self.in_flight,
            "verdicts": dict(self.verdicts),
        }

    def summary(self) -> str:
        """One line for the log."""
        parts = [f"received={self.received}", f"judged={self.judged}", f"not_judged={self.not_judged}"]
        parts += [f"errors={sum(self.errors.values())}", f"in_flight={self.in_flight}"]
        parts += [f"{name}={count}" for name, count in sorted((self.verdicts + self.errors).items())]
        return " ".join(parts)

    def _answered(self, record: FrameRecord) -> None:
        if record.result is None:
            raise RuntimeError(f"frame {record.request_id} left without a result and without an error")
        result, timings = record.result, record.result.timings
        self.verdicts[result.inspection.verdict.name] += 1
        text = "event=answered %s verdict=%s batch_size=%d inference_ms=%.1f total_ms=%.1f"
        figures = (result.batch_size, timings.inference_ms, timings.total_ms)
        _log.debug(text, _names(record), result.inspection.verdict.name, *figures)


def _names(record: FrameRecord) -> str:
    text = f"request_id={record.request_id!r}"
    if record.request is not None:
        names = {"camera_id": record.request.camera_id, "part_id": record.request.part_id, "lot": record.request.lot}
        text += "".join(f" {key}={value!r}" for key, value in names.items() if value)
    return text

"""Accounts, durations and logs, without a network."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from serving.accounting import MAX_CAMERAS, OTHER, Accounts
from serving.live import ServerStatus
from serving.logs import Event, JsonFormatter
from serving.messages import ModelIdentity, Timings
from serving.recent import STAGE_BOUNDS_MS, STAGES, WINDOW_S, Durations, recent
from serving.telemetry import CANCELLED, Telemetry
from serving.wire_status import status_from_proto, status_to_proto
from tests.fakes import frame_result
from vision.errors import DeadlineError
from vision.types import Verdict


def times(**milliseconds: float) -> Timings:
    return frame_result(**milliseconds).timings


def test_accounts_add_up_whatever_becomes_of_a_frame() -> None:
    telemetry = Telemetry()
    for verdict in Verdict:
        with telemetry.frame("r", "cam") as record:
            record.result = frame_result(verdict)
    for error in (DeadlineError("late"), asyncio.CancelledError(), ZeroDivisionError()):
        with pytest.raises(type(error)), telemetry.frame("r", "other cam"):
            raise error
    with pytest.raises(RuntimeError, match="without a result"), telemetry.frame("r"):
        pass
    with telemetry.frame("r", "cam") as record:
        snapshot = telemetry.snapshot()
        record.result = frame_result()
    assert snapshot.problems == 0
    assert snapshot.cameras["cam"].in_flight == 1
    assert (snapshot.total.verdicts, snapshot.total.no_verdicts, snapshot.total.errors) == (4, 1, 4)
    assert snapshot.codes == {"DEADLINE_PASSED": 1, CANCELLED: 1, "INTERNAL": 2}
    assert telemetry.errors == {"DeadlineError": 1, "Cancelled": 1, "ZeroDivisionError": 1, "RuntimeError": 1}
    assert telemetry.problems == []


def test_a_frame_that_is_lost_or_answered_twice_is_found() -> None:
    accounts = Accounts()
    lost, twice = accounts.receive("a", 0.0), accounts.receive("b", 0.0)
    twice.failed()
    assert accounts.problems() == []
    twice.failed()
    assert accounts.problems() == ["b: 1 frames were answered twice"]
    lost.camera.in_flight -= 1
    assert "a: 1 of 1 frames are unaccounted for" in accounts.problems()


def test_a_caller_with_endless_names_fills_neither_memory_nor_metrics() -> None:
    accounts = Accounts()
    accounts.receive("x" * 5000, 0.0)
    for index in range(3 * MAX_CAMERAS):
        accounts.receive(f"camera{index}", 0.0)
    accounts.receive("camera0", 0.0)
    assert len(accounts.cameras) <= MAX_CAMERAS + 1
    assert accounts.cameras["camera0"].received == 2
    assert accounts.cameras[OTHER].received == 3 * MAX_CAMERAS + 2 - (len(accounts.cameras) - 1) - 1
    assert accounts.problems() == []


def test_quantiles_are_those_of_the_recent_frames_alone() -> None:
    durations = Durations()
    for _ in range(50):
        durations.add(1000.0, times(total_ms=9000.0), 8)  # long ago
    now = 1000.0 + 2 * WINDOW_S
    for value in range(1, 101):
        durations.add(now - 1.0, times(total_ms=float(value)), 2 if value <= 50 else 8)
    found = recent(durations.rows(), now, uptime_s=1e6)
    assert found is not None
    assert (found.frames, found.seconds) == (100, WINDOW_S)
    assert found.frames_per_second == pytest.approx(10.0)
    # 25 inferences of 2 frames and 6.25 of 8.
    assert found.mean_batch_size == pytest.approx(100 / 31.25)
    total = {stage.stage: stage for stage in found.stages}["total"]
    assert (total.p50_ms, total.max_ms) == (pytest.approx(50.5), 100.0)
    assert 99.0 <= total.p99_ms <= 100.0
    assert recent(durations.rows(), now + WINDOW_S, uptime_s=1e6) is None


def test_a_server_that_answers_more_than_it_remembers_looks_back_less_far() -> None:
    durations = Durations()
    for index in range(10_000):
        durations.add(100.0 + index / 1000.0, times(), 1)  # 1000 frames a second
    found = recent(durations.rows(), 110.0, uptime_s=60.0)
    assert found is not None
    assert found.frames < 10_000
    assert found.frames_per_second == pytest.approx(1000.0, rel=0.01)


def test_histograms_put_a_value_at_or_below_its_bound() -> None:
    durations = Durations()
    for value in (0.5, 0.6, 5000.0, 5001.0):
        durations.add(0.0, times(total_ms=value), 3)
    stages = dict(zip(STAGES, durations.histograms().stages, strict=True))
    counts = dict(zip((*STAGE_BOUNDS_MS, "more"), stages["total"].counts, strict=True))
    assert {bound: count for bound, count in counts.items() if count} == {0.5: 1, 1: 1, 5000: 1, "more": 1}
    assert stages["total"].total == pytest.approx(0.5 + 0.6 + 5000 + 5001)


def test_other_threads_never_see_half_a_frame() -> None:
    telemetry = Telemetry()
    seen: list[int] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.append(telemetry.snapshot().problems)
            time.sleep(0)

    thread = threading.Thread(target=look)
    thread.start()
    for index in range(2000):
        with telemetry.frame("r", f"cam{index % 300}") as record:  # new names while the other thread copies
            record.result = frame_result()
    done.set()
    thread.join()
    assert seen
    assert not any(seen)


def log_record(message: Any, **options: Any) -> logging.LogRecord:
    return logging.LogRecord(
        "serving.frames", logging.WARNING, __file__, 1, message, None, **{"exc_info": None, **options}
    )


def test_what_callers_say_cannot_fake_another_log_line_or_field() -> None:
    event = Event("error", request_id="r1 verdict=PASS", camera_id="a\nevent=answered", inference_ms=1.23456)
    text = str(event)
    assert "\n" not in text
    assert text == r"event=error request_id='r1 verdict=PASS' camera_id='a\nevent=answered' inference_ms=1.235"
    entry = JsonFormatter().format(log_record(event))
    assert "\n" not in entry
    assert json.loads(entry)["camera_id"] == "a\nevent=answered"
    assert json.loads(entry)["logger"] == "serving.frames"


def test_json_lines_hold_plain_messages_and_tracebacks_too() -> None:
    try:
        raise ZeroDivisionError
    except ZeroDivisionError as error:
        info = (type(error), error, error.__traceback__)
    entry = json.loads(JsonFormatter().format(log_record("it %s", exc_info=info)))
    assert (entry["message"], entry["level"]) == ("it %s", "WARNING")
    assert "ZeroDivisionError" in entry["traceback"]


def test_the_status_reads_back_as_it_was_sent() -> None:
    telemetry = Telemetry(queue_depth=lambda: 3)
    with telemetry.frame("r", "left") as record:
        record.result = frame_result(Verdict.REJECT, queue_ms=2.5)
    with pytest.raises(DeadlineError), telemetry.frame("r", "right"):
        raise DeadlineError("late")
    served: Any = SimpleNamespace(model=ModelIdentity("n", "1", "b", "m"), provider="P", provider_fallback=True)
    status = telemetry.status([served])
    assert status.queue_depth == 3
    assert status.served[0].provider_fallback
    assert status.total.by_verdict == {"REJECT": 1}
    assert status.resident_memory_bytes > 1e7
    read: ServerStatus = status_from_proto(status_to_proto(status))
    assert read == status

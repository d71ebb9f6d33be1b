"""What the doctor says of a server that is not well; ``test_drift`` and ``test_stations`` have the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from serving.doctor import describe, examine
from serving.live import CameraStatus, FrameCounts, ServedModel, ServerStatus, StationStatus
from serving.messages import Limits, ModelIdentity, ModelInfo, WatchInfo
from tests.serving.test_cli import run
from vision.decision import OperatingPoint

MODEL = ModelIdentity("tiles", "7", "abc" * 20, "def")
INFO = ModelInfo(
    model=MODEL,
    created="",
    classes=("good", "crack"),
    good_class="good",
    input_height=64,
    input_width=96,
    white_level=65535,
    operating_point=OperatingPoint(0.3, 0.2, 0.25),
    metrics_json="{}",
    parity_json="{}",
    provenance_json="{}",
    provider="CPUExecutionProvider",
    provider_fallback=False,
    precision="fp32",
    gate_json="{}",
    score_tolerance=1e-4,
    map_tolerance=1e-3,
    limits=Limits(1, 1, 1, 8, 64, 16, 0),
    fast_decode=False,
    drift=WatchInfo(("focus",), 200, 100_000, True),
)


def counts(received: int, **others: Any) -> FrameCounts:
    rest = {"verdicts": received, "no_verdicts": 0, "errors": 0, "in_flight": 0, "by_verdict": {}}
    return FrameCounts(received=received, **(rest | others))


STATUS = ServerStatus(
    uptime_s=3700.0,
    served=(ServedModel(MODEL, "CPUExecutionProvider", False),),
    total=counts(300),
    cameras=(CameraStatus("left", counts(100), 1.0), CameraStatus("right", counts(200), 1.0)),
    errors={},
    recent=None,
    queue_depth=0,
    resident_memory_bytes=1,
)


def alarms(status: ServerStatus, info: ModelInfo = INFO, *, ready: bool = True, now: float = 1000.0) -> list[str]:
    return [finding.words for finding in examine(status, [info], ready=ready, now=now) if finding.alarm]


def test_a_healthy_server_has_nothing_to_act_on() -> None:
    assert alarms(STATUS) == []
    text = describe(examine(STATUS, [INFO], ready=True, now=0.0), healthy=True)
    assert text[0] == "healthy"
    assert any("at most one false alarm in 100000 frames of a camera on average" in line for line in text)


def test_a_fallback_is_an_alarm() -> None:
    [words] = alarms(STATUS, replace(INFO, provider_fallback=True))
    assert "which is not what was asked for" in words


@pytest.mark.parametrize(
    "wrong",
    [
        replace(STATUS, total=counts(300, verdicts=299)),
        replace(STATUS, cameras=(CameraStatus("left", counts(100, errors=3), 1.0), STATUS.cameras[1])),
        replace(STATUS, cameras=STATUS.cameras[:1]),
    ],
    ids=["in total", "of a camera", "between them"],
)
def test_accounts_that_do_not_add_up_are_an_alarm(wrong: ServerStatus) -> None:
    assert len(alarms(wrong)) == 1


def test_a_few_missed_deadlines_are_told_and_many_are_an_alarm() -> None:
    total = counts(1000, verdicts=995, errors=5)
    cameras = (CameraStatus("left", total, 1.0),)
    few = replace(STATUS, total=total, cameras=cameras, errors={"DEADLINE_PASSED": 5})
    assert alarms(few) == []
    assert any("5 of 1000 (0.5%) missed their deadline" in one.words for one in examine(few, [INFO], ready=True, now=0))
    total = counts(1000, verdicts=900, errors=100)
    many = replace(few, total=total, cameras=(CameraStatus("left", total, 1.0),), errors={"DEADLINE_PASSED": 100})
    [words] = alarms(many)
    assert "100 of 1000 (10.0%) missed their deadline" in words


def test_one_error_inside_the_server_is_an_alarm() -> None:
    total = counts(100_000, verdicts=99_999, errors=1)
    status = replace(STATUS, total=total, cameras=(CameraStatus("left", total, 1.0),), errors={"INTERNAL": 1})
    assert len(alarms(status)) == 1


def test_a_full_queue_is_an_alarm() -> None:
    total = counts(360, verdicts=300, in_flight=60)
    [words] = alarms(replace(STATUS, total=total, cameras=(CameraStatus("left", total, 1.0),)))
    assert words == "60 frames are in work, 64 fit"


def test_a_server_that_does_not_serve_is_an_alarm() -> None:
    assert len(alarms(STATUS, ready=False)) == 1


def test_stations_are_told_and_only_stopped_or_overridden_ones_are_an_alarm() -> None:
    stations = (
        StationStatus("never", True, "not checked yet"),
        StationStatus("old", True, "all 3 master parts are as they should be", 0.0, passed=True),
        StationStatus("by hand", True, "overridden by K: r", 900.0, overridden_by="K"),
        StationStatus("stopped", False, "B-1: got PASS", 990.0),
    )
    status = replace(STATUS, stations=stations)
    found = examine(status, [INFO], ready=True, now=2 * 86400.0)
    told = {finding.subject: finding for finding in found if finding.subject.startswith("station")}
    assert [finding.subject for finding in found if finding.alarm] == ["station by hand", "station stopped"]
    assert "2 d 0 h ago" in told["station old"].words
    assert "start of each shift" in told["station old"].advice
    assert "never checked" in told["station never"].words


def test_names_of_cameras_do_not_steer_the_terminal() -> None:
    status = replace(STATUS, cameras=(CameraStatus("\x1b[2J", counts(300, no_verdicts=1, verdicts=299), 1.0),))
    assert "\x1b" not in "\n".join(describe(examine(status, [INFO], ready=True, now=0.0), healthy=True))


def test_a_server_that_is_not_there_is_one_message() -> None:
    result = run("doctor", "--server", "127.0.0.1:1")
    assert result.exit_code == 1
    assert "127.0.0.1:1" in result.stderr

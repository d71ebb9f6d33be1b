"""`defectlens top` and `serve --log-format json` against servers in other processes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from defectlens import main
from serving import InspectionClient
from serving.live import CameraStatus, FrameCounts, RecentFrames, ServedModel, ServerStatus, StageTimes
from serving.messages import ModelIdentity
from serving.top import line, picture
from tests.fakes import part
from tests.serving.test_cli import run, serving
from vision.errors import NotAnImageError


def top(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "defectlens", "top", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.slow
def test_once_as_json_shows_what_the_server_did(bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(bundle, log, "--log-format", "json", "--metrics", "127.0.0.1:0", "--verbose") as (address, _):
        with InspectionClient(address) as client:
            for spot in (128, 255, 255):
                client.inspect(part(spot=spot), camera_id="left", request_id=f"r{spot}", lot="L 7")
            with pytest.raises(NotAnImageError):
                client.inspect(b"text", camera_id="right")
            served = client.get_model()
        # Not in a process of its own: on a busy machine its start may take longer than the window of recent frames.
        done = run("top", "--server", address, "--once", "--json")
        assert done.exit_code == 0, done.stderr
        shown = top("--server", address, "--once")
    [text] = done.stdout.splitlines()
    status = json.loads(text)
    assert status["total"]["received"] == 4
    assert status["total"]["by_verdict"] == {"PASS": 1, "REJECT": 2}
    assert status["errors"] == {"NOT_AN_IMAGE": 1}
    cameras = {camera["camera_id"]: camera for camera in status["cameras"]}
    assert (cameras["left"]["counts"]["verdicts"], cameras["right"]["counts"]["errors"]) == (3, 1)
    assert status["recent"]["frames"] == 3
    assert [stage["stage"] for stage in status["recent"]["stages"]][-1] == "total"
    assert status["served"][0]["model"]["bundle_digest"] == served.model.bundle_digest
    assert status["served"][0]["provider"] == "CPUExecutionProvider"
    assert "received=4 verdicts=3 no_verdicts=0 errors=1 PASS=1 REJECT=2" in shown.stdout  # no terminal: one line
    entries = [json.loads(entry) for entry in log.read_text().splitlines()]
    answered = [entry for entry in entries if entry.get("event") == "answered"]
    assert [entry["request_id"] for entry in answered] == ["r128", "r255", "r255"]
    assert answered[0]["lot"] == "L 7"
    assert answered[0]["verdict"] == "PASS"
    assert [entry["error"] for entry in entries if entry.get("event") == "error"] == ["NotAnImageError"]
    assert entries[-1]["event"] == "stopped"
    assert entries[-1]["received"] == 4


def test_a_server_that_is_not_there_is_one_message() -> None:
    result = CliRunner().invoke(main, ["top", "--server", "127.0.0.1:1", "--once"])
    assert result.exit_code == 1
    assert "127.0.0.1:1" in result.stderr


def counts(received: int, **others: Any) -> FrameCounts:
    rest = {"verdicts": received, "no_verdicts": 0, "errors": 0, "in_flight": 0, "by_verdict": {"PASS": received}}
    return FrameCounts(received=received, **(rest | others))


STATUS = ServerStatus(
    uptime_s=3700.0,
    served=(ServedModel(ModelIdentity("tiles", "7", "abc" * 20, "def"), "CPUExecutionProvider", True),),
    total=counts(300, in_flight=2),
    cameras=(CameraStatus("left", counts(100), 1.0), CameraStatus("\x1b[2J[red]x", counts(200), 7200.0)),
    errors={"OVERLOADED": 9},
    recent=RecentFrames(10.0, 50, 3.5, (StageTimes("total", 12.25, 48.5, 60.0),)),
    queue_depth=5,
    resident_memory_bytes=300 * 1024 * 1024,
)


def rendered(status: ServerStatus, before: ServerStatus | None) -> str:
    out = io.StringIO()
    Console(width=160, file=out).print(picture("there:1", status, before))
    return out.getvalue()


def test_the_picture_shows_rates_between_two_looks() -> None:
    before = replace(
        STATUS, uptime_s=3690.0, total=counts(200), cameras=(CameraStatus("left", counts(80), 1.0), STATUS.cameras[1])
    )
    text = rendered(STATUS, before)
    assert "10.0 frames/s" in text
    [left] = [row for row in text.splitlines() if row.split()[:1] == ["left"]]
    assert left.split()[1:3] == ["100", "2.0"]
    for words in ("up 1 h 1 min", "FALLBACK", "tiles 7", "queue 5", "batch 3.5", "300 MiB", "48.5", "OVERLOADED 9"):
        assert words in text
    assert "2 h 0 min ago" in text
    assert "5.0 frames/s" in rendered(STATUS, None)  # the server's own window


def test_a_cameras_name_steers_no_terminal() -> None:
    text = rendered(STATUS, None)
    assert "\x1b" not in text
    assert "?[2J[red]x" in text


def test_a_server_with_hundreds_of_cameras_fits_a_screen() -> None:
    cameras = tuple(CameraStatus(f"c{index}", counts(1), float(index)) for index in range(200))
    text = rendered(replace(STATUS, cameras=cameras), None)
    assert len(text.splitlines()) < 50
    assert "and 170 that were silent for longer" in text


def test_a_line_says_the_same_in_words() -> None:
    assert line(STATUS, None) == (
        "frames_per_second=5.0 p50_ms=12.2 p99_ms=48.5 batch_size=3.5 queue=5 in_flight=2 received=300 verdicts=300 "
        "no_verdicts=0 errors=0 PASS=300"
    )

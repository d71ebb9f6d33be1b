"""Stations on real servers: a failed check stops one, its frames are refused, and only the token overrides that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from serving import EncodedImage, FrameRequest, InspectionClient
from serving.stations import Stations
from tests.fakes import make_bundle, part, textured
from tests.serving.conftest import png
from tests.serving.test_cli import lines, run, serving
from tests.serving.test_models_cli import admin_address
from vision.errors import NotAuthorizedError, SettingsError, StationStoppedError

TOKEN = "correct horse battery"  # noqa: S105, of a server that lives for a test


@pytest.fixture
def masters(tmp_path: Path) -> Path:
    """Two good parts and a defective one with a bright spot; their scores are known by hand."""
    folder = tmp_path / "masters"
    write(folder / "good/A-1.png", part(spot=130))
    write(folder / "good/A-2.png", part(spot=135))
    write(folder / "scratch/B-1.png", part(spot=255))
    return folder


def write(path: Path, frame: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(frame))


class Line:
    """What the tests need of a running server: addresses, a client, and the commands at its admin port."""

    def __init__(self, address: str, log: Path, masters: Path, token: Path) -> None:
        self.address, self.admin, self.masters, self.token = address, admin_address(log), masters, token
        self.client = InspectionClient(address)

    def check(self, *options: str) -> Any:
        return run("masters", "--admin", self.admin, "--station", "press", "--masters", str(self.masters), *options)

    def override(self, token: Path, *options: str) -> Any:
        return run("override", "--admin", self.admin, "--station", "press", "--token-file", str(token), *options)

    def health(self) -> int:
        with grpc.insecure_channel(self.address) as channel:
            request = health_pb2.HealthCheckRequest(service="station/press")
            status: int = health_pb2_grpc.HealthStub(channel).Check(request).status
            return status


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    (tmp_path / "token").write_text(TOKEN + "\n")
    stations = ["--station", "press=left,right", "--station", "oven", "--station-log", str(tmp_path / "stations.jsonl")]
    return ["--admin", "127.0.0.1:0", *stations, "--override-token-file", str(tmp_path / "token")]


@pytest.mark.slow
def test_a_failed_check_stops_the_station_until_an_override(
    bundle: Path, tmp_path: Path, masters: Path, options: list[str]
) -> None:
    log, kept = tmp_path / "log", tmp_path / "stations.jsonl"
    with serving(bundle, log, *options) as (address, _):
        line = Line(address, log, masters, tmp_path / "token")
        serving_now = health_pb2.HealthCheckResponse.SERVING
        assert line.health() == serving_now
        passed = line.check("--json", "--by", "early shift")
        assert passed.exit_code == 0, passed.output
        told = json.loads(passed.stdout)
        assert (told["passed"], told["compared"]) == (True, False)
        assert {one["name"]: one["verdict"] for one in told["parts"]} == {
            "good/A-1": "PASS",
            "good/A-2": "PASS",
            "scratch/B-1": "REJECT",
        }
        assert "compared with the last check" in line.check().stderr

        write(masters / "scratch/B-1.png", part(spot=140))  # the camera sees the scratch no more
        failed = line.check()
        assert failed.exit_code == 1
        assert "FAILED, and is stopped" in failed.stderr
        assert "scratch/B-1: is known to be defective, and got PASS" in lines(kept)[-1]["problems"][0]
        assert line.health() == health_pb2.HealthCheckResponse.NOT_SERVING
        for camera in ("left", "right"):
            with pytest.raises(StationStoppedError, match="B-1: is known to be defective"):
                line.client.inspect(part(), camera_id=camera)
        with pytest.raises(StationStoppedError):
            line.client.inspect(part(), station="press")
        [answer] = line.client.inspect_stream([FrameRequest(EncodedImage(png(part())), camera_id="left")])
        assert isinstance(answer.error, StationStoppedError)
        for other in ({"camera_id": "elsewhere"}, {"station": "oven"}):  # the others go on
            assert line.client.inspect(part(), **other).inspection.verdict.name == "PASS"
        with pytest.raises(SettingsError, match="no station is called 'pres'"):
            line.client.inspect(part(), station="pres")
        sick = run("doctor", "--server", address)
        assert (sick.exit_code, "! station press: stopped: scratch/B-1" in sick.stdout) == (1, True)
        assert "stopped=press" in run("top", "--server", address, "--once").stdout

        wrong = tmp_path / "wrong"
        wrong.write_text("not the token at all")
        refused = line.override(wrong, "--by", "K", "--reason", "hurry")
        assert (refused.exit_code, "is not the server's" in refused.stderr) == (2, True)
        assert line.health() == health_pb2.HealthCheckResponse.NOT_SERVING
        done = line.override(line.token, "--by", "A. Kern", "--reason", "master is chipped")
        assert done.exit_code == 0, done.stderr
        assert line.health() == serving_now
        assert line.client.inspect(part(), camera_id="left").inspection.verdict.name == "PASS"
        assert lines(kept)[-1] | {"at": 0} == {
            "at": 0,
            "event": "override",
            "station": "press",
            "by": "A. Kern",
            "reason": "master is chipped",
        }
        assert "serves by override" in run("doctor", "--server", address).stdout
        line.client.close()
    written = log.read_text()
    assert "event=station_overridden station=press by='A. Kern' reason='master is chipped'" in written
    assert "event=override_refused station=press by=K" in written
    assert TOKEN not in written


@pytest.mark.slow
def test_a_stopped_station_stays_stopped_after_a_new_start(
    bundle: Path, tmp_path: Path, masters: Path, options: list[str]
) -> None:
    log = tmp_path / "log"
    with serving(bundle, log, *options) as (address, _):
        write(masters / "good/A-1.png", part(spot=255))
        assert Line(address, log, masters, tmp_path / "token").check().exit_code == 1
    with serving(bundle, log, *options) as (address, _):
        line = Line(address, log, masters, tmp_path / "token")
        assert line.health() == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(StationStoppedError, match="good/A-1: is known to be good, and got REJECT"):
            line.client.inspect(part(), camera_id="left")
        write(masters / "good/A-1.png", part(spot=130))
        assert line.check().exit_code == 0
        assert line.client.inspect(part(), camera_id="left").inspection.verdict.name == "PASS"
        line.client.close()


@pytest.mark.slow
def test_masters_count_neither_for_the_watch_nor_for_a_new_bundle(
    tmp_path: Path, masters: Path, options: list[str]
) -> None:
    """Scores of another bundle are not comparable, and defective masters are no drift."""
    log = tmp_path / "log"
    bundle = make_bundle(tmp_path / "one", good_frames=60)
    with serving(bundle, log, *options) as (address, _):
        line = Line(address, log, masters, tmp_path / "token")
        for _ in range(20):
            assert line.check().exit_code == 0
        assert line.client.get_status().cameras == ()
        line.client.close()
    other = make_bundle(tmp_path / "other", image_threshold=0.31)
    with serving(other, log, *options) as (address, _):
        first = Line(address, log, masters, tmp_path / "token").check("--json")
        assert json.loads(first.stdout)["compared"] is False


@pytest.mark.slow
def test_a_part_that_lost_half_of_its_distance_fails(
    bundle: Path, tmp_path: Path, masters: Path, options: list[str]
) -> None:
    log = tmp_path / "log"
    with serving(bundle, log, *options) as (address, _):
        line = Line(address, log, masters, tmp_path / "token")
        assert line.check().exit_code == 0
        write(masters / "scratch/B-1.png", part(spot=195))  # still a reject, but 0.06 instead of 0.3 from the threshold
        failed = line.check()
        assert failed.exit_code == 1
        assert "is still judged rightly, but its score was 0.298 from the threshold the last time" in failed.stderr
        (masters / "good/A-2.png").unlink()
        write(masters / "scratch/B-1.png", part(spot=255))
        missing = line.check()
        assert (missing.exit_code, "good/A-2: was checked the last time and is missing now" in missing.stderr) == (
            1,
            True,
        )


@pytest.mark.parametrize(
    ("removed", "words"), [("good", "needs pictures of good master parts"), ("scratch", "of defective ones")]
)
def test_both_kinds_of_masters_are_needed(
    bundle: Path, tmp_path: Path, masters: Path, options: list[str], removed: str, words: str
) -> None:
    shutil.rmtree(masters / removed)
    result = run("masters", "--admin", "127.0.0.1:9", "--station", "press", "--masters", str(masters))
    assert result.exit_code == 2, result.output
    assert words in result.stderr


@pytest.mark.slow
def test_a_picture_that_cannot_be_read_fails_the_check(
    bundle: Path, tmp_path: Path, masters: Path, options: list[str]
) -> None:
    log = tmp_path / "log"
    (masters / "good/A-1.png").write_bytes(b"no picture")
    with serving(bundle, log, *options) as (address, _):
        failed = Line(address, log, masters, tmp_path / "token").check()
    assert failed.exit_code == 1
    assert "good/A-1" in failed.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--station", "press"], "--station-log FILE"),
        (["--station", "=left"], "NAME=CAMERA,CAMERA"),
        (["--station", "a=x", "--station", "a=y"], "a name of its own"),
        (["--override-token-file", "short"], "at least 16"),
    ],
)
def test_settings_of_stations_are_checked(bundle: Path, tmp_path: Path, options: list[str], words: str) -> None:
    (tmp_path / "short").write_text("abc")
    options = [str(tmp_path / "short") if option == "short" else option for option in options]
    result = run("serve", "--bundle", str(bundle), *options)
    assert result.exit_code == 2, result.output
    assert words in result.stderr


def test_a_camera_of_two_stations_is_refused() -> None:
    with pytest.raises(SettingsError, match="a camera belongs to one station"):
        Stations({"a": ("left",), "b": ("left",)})


def test_a_damaged_log_does_not_set_a_stopped_station_free(tmp_path: Path) -> None:
    log = tmp_path / "stations.jsonl"
    log.write_text('{"station": "press", "event": "che')
    with pytest.raises(SettingsError, match="is damaged"):
        Stations({"press": ()}, log)


def test_without_a_token_nobody_overrides(tmp_path: Path) -> None:
    log = tmp_path / "stations.jsonl"
    entry = {"at": 1.0, "event": "check", "station": "press", "passed": False, "problems": ["x"], "parts": []}
    log.write_text(json.dumps(entry) + "\n")
    stations = Stations({"press": ()}, log)
    with pytest.raises(StationStoppedError):
        stations.admit("press", "")
    with pytest.raises(NotAuthorizedError, match="was started without one"):
        stations.override("press", token="", by="K", reason="r")


def test_pictures_of_a_textured_part_can_be_masters(tmp_path: Path) -> None:
    """What the command reads: names below the folder, without the suffix, and what the first folder says."""
    from serving.stations_cli import read_masters

    for name in ("good/C 1.bmp", "fray/deep/D.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), textured(name))
    found = [(name, good) for name, good, _ in read_masters(tmp_path)]
    assert found == [("fray/deep/D", False), ("good/C 1", True)]

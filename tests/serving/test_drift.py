"""The watch over cameras on real servers: replies, the live picture, metrics, and what is never counted."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from serving import AsyncInspectionClient, FrameRequest, InspectionClient, RawImage, ServerSettings
from serving.accounting import MAX_CAMERAS
from serving.live import CameraDrift
from serving.served import load
from tests.fakes import make_bundle, part, textured
from tests.serving.conftest import Serve
from tests.serving.test_cli import run, serving
from tests.serving.test_metrics import scrape, value
from tests.serving.test_models_cli import admin_address
from vision.bundle import load_bundle, write_manifest
from vision.drift.states import DriftState
from vision.errors import BundleError, SettingsError


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a reference of good frames."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "watched", good_frames=120)


def good(count: int) -> list[NDArray[np.uint8]]:
    return [textured(f"stream {index}") for index in range(count)]


def blurred(count: int) -> list[NDArray[np.uint8]]:
    return [cv2.GaussianBlur(frame, (0, 0), 1.2) for frame in good(count)]


async def send(client: AsyncInspectionClient, frames: list[NDArray[np.uint8]], camera: str) -> list[Any]:
    requests = [FrameRequest(RawImage.from_frame(frame), f"{i}", camera_id=camera) for i, frame in enumerate(frames)]
    # One frame at a time: what is said of a camera depends on the order in which its frames are answered.
    return [answer.result() async for answer in client.inspect_stream(requests, in_flight=1)]


async def drift_of(client: AsyncInspectionClient, camera: str) -> CameraDrift:
    status = await client.get_status()
    [found] = next(one.drift for one in status.cameras if one.camera_id == camera)
    return found


async def test_a_camera_out_of_focus_is_told_in_replies_status_and_metrics(serve: Serve, watched: Path) -> None:
    async with serve(watched, metrics="127.0.0.1:0") as (server, client):
        clean = await send(client, good(60), "left")
        assert {reply.drift.state for reply in clean} == {DriftState.LEARNING}
        await send(client, good(30), "right")
        changed = await send(client, blurred(40), "left")
        assert changed[-1].drift.state is DriftState.CAMERA_CHANGED
        assert changed[-1].drift.signal == "focus"
        assert changed[-1].drift.strength == 1.0
        assert changed[-1].drift.shift < -2
        left, right = await drift_of(client, "left"), await drift_of(client, "right")
        assert left.now.state is DriftState.CAMERA_CHANGED
        [focus] = [alarm for alarm in left.alarms if alarm.signal == "focus"]
        assert (focus.words, focus.against_calibration) == ("less sharp", True)
        assert abs(focus.since_frame - 61) <= 4
        assert focus.since_s_ago >= focus.raised_s_ago >= 0
        assert (left.frames, left.alarms_so_far["focus"]) == (100, 1)
        assert right.now.state is DriftState.LEARNING  # the other camera is as it was
        samples = await scrape(server)
        of_left = {"camera": "left", "model": "fake"}
        assert value(samples, "defectlens_drift_state", **of_left, state="CAMERA_CHANGED") == 1
        assert value(samples, "defectlens_drift_state", **of_left, state="LEARNING") == 0
        assert value(samples, "defectlens_drift_alarms_total", **of_left, signal="focus") == 1
        assert value(samples, "defectlens_drift_shift", **of_left, signal="focus") < -1
        assert value(samples, "defectlens_drift_strength", camera="right", model="fake", signal="focus") < 1
        watch = (await client.get_model()).drift
        assert watch is not None
        assert {"focus", "dirt", "anomaly_score"} <= set(watch.signals)
        assert (watch.reference_frames, watch.frames_per_false_alarm) == (120, 100_000)


async def test_worse_parts_are_told_apart_from_a_changed_camera(serve: Serve, watched: Path) -> None:
    def spotted(frame: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
        """A small dark spot, at another place of each part."""
        row, column = 12 + 8 * (index % 5), 16 + 8 * (index % 8)
        marked = frame.copy()
        marked[row : row + 5, column : column + 5] = 70
        return marked

    async with serve(watched) as (_, client):
        await send(client, good(60), "left")
        worse = await send(client, [spotted(frame, index) for index, frame in enumerate(good(60))], "left")
        assert worse[-1].drift.state is DriftState.PARTS_WORSE
        assert worse[-1].drift.signal == "anomaly_score"


@pytest.mark.parametrize("options", [{"drift": "off"}, {"folder": "bundle"}])
async def test_nothing_is_watched_where_it_is_off_or_there_is_no_reference(
    serve: Serve, watched: Path, bundle: Path, options: dict[str, str]
) -> None:
    folder = bundle if options.pop("folder", "") else watched
    async with serve(folder, metrics="127.0.0.1:0", **options) as (server, client):
        [reply] = await send(client, good(1), "left")
        assert reply.drift is None
        assert (await client.get_model()).drift is None
        assert [camera.drift for camera in (await client.get_status()).cameras] == [()]
        assert not any(name.startswith("defectlens_drift") for name, _ in await scrape(server))


async def test_watching_changes_no_verdict(serve: Serve, watched: Path) -> None:
    frames = [part(spot=spot) for spot in (128, 160, 200, 255)]
    async with serve(watched) as (_, client), serve(watched, drift="off") as (_, unwatched):
        for one, other in zip(await send(client, frames, "a"), await send(unwatched, frames, "a"), strict=True):
            assert one.inspection.anomaly_score == other.inspection.anomaly_score
            assert one.inspection.reason == other.inspection.reason


async def test_memory_is_bounded_by_the_number_of_cameras(serve: Serve, watched: Path) -> None:
    async with serve(watched) as (server, client):
        frame = RawImage.from_frame(good(1)[0])
        requests = [FrameRequest(frame, f"{index}", camera_id=f"c{index}") for index in range(MAX_CAMERAS + 20)]
        requests.append(FrameRequest(frame, "long", camera_id="x" * 500))
        replies = [answer.result() async for answer in client.inspect_stream(requests)]
        assert sum(reply.drift is not None for reply in replies) == MAX_CAMERAS
        [watch] = server.fleet.watches
        assert len(watch.reports()) == MAX_CAMERAS


async def test_a_new_version_begins_anew_and_the_old_one_is_kept(serve: Serve, watched: Path, tmp_path: Path) -> None:
    second = make_bundle(tmp_path / "second", version="2", good_frames=60)
    async with serve(watched) as (server, client):
        await send(client, good(20), "left")
        await server.fleet.install(second)
        await send(client, good(5), "left")
        assert (await drift_of(client, "left")).frames == 5
        await server.fleet.rollback("fake")
        assert (await drift_of(client, "left")).frames == 20


def test_a_reference_that_cannot_be_used_is_refused(watched: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(watched, folder)
    manifest = load_bundle(folder).manifest
    (folder / "drift/reference.npz").write_bytes(b"PK")
    write_manifest(folder, manifest)
    with ThreadPoolExecutor(1) as opener:
        loading = load(folder, ServerSettings(bundle=folder), time.monotonic, opener)
        with pytest.raises(BundleError, match=r"reference\.npz"):
            asyncio.run(loading)


def test_settings_that_mean_nothing_are_refused(bundle: Path) -> None:
    with pytest.raises(SettingsError, match="drift is one of calibration, own, off"):
        ServerSettings(bundle=bundle, drift="sometimes")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="drift_frames_per_alarm must be >= 1000"):
        ServerSettings(bundle=bundle, drift_frames_per_alarm=10)


@pytest.mark.slow
def test_the_doctor_names_the_camera_and_forget_ends_it(watched: Path, tmp_path: Path) -> None:
    """As a user types it, against a server in another process."""
    log = tmp_path / "log"
    with serving(watched, log, "--admin", "127.0.0.1:0") as (address, _), InspectionClient(address) as client:
        for frame in good(60):
            client.inspect(frame, camera_id="left")
        healthy = run("doctor", "--server", address)
        assert healthy.exit_code == 0, healthy.output
        assert healthy.stdout.startswith("healthy")
        assert "camera left: learns what is usual, 60 frames" in healthy.stdout
        for frame in blurred(30):
            client.inspect(frame, camera_id="left")
        sick = run("doctor", "--server", address)
        assert sick.exit_code == 1
        assert "! camera left: the camera has changed: less sharp (focus -" in sick.stdout
        assert "do: refocus the lens" in sick.stdout
        assert "at most one false alarm in 100000 frames of a camera" in sick.stdout
        as_json = run("doctor", "--server", address, "--json")
        assert as_json.exit_code == 1
        told = json.loads(as_json.stdout)
        assert told["healthy"] is False
        assert told["cameras"]["left"][0]["alarms"][0]["signal"] == "focus"
        assert "CAMERA_CHANGED" in run("top", "--server", address, "--once").stdout
        forgotten = run("forget", "left", "--admin", admin_address(log))
        assert forgotten.exit_code == 0, forgotten.stderr
        assert run("doctor", "--server", address).exit_code == 0
        assert run("forget", "left", "--admin", admin_address(log)).exit_code == 1
    assert "event=drift_alarm camera=left state=CAMERA_CHANGED signal=focus" in log.read_text()


def test_a_bundle_gets_a_reference_from_a_folder_of_frames(bundle: Path, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for index, frame in enumerate(good(48)):
        cv2.imwrite(str(frames / f"{index}.png"), frame)
    out = tmp_path / "with reference"
    done = run("reference", "--bundle", str(bundle), "--frames", str(frames), "--out", str(out), "--json")
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert figures["frames"] == 48
    assert "focus" in figures["signals"]
    before, after = load_bundle(bundle), load_bundle(out)
    assert after.manifest.model_digest == before.manifest.model_digest
    assert after.manifest.operating_point == before.manifest.operating_point
    assert after.digest != before.digest
    shown = json.loads(run("info", "--bundle", str(out), "--json").stdout)
    assert "dirt" in shown["drift_signals"]
    again = run("reference", "--bundle", str(bundle), "--frames", str(frames), "--out", str(out))
    assert (again.exit_code, "never overwritten" in again.stderr) == (2, True)
    few = run("reference", "--bundle", str(bundle), "--frames", str(frames / "1*.png"), "--out", str(tmp_path / "few"))
    assert (few.exit_code, "more are missing" in few.stderr) == (2, True)
    assert not (tmp_path / "few").exists()

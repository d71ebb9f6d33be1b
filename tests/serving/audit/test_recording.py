"""A real server that records, and what stands in its store afterwards."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest

from serving import ALL, Outputs
from serving.admin_client import AdminClient
from serving.audit import Action, Answer, Search, Store, actions, search
from serving.audit.drafts import Draft
from serving.audit.maps import read_sheet
from serving.audit.recorder import Recorder
from serving.audit.signing import Signer, kept_checkpoints
from serving.doctor import examine
from serving.messages import RawImage
from serving.recording_options import AuditSettings
from tests.fakes import make_bundle, part
from tests.serving.conftest import Serve, png
from vision.errors import AuditError, DeadlineError, NotAnImageError, OverloadedError
from vision.postprocess import resize_map
from vision.preprocess import PixelFormat
from vision.types import Verdict


def auditing(folder: Path, **options: Any) -> AuditSettings:
    return AuditSettings(where=str(folder), **options)


def recorded(folder: Path) -> list[Answer]:
    """Every answer in the order of time."""
    with Store.open(folder) as store:
        rows = search(store, limit=10_000).answers
        return [store.answer(row.seq) for row in rows][::-1]


async def test_what_the_client_was_told_is_what_is_recorded(serve: Serve, tmp_path: Path) -> None:
    frame = png(part(spot=255))
    async with serve(audit=auditing(tmp_path / "audit")) as (server, client):
        reply = await client.inspect(
            frame, part_id="A-17", lot="L1", camera_id="left", capture_time_ns=5, outputs=Outputs(saliency=ALL)
        )
        info = server.info
    (told,) = recorded(tmp_path / "audit")
    inspection = reply.inspection
    assert (told.request_id, told.part, told.lot, told.camera) == (reply.request_id, "A-17", "L1", "left")
    assert (told.verdict, told.reason, told.predicted) == (inspection.verdict, inspection.reason, inspection.predicted)
    assert told.verdict is Verdict.REJECT
    assert told.captured_ns == 5
    assert told.anomaly_score == inspection.anomaly_score
    assert told.timings_ms["inference_ms"] == reply.timings.inference_ms
    assert [np.float32(one.logit or 0.0) for one in told.classes] == inspection.class_logits.tolist()
    assert told.model is not None
    assert (told.model.bundle_digest, told.model.provider) == (reply.model.bundle_digest, reply.provider)
    assert told.model.point["image_threshold"] == info.operating_point.image_threshold
    assert told.versions["numpy"] == np.__version__
    assert [(one.label, one.box, one.area_px) for one in told.regions] == [
        (one.label, (one.box.x, one.box.y, one.box.width, one.box.height), one.area_px) for one in inspection.regions
    ]
    assert told.frame is not None
    assert told.maps is not None
    with Store.open(tmp_path / "audit") as store:
        assert store.files.read(told.frame.sha256) == frame
        sheet = read_sheet(store.files.read(told.maps.sha256), told.planes)
    assert set(sheet) == {"anomaly", *reply.classes}
    step = max(plane.scale for plane in told.planes)
    bright = reply.classes.index("bright")
    saliency = resize_map(sheet["bright"], *inspection.saliency_map[bright].shape)
    np.testing.assert_allclose(saliency, inspection.saliency_map[bright], atol=step)


async def test_what_was_not_asked_for_is_recorded_and_not_sent(serve: Serve, tmp_path: Path) -> None:
    async with serve(audit=auditing(tmp_path / "audit")) as (_, client):
        reply = await client.inspect(png(part(spot=255)), outputs=Outputs(regions=False))
    assert reply.inspection.regions == ()
    assert len(recorded(tmp_path / "audit")[0].regions) == 1


async def test_pixels_without_a_format_are_kept_with_their_layout(serve: Serve, tmp_path: Path) -> None:
    pixels = np.arange(64 * 100, dtype=np.uint8).reshape(64, 100)
    async with serve(audit=auditing(tmp_path / "audit")) as (_, client):
        await client.inspect(RawImage(pixels.tobytes(), 96, 64, PixelFormat.MONO8, 100))
    (told,) = recorded(tmp_path / "audit")
    assert told.layout is not None
    assert (told.layout.width, told.layout.stride, told.layout.pixel_format) == (96, 100, "MONO8")
    with Store.open(tmp_path / "audit") as store:
        assert store.files.read(told.frame.sha256 if told.frame else "") == pixels.tobytes()


async def test_errors_are_recorded_as_answers_without_a_verdict(serve: Serve, tmp_path: Path) -> None:
    async with serve(audit=auditing(tmp_path / "audit")) as (_, client):
        with pytest.raises(NotAnImageError):
            await client.inspect(b"no image at all", part_id="A-18")
        with pytest.raises(DeadlineError):
            await client.inspect(png(part()), part_id="A-19", timeout_ms=1)
    told = {one.part: one for one in recorded(tmp_path / "audit")}
    assert {one.verdict for one in told.values()} == {Verdict.NO_VERDICT}
    assert told["A-18"].error == "NOT_AN_IMAGE"
    assert told["A-18"].frame is not None  # what was wrong with it can be looked at
    assert told["A-19"].error == "DEADLINE_PASSED"


@pytest.mark.parametrize("mode", ["strict", "best-effort"])
async def test_every_frame_is_in_the_accounts_of_server_and_store(serve: Serve, tmp_path: Path, mode: Any) -> None:
    async with serve(audit=auditing(tmp_path / "audit", mode=mode), max_queue=8) as (server, client):

        async def send(number: int) -> None:
            image = b"broken" if number % 5 == 0 else png(part(spot=255 if number % 3 else 128))
            await client.inspect(image, part_id=str(number), camera_id="left", lot="L1")

        results = await asyncio.gather(*map(send, range(40)), return_exceptions=True)
        telemetry, recording = server.telemetry, server.recording
    failures = Counter(type(one).__name__ for one in results if one is not None)
    told = recorded(tmp_path / "audit")
    assert telemetry.received == len(told) == 40
    assert Counter(one.verdict.name for one in told if not one.error) == telemetry.verdicts
    assert sum(bool(one.error) for one in told) == sum(failures.values()) == sum(telemetry.errors.values())
    assert recording is not None
    counts = recording.counts()
    assert (counts.offered, counts.recorded, counts.waiting) == (42, 42, 0)  # with the start and the end
    assert len({one.part for one in told}) == 40


async def test_start_and_end_are_recorded_and_the_end_is_signed(serve: Serve, tmp_path: Path) -> None:
    async with serve(audit=auditing(tmp_path / "audit", checkpoint_every=5)) as (server, client):
        for _ in range(12):
            await client.inspect(png(part()))
        digest = server.info.model.bundle_digest
    with Store.open(tmp_path / "audit") as store:
        stop, start, model = (stored.record for stored in actions(store))
        checkpoints = kept_checkpoints(store)
        signer = Signer.at(store.place.key)
        assert checkpoints[-1].digest == store.get(15).digest
    assert start.details["models"][0]["bundle_digest"] == digest  # type: ignore[union-attr]
    assert model.subject == digest  # type: ignore[union-attr]
    assert stop.details["judged"] == 12  # type: ignore[union-attr]
    assert len(checkpoints) >= 3
    assert checkpoints[-1].seq == 15
    assert all(signer.public.signed(one) for one in checkpoints)


async def test_some_passed_parts_are_drawn_for_a_person(serve: Serve, tmp_path: Path) -> None:
    async with serve(audit=auditing(tmp_path / "audit", sample=0.5)) as (_, client):
        for _ in range(30):
            await client.inspect(png(part()))
        await client.inspect(png(part(spot=255)))
    told = recorded(tmp_path / "audit")
    assert 0 < sum(one.sampled for one in told) < 30
    assert not told[-1].sampled  # a reject is looked at anyway
    assert {one.sample_rate for one in told} == {0.5}


class Slow(Store):
    """A store whose disk can be stopped, and filled."""

    full = False

    def append(self, *arguments: Any) -> list[int]:
        if not hasattr(self, "go"):
            self.go = threading.Event()
            self.go.set()
        self.go.wait()
        if self.full:
            raise AuditError("nothing could be written: No space left on device")
        return super().append(*arguments)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Slow]:
    """The store of a server that is started next."""
    monkeypatch.setattr("serving.recording.Store", Slow)
    return lambda server: server.recording._store


async def test_strict_gives_no_verdict_while_the_disk_is_full(
    serve: Serve, tmp_path: Path, disk: Callable[[Any], Slow]
) -> None:
    async with serve(audit=auditing(tmp_path / "audit")) as (server, client):
        await client.inspect(png(part()), part_id="before")
        disk(server).full = True
        with pytest.raises(AuditError, match="No space left on device"):
            await client.inspect(png(part()), part_id="meanwhile")
        assert "No space left" in server.recording.counts().problem  # type: ignore[union-attr]
        disk(server).full = False
        await client.inspect(png(part()), part_id="after")
        assert server.recording.counts().problem == ""  # type: ignore[union-attr]
    told = [(one.part, one.error) for one in recorded(tmp_path / "audit")]
    # That it gave no answer is recorded as soon as it can be.
    assert sorted(told) == [("after", ""), ("before", ""), ("meanwhile", "AUDIT_FAILED")]


async def test_best_effort_answers_while_the_disk_is_full_and_writes_later(
    serve: Serve, tmp_path: Path, disk: Callable[[Any], Slow]
) -> None:
    async with serve(audit=auditing(tmp_path / "audit", mode="best-effort")) as (server, client):
        disk(server).full = True
        for number in range(5):
            assert (await client.inspect(png(part()), part_id=str(number))).inspection.verdict is Verdict.PASS
        disk(server).full = False
    assert [one.part for one in recorded(tmp_path / "audit")] == ["0", "1", "2", "3", "4"]


async def test_strict_keeps_to_the_deadline_on_a_slow_disk(
    serve: Serve, tmp_path: Path, disk: Callable[[Any], Slow]
) -> None:
    async with serve(audit=auditing(tmp_path / "audit")) as (server, client):
        await client.inspect(png(part()))
        disk(server).go.clear()
        with pytest.raises(DeadlineError, match="not durable before the deadline"):
            await client.inspect(png(part()), timeout_ms=300)
        # Others wait for nothing but their own records.
        assert (await client.get_model()).model == server.info.model
        disk(server).go.set()


def test_a_line_that_is_full_refuses_or_counts(tmp_path: Path) -> None:
    store = Slow.open(tmp_path / "audit", create=True)
    assert isinstance(store, Slow)
    store.append([])
    store.go.clear()
    recorder = Recorder(store, Signer.at(store.place.key), max_waiting=2)
    act = Action(action="test", person="eva")
    try:
        first = recorder.submit(act, wait=True)
        while recorder.counts().waiting != 1 or recorder._line:
            time.sleep(0.002)
        second, third = recorder.submit(act, wait=True), recorder.submit(act, wait=False)
        assert third is None
        with pytest.raises(OverloadedError, match="the audit store is behind"):
            recorder.submit(act, wait=True)
        assert recorder.submit(act, wait=False) is None
        counts = recorder.counts()
        assert (counts.offered, counts.waiting, counts.dropped) == (4, 3, 1)
    finally:
        store.go.set()
        recorder.close()
    assert first is not None
    assert second is not None
    assert (first.result(), second.result()) == (1, 2)
    counts = recorder.counts()
    assert (counts.offered, counts.recorded, counts.dropped, counts.waiting) == (4, 3, 1, 0)
    store.close()


def test_a_record_whose_commit_was_in_doubt_is_not_written_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database can lose the connection after it has committed: whoever tries again must look first."""
    store = Store.open(tmp_path / "audit", create=True)
    append, lost = store.append, iter([True])

    def lose_the_answer(*arguments: Any) -> list[int]:
        seqs = append(*arguments)
        if next(lost, False):
            raise AuditError("server closed the connection unexpectedly")
        return seqs

    monkeypatch.setattr(store, "append", lose_the_answer)
    recorder = Recorder(store, Signer.at(store.place.key))
    recorder.submit(Draft(request_id="r1", received_ns=7, error_code="OVERLOADED", reason="full"), wait=False)
    while recorder.counts().recorded != 1:
        time.sleep(0.002)
    recorder.close()
    assert len(search(store, Search(request_id="r1")).answers) == 1
    store.close()


async def test_a_full_disk_is_an_alarm_of_doctor_and_metrics(
    serve: Serve, tmp_path: Path, disk: Callable[[Any], Slow]
) -> None:
    settings = auditing(tmp_path / "audit", mode="best-effort")
    async with serve(audit=settings, metrics="127.0.0.1:0") as (server, client):
        assert server.metrics is not None
        url = f"http://{server.metrics.address}/metrics"
        await client.inspect(png(part()))
        status = await client.get_status()
        assert [one for one in examine(status, [server.info], ready=True, now=0.0) if one.alarm] == []
        disk(server).full = True
        await client.inspect(png(part()))
        while not server.recording.counts().problem:  # type: ignore[union-attr]
            await asyncio.sleep(0.01)
        alarms = [one for one in examine(await client.get_status(), [server.info], ready=True, now=0.0) if one.alarm]
        assert [one.subject for one in alarms] == ["audit"]
        assert "not recorded: nothing could be written: No space left" in alarms[0].words
        text = await asyncio.to_thread(lambda: urlopen(url).read().decode())
        assert "defectlens_audit_failing 1.0" in text
        assert "defectlens_audit_offered_total 3.0" in text
        disk(server).full = False


async def test_who_changed_a_model_and_why_is_recorded(serve: Serve, bundle: Path, tmp_path: Path) -> None:
    second = make_bundle(tmp_path / "second", version="2")
    async with serve(audit=auditing(tmp_path / "audit"), admin="127.0.0.1:0") as (server, _):
        with AdminClient(server.admin_address or "") as admin:
            await asyncio.to_thread(lambda: admin.load(second, by="eva", reason="new lens"))
            await asyncio.to_thread(lambda: admin.rollback("fake", by="ulf", reason="more overkill"))
    with Store.open(tmp_path / "audit") as store:
        acts = [stored.record for stored in actions(store, limit=100)]
    told = {one.action: one for one in acts if isinstance(one, Action)}
    assert (told["load"].person, told["load"].subject, told["load"].reason) == ("eva", "fake", "new lens")
    assert told["load"].details["serving"]["version"] == "2"
    assert told["rollback"].person == "ulf"
    assert told["rollback"].details["serving"]["version"] == "1"
    assert sum(one.action == "model" for one in acts if isinstance(one, Action)) == 2

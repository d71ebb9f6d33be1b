"""Models come, take over, are tried out and go, while frames are being answered."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serving import FrameRequest, InspectionServer, RawImage, ServerSettings
from serving.admin_client import AdminClient
from serving.watching import Watcher
from tests.fakes import make_bundle, part
from tests.serving.conftest import Serve
from vision.errors import BundleError, ParityError, SettingsError, UnreachableError, WrongModelError
from vision.types import Verdict


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "second", version="2")


def _strict(folder: Path, version: str) -> Path:
    """A version that rejects every part: its thresholds lie below every score."""
    return make_bundle(folder, version=version, image_threshold=-1.0)


@asynccontextmanager
async def administered(serve: Serve, **options: Any) -> AsyncIterator[tuple[InspectionServer, Any, Callable[..., Any]]]:
    """The server, its client, and ``ask(method, ...)``, which calls the admin client in a thread."""
    async with serve(admin="127.0.0.1:0", **options) as (server, client):
        with AdminClient(str(server.admin_address)) as admin:

            async def ask(method: str, *arguments: Any) -> Any:
                return await asyncio.to_thread(getattr(admin, method), *arguments)

            yield server, client, ask


async def test_two_models_answer_by_name_and_never_share_a_batch(serve: Serve, tmp_path: Path) -> None:
    wide = make_bundle(tmp_path / "wide", name="wide", height=32, width=128)
    async with serve(further_bundles=(wide,)) as (_, client):
        frames = [FrameRequest(RawImage.from_frame(part()), model=name) for name in ("", "fake", "wide") * 4]
        replies = await asyncio.gather(*(client.inspect(frame) for frame in frames))
        assert [reply.model.name for reply in replies] == ["fake", "fake", "wide"] * 4
        assert (await client.get_model("wide")).input_width == 128
        assert (await client.get_model()).model.name == "fake"
        with pytest.raises(WrongModelError, match="has 'fake', 'wide'"):
            await client.inspect(part(), model="narrow")
        with pytest.raises(WrongModelError, match="version '1' serves"):
            await client.inspect(part(), model="wide", model_version="7")
        with pytest.raises(WrongModelError):
            await client.get_model("narrow")


async def test_a_new_version_takes_over_while_frames_are_answered(serve: Serve, second: Path) -> None:
    async with administered(serve) as (_, client, ask):
        stop = asyncio.Event()

        async def stream() -> list[str]:
            versions = []
            while not stop.is_set():
                versions.append((await client.inspect(part())).model.version)
            return versions

        streams = [asyncio.create_task(stream()) for _ in range(4)]
        await asyncio.sleep(0.05)
        state = await ask("load", second)
        first_after = (await client.inspect(part())).model.version
        stop.set()
        answered = [await task for task in streams]
    assert (state.serving.version, state.previous.version) == ("2", "1")
    assert first_after == "2"
    for versions in answered:  # nobody went back to the old one, and nobody got an error
        assert versions == sorted(versions)
        assert versions[0] == "1"


async def test_rollback_takes_one_call_and_can_be_taken_back(serve: Serve, second: Path) -> None:
    async with administered(serve) as (_, client, ask):
        with pytest.raises(SettingsError, match="no other version"):
            await ask("rollback", "fake")
        await ask("load", second)
        for version in ("1", "2"):
            assert (await ask("rollback", "fake")).serving.version == version
            assert (await client.inspect(part())).model.version == version
        with pytest.raises(WrongModelError):
            await ask("rollback", "nobody")


@pytest.mark.parametrize("damage", ["golden", "bytes", "missing"])
async def test_a_bad_bundle_is_refused_and_the_old_one_goes_on(serve: Serve, tmp_path: Path, damage: str) -> None:
    bad = tmp_path / "bad"
    expected: type[Exception] = BundleError
    if damage != "missing":
        make_bundle(bad, version="2", damage_golden=damage == "golden")
    if damage == "golden":
        expected = ParityError
    if damage == "bytes":
        model = bad / "model.onnx"
        model.write_bytes(model.read_bytes()[:-1] + b"!")
    async with administered(serve) as (_, client, ask):
        with pytest.raises(expected):
            await ask("load", bad)
        assert (await client.inspect(part())).model.version == "1"
        listed = await ask("models")
        assert [bundle.folder for bundle in listed.refused] == [str(bad)]
        assert listed.refused[0].reason
        assert not listed.models[0].HasField("previous")


async def test_a_candidate_is_compared_and_never_heard(serve: Serve, tmp_path: Path) -> None:
    strict = _strict(tmp_path / "strict", "2")
    async with administered(serve) as (server, client, ask):
        state = await ask("shadow", strict, 0.5)
        assert (state.serving.version, state.candidate.version) == ("1", "2")
        shadow = server.fleet.models["fake"].shadow
        assert shadow is not None
        for index in range(10):
            reply = await client.inspect(part(), part_id=f"p{index}", camera_id="cam", lot="L")
            assert (reply.model.version, reply.inspection.verdict) == ("1", Verdict.PASS)
            await shadow.settle()
        figures = (await ask("models")).models[0].shadow
        assert (figures.seen, figures.compared, figures.disagreements, figures.skipped) == (5, 5, 5, 0)
        assert figures.largest_score_difference == 0.0
        found = await ask("disagreements", "fake")
        assert [one.part_id for one in found] == ["p1", "p3", "p5", "p7", "p9"]
        assert all((one.camera_id, one.lot) == ("cam", "L") and one.request_id for one in found)
        assert {(one.serving.verdict, one.candidate.verdict) for one in found} == {(Verdict.PASS, Verdict.REJECT)}
        assert server.telemetry.received == 10  # trials are no frames of a camera

        promoted = await ask("promote", "fake")
        assert (promoted.serving.version, promoted.previous.version) == ("2", "1")
        assert not promoted.HasField("candidate")
        assert (await client.inspect(part())).inspection.verdict is Verdict.REJECT
        with pytest.raises(SettingsError, match="no candidate"):
            await ask("promote", "fake")


@pytest.mark.slow
async def test_a_busy_candidate_skips_frames_and_slows_nobody(serve: Serve, tmp_path: Path) -> None:
    slow = make_bundle(tmp_path / "slow", version="2", work=40)
    async with administered(serve) as (server, client, ask):
        await ask("shadow", slow, 1.0)
        shadow = server.fleet.models["fake"].shadow
        assert shadow is not None
        await asyncio.gather(*(client.inspect(part()) for _ in range(30)))
        assert shadow.seen + shadow.skipped == 30
        assert shadow.skipped > 0
        await ask("withdraw", "fake")
        assert server.fleet.models["fake"].shadow is None
        await shadow.settle()
        assert shadow.compared == shadow.seen


async def test_a_candidate_needs_a_model_of_its_name_and_a_share(serve: Serve, tmp_path: Path, second: Path) -> None:
    other = make_bundle(tmp_path / "other", name="other")
    async with administered(serve) as (server, _, ask):
        with pytest.raises(WrongModelError, match="no model is called 'other'"):
            await ask("shadow", other, 0.5)
        with pytest.raises(SettingsError, match="above 0"):
            await ask("shadow", second, 0.0)
        assert server.fleet.models["fake"].shadow is None


async def test_the_cameras_address_cannot_change_models(serve: Serve, second: Path) -> None:
    async with serve(admin="127.0.0.1:0") as (server, _):
        with AdminClient(server.address) as wrong, pytest.raises(UnreachableError):
            await asyncio.to_thread(wrong.load, second)


async def test_a_watched_folder_serves_what_is_copied_into_it(serve: Serve, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    first = make_bundle(shelf / "first")
    ready = make_bundle(tmp_path / "ready", version="2")
    async with serve(first) as (server, client):
        watcher = Watcher(shelf, server.fleet)
        watcher.skip_known()
        await watcher.look()
        assert server.fleet.models["fake"].previous is None  # it serves already
        # A copy that is only half there is refused, and taken once it is whole.
        shutil.copytree(ready, shelf / "second", ignore=shutil.ignore_patterns("model.onnx"))
        await watcher.look()
        await watcher.look()
        assert len(server.fleet.refused) == 1  # told once, not at every look
        assert (await client.inspect(part())).model.version == "1"
        shutil.copy(ready / "model.onnx", shelf / "second" / "model.onnx")
        await watcher.look()
        assert (await client.inspect(part())).model.version == "2"
        await watcher.look()
        assert server.fleet.models["fake"].serving.info.model.version == "2"


async def test_many_swaps_leave_no_threads_behind(serve: Serve, second: Path, bundle: Path) -> None:
    async with serve() as (server, client):

        async def swap(times: int) -> int:
            for _ in range(times):
                for folder in (bundle, second):
                    await server.fleet.install(folder)
                    await client.inspect(part())
            return threading.active_count()

        few = await swap(2)
        # An old version ends in the background: one or two may still be on their way out.
        assert await swap(10) <= few + 6


async def test_a_server_whose_second_bundle_is_bad_does_not_start(bundle: Path, tmp_path: Path) -> None:
    settings = ServerSettings(bundle=bundle, further_bundles=(tmp_path / "nothing",), address="127.0.0.1:0")
    with pytest.raises(BundleError):
        await InspectionServer(settings).start()


async def test_an_old_version_answers_what_it_accepted(serve: Serve, tmp_path: Path) -> None:
    """Two take-overs end the first version while its frames still wait."""
    next_one, last = (make_bundle(tmp_path / version, name="slow", version=version) for version in ("2", "3"))
    renamed = make_bundle(tmp_path / "slow", name="slow", work=20)
    async with serve(renamed) as (server, client):
        waiting = [asyncio.create_task(client.inspect(part())) for _ in range(12)]
        while server.telemetry.in_flight < 12:
            await asyncio.sleep(0.002)
        await server.fleet.install(next_one)
        await server.fleet.install(last)
        versions = {(await task).model.version for task in waiting}
    assert versions == {"1"}

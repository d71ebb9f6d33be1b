"""Servers on Unix domain sockets: who may connect, whose file it is, and what is left behind."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path

import pytest

from serving import AsyncInspectionClient, InspectionClient, InspectionServer, ServerSettings
from serving.remote import RemotePredictor
from serving.settings import is_loopback
from tests.fakes import part
from tests.serving.conftest import ONCE, Serve, png
from vision.bundle import load_bundle
from vision.errors import SettingsError, UnreachableError
from vision.types import Verdict


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.sock"


async def test_both_clients_speak_over_a_socket_that_is_its_owners_alone(serve: Serve, path: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    async with serve(address=f"unix:{path}") as (server, client):
        assert server.address == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (await client.inspect(part(spot=255))).inspection.verdict is Verdict.REJECT

        def use() -> Verdict:
            with InspectionClient(server.address) as synchronous:
                synchronous.wait_until_ready(5)
                return synchronous.inspect(part()).inspection.verdict

        assert await asyncio.to_thread(use) is Verdict.PASS
    assert not path.exists()
    assert os.umask(mask) == mask


async def test_evaluate_reaches_a_socket(serve: Serve, path: Path, bundle: Path, tmp_path: Path) -> None:
    class Sample:
        path = tmp_path / "part.png"

    Sample.path.write_bytes(png(part(spot=0)))
    async with serve(address=f"unix:{path}") as (server, _):

        def predict() -> list[Verdict]:
            remote = RemotePredictor(server.address, load_bundle(bundle))
            return [inspection.verdict for inspection in remote.predict([Sample()])]

        assert await asyncio.to_thread(predict) == [Verdict.REJECT]


async def test_a_live_server_keeps_its_socket(serve: Serve, path: Path, bundle: Path) -> None:
    async with serve(address=f"unix:{path}") as (server, client):
        second = InspectionServer(ServerSettings(bundle=bundle, address=server.address))
        with pytest.raises(SettingsError, match="another server is there"):
            await second.start()
        assert (await client.inspect(part())).inspection.verdict is Verdict.PASS
    assert not path.exists()


async def test_the_file_of_a_dead_server_is_replaced(serve: Serve, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
        dead.listen()
    assert path.is_socket()
    async with serve(address=f"unix:{path}") as (_, client):
        assert (await client.inspect(part())).inspection.verdict is Verdict.PASS


async def test_a_live_server_that_is_too_busy_to_answer_is_not_taken_for_dead(path: Path, bundle: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(os.fspath(path))
        busy.listen(0)
        waiting.connect(os.fspath(path))  # the only place in its queue
        with pytest.raises(SettingsError, match="another server is there"):
            await InspectionServer(ServerSettings(bundle=bundle, address=f"unix:{path}")).start()
    assert path.exists()


async def test_another_kind_of_file_is_left_alone(path: Path, bundle: Path) -> None:
    path.write_text("notes")
    with pytest.raises(SettingsError, match="is no socket"):
        await InspectionServer(ServerSettings(bundle=bundle, address=f"unix:{path}")).start()
    assert path.read_text() == "notes"


async def test_a_folder_that_is_not_there(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(SettingsError, match="create it"):
        await InspectionServer(ServerSettings(bundle=bundle, address=f"unix:{tmp_path}/no/s.sock")).start()


async def test_the_end_of_the_old_server_leaves_the_new_ones_socket(
    serve: Serve, path: Path, slow_bundle: Path
) -> None:
    """A restart with an overlap: the old server still drains while the new one serves under the same name."""
    async with serve(slow_bundle, address=f"unix:{path}", max_batch=1) as (old, client):
        calls = [asyncio.create_task(client.inspect(part())) for _ in range(10)]
        while old.telemetry.received < 10:
            await asyncio.sleep(0.005)
        stopping = asyncio.create_task(old.stop())
        await asyncio.sleep(0.05)
        path.unlink(missing_ok=True)
        async with serve(address=f"unix:{path}") as (_, fresh):
            await stopping
            assert len(await asyncio.gather(*calls)) == 10
            assert path.is_socket()
            assert (await fresh.inspect(part())).inspection.verdict is Verdict.PASS


async def test_a_client_without_a_server_says_so(path: Path) -> None:
    async with AsyncInspectionClient(f"unix:{path}", retry=ONCE) as client:
        with pytest.raises(UnreachableError, match=r"s\.sock"):
            await client.inspect(part())


@pytest.mark.parametrize("address", ["unix:", "unix:relative.sock", "unix:/" + "x" * 120])
def test_no_socket_can_be_there(address: str) -> None:
    with pytest.raises(SettingsError, match="absolute path"):
        ServerSettings(bundle=Path("x"), address=address)


def test_a_socket_never_leaves_the_machine() -> None:
    assert is_loopback("unix:/run/s.sock")
    assert ServerSettings(bundle=Path("x"), address="unix:///run/s.sock").is_loopback

"""`serve --inspector`: the page lives and dies with the server, and what becomes of it reaches no inspection."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from defectlens import main
from serving import FrameRequest, InspectionClient
from serving.beside import PageBeside, PageOptions
from serving.inspector import needs
from serving.messages import EncodedImage
from tests.fakes import part
from tests.serving.conftest import png
from tests.serving.test_cli import serving
from vision.errors import SettingsError


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def pages(log: Path) -> list[tuple[int, int]]:
    """Process and port of every page that was started."""
    return [(int(pid), int(port)) for pid, port in re.findall(r"event=inspector pid=(\d+) port=(\d+)", log.read_text())]


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/sign-in", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.slow
def test_the_page_comes_back_and_the_server_never_notices(bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = ("--audit", str(tmp_path / "audit"), "--inspector", "--inspector-port", "0", "--admin", "127.0.0.1:0")
    with serving(bundle, log, *options) as (address, process), InspectionClient(address) as client:
        wait_for(lambda: bool(pages(log)))
        [(first, port)] = pages(log)
        wait_for(lambda: answers(port))
        assert os.getpriority(os.PRIO_PROCESS, first) > os.getpriority(os.PRIO_PROCESS, process.pid)
        os.kill(first, signal.SIGKILL)
        client.inspect(FrameRequest(EncodedImage(png(part(64, 96))), part_id="P-1"))
        wait_for(lambda: len(pages(log)) == 2)
        second, same = pages(log)[1]
        assert same == port
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        wait_for(lambda: refuses(port))
        with pytest.raises(ProcessLookupError):
            os.kill(second, 0)
    said = log.read_text()
    assert "inspector_ended" in said
    assert "the page is at" in said


@pytest.mark.slow
def test_a_killed_server_takes_its_page_along(bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = ("--audit", str(tmp_path / "audit"), "--inspector", "--inspector-port", "0")
    ready, command = tmp_path / "ready", [sys.executable, "-m", "defectlens", "serve", "--bundle", str(bundle)]
    command += ["--threads", "1", "--address", "127.0.0.1:0", "--ready-file", str(ready), *options]
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stream)
    try:
        wait_for(ready.exists)
        (_, port), *_ = pages(log)
        wait_for(lambda: answers(port))
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: refuses(port))


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["serve", *map(str, arguments)])
    return result.exit_code, result.output


def test_what_is_missing_is_told_before_anything_starts(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = run("--bundle", bundle, "--inspector")
    assert code == 2
    assert "add --audit" in said
    code, said = run("--bundle", bundle, "--inspector-port", "8080")
    assert code == 2
    assert "add --inspector" in said
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = run("--bundle", bundle, "--audit", tmp_path / "audit", "--inspector", "--inspector-port", port)
    assert code == 2
    assert "--inspector-port" in said
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda name: None if name == "fastapi" else name)
    with pytest.raises(SettingsError, match=r"fastapi.*defectlens\[inspector\]"):
        PageBeside(PageOptions(port=0))

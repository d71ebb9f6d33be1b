"""``defectlens models`` against a server in another process."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from serving import InspectionClient
from tests.fakes import make_bundle, part
from tests.serving.test_cli import run, serving


def admin_address(log: Path) -> str:
    line = next(line for line in log.read_text().splitlines() if "event=admin_ready" in line)
    return line.rsplit("address=", 1)[1].split()[0]


@pytest.mark.slow
def test_a_candidate_is_tried_promoted_and_rolled_back(bundle: Path, tmp_path: Path) -> None:
    second, log = make_bundle(tmp_path / "second", version="2", image_threshold=-1.0), tmp_path / "log"
    with serving(bundle, log, "--admin", "127.0.0.1:0") as (address, _), InspectionClient(address) as client:
        admin = ("--admin", admin_address(log))
        shown = run("models", "shadow", str(second), "--share", "1", *admin, "--json")
        assert shown.exit_code == 0, shown.stderr
        assert json.loads(shown.stdout)["candidate"]["version"] == "2"
        client.inspect(part(), part_id="A-1")
        until = time.monotonic() + 20
        while "A-1" not in (found := run("models", "disagreements", "fake", *admin)).stderr:
            assert time.monotonic() < until, found.stderr
        assert "serving PASS good" in found.stderr
        assert "candidate REJECT" in found.stderr
        assert "1 compared, 1 judged differently" in run("models", "list", *admin).stderr
        assert "serving version 2" in run("models", "promote", "fake", *admin).stderr
        assert client.inspect(part()).model.version == "2"
        assert "serving version 1" in run("models", "rollback", "fake", *admin).stderr
        assert client.inspect(part()).model.version == "1"
        wrong = run("models", "promote", "fake", *admin)
        assert (wrong.exit_code, "no candidate" in wrong.stderr) == (2, True)
        missing = run("models", "load", str(tmp_path / "nothing"), *admin)
        assert (missing.exit_code, "is no bundle" in missing.stderr) == (2, True)


@pytest.mark.slow
def test_a_bundle_copied_into_the_watched_folder_is_served(bundle: Path, tmp_path: Path) -> None:
    shelf, ready = tmp_path / "shelf", make_bundle(tmp_path / "ready", version="2")
    shelf.mkdir()
    with (
        serving(bundle, tmp_path / "log", "--watch", str(shelf)) as (address, _),
        InspectionClient(address) as client,
    ):
        shutil.copytree(ready, shelf / "second")
        until = time.monotonic() + 20
        while client.inspect(part()).model.version != "2":
            assert time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.05)


def test_no_admin_there_is_said(tmp_path: Path) -> None:
    result = run("models", "list", "--admin", "127.0.0.1:9")
    assert result.exit_code == 1
    assert "127.0.0.1:9" in result.stderr


@pytest.mark.parametrize("command", ["list", "load", "shadow", "promote", "rollback", "withdraw", "disagreements"])
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    shown = run("models", command, "--help")
    assert shown.exit_code == 0
    assert f"defectlens models {command}" in shown.stdout

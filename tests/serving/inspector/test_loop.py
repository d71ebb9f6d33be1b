"""The whole loop: a wrong verdict, its correction on the page, a new bundle that knows better, its trial, promotion."""

from __future__ import annotations

import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving import FrameRequest, InspectionClient
from serving.admin_client import AdminClient
from serving.audit import Account, Role, Search, Store, actions, add_account, search
from serving.messages import EncodedImage, InspectionReply
from tests.images import make_folder, spot_mask, texture, write
from tests.serving.inspector.conftest import running
from tests.serving.inspector.test_safety import sign_in

pytestmark = pytest.mark.slow

NEW, CORRECTED = "burn", 24


def defectlens(*arguments: object) -> None:
    result = subprocess.run([sys.executable, "-m", "defectlens", *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def make_bundle(root: Path, data: Path, version: str) -> Path:
    run, bundle = root / f"run{version}", root / f"bundle{version}"
    # Not the random weights of other tests: from those, nothing is learnt of a new class in a minute.
    options = ["--size", "96", "--epochs", "6", "--device", "cpu", "--seed", "0"]
    defectlens("train", "--data", data, "--out", run, *options)
    defectlens("export", "--run", run, "--out", bundle, "--name", "parts", "--version", version)
    return bundle


@contextmanager
def serving(root: Path, bundle: Path) -> Iterator[tuple[str, str]]:
    """A server in another process that records what it says: its two addresses."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        admin = f"127.0.0.1:{free.getsockname()[1]}"
    ready = root / "ready"
    words = ["serve", "--bundle", bundle, "--address", "127.0.0.1:0", "--ready-file", ready, "--admin", admin]
    command = [sys.executable, "-m", "defectlens", *map(str, words), "--audit", str(root / "audit")]
    with (root / "serve.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        until = time.monotonic() + 90
        while not (ready.is_file() and ready.read_text().strip()):
            assert process.poll() is None, (root / "serve.log").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        try:
            yield ready.read_text().strip(), admin
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(30)
        assert code == 0, (root / "serve.log").read_text()


def burnt(client: InspectionClient, name: str, at: tuple[int, int]) -> InspectionReply:
    """Inspect a part with a dark spot: a defect that the first model was never shown."""
    pixels = texture(name)
    pixels[spot_mask(at=at) > 0] = 10
    data = write(Path(name).with_suffix(".png"), pixels).read_bytes()
    return client.inspect(FrameRequest(EncodedImage(data), part_id=Path(name).stem, camera_id="left"))


def test_what_people_correct_the_next_model_knows(tmp_path: Path, hashed: str) -> None:
    data = make_folder(tmp_path / "data", train={"good": 40, "crack": 40})
    first = make_bundle(tmp_path, data, "1")
    places = [(8 * (index % 5), 8 * (index % 9)) for index in range(CORRECTED)]
    with serving(tmp_path, first) as (address, admin), InspectionClient(address) as client:
        for index, at in enumerate(places):
            reply = burnt(client, str(tmp_path / f"line/b{index:02d}"), at)
            assert reply.inspection.predicted != NEW
        with Store.open(tmp_path / "audit", create=True) as store:
            add_account(store, Account("eva", Role.INSPECTOR, hashed), by="tests")
            add_account(store, Account("erik", Role.ENGINEER, hashed), by="tests")
            for page in running(store, server=address, admin=admin):
                with sign_in(page.url, "eva") as eva:
                    for row in search(store, Search(), limit=100).answers:
                        top, left = places[int(row.part[1:])]
                        corners = [left, top, left + 16, top, left + 16, top + 16, left, top + 16]
                        shapes = json.dumps([{"kind": "polygon", "points": corners}])
                        said = {"verdict": "defect", "label": NEW, "shapes": shapes, "single": "true"}
                        assert eva.post(f"/review/{row.seq}", data=said).status_code == 200
                with sign_in(page.url, "erik") as erik:
                    archive = zipfile.ZipFile(io.BytesIO(erik.post("/feedback", timeout=60).content))
                    archive.extractall(tmp_path / "feedback")
                    for folder in ("train", "ground_truth"):
                        shutil.copytree(tmp_path / "feedback" / folder / NEW, data / folder / NEW)
                    second = make_bundle(tmp_path, data, "2")
                    with AdminClient(admin) as asking:
                        asking.shadow(second, 1.0)
                    for index in range(8):
                        burnt(client, str(tmp_path / f"trial/t{index:02d}"), places[index])
                    until = time.monotonic() + 20
                    while time.monotonic() < until and "on trial" not in erik.get("/models").text:
                        time.sleep(0.1)
                    reply = erik.post("/models/parts/promote", data={"reason": "it knows burns"}, timeout=60)
                    assert "taken over" in reply.text
                found = [burnt(client, str(tmp_path / f"after/a{index:02d}"), places[index + 8]) for index in range(8)]
            assert {one.model.version for one in found} == {"2"}
            assert sum(one.inspection.predicted == NEW for one in found) >= 7
            assert [one.body["person"] for one in actions(store, action="promote")] == ["erik"]

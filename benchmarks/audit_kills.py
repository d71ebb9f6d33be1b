"""Kills a recording server under load, again and again, and compares what its clients were told with its store.

    python -m benchmarks.audit_kills --bundle bundles/parts --kills 100

In strict mode every acknowledged verdict must be in the store, once, as it was told. Records that no client heard of
are counted too: their answers were on their way when the server died. One table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np

from serving import InspectionClient, RetryPolicy
from serving.audit import AuditPlace, Search, Store
from serving.audit.export import every
from serving.audit.signing import PublicKey
from serving.audit.verify import verify
from vision.errors import DefectLensError

# From the first answers on; a server is killed at any moment of it.
_LONGEST_LIFE_S = 0.4
_START_S = 60.0


@dataclass(slots=True)
class Kills:
    """What came of it. ``lost``: told and not in the store; ``doubled``: twice in it; ``different``: told otherwise.
    ``unheard``: in the store, and nobody was told.
    """

    kills: int = 0
    sent: int = 0
    told: int = 0
    recorded: int = 0
    lost: int = 0
    doubled: int = 0
    different: int = 0
    unheard: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def as_promised(self) -> bool:
        return not (self.lost or self.doubled or self.different or self.problems)


class _Clients:
    """Cameras that send as fast as they get answers, and write down what they were told."""

    def __init__(self, address: str, cameras: int, frame: tuple[int, int]) -> None:
        self.told: dict[str, str] = {}
        self.sent = 0
        self._frame = frame
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._address = address
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(cameras)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self, number: int) -> None:
        noise = np.random.default_rng()
        height, width = self._frame
        with InspectionClient(self._address, retry=RetryPolicy(attempts=1)) as client:
            while not self._stop.is_set():
                pixels = noise.integers(0, 256, (height, width), dtype=np.uint8)
                name = uuid.uuid4().hex
                with self._lock:
                    self.sent += 1
                try:
                    reply = client.inspect(
                        cv2.imencode(".png", pixels)[1].tobytes(), request_id=name, camera_id=str(number)
                    )
                except DefectLensError:
                    continue
                with self._lock:
                    self.told[name] = reply.inspection.verdict.name


def kill_again_and_again(
    bundle: Path, place: AuditPlace, kills: int, *, cameras: int = 4, frame: tuple[int, int] = (64, 96), seed: int = 0
) -> Kills:
    """Start a server, load it, kill it; so often, on the same store. Then compare."""
    draw = random.Random(seed)  # noqa: S311, the same moments every time
    result, told = Kills(), {}
    for _ in range(kills):
        clients = _one_life(bundle, place, draw.uniform(0.02, _LONGEST_LIFE_S), cameras, frame)
        result.kills += 1
        result.sent += clients.sent
        told.update(clients.told)
    result.told = len(told)
    with Store.open(place) as store:
        stored = Counter[str]()
        verdicts: dict[str, str] = {}
        for row in every(store, Search(error="")):
            stored[row.request_id] += 1
            verdicts[row.request_id] = row.verdict.name
        key = PublicKey.at(place.key.with_name(place.key.name + ".pub"))
        result.problems = verify(store, key=key).problems
    result.recorded = stored.total()
    result.lost = sum(name not in stored for name in told)
    result.doubled = sum(count > 1 for count in stored.values())
    result.different = sum(verdicts.get(name, verdict) != verdict for name, verdict in told.items())
    result.unheard = sum(name not in told for name in stored)
    return result


def _one_life(bundle: Path, place: AuditPlace, life_s: float, cameras: int, frame: tuple[int, int]) -> _Clients:
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready"
        command = [sys.executable, "-m", "defectlens", "serve", "--bundle", str(bundle), "--address", "127.0.0.1:0"]
        command += ["--threads", "1", "--ready-file", str(ready), "--audit", place.url, "--drift", "off"]
        command += ["--audit-files", str(place.files), "--audit-key", str(place.key)]
        with (Path(folder) / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ))
        try:
            end = time.monotonic() + _START_S
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit((Path(folder) / "log").read_text())
                time.sleep(0.01)
            clients = _Clients(ready.read_text().strip(), cameras, frame)
            while not clients.told and time.monotonic() < end:
                time.sleep(0.001)
            time.sleep(life_s)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        clients.join()
        return clients


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--store", help="folder or URL; default: a temporary folder")
    parser.add_argument("--files", type=Path, help="folder of the files; needed for PostgreSQL")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = AuditPlace.of(options.store or folder, files=options.files)
        result = kill_again_and_again(options.bundle, place, options.kills, cameras=options.cameras)
    for name, value in asdict(result).items():
        print(f"{name:10} {value}")
    print(json.dumps(asdict(result)))
    if not result.as_promised:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

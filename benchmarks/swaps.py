"""What a change of models costs: stalls of the server, and its memory, over many take-overs.

    python -m benchmarks.swaps --bundle bundles/parts --swaps 200

A server runs in another process. A prober asks for its health every 5 ms, which waits for nothing but the event loop:
the longest answers are the stalls. First nothing happens, then one take-over follows another, each with one frame. One
table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from serving import InspectionClient
from serving.admin_client import AdminClient

_PROBE_S = 0.005


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the server's inference")
    options = parser.parse_args()
    with (
        _server(options.bundle, options.threads) as (process, address, admin_address),
        InspectionClient(address) as client,
        AdminClient(admin_address) as admin,
    ):
        client.wait_until_ready()
        frame = _frame(client)
        client.inspect(frame)
        quiet = _probe(address, lambda: time.sleep(10.0))
        swap_s: list[float] = []
        memory: list[float] = []

        def swap() -> None:
            for _ in range(options.swaps):
                start = time.perf_counter()
                admin.load(options.bundle.resolve())
                swap_s.append(time.perf_counter() - start)
                client.inspect(frame)
                memory.append(_resident_mib(process.pid))

        busy = _probe(address, swap)
    settled = memory[len(memory) // 10]  # the first take-overs fill the memory's arenas
    figures = {
        "swaps": options.swaps,
        "probe_p99_quiet_ms": float(np.percentile(quiet, 99)),
        "probe_p99_swapping_ms": float(np.percentile(busy, 99)),
        "probe_max_swapping_ms": float(max(busy)),
        "swap_p50_ms": float(np.percentile(swap_s, 50) * 1000),
        "memory_after_tenth_mib": settled,
        "memory_at_end_mib": memory[-1],
        "memory_growth": memory[-1] / settled - 1,
    }
    for name, value in figures.items():
        print(f"{name:26} {value:10.3f}")
    print(json.dumps(figures))


@contextmanager
def _server(bundle: Path, threads: int) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        ready, log = Path(folder) / "ready", Path(folder) / "log"
        command = [sys.executable, "-m", "defectlens", "serve", "--bundle", str(bundle), "--address", "127.0.0.1:0"]
        command += ["--admin", "127.0.0.1:0", "--threads", str(threads), "--ready-file", str(ready)]
        with log.open("w") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=stream, text=True)
        try:
            while not ready.exists():
                if process.poll() is not None:
                    raise SystemExit(log.read_text())
                time.sleep(0.05)
            line = next(line for line in log.read_text().splitlines() if "event=admin_ready" in line)
            yield process, ready.read_text().strip(), line.rsplit("address=", 1)[1].split()[0]
        finally:
            process.terminate()
            process.wait(30)


def _probe(address: str, work: Callable[[], None]) -> list[float]:
    """Milliseconds of each health check while ``work`` runs."""
    thread = threading.Thread(target=work)
    answers: list[float] = []
    with InspectionClient(address) as client:
        client.wait_until_ready()
        thread.start()
        while thread.is_alive():
            start = time.perf_counter()
            client.is_ready()
            answers.append((time.perf_counter() - start) * 1000)
            time.sleep(_PROBE_S)
        thread.join()
    return answers


def _frame(client: InspectionClient) -> np.ndarray:
    info = client.get_model()
    return np.full((info.input_height, info.input_width, 3), 128, np.uint8)


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()

"""Servers and clients of the benchmarks, each in a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

ROOT = Path(__file__).parents[1]
INSPECT = "/inspection.v1.InspectionService/Inspect"
_POLL_S = 0.002
# numpy and OpenMP threads that spin while they wait would be measured too.
_ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT), "NO_PROXY": "*"}


class ServerFailedError(Exception):
    """A server did not become ready; the message ends with its last words."""


@contextmanager
def process(command: Sequence[str | Path], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run until the end of the block; killed if it does not end by itself within 20 s of SIGTERM."""
    with log.open("wb") as stream:
        started = subprocess.Popen(
            list(map(str, command)), stdout=stream, stderr=subprocess.STDOUT, env=_ENVIRONMENT, cwd=ROOT
        )
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(20)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


@contextmanager
def ready_by_file(command: Sequence[str | Path], folder: Path, limit_s: float = 120) -> Iterator[tuple[str, float]]:
    """A server that writes its address to ``READY`` (a word of the command) when ready: address, seconds until then."""
    folder.mkdir(parents=True, exist_ok=True)
    ready, log = folder / "ready", folder / "log"
    ready.unlink(missing_ok=True)
    begun = time.perf_counter()
    with process([ready if word == "READY" else word for word in command], log) as started:
        while not (ready.exists() and ready.read_text()):
            _check(started, log, begun, limit_s)
        yield ready.read_text().strip(), time.perf_counter() - begun


@contextmanager
def ready_by_answer(
    command: Sequence[str | Path], port: int, method: str, request: Path, folder: Path, limit_s: float = 120
) -> Iterator[str]:
    """A server that writes the client's request, and is ready once it answers it."""
    folder.mkdir(parents=True, exist_ok=True)
    log, begun, address = folder / "log", time.perf_counter(), f"127.0.0.1:{port}"
    with process(command, log) as started:
        with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            while True:
                _check(started, log, begun, limit_s)
                try:
                    if request.exists():
                        channel.unary_unary(method)(request.read_bytes(), timeout=5)
                        break
                except grpc.RpcError as error:
                    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND):
                        raise ServerFailedError(f"{error.code().name}: {error.details()}") from error
                time.sleep(0.2)
        yield address


def ours(bundle: Path, options: Sequence[str] = ()) -> list[str | Path]:
    """``defectlens serve`` for ``ready_by_file``."""
    command = [sys.executable, "-m", "defectlens", "serve", "--bundle", bundle, "--address", "127.0.0.1:0"]
    return [*command, "--ready-file", "READY", *options]


def load(address: str, requests: Sequence[Path], method: str = INSPECT, **options: float) -> dict[str, Any]:
    """What ``benchmarks.load`` measured."""
    command = [sys.executable, "-m", "benchmarks.load", "--address", address, "--method", method]
    command += ["--requests", *map(str, requests)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", f"{value:g}"]
    done = subprocess.run(command, capture_output=True, text=True, env=_ENVIRONMENT, cwd=ROOT, check=False)
    if done.returncode:
        raise ServerFailedError(done.stderr.strip().splitlines()[-1])
    return dict(json.loads(done.stdout))


def free_port() -> int:
    """A port whose two followers are most likely free too."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _check(started: subprocess.Popen[bytes], log: Path, begun: float, limit_s: float) -> None:
    ended = started.poll()
    if ended is None and time.perf_counter() - begun < limit_s:
        time.sleep(_POLL_S)
        return
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    words = next((line for line in reversed(lines) if len(line) > 1), "without a word")
    what = f"was not ready within {limit_s:g} s" if ended is None else f"ended with code {ended}"
    raise ServerFailedError(f"the server {what}: {words[:300]}")

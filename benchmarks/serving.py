"""How fast and how predictable the server is, as ratios measured on this machine in one run.

    python -m benchmarks.serving --bundle bundles/parts --rows throughput,latency,overhead,overload,start,record
    python -m benchmarks.serving --bundle bundles/parts --rows soak --minutes 30
    python -m benchmarks.serving --rows rivals --rivals CACHE     # environments CACHE/mlserver, CACHE/ray, CACHE/triton

Prints one table, then one JSON line. Clients run in a process of their own on the same machine. Where two servers are
compared, both are up and take turns, and the middle of ``--rounds`` rounds counts.

An environment for a rival, e.g. MLServer's: ``uv venv CACHE/mlserver`` and then ``uv pip install --python
CACHE/mlserver/bin/python mlserver onnxruntime``; likewise ``ray[serve-grpc]`` for CACHE/ray and ``nvidia-pytriton`` for
CACHE/triton, each with onnxruntime. Triton needs the Python whose ``libpython`` the system's linker finds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import cv2

from benchmarks import models, processes
from benchmarks.measured import IN_FLIGHT, Measurements
from benchmarks.processes import ServerFailedError, load, ours, ready_by_answer, ready_by_file
from serving.client import InspectionClient
from serving.telemetry import Telemetry
from tests.fakes import frame_result

RIVALS = {
    "mlserver": ("MLServer", "/inference.GRPCInferenceService/ModelInfer", 5.0, 10.0),
    "ray": ("Ray Serve", "/ray.serve.UserDefinedService/__call__", 3.0, 6.0),
    "triton": ("Triton", "/inference.GRPCInferenceService/ModelInfer", 1.0, 1.5),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; ``must`` and ``aim`` are bounds in the direction of ``better``."""

    measure: str
    value: float | None
    must: float | None = None
    aim: float | None = None
    better: str = ">="
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "skipped"
        for name, bound in (("aim", self.aim), ("must", self.must)):
            if bound is not None and (self.value >= bound if self.better == ">=" else self.value <= bound):
                return name
        return "" if self.must is None else "MISSED"


def throughput(measured: Measurements) -> Iterator[Row]:
    best, how = measured.engine_fps
    served = statistics.median(measured.served_fps)
    note = f"{served:.1f} of {best:.1f} frames/s ({how})"
    yield Row("throughput through gRPC / best in-process loop, JPEG", served / best, 0.90, 0.97, ">=", note)


def latency(measured: Measurements) -> Iterator[Row]:
    rate = 0.7 * statistics.median(measured.served_fps)
    with measured.server(measured.bundle.path) as address:
        request = measured.file("jpeg", models.message(measured.jpeg))
        p99 = statistics.median(
            load(address, request, rate=rate, seconds=2 * measured.options.seconds)["codes"]["OK"]["p99_ms"]
            for _ in range(measured.options.rounds)
        )
    note = f"{p99:.1f} ms at {rate:.1f} frames/s; engine {measured.engine_ms:.1f} ms"
    yield Row("p99 latency at 70 % load / engine time of a frame", p99 / measured.engine_ms, 3, 2, "<=", note)


def overhead(measured: Measurements) -> Iterator[Row]:
    bundle = models.trivial_bundle(measured.folder / "trivial")
    request = measured.file("raw", models.message(models.grey()))
    bare: list[str | Path] = [sys.executable, "-m", "benchmarks.bare_server", bundle / "model.onnx", "READY"]
    with measured.server(bundle) as mine, ready_by_file(bare, measured.folder / "bare") as (theirs, _):
        rounds = [
            [_closed(measured, address, request) for address in (mine, theirs)] for _ in range(measured.options.rounds)
        ]
    us, them = (statistics.median(column) for column in zip(*rounds, strict=True))
    note = f"{us:.0f} of {them:.0f} requests/s"
    yield Row("trivial model, 256x256 raw: requests/s / bare loop", us / them, 0.8, 1.2, ">=", note)


def rivals(measured: Measurements) -> Iterator[Row]:
    bundle = models.trivial_bundle(measured.folder / "trivial-rivals")
    request = measured.file("raw", models.message(models.grey()))
    for name, (title, method, must, aim) in RIVALS.items():
        measure = f"the same / {title}'s gRPC"
        python = None if measured.options.rivals is None else measured.options.rivals / name / "bin/python"
        if python is None or not python.exists():
            yield Row(measure, None, must, aim, ">=", f"no environment {name} under --rivals")
            continue
        port, theirs = processes.free_port(), measured.folder / f"{name}.bin"
        script = processes.ROOT / f"benchmarks/rivals/{name}_server.py"
        command = [python, script, bundle / "model.onnx", str(port), theirs]
        try:
            with (
                measured.server(bundle) as mine,
                ready_by_answer(command, port, method, theirs, measured.folder / name) as address,
            ):
                rounds = [
                    (_closed(measured, mine, request), _closed(measured, address, theirs, method))
                    for _ in range(measured.options.rounds)
                ]
        except ServerFailedError as error:
            yield Row(measure, None, must, aim, ">=", str(error))
            continue
        us, them = (statistics.median(column) for column in zip(*rounds, strict=True))
        yield Row(measure, us / them, must, aim, ">=", f"{us:.0f} of {them:.0f} requests/s")


def overload(measured: Measurements) -> Iterator[Row]:
    rate = 3 * statistics.median(measured.served_fps)
    timeout_ms = max(50, round(10 * measured.engine_ms))
    with measured.server(measured.bundle.path) as address:
        request = measured.file("urgent", models.message(measured.jpeg, timeout_ms=timeout_ms))
        codes = load(address, request, rate=rate, seconds=2 * measured.options.seconds)["codes"]
    count = {code: figures["count"] for code, figures in codes.items()}
    refused = codes.get("RESOURCE_EXHAUSTED")
    admitted = sum(count.values()) - count.get("RESOURCE_EXHAUSTED", 0)
    missed = 100.0 * count.get("DEADLINE_EXCEEDED", 0) / admitted
    note = f"{rate:.0f} frames/s, deadline {timeout_ms} ms: {count}"
    yield Row("overload 3x: % of admitted frames that miss their deadline", missed, 1, 0.1, "<=", note)
    told = None if refused is None else refused["p99_ms"]
    yield Row("overload 3x: p99 ms until a refused frame knows", told, 10, 3, "<=", "" if refused else "none refused")


def soak(measured: Measurements) -> Iterator[Row]:
    rate, seconds = 0.9 * statistics.median(measured.served_fps), 60 * measured.options.minutes
    request = measured.file("jpeg", models.message(measured.jpeg))
    with measured.server(measured.bundle.path) as address, InspectionClient(address) as client:
        load(address, request, rate=rate, seconds=measured.options.seconds)  # every buffer has its size after this
        before = client.get_status().resident_memory_bytes
        codes = load(address, request, rate=rate, seconds=seconds)["codes"]
        status = client.get_status()
    growth = 100.0 * (status.resident_memory_bytes / before - 1)
    note = f"{measured.options.minutes:g} min at {rate:.1f} frames/s, {before / 2**20:.0f} MiB before"
    yield Row("90 % load: growth of resident memory, %", growth, 2, 0, "<=", note)
    answers = {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
    lost = sum(figures["count"] for code, figures in codes.items() if code not in answers) + status.total.in_flight
    note = ", ".join(f"{code} {figures['count']}" for code, figures in codes.items())
    yield Row("90 % load: frames without an answer", lost, 0, 0, "<=", note)


def start(measured: Measurements) -> Iterator[Row]:
    times = []
    for _ in range(measured.options.rounds + 1):
        with ready_by_file(ours(measured.bundle.path, measured.serve_options), measured.folder / "start") as (
            _,
            seconds,
        ):
            times.append(seconds)
    note = "s, middle of " + ", ".join(f"{seconds:.2f}" for seconds in times[1:])  # the first one reads the disk
    yield Row("from `serve` to ready, s", statistics.median(times[1:]), 3, 1, "<=", note)


def record(_: Measurements) -> Iterator[Row]:
    telemetry, answer, frames = Telemetry(), frame_result(), 20_000
    begun = time.perf_counter()
    for index in range(frames):
        with telemetry.frame("request", f"camera{index % 20}") as entry:
            entry.result = answer
    microseconds = (time.perf_counter() - begun) / frames * 1e6
    yield Row("recording one frame, µs", microseconds, 50, None, "<=", "accounts, histograms, recent frames")


ROWS = {row.__name__: row for row in (throughput, latency, overhead, rivals, overload, start, record, soak)}


def _closed(measured: Measurements, address: str, request: Path, method: str = processes.INSPECT) -> float:
    figures = load(address, request, method, in_flight=IN_FLIGHT, seconds=measured.options.seconds)
    if figures["codes"].keys() != {"OK"}:
        raise ServerFailedError(f"{address} answered {figures['codes']}")
    return float(figures["per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path, help="of the real model; without it, an untrained one is made")
    parser.add_argument(
        "--rows", default=",".join(name for name in ROWS if name != "soak"), help=f"which of {', '.join(ROWS)}"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of one round")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the row soak")
    parser.add_argument("--frame", default="1280x1024", help="size of the JPEG frames")
    parser.add_argument("--rivals", type=Path, help="folder with the environments of other servers")
    parser.add_argument("--serve-options", default="", help="more options for `defectlens serve`, as one string")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        measured = Measurements(options, Path(folder))
        rows = [row for name in options.rows.split(",") for row in ROWS[name](measured)]
    print(f"{'measure':<62}{'value':>9}{'must':>7}{'aim':>7}  {'':<8} note")
    for row in rows:
        cells = ["-" if cell is None else f"{cell:.3g}" for cell in (row.value, row.must, row.aim)]
        print(f"{row.measure:<62}{cells[0]:>9}{cells[1]:>7}{cells[2]:>7}  {row.verdict:<8} {row.note}")
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "load": os.getloadavg()}
    print(json.dumps({"rows": [{**asdict(row), "verdict": row.verdict} for row in rows], **machine}))


if __name__ == "__main__":
    main()

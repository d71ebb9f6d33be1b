"""How many raw frames of 12 megapixels a second get from a camera on the same machine through the real server.

    python -m benchmarks.pixels [--seconds 5]

A trivial model is served in another process, so that the way of the pixels is what is measured. The same frames go over
TCP, over a Unix socket and through shared memory, in turns of a second, so that whatever else the machine does meets
all alike. "copied in" is shared memory for a camera that cannot write into it: every frame is copied into its slot
first. Prints one table, then one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from serving import AsyncInspectionClient, Outputs, RawImage  # noqa: E402
from tests.fakes import make_bundle  # noqa: E402
from vision.preprocess import PixelFormat  # noqa: E402

WIDTH, HEIGHT = 4000, 3000
IN_FLIGHT = 4
TURN_S = 1.0
FORMATS = (PixelFormat.MONO8, PixelFormat.RGB8)
# Nothing but the verdict: the answer must not weigh anything either.
OUTPUTS = Outputs(regions=False)

Send = Callable[[], Awaitable[object]]


@dataclass
class Row:
    """One way of the pixels; latencies in ms."""

    name: str
    pixel_format: PixelFormat
    send: Send
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        p50, p99 = np.percentile(self.latencies, [50, 99]).tolist()
        return {"requests_per_second": len(self.latencies) / self.seconds, "p50_ms": p50, "p99_ms": p99}


@contextmanager
def serving(bundle: Path, address: str, ready: Path) -> Iterator[str]:
    """``defectlens serve`` in another process; its address."""
    command = [sys.executable, "-m", "defectlens", "serve", "--bundle", str(bundle), "--threads", "1"]
    command += ["--address", address, "--ready-file", str(ready)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    try:
        while not ready.exists():
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with {process.returncode}")
            time.sleep(0.02)
        yield ready.read_text().strip()
    finally:
        process.terminate()
        process.wait()


async def turn(row: Row) -> None:
    """One second of a row, with a constant number of frames out."""
    start = time.perf_counter()

    async def camera() -> None:
        while time.perf_counter() - start < TURN_S:
            begun = time.perf_counter()
            await row.send()
            row.latencies.append((time.perf_counter() - begun) * 1000.0)

    await asyncio.gather(*(camera() for _ in range(IN_FLIGHT)))
    row.seconds += time.perf_counter() - start


async def rows_of(tcp: str, unix: str, stack: AsyncExitStack) -> list[Row]:
    clients = {name: AsyncInspectionClient(address) for name, address in (("TCP", tcp), ("Unix socket", unix))}
    for client in clients.values():
        await stack.enter_async_context(client)
    rows = []
    for pixel_format in FORMATS:
        size = WIDTH * HEIGHT * pixel_format.bytes_per_pixel
        data = np.random.default_rng(0).integers(118, 139, size, dtype=np.uint8).tobytes()
        image = RawImage(data, WIDTH, HEIGHT, pixel_format)
        for name, client in clients.items():
            rows.append(
                Row(name, pixel_format, lambda client=client, image=image: client.inspect(image, outputs=OUTPUTS))
            )
        memory = await stack.enter_async_context(clients["TCP"].shared_memory(slots=IN_FLIGHT, slot_bytes=size))
        for _ in range(IN_FLIGHT):  # frames that a camera has written where they are
            slot = await memory.take()
            slot.raw(WIDTH, HEIGHT, pixel_format).data[:] = data
            slot.release()

        async def shared(*, copy: bool, memory=memory, image=image) -> None:
            with await memory.take() as slot:
                placed = slot.raw(WIDTH, HEIGHT, image.pixel_format)
                if copy:
                    placed.data[:] = image.data
                await clients["TCP"].inspect(placed, outputs=OUTPUTS)

        rows.append(Row("shared memory", pixel_format, lambda shared=shared: shared(copy=False)))
        rows.append(Row("shared, copied in", pixel_format, lambda shared=shared: shared(copy=True)))
    return rows


async def measure(tcp: str, unix: str, seconds: float) -> list[Row]:
    async with AsyncExitStack() as stack:
        rows = await rows_of(tcp, unix, stack)
        for row in rows:
            await row.send()
        for _ in range(max(1, round(seconds / TURN_S))):
            for row in rows:
                await turn(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each row")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        bundle = make_bundle(folder / "bundle", height=256, width=256)
        tcp = stack.enter_context(serving(bundle, "127.0.0.1:0", folder / "tcp"))
        unix = stack.enter_context(serving(bundle, f"unix:{folder}/s.sock", folder / "unix"))
        rows = asyncio.run(measure(tcp, unix, seconds))
    print(
        f"{WIDTH}x{HEIGHT} px raw frames, {IN_FLIGHT} in flight, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(f"{'pixels':<8}{'way':<20}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'÷ TCP':>8}")
    results, base = [], {}
    for row in rows:
        figures = row.figures()
        if row.name == "TCP":
            base[row.pixel_format] = figures["requests_per_second"]
        ratio = figures["requests_per_second"] / base[row.pixel_format]
        print(
            f"{row.pixel_format.name:<8}{row.name:<20}{figures['requests_per_second']:>12.1f}{figures['p50_ms']:>9.1f}"
            f"{figures['p99_ms']:>9.1f}{ratio:>7.1f}x"
        )
        results.append({"pixels": row.pixel_format.name, "way": row.name, **figures, "ratio_to_tcp": ratio})
    print(
        json.dumps({"benchmark": "pixels", "width": WIDTH, "height": HEIGHT, "in_flight": IN_FLIGHT, "rows": results})
    )


if __name__ == "__main__":
    main()

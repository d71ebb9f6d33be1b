"""How long the server's event loop stands still while raw 20-megapixel frames come in, over TCP and by shared memory.

    python -m benchmarks.loop_gaps

The server runs here beside a clock that ticks every millisecond; the camera is another process that sends one frame
after the other. Prints one table, then one JSON line.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from serving import InspectionServer, ServerSettings  # noqa: E402
from tests.fakes import make_bundle  # noqa: E402

FRAMES = 20
CAMERA = """
import sys
from serving import InspectionClient, Outputs, RawImage
from vision.preprocess import PixelFormat

address, way, name, frames = sys.argv[1:]
width, height, kind, outputs = 5472, 3648, PixelFormat[name], Outputs(regions=False)
size = width * height * kind.bytes_per_pixel
with InspectionClient(address) as client:
    client.wait_until_ready()
    if way == "TCP":
        image = RawImage(b"\\x80" * size, width, height, kind)
        for _ in range(int(frames)):
            print(client.inspect(image, outputs=outputs).latency_ms)
    else:
        with client.shared_memory(slots=1, slot_bytes=size) as memory, memory.take() as slot:
            image = slot.raw(width, height, kind)
            image.pixels[:] = 128
            for _ in range(int(frames)):
                print(client.inspect(image, outputs=outputs).latency_ms)
"""


async def measure(address: str, way: str, pixels: str) -> dict[str, Any]:
    """Gaps between ticks and latencies, in ms."""
    gaps = []

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            gaps.append(1000 * (now - last))
            last = now

    arguments = (sys.executable, "-c", CAMERA, address, way, pixels, str(FRAMES))
    camera = await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.PIPE, cwd=ROOT)
    ticking = asyncio.create_task(tick())
    output, _ = await camera.communicate()
    ticking.cancel()
    latencies = [float(line) for line in output.split()]
    # Each frame can stop the loop once: the gaps that count are as many as there were frames.
    largest = sorted(gaps)[-FRAMES:]
    return {
        "pixels": pixels,
        "way": way,
        "latency_p50_ms": float(np.median(latencies)),
        "gap_median_of_largest_ms": float(np.median(largest)),
        "gap_max_ms": largest[-1],
    }


async def main() -> None:
    print(f"{FRAMES} frames of 5472x3648 px, one at a time, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'pixels':<8}{'way':<16}{'latency p50 ms':>16}{'gap a frame ms':>16}{'longest ms':>12}")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        bundle = make_bundle(Path(name) / "bundle", height=256, width=256)
        async with InspectionServer(ServerSettings(bundle=bundle, address="127.0.0.1:0", threads=1)) as server:
            for pixels in ("MONO8", "RGB8"):
                for way in ("TCP", "shared memory"):
                    row = await measure(server.address, way, pixels)
                    rows.append(row)
                    print(
                        f"{pixels:<8}{way:<16}{row['latency_p50_ms']:>16.0f}{row['gap_median_of_largest_ms']:>16.0f}"
                        f"{row['gap_max_ms']:>12.0f}"
                    )
    print(json.dumps({"benchmark": "loop_gaps", "frames": FRAMES, "rows": rows}))


if __name__ == "__main__":
    asyncio.run(main())

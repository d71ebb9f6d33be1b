"""What JPEG decoding costs, what a reduced scale changes, and which damage is noticed.

    python -m benchmarks.decoding --bundle BUNDLE --images FOLDER

Frames are mosaics of the folder's images at their own sharpness (no image is enlarged), saved as JPEG of quality 90.
For each share of input pixels that a reduced scale must leave, the anomaly scores of the bundle are compared with those
after a full decode. Damage is done to the compressed pixels of the smallest mosaics. Prints tables, then one JSON line.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision import jpeg
from vision.bundle import Bundle, load_bundle
from vision.engine import Engine
from vision.errors import ImageError
from vision.postprocess import judge
from vision.preprocess import MAX_PIXELS, decode_for, decode_image, to_model_input
from vision.types import Inspection

CELL = (360, 280)
MOSAICS = ((3, 12), (6, 8), (13, 4))  # cells a side, frames: 0.9, 3.6 and 17 megapixels
ROUNDS = 5
DAMAGED = 300
KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restart every row": {"restart_marker_rows": 1},
}
DAMAGE = ("one bit turned", "50 bytes set to 0", "1 to 200 bytes lost")


def mosaic(images: list[NDArray[np.uint8]], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """``[side * 360, side * 280, 3]``: random images, cropped or mirrored at the edge to fill their cells."""

    def cell() -> NDArray[np.uint8]:
        image = images[rng.integers(len(images))]
        missing = [(0, max(0, size - have)) for size, have in zip(CELL, image.shape[:2], strict=True)]
        return np.pad(image, (*missing, (0, 0)), "reflect")[: CELL[0], : CELL[1]]

    return np.concatenate([np.concatenate([cell() for _ in range(side)], 1) for _ in range(side)])


def encode(frame: NDArray[np.uint8], **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


def milliseconds(work: Callable[[], object]) -> float:
    """The fastest of some runs."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def by_opencv(data: bytes) -> object:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), cv2.COLOR_BGR2RGB)


def damage(data: bytes, kind: int, rng: np.random.Generator) -> bytes:
    """Somewhere in the compressed pixels."""
    at = int(rng.integers(data.find(b"\xff\xda") + 20, len(data) - 300))
    if kind == 0:
        return data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + bytes(50) + data[at + 50 :]
    return data[:at] + data[at + int(rng.integers(1, 201)) :]


def noticed(data: bytes) -> bool:
    try:
        jpeg.decode_jpeg(data, max_pixels=MAX_PIXELS)
    except ImageError:
        return True
    return False


def scale_rows(files: list[bytes], bundle: Bundle, engine: Engine) -> Iterator[dict[str, Any]]:
    """One row for each share: the cost, and how far scores are from those of a full decode."""
    manifest, spec = bundle.manifest, bundle.manifest.input

    def inspected(decoded: Iterable[tuple[NDArray[np.uint8], tuple[int, int]]]) -> list[Inspection]:
        return [judge(engine.run(to_model_input(frame, spec)[None]), manifest, *size) for frame, size in decoded]

    whole = inspected(decode_for(data, None) for data in files)
    opencv_ms, full_ms = milliseconds(lambda: by_opencv(files[0])), milliseconds(lambda: decode_image(files[0]))
    for share in (1, 2, 3):
        jpeg._OVERSAMPLING = share  # to compare the product's choice with its neighbours
        reduced = inspected(decode_for(data, spec) for data in files)
        height, width = decode_for(files[0], spec)[0].shape[:2]
        apart = [abs((a.anomaly_score or 0) - (b.anomaly_score or 0)) for a, b in zip(whole, reduced, strict=True)]
        yield {
            "frame": f"{whole[0].frame_width}x{whole[0].frame_height}",
            "opencv_ms": opencv_ms,
            "full_ms": full_ms,
            "share": share,
            "decoded": f"{width}x{height}",
            "reduced_ms": milliseconds(lambda: decode_for(files[0], spec)),
            "largest_score_difference": max(apart),
            "mean_score_difference": float(np.mean(apart)),
            "other_verdicts": sum(a.verdict != b.verdict for a, b in zip(whole, reduced, strict=True)),
            "frames": len(files),
        }


def damage_rows(frames: list[NDArray[np.uint8]], rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """One row for each kind of JPEG: the share of damaged files that is noticed."""
    for name, options in KINDS.items():
        files = [encode(frame, **options) for frame in frames]
        row: dict[str, Any] = {"kind": name}
        for index, text in enumerate(DAMAGE):
            found = sum(noticed(damage(files[number % len(files)], index, rng)) for number in range(DAMAGED))
            row[text] = found / DAMAGED
        yield row


def table(rows: list[dict[str, Any]]) -> None:
    """Columns as wide as their widest cell."""
    cells = [list(rows[0])] + [
        [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEGs")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    images = [np.array(Image.open(path).convert("RGB")) for path in sorted(options.images.rglob("*.jpg"))]
    bundle = load_bundle(options.bundle)
    engine = bundle.engine(provider="cpu", strict=False, threads=1)
    scale = []
    for side, count in MOSAICS:
        scale += scale_rows([encode(mosaic(images, side, rng)) for _ in range(count)], bundle, engine)
    spread = float(np.std(bundle.manifest.calibration_scores))
    table(scale)
    print(f"Scores are raw; those of the bundle's good calibration images have a standard deviation of {spread:.2f}.\n")
    damaged = list(damage_rows([mosaic(images, MOSAICS[0][0], rng) for _ in range(6)], rng))
    table(damaged)
    print(json.dumps({"benchmark": "decoding", "calibration_std": spread, "scale": scale, "damage": damaged}))


if __name__ == "__main__":
    main()

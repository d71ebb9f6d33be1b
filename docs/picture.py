"""Makes docs/overlay.jpg: brushed plates are drawn, a model learns good ones alone, and a scratched one is inspected.

    python docs/picture.py

The plates are computed, so that the picture may be shared; everything after them is the product itself. Takes some
minutes on two CPU cores.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.bundle import load_bundle
from vision.overlay import render_overlay
from vision.postprocess import judge
from vision.preprocess import decode_image, to_model_input

HEIGHT, WIDTH, GOOD = 300, 400, 100


def plate(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A brushed metal plate with a chamfer and two bores, grey, uint8 ``[HEIGHT, WIDTH]``."""
    grain = cv2.blur(rng.normal(0, 60, (HEIGHT, WIDTH)).astype(np.float32), (61, 1))
    light = np.linspace(rng.uniform(120, 135), rng.uniform(140, 160), WIDTH, dtype=np.float32)[None, :]
    pixels = light + grain + rng.normal(0, 2, (HEIGHT, WIDTH)).astype(np.float32)
    cv2.rectangle(pixels, (8, 8), (WIDTH - 9, HEIGHT - 9), float(light.max() + 30), 3, cv2.LINE_AA)
    for x in (70, WIDTH - 70):
        center = (x + int(rng.integers(-2, 3)), HEIGHT // 2 + int(rng.integers(-2, 3)))
        cv2.circle(pixels, center, 24, 45.0, -1, cv2.LINE_AA)
        cv2.circle(pixels, center, 24, 190.0, 2, cv2.LINE_AA)
    return np.clip(cv2.GaussianBlur(pixels, (0, 0), 0.8), 0, 255).astype(np.uint8)


def scratched(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A plate with a scratch and a dent."""
    pixels = plate(rng).astype(np.float32)
    points = np.array([[150, 90], [190, 118], [222, 130], [262, 166], [281, 190]], np.int32)
    shade = np.zeros((HEIGHT, WIDTH), np.float32)
    cv2.polylines(shade, [points], isClosed=False, color=1.0, thickness=2, lineType=cv2.LINE_AA)
    cv2.circle(shade, (200, 232), 7, 0.8, -1, cv2.LINE_AA)
    return np.clip(pixels - 70 * cv2.GaussianBlur(shade, (0, 0), 1.0), 0, 255).astype(np.uint8)


def main() -> None:
    rng = np.random.default_rng(0)
    target = Path(__file__).with_name("overlay.jpg")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "plates/train/good").mkdir(parents=True)
        for index in range(GOOD):
            cv2.imwrite(str(folder / f"plates/train/good/{index:03d}.png"), plate(rng))
        for words in (
            ["train", "--data", folder / "plates", "--out", folder / "run", "--size", "224", "--epochs", "4"],
            ["export", "--run", folder / "run", "--out", folder / "plate", "--name", "plate"],
        ):
            subprocess.run([sys.executable, "-m", "defectlens", *map(str, words)], check=True)
        bundle = load_bundle(folder / "plate")
        frame = decode_image(cv2.imencode(".png", scratched(rng))[1].tobytes())
        outputs = bundle.engine(provider="cpu").run(to_model_input(frame, bundle.manifest.input)[None])
        overlay = render_overlay(frame, judge(outputs, bundle.manifest, HEIGHT, WIDTH), bundle.manifest)
        cv2.imwrite(str(target), cv2.cvtColor(overlay, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])


if __name__ == "__main__":
    main()

"""Frames for ``benchmarks/drift.py``: real or drawn parts, and what goes wrong with cameras.

Every change is made to the frame as it comes from the camera, before the model's preprocessing. Frames lose a margin of
3 px all around, so that a shift is another window of the same picture and nothing has to be made up at its border.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from docs.picture import plate
from training.data import read_data, read_frame
from training.elpv import find_elpv, read_elpv
from training.layout import GOOD
from training.splits import split
from vision.preprocess import InputSpec
from vision.types import Frame

MARGIN = 3
# How one shot differs from the next of the same part: light by 1 % (standard deviation), and the sensor's noise.
_LIGHT, _NOISE = 0.01, 1.0
_PLATES = 300
Change = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass
class Station:
    """One camera's world: good frames for the reference (``known``: those that train no model), good ones and
    defective ones for the stream, grey, uint8 ``[H, W]``."""

    name: str
    spec: InputSpec
    reference: list[Frame]
    stream: list[Frame]
    known: list[Frame] = field(default_factory=list)
    defective: list[Frame] = field(default_factory=list)


def magnetic_tile(root: Path, *, chosen_on: str = "test", reference_of: str = "all") -> list[Station]:
    """All six exposure settings in one stream, then each of them alone (``exp1`` ... ``exp6`` in the file names).

    Args:
        chosen_on: ``test`` streams the test part; ``validation`` streams a random quarter of the training folder
            against the rest of it, for choices that must not see a test image.
        reference_of: ``calibration`` makes the reference of the calibration images alone, which are stretches of
            production, instead of ``all`` good images of the training folder.
    """
    data = read_data(root)
    parts = split(data, 0)
    good = [sample for sample in data.train if sample.label == GOOD]
    reference, stream = good, [sample for sample in data.test if sample.label == GOOD]
    if reference_of == "calibration":
        reference = list(parts.calibration)
    if chosen_on == "validation":
        order = np.random.default_rng(0).permutation(len(good))
        reference, stream = ([good[place] for place in some] for some in np.split(order, [3 * len(good) // 4]))
    defective = [sample for sample in data.test if sample.label != GOOD] if chosen_on == "test" else []
    frames = {s.path: read_frame(s.path, data.white_level) for s in (*reference, *stream, *defective)}

    def station(name: str, setting: str) -> Station:
        chosen = [
            [frames[s.path] for s in some if s.path.name.startswith(setting)]
            for some in (reference, stream, parts.calibration, defective)
        ]
        return Station(name, InputSpec(288, 224), *chosen)

    settings = sorted({sample.path.name.split("_")[0] for sample in good})
    return [station("tile, all exposures", ""), *(station(f"tile, {name}", name) for name in settings)]


def plates(seed: int = 0) -> list[Station]:
    """The drawn plates of ``docs/picture.py``: fixed framing, bores that move by up to 2 px, grain that differs."""
    rng = np.random.default_rng(seed)
    reference, stream = ([plate(rng) for _ in range(_PLATES)] for _ in range(2))
    return [Station("plates, drawn", InputSpec(192, 256), reference, stream, reference)]


def elpv(seed: int = 0) -> list[Station]:
    """Monocrystalline solar cells without any doubt; framing is fixed. Cut at random: modules differ from each other,
    so that other modules are no clean stream of the same camera.
    """
    root = find_elpv()
    mono = {line.split()[0] for line in (root / "labels.csv").read_text().splitlines() if line.split()[-1] == "mono"}
    good = [source.path for source in read_elpv(root) if source.defect_probability == 0.0]
    paths = [path for path in good if path.relative_to(root).as_posix() in mono]
    order = np.random.default_rng(seed).permutation(len(paths))
    frames = [read_frame(paths[place], 255) for place in order]
    cut = int(0.6 * len(frames))
    return [Station("solar cells", InputSpec(256, 256), frames[:cut], frames[cut:], frames[:cut])]


def shot(frame: Frame, change: str, rng: np.random.Generator) -> Frame:
    """One shot of a part through a camera of which ``change`` (a key of ``CHANGES``) has happened."""
    across, down, change_it = CHANGES[change]
    height, width = frame.shape[:2]
    window = frame[MARGIN + down : height - MARGIN + down, MARGIN + across : width - MARGIN + across]
    pixels = change_it(window.astype(np.float32) * np.float32(rng.normal(1.0, _LIGHT)))
    return np.clip(np.rint(pixels + rng.normal(0.0, _NOISE, pixels.shape)), 0, 255).astype(np.uint8)


def _same(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    return pixels


def _filtered(kernel: NDArray[np.float32]) -> Change:
    return lambda pixels: np.asarray(cv2.filter2D(pixels, -1, kernel / kernel.sum()), np.float32)


def _disc(radius: float) -> NDArray[np.float32]:
    """What a point becomes out of focus."""
    side = int(np.ceil(radius))
    y, x = np.mgrid[-side : side + 1, -side : side + 1]
    return np.clip(radius + 0.5 - np.hypot(x, y), 0.0, 1.0).astype(np.float32)


def _places(pixels: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows and columns, −1..1."""
    height, width = pixels.shape
    y, x = np.mgrid[:height, :width]
    return 2.0 * y / (height - 1) - 1.0, 2.0 * x / (width - 1) - 1.0


def _vignetting(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """A quarter less light in the corners, falling off with the squared radius."""
    y, x = _places(pixels)
    return np.asarray(pixels * (1.0 - 0.25 * (x * x + y * y) / 2.0), np.float32)


def _lamp(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """A lamp at one side grows weak: 15 % more on the left than in the middle, 15 % less on the right."""
    return np.asarray(pixels * (1.0 - 0.15 * _places(pixels)[1]), np.float32)


def _dust(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Five blurred specks at fixed places, 3 to 5 px in radius, that take a third of the light."""
    rng = np.random.default_rng(5)
    height, width = pixels.shape
    y, x = np.mgrid[:height, :width]
    light = np.ones((height, width))
    for _ in range(5):
        across, down, radius = rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height, rng.uniform(3.0, 5.0)
        light *= 1.0 - 0.33 * np.clip((radius + 1.5 - np.hypot(x - across, y - down)) / 3.0, 0.0, 1.0)
    return np.asarray(pixels * light, np.float32)


CHANGES: dict[str, tuple[int, int, Change]] = {
    "clean": (0, 0, _same),
    "defocus, 1 px": (0, 0, _filtered(_disc(1.0))),
    "defocus, 2 px": (0, 0, _filtered(_disc(2.0))),
    "exposure +20 %": (0, 0, lambda pixels: pixels * np.float32(1.2)),
    "exposure -20 %": (0, 0, lambda pixels: pixels * np.float32(0.8)),
    "shift 3 px, left": (3, 0, _same),
    "shift 3 px, right": (-3, 0, _same),
    "shift 3 px, up": (0, 3, _same),
    "shift 3 px, down": (0, -3, _same),
    "vignetting": (0, 0, _vignetting),
    "dust": (0, 0, _dust),
    "motion blur, 5 px": (0, 0, _filtered(np.ones((5, 1), np.float32))),
    "haze": (0, 0, lambda pixels: pixels * np.float32(0.8) + np.float32(25.0)),
    "lamp at one side": (0, 0, _lamp),
}
"""The window's offset across and down, and what happens to its pixels. Nobody asked for the last three."""

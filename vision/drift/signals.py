"""What a camera shows, in a few numbers a frame: how sharp, how bright, how evenly lit, where, how clean.

Every number is made so that a defect, which covers a small part of the frame, hardly moves it (medians over cells,
differences cut off), while a change of camera, lens, lamp or fixture moves it in every frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.types import FloatArray

# The frame is compared with the mean picture of the reference on a grid of this side.
GRID = 64
# Sharpness is looked at in 8x8 cells, of which the median counts.
_CELLS = 8
_STEP = 4 * _CELLS
# Specks of dirt are looked for in a picture of at most this side: finer than the part's grain pays less than it costs.
_SPECK_SIDE = 160
# Frames of one look at dirt. What is dark in all of four pictures of different parts is not on the parts.
BLOCK = 4
# Grey values added before logarithms and ratios: below them a camera shows noise.
_DARK = 4.0
# A place's surroundings, in px of the speck picture: wider than a speck of dust. What is darker or brighter than these
# shares of their mean is cut off before they are averaged.
_AROUND = (11, 11)
_LEAST_SHARE, _MOST_SHARE = 0.9, 1.1
# Of the speck picture: a speck of this many pixels is seen in full.
_SPECK_PIXELS = 30
# Specks are kept in 1/32 of the reference's spread, and cut off where a signed byte ends.
_SPECK_UNIT = 32.0
# Differences from the mean picture beyond this many spreads are cut off: they are defects, not cameras.
_CUT = 4.0
# Places of the 5th, 50th, 95th and 99th percentile among a quarter of the small picture's pixels.
_QUANTILES = [int(share * GRID * GRID / 4) for share in (0.05, 0.5, 0.95, 0.99)]
# Colour is the mean of every so many-th row and column.
_SPARSE = 8, 4
Grey = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Signal:
    """One number a frame. ``period``: it comes once in so many frames. ``higher``, ``lower``: what it says in words."""

    name: str
    higher: str
    lower: str
    advice: str
    period: int = 1


_FIXTURE = "check the fixture and the camera's mount"
_LAMP = "check the lamp and the exposure setting"
IMAGE_SIGNALS = (
    Signal("focus", "sharper", "less sharp", "refocus the lens, and clean it"),
    Signal("streaks", "blurred from top to bottom", "blurred from left to right", "check exposure time and vibration"),
    Signal("brightness", "brighter", "darker", _LAMP),
    Signal("highlights", "brighter in the brightest places", "darker in the brightest places", _LAMP),
    Signal("contrast", "of higher contrast", "of lower contrast", "clean the lens; look for stray light"),
    Signal("vignetting", "brighter towards the corners", "darker towards the corners", "check lens, shade and lamp"),
    Signal("light_x", "brighter on the right", "brighter on the left", "check whether a lamp has failed or moved"),
    Signal("light_y", "brighter at the bottom", "brighter at the top", "check whether a lamp has failed or moved"),
    Signal("shift_x", "moved to the right", "moved to the left", _FIXTURE),
    Signal("shift_y", "moved downwards", "moved upwards", _FIXTURE),
    Signal("red", "redder", "less red", "check the lamp's colour and the white balance"),
    Signal("blue", "bluer", "less blue", "check the lamp's colour and the white balance"),
    Signal(
        "dirt",
        "marked at places that stay while the parts change",
        "cleaner at places that stay while the parts change",
        "clean the lens and the window in front of it",
        period=BLOCK,
    ),
)
"""Of the picture alone; ``dirt`` is made of ``BLOCK`` frames."""
_MEASURED = len(IMAGE_SIGNALS) - 1


@dataclass(frozen=True, slots=True)
class Look:
    """One frame in numbers: ``values`` ``[12]`` in the order of ``IMAGE_SIGNALS`` without dirt, and ``specks``, int8
    ``[h, w]``: how much each place differs from its surroundings, in units of the reference's spread / 32.
    """

    values: FloatArray
    specks: NDArray[np.int8]


@dataclass(frozen=True)
class Eyes:
    """What frames are compared with.

    ``mean`` and ``spread`` ``[GRID, GRID]``: of log brightness, less each frame's median. ``speck_mean`` and
    ``speck_spread`` ``[h, w]``: of the relative difference of a place from its surroundings. All float32.
    """

    mean: FloatArray
    spread: FloatArray
    speck_mean: FloatArray
    speck_spread: FloatArray

    @cached_property
    def fit(self) -> FloatArray:
        """``[6, GRID²]``: from a difference of pictures to the constant, vignetting, light_x, light_y, shift_x, shift_y
        that explain it best (least squares, weighted by 1 / spread²).

        A small shift d of a picture M is −d·∂M (Lucas and Kanade 1981); in logarithms, exposure is a sum, and falling
        off towards the corners is proportional to the squared radius. Shifts are in cells of the grid, the others in
        log units from the centre to the border.
        """
        y, x = (np.mgrid[:GRID, :GRID] - (GRID - 1) / 2) / (GRID / 2)
        down, across = np.gradient(self.mean)
        radius = (x * x + y * y) / 2.0
        basis = np.stack([np.ones_like(x), radius, x, y, -across, -down]).reshape(6, -1)
        weighted = basis / np.square(self.spread.ravel(), dtype=np.float64)
        normal = weighted @ basis.T
        # A featureless mean picture shows no shift: a little ridge keeps it at 0 instead of noise.
        normal += np.diag(np.diag(normal) * 1e-3 + 1e-6)
        return np.linalg.solve(normal, weighted).astype(np.float32)

    def look(self, pixels: NDArray[np.uint8]) -> Look:
        """Measure the model's input, uint8 ``[H, W, 3]`` RGB; takes some 0.3 ms at 256x256."""
        grey = to_grey(pixels)
        picture = small_picture(grey)
        small = log_of(picture)
        low, middle, high, highest = np.sort(small[::2, ::2], axis=None)[_QUANTILES]
        limit = _CUT * self.spread
        fitted = self.fit @ np.clip(small - middle - self.mean, -limit, limit).ravel()
        red, green, blue, _ = cv2.mean(np.ascontiguousarray(pixels[:: _SPARSE[0], :: _SPARSE[1]]))
        values = (
            *_sharpness(grey, picture),
            middle + fitted[0],
            highest,
            high - low,
            *fitted[1:4],
            fitted[4] * grey.shape[1] / GRID,
            fitted[5] * grey.shape[0] / GRID,
            np.log((red + _DARK) / (green + _DARK)),
            np.log((blue + _DARK) / (green + _DARK)),
        )
        different = (speck_picture(grey) - self.speck_mean) * (_SPECK_UNIT / self.speck_spread)
        return Look(np.array(values, np.float32), np.clip(different, -127.0, 127.0).astype(np.int8))


def dirt(block: NDArray[np.int8]) -> float:
    """How strongly the most conspicuous places are dark, or bright, in *all* of the frames, in the reference's spreads.

    ``[BLOCK, h, w]`` of ``Look.specks``. A scratch on one part is not on the next ones; dust on the lens is. The mean
    of the ``_SPECK_PIXELS`` largest values, by counting: a good deal faster than sorting.
    """
    standing = np.maximum(np.maximum(block.min(axis=0), ~block.max(axis=0)), 0).astype(np.uint8)
    counts = np.bincount(cv2.GaussianBlur(standing, (5, 5), 1.0).ravel(), minlength=128)[::-1]
    taken = np.diff(np.minimum(np.cumsum(counts), _SPECK_PIXELS), prepend=0)
    total = float(taken @ np.arange(len(counts) - 1, -1, -1))
    return total / (_SPECK_UNIT * min(_SPECK_PIXELS, int(standing.size)))


def to_grey(pixels: NDArray[np.uint8]) -> Grey:
    """``[H, W, 3]`` RGB to ``[H, W]``."""
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.uint8, copy=False)


def small_picture(grey: Grey) -> Grey:
    """``[H, W]`` to ``[GRID, GRID]``."""
    return cv2.resize(grey, (GRID, GRID), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def log_of(picture: Grey) -> FloatArray:
    """Log brightness, float32."""
    return np.asarray(np.log(picture.astype(np.float32) + _DARK))


def speck_picture(grey: Grey) -> FloatArray:
    """``[H, W]`` to the relative difference of each place from its surroundings: dust takes a share of the light."""
    factor = max(2, -(-max(grey.shape) // _SPECK_SIDE))
    size = (grey.shape[1] // factor, grey.shape[0] // factor)
    small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA).astype(np.float32) + _DARK
    around = cv2.blur(small, _AROUND)
    # A hole would darken the mean around it, and so brighten its surroundings: what differs much counts for less.
    around = cv2.blur(np.clip(small, around * _LEAST_SHARE, around * _MOST_SHARE), _AROUND)
    return np.asarray(small / around - 1.0)


def _sharpness(grey: Grey, picture: Grey) -> tuple[float, float]:
    """Fine against coarse detail, and fine detail across against downwards; logarithms of ratios, so that neither light
    nor the part's own contrast counts. Median over cells. ``picture`` is the small one, where detail is coarse.
    """
    height, width = grey.shape
    # Every other row will do, and widths of whole cells are resized three times as fast.
    upper, lower = grey[: height // 2 * 2 : 2], grey[1::2]
    inside = (width - 1) // _STEP * _STEP
    across = _detail(upper[:, :inside], upper[:, 1 : inside + 1])
    down = _detail(upper[:, :inside], lower[:, :inside])
    coarse = _detail(picture[:, 1:], picture[:, :-1]) + _detail(picture[1:], picture[:-1])
    return _median(np.log((across + down) / coarse)), _median(np.log(across / down))


def _detail(one: Grey, other: Grey) -> FloatArray:
    """Mean difference in each cell; averaged in two steps, because the first one rounds to whole numbers."""
    means = cv2.resize(cv2.absdiff(one, other), (_STEP, _STEP), interpolation=cv2.INTER_AREA).astype(np.float32)
    # 0.25 grey values: below, there is nothing but rounding.
    return np.asarray(cv2.resize(means, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA) + 0.25)


def _median(cells: FloatArray) -> float:
    """The upper one of the two in the middle: `np.median` takes as long as a filter over the frame."""
    half = cells.size // 2
    return float(np.partition(cells.ravel(), half)[half])

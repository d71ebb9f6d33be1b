"""Whether frames are cut into tiles, and how: from the frames, their smallest labelled defect, and `--tile`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from training.data import Sample, read_mask
from training.masks import ENOUGH_MASKED, find_blobs, masked_share
from vision.errors import SettingsError
from vision.model.tiling import OVERLAP, STEP, TileGrid
from vision.preprocess import InputSpec

AUTO, OFF = "auto", "off"
# A defect has to be so many input pixels wide and high, or it is lost between the cells of the map (4 px each).
_NEEDED_PX = 8.0
# Frames are tiled if one input would show the smallest defect at less than this share of the size it needs.
_WORTH_IT = 0.75
# So little more pixels are no advice.
_NOT_WORTH_IT = 1.1
# Most pixels of a tiled frame: in inputs of one piece where tiles were not asked for, at all, and where a training step
# sees whole frames. Time and memory grow with them.
_MOST_INPUTS, _MOST_PIXELS, _MOST_WHOLE = 16, 20 * 2**20, 4 * 2**20
# Masks that are looked at.
_MASKS = 100
# The smallest defects of a mask are often slips of the pen.
_SMALLEST_SHARE = 0.1
# A tile may be so many times as high and wide as one input: the larger tiles are, the less of them is overlap.
_LARGER = 1.5


@dataclass(frozen=True, slots=True)
class Survey:
    """Median ``height`` and ``width`` of the frames as cameras took them, in px; ``smallest`` the side in px of a
    square as large as the smallest labelled defects (the 10th percentile), None where no mask says it; ``masked`` as
    ``masked_share`` of the defect frames.
    """

    height: float
    width: float
    smallest: float | None
    masked: float


@dataclass(frozen=True, slots=True)
class TilePlan:
    """``spec``: the input, which is the whole frame. ``tile``: height and width of a tile in px, or None.

    ``cuts``: training sees single tiles, and not whole frames. ``why`` says it in words.
    """

    spec: InputSpec
    tile: tuple[int, int] | None
    cuts: bool
    why: str


def survey(samples: Sequence[Sample], good: str | None, shapes: Sequence[tuple[int, int]]) -> Survey:
    """Look at an even selection of the masks of the training frames' defects; ``shapes`` as ``frame_shapes`` found."""
    defects = [sample for sample in samples if sample.label != good]
    masks = [sample.mask for sample in defects if sample.mask is not None]
    sides = [
        float(blob.mask.sum()) ** 0.5
        for path in masks[:: max(1, len(masks) // _MASKS)]
        for blob in find_blobs(read_mask(path).astype(np.uint8))
    ]
    return Survey(
        height=float(np.median([shape[0] for shape in shapes])),
        width=float(np.median([shape[1] for shape in shapes])),
        smallest=float(np.quantile(sides, _SMALLEST_SHARE)) if sides else None,
        masked=masked_share(defects),
    )


def plan_tiles(asked: str, spec: InputSpec, found: Survey, *, few_labels: bool, size_asked: bool = False) -> TilePlan:
    """What becomes of `--tile`.

    Args:
        asked: ``auto``, ``off``, or a tile's side in px.
        spec: the input that frames in one piece would have.
        found: in the training frames.
        size_asked: ``spec`` has the size that `--size` asks for; frames keep it.
        few_labels: the model learns from good frames and synthetic defects, and not from many labelled ones.

    Raises:
        SettingsError: ``asked`` is none of these, or too small.
    """
    if asked == OFF or (asked == AUTO and size_asked):
        return TilePlan(
            spec, None, cuts=False, why=f"frames in one piece of {spec.width}x{spec.height} px, as asked for"
        )
    native = found.height * found.width
    one = float(spec.height * spec.width)
    localised = few_labels or found.masked >= ENOUGH_MASKED
    size = f"frames of {found.width:.0f}x{found.height:.0f} px"
    if asked != AUTO:
        side = check_side(asked)
        why = f"{size} in tiles of at most {side} px, as asked for"
        pixels = one if size_asked else min(native, _MOST_PIXELS if localised else _MOST_WHOLE)
        return _tiled(spec, found, pixels, side, why, cuts=localised)
    if few_labels or found.smallest is None or not localised:
        needed = "half of all, some of each class"
        why = f"{size} in one piece: there are too few masks of defects that would ask for tiles ({needed})"
        return TilePlan(spec, None, cuts=False, why=why)
    shown = _shown(found, spec)
    defect = f"the smallest labelled defects are {found.smallest:.0f} px"
    if shown >= _WORTH_IT * _NEEDED_PX or native <= one:
        why = f"{size}: {defect}, {shown:.1f} px in one input of {spec.width}x{spec.height} px"
        return TilePlan(spec, None, cuts=False, why=why)
    wanted = native * min(1.0, _NEEDED_PX / found.smallest) ** 2
    reason = f"{size}: {defect}, only {shown:.1f} px in one input of {spec.width}x{spec.height} px"
    side = round(_LARGER * one**0.5 / STEP) * STEP
    plan = _tiled(spec, found, min(wanted, _MOST_INPUTS * one), side, reason, cuts=True)
    largest = _tiled(spec, found, min(native, _MOST_PIXELS), side, reason, cuts=True)
    return replace(plan, why=plan.why + _still_small(found, plan.spec, largest.spec, side))


def _shown(found: Survey, spec: InputSpec) -> float:
    """The side of the smallest labelled defects in input px."""
    return (found.smallest or 0.0) * math.sqrt(spec.height * spec.width / (found.height * found.width))


def _still_small(found: Survey, chosen: InputSpec, largest: InputSpec, side: int) -> str:
    """What to say, and to do, where even tiles are too coarse for the smallest labelled defects; nothing elsewhere.

    Args:
        largest: the input that ``--tile`` with ``side`` would have.
    """
    shown, most = _shown(found, chosen), _shown(found, largest)
    if shown >= _WORTH_IT * _NEEDED_PX:
        return ""
    advice = []
    more = largest.height * largest.width / (chosen.height * chosen.width)
    if more > _NOT_WORTH_IT:
        advice.append(
            f"`--tile {side}` shows them at {most:.1f} px and takes {more:.1f} times the time and memory a frame"
        )
    if most < _WORTH_IT * _NEEDED_PX:
        advice.append("a camera that sees less of the part at once shows them larger")
    return f"; the smallest defects are {shown:.1f} px then, and easily missed: {', '.join(advice)}"


def check_side(asked: str) -> int:
    """A tile's side in px from what was written for `--tile`, rounded to a multiple of 32.

    Raises:
        SettingsError: it is no such number.
    """
    if not asked.isdecimal() or not 96 <= int(asked) <= 2048:
        raise SettingsError(f"--tile takes auto, off, or the most px of a tile's side, in 96..2048; got {asked!r}")
    return STEP * round(int(asked) / STEP)


def _tiled(spec: InputSpec, found: Survey, pixels: float, most: int, why: str, *, cuts: bool) -> TilePlan:
    """The plan of frames of about ``pixels`` px in tiles of at most ``most`` px; in one piece where one is enough."""
    scale = (pixels / (found.height * found.width)) ** 0.5
    high, wide = (max(64, STEP * round(side * scale / STEP)) for side in (found.height, found.width))
    larger = InputSpec(high, wide, spec.white_level)
    tile = even_tile(high, most), even_tile(wide, most)
    if tile == (high, wide):
        return TilePlan(larger, None, cuts=False, why=f"{why}; {wide}x{high} px need no second tile")
    return TilePlan(larger, tile, cuts, f"{why}; {wide}x{high} px in {TileGrid(high, wide, *tile)}")


def even_tile(side: int, most: int) -> int:
    """The side of the smallest tiles, in multiples of 32 px, of which as few as tiles of ``most`` px cover ``side``."""
    if side <= most:
        return side
    count = math.ceil((side - OVERLAP) / (most - OVERLAP))
    return STEP * math.ceil((side + (count - 1) * OVERLAP) / count / STEP)

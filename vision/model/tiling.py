"""Large frames in tiles: cut with overlap, looked at one by one, and stitched into the maps of one frame."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vision.errors import SettingsError

# Tiles begin where the coarsest features have a cell, so that maps of every stride meet without interpolation.
STEP = 32
# Pixels that neighbouring tiles share at least: what lies at one tile's edge lies inside the other.
OVERLAP = 64
# Pixels of tiles that go through the network at a time; a 4-megapixel frame in one piece would take gigabytes.
_CHUNK_PIXELS = 2**20


@dataclass(frozen=True)
class TileGrid:
    """How frames of ``height`` x ``width`` px are cut into tiles of one size; all of it in multiples of 32 px.

    The tiles are as few as keep neighbours overlapping by ``OVERLAP`` px (32 less where rounding takes them), spread
    evenly from border to border.
    """

    height: int
    width: int
    tile_height: int
    tile_width: int

    def __post_init__(self) -> None:
        sides = (self.height, self.width, self.tile_height, self.tile_width)
        if any(side % STEP or side < 64 for side in sides):
            raise SettingsError(f"frame and tiles must be multiples of {STEP} px and at least 64; got {sides}")
        for side, tile in ((self.height, self.tile_height), (self.width, self.tile_width)):
            if tile > side:
                raise SettingsError(f"a tile of {tile} px is larger than the frame's {side} px")
            if tile < side and tile <= OVERLAP:
                raise SettingsError(f"tiles overlap by {OVERLAP} px and must be larger; got {tile} px")

    @cached_property
    def tops(self) -> tuple[int, ...]:
        """Where the rows of tiles begin, in pixels."""
        return _starts(self.height, self.tile_height)

    @cached_property
    def lefts(self) -> tuple[int, ...]:
        """Where the columns of tiles begin, in pixels."""
        return _starts(self.width, self.tile_width)

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    @property
    def area(self) -> float:
        """The frame's pixels in tiles' pixels."""
        return self.height * self.width / (self.tile_height * self.tile_width)

    def __str__(self) -> str:
        return f"{len(self.tops)} x {len(self.lefts)} tiles of {self.tile_height} x {self.tile_width} px"


class Tiling(nn.Module):
    """Cuts frames and stitches what was found in their tiles; without parameters, and with static slices alone, so that
    the exported graph has fixed sizes and a free batch.

    Where tiles overlap, their maps are blended: each counts the less the nearer its own edge is. The shares of all
    tiles add up to 1 in every place, so that a seam adds nothing and takes nothing away.
    """

    def __init__(self, grid: TileGrid) -> None:
        super().__init__()
        self.grid = grid
        for stride in (4, 8, 16):
            for axis, starts, tile, side in (
                ("rows", grid.tops, grid.tile_height, grid.height),
                ("columns", grid.lefts, grid.tile_width, grid.width),
            ):
                shares = blend_shares([start // stride for start in starts], tile // stride, side // stride)
                self.register_buffer(f"{axis}{stride}", shares, persistent=False)

    def cut(self, frames: Tensor) -> Tensor:
        """``[N, H, W, ...]`` pixels to the tiles of all frames, ``[N * T, h, w, ...]``, row by row."""
        grid = self.grid
        rows = torch.stack([frames[:, top : top + grid.tile_height] for top in grid.tops], dim=1)
        tiles = torch.stack([rows[:, :, :, left : left + grid.tile_width] for left in grid.lefts], dim=2)
        return tiles.flatten(0, 2)

    def stitch(self, maps: Tensor) -> Tensor:
        """Maps of tiles ``[N * T, C, h, w]``, of stride 4, 8 or 16, to those of frames ``[N, C, H, W]``."""
        grid = self.grid
        stride = grid.tile_height // maps.shape[-2]
        down, across = len(grid.tops), len(grid.lefts)
        parts = maps.reshape(-1, down, across, *maps.shape[1:])
        lefts, tops = [left // stride for left in grid.lefts], [top // stride for top in grid.tops]
        shares = getattr(self, f"columns{stride}")
        whole = _lay([parts[:, :, j] * shares[j] for j in range(across)], lefts, grid.width // stride, -1)
        shares = getattr(self, f"rows{stride}")[:, :, None]
        return _lay([whole[:, i] * shares[i] for i in range(down)], tops, grid.height // stride, -2)

    def area_of(self, maps: Tensor) -> float:
        """Of stride-4 maps ``[..., h, w]``, in tiles: those of a single tile have 1."""
        grid = self.grid
        return 16.0 * maps.shape[-2] * maps.shape[-1] / (grid.tile_height * grid.tile_width)

    def mean(self, values: Tensor) -> Tensor:
        """Numbers of tiles ``[N * T, E]`` to their mean over each frame, ``[N, E]``."""
        return values.reshape(-1, len(self.grid), values.shape[-1]).mean(dim=1)

    def over(self, frames: Tensor, look: Callable[[Tensor], Sequence[Tensor | None]]) -> list[Any]:
        """What ``look`` finds in the tiles of all frames, some tiles at a time.

        For gradients a chunk is looked at again on the way back, so that memory holds one chunk's inner values. A graph
        that is exported looks at all tiles at once.
        """
        tiles = self.cut(frames)
        if torch.compiler.is_exporting():
            return list(look(tiles))
        most = max(1, _CHUNK_PIXELS // (self.grid.tile_height * self.grid.tile_width))
        again = torch.is_grad_enabled() and len(tiles) > most
        parts = [
            checkpoint(look, part, use_reentrant=False) if again else look(part) for part in torch.split(tiles, most)
        ]
        return [None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)]


def blend_shares(starts: Sequence[int], tile: int, side: int) -> Tensor:
    """How much each tile of an axis counts in each of its cells: ``[tiles, tile]``, adding up to 1 over the tiles.

    A tile's weight rises from its edge over the width of an overlap; at the frame's border it is alone, and whole.
    """
    overlap = min((tile - (later - earlier) for earlier, later in itertools.pairwise(starts)), default=1)
    place = torch.arange(tile) + 0.5
    weight = torch.minimum(place, tile - place).clamp(max=max(1.0, float(overlap)))
    total = torch.zeros(side)
    for start in starts:
        total[start : start + tile] += weight
    return torch.stack([weight / total[start : start + tile] for start in starts])


def _lay(parts: Sequence[Tensor], starts: Sequence[int], side: int, axis: int) -> Tensor:
    """Weighted pieces laid where they belong along the last axis or the one before, and added."""
    before = (0, 0) * (-1 - axis)
    laid = [
        F.pad(part, (*before, start, side - start - part.shape[axis]))
        for part, start in zip(parts, starts, strict=True)
    ]
    whole = laid[0]
    for part in laid[1:]:
        whole = whole + part
    return whole


def _starts(side: int, tile: int) -> tuple[int, ...]:
    if tile == side:
        return (0,)
    count = math.ceil((side - OVERLAP) / (tile - OVERLAP))
    return tuple(STEP * round(index * (side - tile) / (count - 1) / STEP) for index in range(count))

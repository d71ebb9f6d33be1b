"""Training on tiles of large frames: which pieces an epoch shows, and what each of them is labelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.data import NO_DEFECT, Sample
from training.masks import Blob, find_blobs
from training.stores import Store
from vision.console import say
from vision.errors import DataError
from vision.model.config import ModelConfig
from vision.model.tiling import TileGrid

Pixels = NDArray[np.uint8]

# Tiles an epoch: of a frame with a defect so many that show it, and so many that do not.
_DEFECT_TILES, _CLEAN_TILES = 4, 2
# Good frames give at most so many tiles an epoch, or one each, or twice as many as show a defect.
_GOOD_TILES = 512
# A tile shows a defect from this many of its pixels on (one cell of the map), or from half of a smaller one.
_ENOUGH_PX = 16
# A defect is at least this share of a tile's side away from the tile's edge, where the frame allows it.
_MARGIN = 1 / 8
_TRIES = 8


def shows_defect(blobs: Sequence[Blob], top: int, left: int, grid: TileGrid) -> bool | None:
    """Whether the tile at (top, left) shows a defect; None where it shows too little of one to be called either."""
    counts = [(blob.inside(top, left, grid.tile_height, grid.tile_width), int(blob.mask.sum())) for blob in blobs]
    if not any(count for count, _ in counts):
        return False
    return True if any(count >= min(_ENOUGH_PX, -(-whole // 2)) for count, whole in counts) else None


@dataclass(frozen=True, slots=True)
class _Place:
    frame: int
    top: int
    left: int


class TileStore:
    """Tiles of training frames, drawn anew for every epoch: another ``Store`` for those who train.

    Frames with a defect and its mask give tiles around the defect, which keep its label, and tiles without any of it,
    which are good ones; without a good class (``good`` None) they have the label ``NO_DEFECT``. Good frames give a
    bounded number of tiles from anywhere. A defect without a mask could be anywhere in its frame: such frames give
    none.
    """

    def __init__(self, frames: Store, grid: TileGrid, good: str | None, seed: int) -> None:
        self._frames, self._grid, self._good, self._seed = frames, grid, good, seed
        self._blobs = {
            index: find_blobs(frames[index][1])
            for index, sample in enumerate(frames.samples)
            if sample.label != good and sample.mask is not None
        }
        self._places: list[_Place] = []
        self.samples: tuple[Sample, ...] = ()
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Pixels, Pixels]:
        """Tile uint8 ``[h, w, 3]`` and its piece of the mask uint8 ``[h, w]``."""
        return _cut(self._frames, self._places[index], self._grid)

    def set_epoch(self, epoch: int) -> None:
        """Draw the tiles of an epoch; the same ones for the same seed and epoch."""
        rng = np.random.default_rng((self._seed, epoch, 3))
        drawn: list[tuple[_Place, Sample]] = []
        for index, blobs in self._blobs.items():
            sample = self._frames.samples[index]
            drawn += [(place, sample) for place in self._around(index, blobs, rng)]
            clean = replace(sample, label=self._good or NO_DEFECT, mask=None, defect_probability=0.0)
            drawn += [(place, clean) for place in self._beside(index, blobs, rng)]
        good = [index for index, sample in enumerate(self._frames.samples) if sample.label == self._good]
        defective = sum(sample.label != self._good for _, sample in drawn)
        wanted = min(len(good) * len(self._grid), max(len(good), _GOOD_TILES, 2 * defective))
        # Every frame about as often as any other.
        rounds = [rng.permutation(good) for _ in range(-(-wanted // max(1, len(good))))]
        order = np.concatenate(rounds)[:wanted] if rounds else ()
        drawn += [(self._anywhere(int(index), rng), self._frames.samples[int(index)]) for index in order]
        self._places = [place for place, _ in drawn]
        self.samples = tuple(sample for _, sample in drawn)

    def _around(self, index: int, blobs: Sequence[Blob], rng: np.random.Generator) -> list[_Place]:
        places = []
        for _ in range(_DEFECT_TILES if blobs else 0):
            blob = blobs[int(rng.integers(len(blobs)))]  # by blobs, not by pixels: small ones are the hard ones
            ys, xs = np.nonzero(blob.mask)
            for _ in range(_TRIES):
                one = int(rng.integers(len(ys)))
                top = self._before(blob.top + int(ys[one]), self._grid.tile_height, self._grid.height, rng)
                left = self._before(blob.left + int(xs[one]), self._grid.tile_width, self._grid.width, rng)
                if shows_defect(blobs, top, left, self._grid):
                    places.append(_Place(index, top, left))
                    break
        return places

    def _beside(self, index: int, blobs: Sequence[Blob], rng: np.random.Generator) -> list[_Place]:
        tries = [self._anywhere(index, rng) for _ in range(_TRIES)]
        clean = [place for place in tries if shows_defect(blobs, place.top, place.left, self._grid) is False]
        return clean[:_CLEAN_TILES]

    def _anywhere(self, index: int, rng: np.random.Generator) -> _Place:
        top = int(rng.integers(self._grid.height - self._grid.tile_height + 1))
        return _Place(index, top, int(rng.integers(self._grid.width - self._grid.tile_width + 1)))

    @staticmethod
    def _before(place: int, tile: int, side: int, rng: np.random.Generator) -> int:
        """Where a tile may begin so that ``place`` is well inside it."""
        margin = int(tile * _MARGIN)
        return int(np.clip(place - int(rng.integers(margin, tile - margin)), 0, side - tile))


class GridTiles:
    """The tiles of the surely good frames of a store, as the model cuts them."""

    def __init__(self, frames: Store, grid: TileGrid, good: str) -> None:
        self._frames, self._grid = frames, grid
        self._places = [
            _Place(index, top, left)
            for index, sample in enumerate(frames.samples)
            if sample.label == good and not sample.is_ambiguous
            for top in grid.tops
            for left in grid.lefts
        ]
        self.samples = tuple(frames.samples[place.frame] for place in self._places)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Pixels, Pixels]:
        """As of ``TileStore``."""
        return _cut(self._frames, self._places[index], self._grid)

    def set_epoch(self, epoch: int) -> None:
        """The same in every epoch."""


def training_store(frames: Store, config: ModelConfig, seed: int, *, cuts: bool) -> Store:
    """What training shows: tiles of the frames where they are cut, else the frames.

    Raises:
        DataError: no tile is left.
    """
    if not cuts or config.tiles is None or not config.localizes:
        return frames
    store = TileStore(frames, config.tiles, config.good_class, seed)
    left = sum(sample.label != config.good_class and sample.mask is None for sample in frames.samples)
    if left:
        say(f"{left} defect images without a mask are not trained on: their defect may be in any of their tiles")
    if not len(store):
        raise DataError("no tile of the training images can be used; give good images, or masks of the defects")
    return store


def pieces(stores: Sequence[Store], config: ModelConfig) -> list[Store]:
    """Good frames as the model looks at them: tile by tile, or whole."""
    grid, good = config.tiles, config.good_class
    return [store if grid is None or good is None else GridTiles(store, grid, good) for store in stores]


def _cut(frames: Store, place: _Place, grid: TileGrid) -> tuple[Pixels, Pixels]:
    frame, mask = frames[place.frame]
    window = np.s_[place.top : place.top + grid.tile_height, place.left : place.left + grid.tile_width]
    return np.ascontiguousarray(frame[window]), np.ascontiguousarray(mask[window])

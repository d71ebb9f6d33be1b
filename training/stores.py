"""Labelled pictures of one size, in memory where they fit: what models learn from and are measured on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from training.data import Sample, read_frame
from training.masks import mask_at_input
from vision.preprocess import InputSpec, to_model_input

# Frames at input size are kept in memory up to this many bytes; beyond it they are decoded again when needed.
_CACHE_BYTES = 4 * 2**30


class Pictures(Protocol):
    """Labelled pictures of one size, whole frames or tiles of them."""

    @property
    def samples(self) -> tuple[Sample, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Picture uint8 ``[H, W, 3]`` and mask uint8 ``[H, W]`` (0 or 1; all zero where the sample has none)."""
        ...


class Store(Pictures, Protocol):
    """What training draws its batches from."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the pictures of an epoch, where they are chosen."""
        ...


class FrameStore:
    """Frames and masks at input size, decoded once where memory allows."""

    def __init__(self, samples: Sequence[Sample], spec: InputSpec) -> None:
        self.samples = tuple(samples)
        self._spec = spec
        self._frames: dict[int, NDArray[np.uint8]] = {}
        self._masks: dict[int, NDArray[np.uint8]] = {}
        self._fits = len(samples) * spec.height * spec.width * 4 <= _CACHE_BYTES
        if self._fits:
            with ThreadPoolExecutor() as pool:
                for index, pair in enumerate(pool.map(self._read, range(len(samples)))):
                    self._frames[index], self._masks[index] = pair

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Frame uint8 ``[H, W, 3]`` and mask uint8 ``[H, W]`` (0 or 1; all zero where the sample has none)."""
        return (self._frames[index], self._masks[index]) if self._fits else self._read(index)

    def set_epoch(self, epoch: int) -> None:
        """Whole frames are the same in every epoch."""

    def _read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        sample = self.samples[index]
        frame = to_model_input(read_frame(sample.path, self._spec.white_level), self._spec)
        return frame, mask_at_input(sample.mask, self._spec)


class Joined:
    """Several stores as one."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self._places = [(store, index) for store in stores for index in range(len(store))]
        self.samples = tuple(sample for store in stores for sample in store.samples)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """As of the store that it comes from."""
        store, place = self._places[index]
        return store[place]

    def set_epoch(self, epoch: int) -> None:
        """The same pictures in every epoch: these are stores of whole frames."""


def in_batches(
    store: Pictures, most: int
) -> Iterator[tuple[list[Sample], NDArray[np.uint8], tuple[NDArray[np.uint8], ...]]]:
    """All in order, ``most`` at a time: the samples, pictures uint8 ``[N, H, W, 3]`` and masks uint8 ``[H, W]``. Each
    is looked at once, since it may have to be decoded or made.
    """
    for start in range(0, len(store), most):
        places = range(start, min(start + most, len(store)))
        pictures, masks = zip(*(store[place] for place in places), strict=True)
        yield [store.samples[place] for place in places], np.stack(pictures), masks


class GoodPictures:
    """The surely good pictures of several stores, by index, decoded when they are looked at; of more than ``at_most``
    every so many-th.
    """

    def __init__(self, stores: Sequence[Pictures], good: str | None, *, at_most: int | None = None) -> None:
        places = [
            (store, index)
            for store in stores
            for index, sample in enumerate(store.samples)
            if sample.label == good and not sample.is_ambiguous
        ]
        self._places = places if at_most is None else places[:: -(-len(places) // at_most)]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        store, place = self._places[index]
        return store[place][0]

"""Frames in batches that fit into memory, and through a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vision.preprocess import InputSpec
from vision.types import OUTPUT_NAMES, FloatArray, Frame, ModelOutputs

# More at a time gains nothing on a CPU, and a GPU cuts them up itself.
_BATCH = 8


class Frames(Protocol):
    """Frames of one size, uint8 ``[H, W, 3]``, by index: an array, a list, or files decoded when they are looked at."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> NDArray[Any]: ...


def stacked(frames: Frames, most: int) -> Iterator[Frame]:
    """All of them in order, uint8 ``[N, H, W, 3]``, ``most`` at a time; each is looked at once."""
    for start in range(0, len(frames), most):
        yield np.stack([frames[index] for index in range(start, min(start + most, len(frames)))])


def run_batches(run: Callable[[Frame], ModelOutputs], frames: Frame) -> Iterator[ModelOutputs]:
    """What ``run`` says of frames uint8 ``[N, H, W, 3]`` at input size, eight at a time, of large ones fewer."""
    yield from map(run, stacked(frames, InputSpec(*frames.shape[1:3]).most_frames(_BATCH)))


def run_all(run: Callable[[Frame], ModelOutputs], frames: Frame) -> ModelOutputs:
    """The same as one, for a few frames whose maps fit into memory together."""
    parts = list(run_batches(run, frames))
    return ModelOutputs(*(_joined([getattr(part, name) for part in parts]) for name in OUTPUT_NAMES))  # type: ignore[arg-type]


def _joined(values: Sequence[FloatArray | None]) -> FloatArray | None:
    there = [value for value in values if value is not None]
    return np.concatenate(there) if there else None

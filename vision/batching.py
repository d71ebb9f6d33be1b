"""Frames through a model in batches that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vision.preprocess import InputSpec
from vision.types import OUTPUT_NAMES, FloatArray, Frame, ModelOutputs

# More at a time gains nothing on a CPU, and a GPU cuts them up itself.
_BATCH = 8


def run_batches(run: Callable[[Frame], ModelOutputs], frames: Frame) -> Iterator[ModelOutputs]:
    """What ``run`` says of frames uint8 ``[N, H, W, 3]`` at input size, eight at a time, of large ones fewer."""
    most = InputSpec(*frames.shape[1:3]).most_frames(_BATCH)
    for start in range(0, len(frames), most):
        yield run(frames[start : start + most])


def run_all(run: Callable[[Frame], ModelOutputs], frames: Frame) -> ModelOutputs:
    """The same as one, for a few frames whose maps fit into memory together."""
    parts = list(run_batches(run, frames))
    return ModelOutputs(*(_joined([getattr(part, name) for part in parts]) for name in OUTPUT_NAMES))  # type: ignore[arg-type]


def _joined(values: Sequence[FloatArray | None]) -> FloatArray | None:
    there = [value for value in values if value is not None]
    return np.concatenate(there) if there else None

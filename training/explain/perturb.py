"""Insertion and deletion: does the answer follow the places that an explanation points at?

Patches of the frame, those first that a map says are most important, are taken away (deletion) or shown alone
(insertion), and the class score is watched. What is taken away is replaced by what a good part looks like there, never
by black, which would be a defect of its own. Sources: Petsiuk, Das, Saenko, *RISE*, BMVC 2018; Samek et al. 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vision.decision import softmax
from vision.model.detector import Detector
from vision.postprocess import resize_map
from vision.types import FloatArray

Pixels = NDArray[np.uint8]
Flags = NDArray[np.bool_]
Score = Callable[[Flags], FloatArray]
"""``[K, rows, columns]``, true where a patch is replaced, to class logits ``[K, C]``."""

PATCH = 16
"""Pixels of a patch's side: a token of the model."""
FEATHER = 6.0
"""Deviation in px of the blur at the edge of what is replaced. Hard edges are taken for cracks; `python -m
benchmarks.replacing` compares."""
_POINTS = 14
"""Of each curve, closer together at its start, where it falls or rises."""


def best_reference(frame: Pixels, good: Pixels) -> Pixels:
    """The good frame that looks most like ``frame``, brought to its brightness: what it might be without its defect.

    Args:
        frame: uint8 ``[H, W, 3]``.
        good: uint8 ``[M, H, W, 3]``, frames of good parts.
    """
    thumbnails = [_thumbnail(one) for one in (frame, *good)]
    # Medians: the defect itself must not decide which part the frame is compared with.
    shifts = [np.median(thumbnails[0] - one, axis=(0, 1)) for one in thumbnails[1:]]
    distances = [
        float(np.abs(thumbnails[0] - one - shift).mean()) for one, shift in zip(thumbnails[1:], shifts, strict=True)
    ]
    nearest = int(np.argmin(distances))
    return np.asarray(np.clip(np.rint(good[nearest] + shifts[nearest]), 0, 255), np.uint8)


def _thumbnail(frame: Pixels) -> FloatArray:
    size = (max(1, frame.shape[1] // (2 * PATCH)), max(1, frame.shape[0] // (2 * PATCH)))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.float32)


def replace_patches(frame: Pixels, reference: Pixels, replaced: Flags) -> Pixels:
    """The frame with the patches ``[rows, columns]`` that are true taken from the reference, softly at their edges."""
    if not replaced.any():
        return frame
    if replaced.all():
        return reference
    size = (frame.shape[1], frame.shape[0])
    share = cv2.resize(replaced.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
    share = cv2.GaussianBlur(share, (0, 0), FEATHER, borderType=cv2.BORDER_REPLICATE)[:, :, None]
    return np.clip(np.rint(frame * (1 - share) + reference * share), 0, 255).astype(np.uint8)


def picture_score(run: Callable[[Pixels], FloatArray], frame: Pixels, reference: Pixels, batch: int) -> Score:
    """Patches are replaced in the picture, before the whole model; ``run`` takes frames to class logits."""

    def score(replaced: Flags) -> FloatArray:
        parts = []
        for start in range(0, len(replaced), batch):
            chosen = replaced[start : start + batch]
            parts.append(run(np.stack([replace_patches(frame, reference, one) for one in chosen])))
        return np.concatenate(parts)

    return score


def feature_score(detector: Detector, frame: Pixels, reference: Pixels, batch: int) -> Score:
    """Patches are replaced by the features that the reconstruction expects of a normal part there.

    What the reconstruction does not predict, stride 4, comes from the reference picture.
    """
    rebuilt = detector.reconstruction
    if rebuilt is None:
        raise ValueError("this model has no reconstruction; use picture_score")
    detector.eval()
    with torch.no_grad():
        features = detector.backbone(torch.from_numpy(frame)[None])
        finest = detector.backbone(torch.from_numpy(reference)[None])[0]
        normal = [finest, *rebuilt.normal_features(features[1:])]

    @torch.no_grad()
    def score(replaced: Flags) -> FloatArray:
        parts = []
        for start in range(0, len(replaced), batch):
            chosen = torch.from_numpy(replaced[start : start + batch].astype(np.float32))[:, None]
            mixed = []
            for own, other in zip(features, normal, strict=True):
                share = torch.nn.functional.interpolate(chosen, size=own.shape[-2:], mode="area")
                mixed.append(own * (1 - share) + other * share)
            parts.append(detector.read(mixed).class_logits.numpy())
        return np.concatenate(parts)

    return score


@dataclass(frozen=True, slots=True)
class Curves:
    """Class score ``[P]`` over the ``shares`` ``[P]`` of patches, 0 to 1, that are shown (insertion) or taken away."""

    shares: FloatArray
    insertion: FloatArray
    deletion: FloatArray


def curves(maps: dict[str, FloatArray], score: Score, grid: tuple[int, int], target: int) -> dict[str, Curves]:
    """Insertion and deletion of one frame, by method.

    Args:
        maps: by method ``[h, w]``.
        score: of this frame.
        grid: rows and columns of patches.
        target: the class that is explained.
    """
    count = grid[0] * grid[1]
    steps = _steps(count)
    selections = [np.zeros((1, *grid), np.bool_), np.ones((1, *grid), np.bool_)]
    for values in maps.values():
        first = _first_patches(values, grid, steps[1:-1])
        selections += [~first, first]  # shown alone, taken away
    logits = score(np.concatenate(selections))
    scores = softmax(logits)[:, target]
    whole, empty, inner = scores[:1], scores[1:2], scores[2:].reshape(len(maps), 2, -1)
    shares = (np.array(steps) / count).astype(np.float32)
    return {
        name: Curves(shares, np.concatenate([empty, shown, whole]), np.concatenate([whole, left, empty]))
        for name, (shown, left) in zip(maps, inner, strict=True)
    }


def _steps(count: int) -> list[int]:
    """Numbers of patches, 0 to all of them."""
    return [0, *np.unique(np.geomspace(1, count, _POINTS).round().astype(int)).tolist()]


def _first_patches(values: FloatArray, grid: tuple[int, int], numbers: Sequence[int]) -> Flags:
    """For each number so many patches with the highest mean of the map: bool ``[len(numbers), *grid]``."""
    means = cv2.resize(_at_least(values, grid), grid[::-1], interpolation=cv2.INTER_AREA).ravel()
    # Equal values (a map that is 0 nearly everywhere) in no order: row by row would favour the top of the frame.
    order = np.lexsort((np.random.default_rng(0).random(means.size), -means))
    chosen = np.zeros((len(numbers), means.size), np.bool_)
    for row, number in zip(chosen, numbers, strict=True):
        row[order[:number]] = True
    return chosen.reshape(-1, *grid)


def _at_least(values: FloatArray, grid: tuple[int, int]) -> FloatArray:
    return values if values.shape[0] >= grid[0] and values.shape[1] >= grid[1] else resize_map(values, *grid)

"""Solving for the subspace of good frames: seconds, no step size, no epoch to choose."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from training.stores import GoodPictures, Pictures
from vision.batching import stacked
from vision.console import track
from vision.model.detector import Detector
from vision.model.deviations import channel_scales
from vision.model.subspace import rest

# Of more frames an even selection is taken: the time grows with their square, the patterns hardly change.
_MOST_FRAMES = 2000
# One frame in so many is held out to see how far new good frames lie from the others.
_HELD_OUT = 4


@torch.no_grad()
def fit_subspace(detector: Detector, stores: Sequence[Pictures], *, again: bool = False) -> float | None:
    """Set the detector's subspace from the surely good frames (or tiles) of ``stores``; nothing where it has none.

    Args:
        again: with more frames than before; what counts as far stays as it is, so that thresholds keep their meaning.

    Returns:
        How much of held-out good frames the others foresee, 1 being all: the share of the variance of their features
        of stride 16 that is in the patterns of the others. None where none was held out, and of tiles, which overlap
        those that are held out.
    """
    subspace = detector.subspace
    if subspace is None:
        return None
    foreseen = None
    good = GoodPictures(stores, detector.config.good_class, at_most=_MOST_FRAMES)
    for level, features in enumerate(_features(detector, good)):
        scale = channel_scales(features.std(dim=(0, 2, 3)))
        rows = (features / scale.view(1, -1, 1, 1)).flatten(1)
        mean = rows.mean(dim=0)
        rows = rows - mean
        subspace.set_basis(level, scale, mean, principal(rows, subspace.components))
        if not again and len(rows) >= _HELD_OUT:
            held = torch.arange(len(rows)) % _HELD_OUT == _HELD_OUT - 1
            left = rest(rows[held], principal(rows[~held], subspace.components))
            distances = left.reshape(-1, *features.shape[1:]).square().mean(dim=1).sqrt()
            subspace.set_spread(level, float(distances.mean()), float(distances.std()))
            if level == 0 and detector.tiling is None:
                foreseen = 1.0 - float(left.square().sum() / rows[held].square().sum().clamp(min=1e-12))
    return foreseen


def principal(rows: Tensor, count: int) -> Tensor:
    """The first ``count`` principal components of centred ``rows`` ``[N, P]``, or all that there are: ``[k, P]``.

    Solved on the N×N products of the rows, which is cheap where a row is much longer than there are rows.
    """
    variances, mixtures = torch.linalg.eigh((rows @ rows.t()).double())
    order = variances.argsort(descending=True)[:count]
    order = order[variances[order] > 1e-6 * variances.max().clamp(min=1e-12)]
    directions = (mixtures[:, order] / variances[order].sqrt()).to(rows.dtype)
    return torch.as_tensor(directions.t() @ rows)


def _features(detector: Detector, frames: GoodPictures) -> list[Tensor]:
    """Features of strides 16 and 32 on the subspace's grids; in float32, as the exported graph computes them."""
    device = next(detector.parameters()).device
    detector.eval()
    levels: list[list[Tensor]] = [[], []]
    most = detector.config.inference_piece_batch
    batches = math.ceil(len(frames) / most)
    for pictures in track(stacked(frames, most), "measuring good frames", total=batches, unit="batches"):
        features = detector.backbone(torch.from_numpy(pictures).to(device))[2:]
        for kept, level in zip(levels, detector.subspace.on_grids(features), strict=True):  # type: ignore[union-attr]
            kept.append(level.cpu())
    return [torch.cat(level) for level in levels]

"""What of a whole frame cannot be put together from good frames: a signal that is solved for, not trained."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.model.deviations import SMALLEST_DEVIATION
from vision.model.tokens import stretch_to

# Features on more cells than this are averaged first: a basis over all cells of a large frame would not fit a line PC.
_LARGEST_GRID = 400
# Values of a basis over all levels, in 2 bytes each: a wide backbone gets fewer components instead of a larger file.
_LARGEST_BASIS = 32 * 10**6


class NormalSubspace(nn.Module):
    """Distance of the features to the span of good frames, place by place.

    A frame's features of one stride, over all places and channels, are one long vector *x*. Its good version is
    ``x̂ = μ + Σ_k ((x − μ)·v_k) v_k`` with the first principal components *v_k* of good frames: linear attention of the
    frame to *k* whole-frame patterns that are keys and values at once. What is left, ``|x − x̂|`` over the channels of
    a place, is the map. Sources: Hawkins 1974 (residuals of principal components); Luo et al. 2025 (INP-Former:
    attention to prototypes of normal parts).

    Args:
        channels: of the strides 16 and 32.
        height: of the input frames, in pixels.
        width: the same across.
        components: how many patterns for each stride; fewer where so many would make too large a file.
    """

    def __init__(self, channels: Sequence[int], height: int, width: int, components: int) -> None:
        super().__init__()
        cells = [_grid(height // stride, width // stride) for stride in (16, 32)]
        self.factors, self.grids = [factor for factor, _ in cells], [grid for _, grid in cells]
        lengths = [count * grid[0] * grid[1] for count, grid in zip(channels, self.grids, strict=True)]
        self.components = max(1, min(components, _LARGEST_BASIS // sum(lengths)))
        for index, (count, length) in enumerate(zip(channels, lengths, strict=True)):
            self.register_buffer(f"scale{index}", torch.ones(1, count, 1, 1))
            self.register_buffer(f"mean{index}", torch.zeros(1, length))
            # Half precision halves the file; the products are computed in float32.
            self.register_buffer(f"basis{index}", torch.zeros(self.components, length, dtype=torch.float16))
            self.register_buffer(f"center{index}", torch.zeros(()))
            self.register_buffer(f"spread{index}", torch.ones(()))

    def on_grids(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of strides 16 and 32 in float32, each on the grid of its basis."""
        return [
            stretch_to(F.avg_pool2d(level.float(), factor) if factor > 1 else level.float(), grid)
            for level, factor, grid in zip(features, self.factors, self.grids, strict=True)
        ]

    @torch.no_grad()
    def set_basis(self, level: int, scale: Tensor, mean: Tensor, basis: Tensor) -> None:
        """Set one stride's (0: stride 16, 1: stride 32) channel scales ``[C]``, mean ``[P]`` of the scaled features and
        orthonormal patterns ``[k, P]``; with fewer than ``components`` the rest stays 0.
        """
        getattr(self, f"scale{level}").copy_(scale.view(1, -1, 1, 1))
        getattr(self, f"mean{level}").copy_(mean.view(1, -1))
        kept = getattr(self, f"basis{level}")
        kept.zero_()
        kept[: len(basis)].copy_(basis)

    @torch.no_grad()
    def set_spread(self, level: int, center: float, spread: float) -> None:
        """Set mean and standard deviation of a stride's distance on good frames that the basis was not made of; a
        deviation below ``SMALLEST_DEVIATION`` counts as that (the features' own is 1).
        """
        getattr(self, f"center{level}").fill_(center)
        getattr(self, f"spread{level}").fill_(max(spread, SMALLEST_DEVIATION))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features of strides 16 and 32 to their standardised distances, summed on the finer grid: ``[N, h, w]``."""
        maps = []
        for index, level in enumerate(self.on_grids(features)):
            scaled = (level / getattr(self, f"scale{index}")).flatten(1) - getattr(self, f"mean{index}")
            left = rest(scaled, getattr(self, f"basis{index}").float()).reshape(level.shape)
            distance = left.square().mean(dim=1, keepdim=True).sqrt()
            maps.append((distance - getattr(self, f"center{index}")) / getattr(self, f"spread{index}"))
        return torch.as_tensor((maps[0] + stretch_to(maps[1], self.grids[0]))[:, 0])


def rest(rows: Tensor, basis: Tensor) -> Tensor:
    """What is left of ``rows`` ``[N, P]`` after their projection on orthonormal ``basis`` ``[k, P]``."""
    return rows - (rows @ basis.t()) @ basis


def _grid(rows: int, columns: int) -> tuple[int, tuple[int, int]]:
    """Side of the cells that are averaged, and the grid that comes out."""
    factor = max(1, math.ceil(math.sqrt(rows * columns / _LARGEST_GRID)))
    factor = min(factor, rows, columns)
    return factor, (rows // factor, columns // factor)

"""Several backbone stages fused on one stride-16 grid of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Learned positions are kept on a grid of this side and interpolated to the real one.
_POSITION_GRID = 16


class TokenFusion(nn.Module):
    """Strides 8, 16 and 32 to ``dim`` channels on the stride-16 grid, plus interpolated 2-D positions.

    Stride 8 is folded 2×2 into channels, so nothing of it is averaged away; stride 32 is stretched bilinearly.
    """

    def __init__(self, channels: Sequence[int], dim: int) -> None:
        super().__init__()
        self.fold = nn.Conv2d(4 * channels[0], dim, 1)
        self.keep = nn.Conv2d(channels[1], dim, 1)
        self.stretch = nn.Conv2d(channels[2], dim, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(count, affine=False) for count in channels)
        self.positions = nn.Parameter(torch.randn(1, dim, _POSITION_GRID, _POSITION_GRID) * 0.02)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, tuple[int, int]]:
        """Features at strides 8, 16, 32 to tokens ``[N, T, dim]`` and their grid (rows, columns)."""
        fine, middle, coarse = (norm(value) for norm, value in zip(self.norms, features, strict=True))
        size = (middle.shape[-2], middle.shape[-1])
        fused = self.fold(F.pixel_unshuffle(fine, 2)) + self.keep(middle) + stretch_to(self.stretch(coarse), size)
        fused = fused + stretch_to(self.positions, size)
        return to_tokens(fused), size


def stretch_to(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, pixel areas aligned; ``[N, C, h, w]`` to ``[N, C, *size]``."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def to_tokens(maps: Tensor) -> Tensor:
    """``[N, C, h, w]`` to ``[N, h·w, C]``."""
    return maps.flatten(2).transpose(1, 2)


def to_maps(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """``[N, h·w, C]`` to ``[N, C, h, w]``."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)

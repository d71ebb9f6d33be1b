"""Where is it? Two complementary signals: what cannot be rebuilt as normal, and what looks like a defect."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.model.deviations import channel_scales
from vision.model.mixers import Block
from vision.model.tokens import stretch_to, to_maps, to_tokens

# The read-out grid of every map, in input pixels per map pixel.
MAP_STRIDE = 4
# Smoothing of the reconstruction map, in map pixels; about one stride-16 token, the grain of the reconstruction.
_SMOOTHING_SIGMA = 4.0
_POSITION_GRID = 16


class Reconstruction(nn.Module):
    """Predicts standardised features of strides 8, 16 and 32 as a normal part would have them.

    A dropout bottleneck and linear attention keep it from copying its input (Dinomaly, Guo et al. 2025; UniAD, You et
    al. 2022). ``channels`` are those of the three strides. ``set_statistics`` sets the standardisation once: mean and
    deviation of each channel over good training images.
    """

    def __init__(self, channels: Sequence[int], *, dim: int, depth: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.widths = [4 * channels[0], channels[1], channels[2]]
        for index, count in enumerate(channels):
            self.register_buffer(f"mean{index}", torch.zeros(1, count, 1, 1))
            self.register_buffer(f"std{index}", torch.ones(1, count, 1, 1))
        self.squeeze = nn.Linear(sum(self.widths), dim)
        self.bottleneck = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * dim, dim),
            nn.Dropout(dropout),
        )
        self.positions = nn.Parameter(torch.randn(1, dim, _POSITION_GRID, _POSITION_GRID) * 0.02)
        self.blocks = nn.ModuleList(Block("linear", dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.predict = nn.Linear(dim, sum(self.widths))

    @torch.no_grad()
    def set_statistics(self, means: Sequence[Tensor], deviations: Sequence[Tensor]) -> None:
        """Per-channel mean and standard deviation of strides 8, 16, 32, each ``[C]``."""
        for index, (mean, deviation) in enumerate(zip(means, deviations, strict=True)):
            getattr(self, f"mean{index}").copy_(mean.view(1, -1, 1, 1))
            getattr(self, f"std{index}").copy_(channel_scales(deviation).view(1, -1, 1, 1))

    def standardise(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of strides 8, 16, 32 to standardised ones in float32, stride 32 stretched to stride 16."""
        fine, middle, coarse = (
            (value.float() - getattr(self, f"mean{index}")) / getattr(self, f"std{index}")
            for index, value in enumerate(features)
        )
        return [fine, middle, stretch_to(coarse, (middle.shape[-2], middle.shape[-1]))]

    def forward(self, standardised: Sequence[Tensor]) -> list[Tensor]:
        """Standardised features to their predictions, float32, of the same shapes."""
        fine, middle, coarse = standardised
        grid = (middle.shape[-2], middle.shape[-1])
        tokens = self.squeeze(to_tokens(torch.cat([F.pixel_unshuffle(fine, 2), middle, coarse], dim=1)))
        tokens = self.bottleneck(tokens) + to_tokens(stretch_to(self.positions, grid))
        for block in self.blocks:
            tokens = block(tokens, grid)
        predicted = to_maps(self.predict(self.norm(tokens)).float(), grid)
        folded, middle, coarse = torch.split(predicted, self.widths, dim=1)
        return [F.pixel_shuffle(folded, 2), middle, coarse]

    def normal_features(self, features: Sequence[Tensor]) -> list[Tensor]:
        """What features of strides 8, 16, 32 would be on a normal part, as the backbone would give them."""
        sizes = [(value.shape[-2], value.shape[-1]) for value in features]
        predicted = self(self.standardise(features))
        return [
            F.adaptive_avg_pool2d(value, size) * getattr(self, f"std{index}") + getattr(self, f"mean{index}")
            for index, (value, size) in enumerate(zip(predicted, sizes, strict=True))
        ]


def cosine_distances(predicted: Sequence[Tensor], standardised: Sequence[Tensor]) -> list[Tensor]:
    """1 − cosine over the channels, level by level: ``[N, C, h, w]`` twice to ``[N, h, w]`` in 0..2."""
    return [1.0 - F.cosine_similarity(one, other, dim=1) for one, other in zip(predicted, standardised, strict=True)]


class Smoothing(nn.Module):
    """Gaussian blur with mirrored borders, as one separable convolution pair: ``[N, 1, h, w]`` to the same."""

    kernel: Tensor

    def __init__(self, sigma: float = _SMOOTHING_SIGMA) -> None:
        super().__init__()
        self.radius = math.ceil(2 * sigma)
        offsets = torch.arange(-self.radius, self.radius + 1, dtype=torch.float32)
        kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
        self.register_buffer("kernel", kernel / kernel.sum(), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        padded = F.pad(maps, (self.radius,) * 4, mode="reflect")
        across = F.conv2d(padded, self.kernel.view(1, 1, 1, -1))
        return F.conv2d(across, self.kernel.view(1, 1, -1, 1))


class MaskHead(nn.Module):
    """Defect logits at stride 4 from the mixed tokens, the finer features and, if there is one, the reconstruction.

    Output ``[N, 1 + D, H/4, W/4]``: channel 0 is the logit of "defective here", the others are class logits *given*
    that it is (D = 0 without labelled masks).
    """

    def __init__(
        self, fine_channels: Sequence[int], dim: int, defect_classes: int, *, reconstruction: bool, width: int = 64
    ) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(count, affine=False) for count in fine_channels)
        half = width // 2
        self.from_tokens = nn.Conv2d(dim, width, 1)
        self.from_stride8 = nn.Conv2d(fine_channels[1], width, 1)
        self.from_stride4 = nn.Conv2d(fine_channels[0], half, 1)
        self.from_reconstruction = nn.Conv2d(3, width, 1) if reconstruction else None
        self.at_stride8 = _separable(width)
        self.narrow = nn.Conv2d(width, half, 1)
        self.at_stride4 = _separable(half)
        self.classify = nn.Conv2d(half, 1 + defect_classes, 1)
        # Defects are rare: starting at "nowhere" keeps the first steps calm.
        if self.classify.bias is not None:
            nn.init.constant_(self.classify.bias[:1], -4.0)

    def forward(
        self, token_map: Tensor, stride8: Tensor, stride4: Tensor, distances: Sequence[Tensor] | None
    ) -> Tensor:
        size8, size4 = ((value.shape[-2], value.shape[-1]) for value in (stride8, stride4))
        mixed = stretch_to(self.from_tokens(token_map), size8) + self.from_stride8(self.norms[1](stride8))
        if self.from_reconstruction is not None and distances is not None:
            stacked = torch.cat([stretch_to(value[:, None], size8) for value in distances], dim=1)
            mixed = mixed + self.from_reconstruction(stacked)
        mixed = mixed + self.at_stride8(mixed)
        mixed = stretch_to(self.narrow(mixed), size4) + self.from_stride4(self.norms[0](stride4))
        return torch.as_tensor(self.classify(F.gelu(mixed + self.at_stride4(mixed))))


def _separable(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(width),
        nn.GELU(),
        nn.Conv2d(width, width, 3, padding=1, groups=width),
        nn.Conv2d(width, width, 1),
        nn.BatchNorm2d(width),
        nn.GELU(),
        nn.Conv2d(width, width, 3, padding=1, groups=width),
        nn.Conv2d(width, width, 1),
    )

"""Sparse attention: windows, and a few prototypes of the whole frame. Linear in the number of tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.model.attention import Attention, join_tokens

# Tokens on a window's side, at most; 8 at stride 16 are 128 px.
_WINDOW = 8
# Global prototypes. Few: every token looks at all of them.
_PROTOTYPES = 16
# Tokens that are attended to at once, if a row of windows has no more.
_STRIP_TOKENS = 1024


class SparseAttention(Attention):
    """Every token looks at the tokens of its window and at prototypes, in one softmax.

    A prototype is gathered from all tokens by a learned query, so that far places meet there. Sources: windows as in
    Swin (Liu et al. 2021); prototypes as the inducing points of the Set Transformer (Lee et al. 2019).
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.prototypes = nn.Parameter(torch.randn(1, heads, _PROTOTYPES, dim // heads) * (dim // heads) ** -0.25)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        gathered = self._gather(key)
        frame_key, frame_value = gathered @ key, gathered @ value
        # Strips of windows, one after the other: what is copied for them stays in a core's cache.
        strips = Windows(grid).strips()
        lengths = [strip.tokens for strip in strips]
        parts = zip(*(torch.split(part, lengths, dim=-2) for part in (query, key, value)), strict=True)
        found = [
            self._attend_near(strip, near_query, near_key, near_value, frame_key, frame_value)
            for strip, (near_query, near_key, near_value) in zip(strips, parts, strict=True)
        ]
        return join_tokens(found)

    @staticmethod
    def _attend_near(
        windows: Windows, query: Tensor, key: Tensor, value: Tensor, frame_key: Tensor, frame_value: Tensor
    ) -> Tensor:
        found = F.scaled_dot_product_attention(
            windows.cut(query),
            torch.cat([windows.cut(key), windows.repeat(frame_key)], dim=-2),
            torch.cat([windows.cut(value), windows.repeat(frame_value)], dim=-2),
            attn_mask=windows.mask(query.shape[1], _PROTOTYPES, query.device),
        )
        return windows.join(found, query.shape[1])

    def weights(self, query: Tensor, key: Tensor, grid: tuple[int, int]) -> Tensor:
        """Prototypes count for the tokens that they are made of."""
        gathered = self._gather(key)
        scale = query.shape[-1] ** -0.5
        near = (query @ key.transpose(-2, -1) * scale).masked_fill(~Windows(grid).together(query.device), -torch.inf)
        far = query @ (gathered @ key).transpose(-2, -1) * scale
        share = torch.softmax(torch.cat([near, far], dim=-1), dim=-1)
        return torch.as_tensor(share[..., :-_PROTOTYPES] + share[..., -_PROTOTYPES:] @ gathered)

    def _gather(self, key: Tensor) -> Tensor:
        """How much of each token is in each prototype: ``[N, heads, P, T]``."""
        scale = key.shape[-1] ** -0.5
        return torch.softmax(self.prototypes.to(key.dtype) @ key.transpose(-2, -1) * scale, dim=-1)


class Windows:
    """A grid of tokens cut into windows as equal as can be, of at most ``_WINDOW`` tokens a side; the last ones of a
    row or column may be short of tokens, which are masked.
    """

    def __init__(self, grid: tuple[int, int], side: tuple[int, int] | None = None) -> None:
        self._grid = grid
        self._side = side or (_even(grid[0]), _even(grid[1]))
        self._count = tuple(math.ceil(edge / length) for edge, length in zip(grid, self._side, strict=True))
        self._padding = tuple(
            length * count - edge for edge, length, count in zip(grid, self._side, self._count, strict=True)
        )

    @property
    def tokens(self) -> int:
        return self._grid[0] * self._grid[1]

    def strips(self) -> list[Windows]:
        """The same windows in strips across the grid, of about ``_STRIP_TOKENS`` tokens each, from above."""
        rows, columns = self._grid
        high = self._side[0] * max(1, _STRIP_TOKENS // (self._side[0] * columns))
        return [Windows((min(high, rows - top), columns), self._side) for top in range(0, rows, high)]

    def cut(self, parts: Tensor) -> Tensor:
        """``[N, heads, T, d]`` to ``[N, windows · heads, tokens of a window, d]``."""
        heads, width = parts.shape[1], parts.shape[-1]
        (down, across), (high, wide) = self._count, self._side
        plane = parts.reshape(-1, heads, *self._grid, width)
        plane = F.pad(plane, (0, 0, 0, self._padding[1], 0, self._padding[0])) if any(self._padding) else plane
        plane = plane.reshape(-1, heads, down, high, across, wide, width).permute(0, 2, 4, 1, 3, 5, 6)
        return plane.reshape(-1, down * across * heads, high * wide, width)

    def join(self, parts: Tensor, heads: int) -> Tensor:
        """The inverse of ``cut``."""
        (down, across), (high, wide), (rows, columns) = self._count, self._side, self._grid
        width = parts.shape[-1]
        plane = parts.reshape(-1, down, across, heads, high, wide, width).permute(0, 3, 1, 4, 2, 5, 6)
        plane = plane.reshape(-1, heads, down * high, across * wide, width)[:, :, :rows, :columns]
        return plane.reshape(-1, heads, rows * columns, width)

    def repeat(self, prototypes: Tensor) -> Tensor:
        """``[N, heads, P, d]`` to one copy a window: ``[N, windows · heads, P, d]``."""
        return prototypes.repeat(1, self._count[0] * self._count[1], 1, 1)

    def mask(self, heads: int, prototypes: int, device: torch.device) -> Tensor | None:
        """What may be looked at: bool ``[1, windows · heads, 1, keys]``; None for everything."""
        if not any(self._padding):
            return None
        inside = self.cut(torch.ones(1, heads, self._grid[0] * self._grid[1], 1, device=device))[..., 0] > 0
        always = torch.ones(1, inside.shape[1], prototypes, dtype=torch.bool, device=device)
        return torch.cat([inside, always], dim=-1)[:, :, None]

    def together(self, device: torch.device) -> Tensor:
        """Which pairs of tokens share a window: ``[T, T]``."""
        rows = torch.arange(self._grid[0], device=device) // self._side[0]
        columns = torch.arange(self._grid[1], device=device) // self._side[1]
        number = (rows[:, None] * self._count[1] + columns[None]).reshape(-1)
        return number[:, None] == number[None]


def _even(edge: int) -> int:
    """The side of windows that cut an edge as evenly as can be."""
    return math.ceil(edge / math.ceil(edge / _WINDOW))

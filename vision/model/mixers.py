"""Token mixers behind one interface, and the transformer block that carries them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.errors import SettingsError


class Mixer(nn.Module):
    """Tokens ``[N, T, dim]`` in, tokens of the same shape out; ``grid`` is their (rows, columns)."""

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        raise NotImplementedError("a mixer defines its own forward")


class DenseAttention(Mixer):
    """Multi-head scaled dot product over all pairs of tokens: O(T²). Source: Vaswani et al. 2017."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:  # noqa: ARG002
        query, key, value = _split_heads(self.qkv(tokens), self.heads)
        return torch.as_tensor(self.out(_join_heads(F.scaled_dot_product_attention(query, key, value))))


class LinearAttention(Mixer):
    """φ(q)(φ(k)ᵀv) with φ = ELU + 1: O(T), too blunt to copy its input. Source: Katharopoulos et al. 2020, eq. 4."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:  # noqa: ARG002
        query, key, value = _split_heads(self.qkv(tokens), self.heads)
        query, key = F.elu(query) + 1.0, F.elu(key) + 1.0
        # Dividing the keys' sum by their number keeps bfloat16 in range on large grids; it cancels in the quotient.
        scale = 1.0 / tokens.shape[1]
        summary = (key.transpose(-2, -1) * scale) @ value
        norm = (query * (key.sum(dim=-2, keepdim=True) * scale)).sum(dim=-1, keepdim=True)
        return torch.as_tensor(self.out(_join_heads((query @ summary) / norm)))


MIXERS: dict[str, type[DenseAttention] | type[LinearAttention]] = {"dense": DenseAttention, "linear": LinearAttention}


def make_mixer(kind: str, dim: int, heads: int) -> Mixer:
    """Build a mixer by its name in ``MIXERS``."""
    if kind not in MIXERS:
        raise SettingsError(f"unknown mixer {kind!r}; choose one of {', '.join(MIXERS)}")
    return MIXERS[kind](dim, heads)


class Block(nn.Module):
    """Pre-norm transformer block: x + mixer(norm x), then x + MLP(norm x)."""

    def __init__(self, kind: str, dim: int, heads: int, *, expansion: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_mixer = nn.LayerNorm(dim)
        self.mixer = make_mixer(kind, dim, heads)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, expansion * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(expansion * dim, dim)
        )

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        tokens = tokens + self.mixer(self.norm_mixer(tokens), grid)
        return torch.add(tokens, self.mlp(self.norm_mlp(tokens)))


def _split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """``[N, T, 3·dim]`` to three ``[N, heads, T, dim / heads]``."""
    count, length, width = qkv.shape
    query, key, value = qkv.reshape(count, length, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def _join_heads(parts: Tensor) -> Tensor:
    count, heads, length, width = parts.shape
    return parts.transpose(1, 2).reshape(count, length, heads * width)

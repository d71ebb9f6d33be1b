"""Token mixers behind one interface, and the transformer block that carries them."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.errors import SettingsError


class Mixer(nn.Module, ABC):
    """Tokens ``[N, T, dim]`` in, tokens of the same shape out; ``grid`` is their (rows, columns)."""

    @abstractmethod
    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor: ...


class Attention(Mixer):
    """Queries, keys and values of several heads; a subclass says how they attend."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:  # noqa: ARG002
        attended = self.attend(*_split_heads(self.qkv(tokens), self.heads))
        return torch.as_tensor(self.out(_join_heads(attended)))

    def looks_at(self, tokens: Tensor) -> Tensor:
        """What each token looks at, head by head: ``[N, T, dim]`` to ``[N, heads, T, T]``, rows adding up to 1.

        For explanations alone: always O(T²).
        """
        query, key, _ = _split_heads(self.qkv(tokens), self.heads)
        return self.weights(query, key)

    @abstractmethod
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Three times ``[N, heads, T, dim / heads]`` to one of the same shape."""

    @abstractmethod
    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        """The ``[N, heads, T, T]`` with which ``attend`` is ``weights @ value``."""


class DenseAttention(Attention):
    """Multi-head scaled dot product over all pairs of tokens: O(T²). Source: Vaswani et al. 2017."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        return torch.softmax(query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5, dim=-1)


class LinearAttention(Attention):
    """φ(q)(φ(k)ᵀv) with φ = ELU + 1: O(T), too blunt to copy its input. Source: Katharopoulos et al. 2020, eq. 4."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key = F.elu(query) + 1.0, F.elu(key) + 1.0
        # Dividing the keys' sum by their number keeps bfloat16 in range on large grids; it cancels in the quotient.
        scale = 1.0 / query.shape[-2]
        summary = (key.transpose(-2, -1) * scale) @ value
        norm = (query * (key.sum(dim=-2, keepdim=True) * scale)).sum(dim=-1, keepdim=True)
        return (query @ summary) / norm

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        products = (F.elu(query) + 1.0) @ (F.elu(key) + 1.0).transpose(-2, -1)
        return torch.as_tensor(products / products.sum(dim=-1, keepdim=True))


MIXERS: dict[str, type[DenseAttention] | type[LinearAttention]] = {"dense": DenseAttention, "linear": LinearAttention}


def make_mixer(kind: str, dim: int, heads: int) -> Attention:
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

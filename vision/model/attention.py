"""Attention over all tokens: dense, and linear in their number."""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.model.mixer import Mixer

# Queries that look at all tokens at once. A graph keeps every pair of them, for each head and frame: 4,096 tokens that
# all go at once take 537 MB, and take no less time.
_STRIP_TOKENS = 1024


class Attention(Mixer):
    """Several heads, each of which gathers from other tokens; what it gathers goes through ``out``.

    A subclass says how: what ``looks_at`` returns are the weights with which it gathers values.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        query, key, value = split_heads(self.qkv(tokens), self.heads)
        return torch.as_tensor(self.out(join_heads(self.attend(query, key, value, grid))))

    def looks_at(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """What each token looks at, head by head: ``[N, T, dim]`` to ``[N, heads, T, T]``, rows adding up to 1.

        For explanations alone: always O(T²).
        """
        query, key, _ = split_heads(self.qkv(tokens), self.heads)
        return self.weights(query, key, grid)

    @abstractmethod
    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        """Three times ``[N, heads, T, dim / heads]`` to one of the same shape."""

    @abstractmethod
    def weights(self, query: Tensor, key: Tensor, grid: tuple[int, int]) -> Tensor:
        """The ``[N, heads, T, T]`` with which ``attend`` is ``weights @ value``."""


class DenseAttention(Attention):
    """Multi-head scaled dot product over all pairs of tokens: O(T²). Source: Vaswani et al. 2017."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:  # noqa: ARG002
        parts = torch.split(query, _STRIP_TOKENS, dim=-2)
        return join_tokens([F.scaled_dot_product_attention(part, key, value) for part in parts])

    def weights(self, query: Tensor, key: Tensor, grid: tuple[int, int]) -> Tensor:  # noqa: ARG002
        return torch.softmax(query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5, dim=-1)


class LinearAttention(Attention):
    """φ(q)(φ(k)ᵀv) with φ = ELU + 1: O(T), too blunt to copy its input. Source: Katharopoulos et al. 2020, eq. 4."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:  # noqa: ARG002
        query, key = F.elu(query) + 1.0, F.elu(key) + 1.0
        # Dividing the keys' sum by their number keeps bfloat16 in range on large grids; it cancels in the quotient.
        scale = 1.0 / query.shape[-2]
        summary = (key.transpose(-2, -1) * scale) @ value
        norm = (query * (key.sum(dim=-2, keepdim=True) * scale)).sum(dim=-1, keepdim=True)
        return (query @ summary) / norm

    def weights(self, query: Tensor, key: Tensor, grid: tuple[int, int]) -> Tensor:  # noqa: ARG002
        products = (F.elu(query) + 1.0) @ (F.elu(key) + 1.0).transpose(-2, -1)
        return torch.as_tensor(products / products.sum(dim=-1, keepdim=True))


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """``[N, T, 3·dim]`` to three ``[N, heads, T, dim / heads]``."""
    count, length, width = qkv.shape
    query, key, value = qkv.reshape(count, length, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def join_heads(parts: Tensor) -> Tensor:
    count, heads, length, width = parts.shape
    return parts.transpose(1, 2).reshape(count, length, heads * width)


def join_tokens(parts: list[Tensor]) -> Tensor:
    """Pieces ``[..., T_i, d]`` to ``[..., T, d]``; one piece is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)

"""Token mixers by name, and the block that carries one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vision.errors import SettingsError
from vision.model.attention import Attention, DenseAttention, LinearAttention, join_tokens
from vision.model.mixer import Mixer
from vision.model.scan import RowColumnScan
from vision.model.sparse import SparseAttention

ATTENTIONS: dict[str, type[Attention]] = {
    "dense": DenseAttention,
    "linear": LinearAttention,
    "sparse": SparseAttention,
}
MIXERS = (*ATTENTIONS, "lstm", "none")
"""``none`` leaves tokens to themselves: a CNN with a head on every place."""
# The MLP's wide activations of so many tokens stay in a core's cache; of a large frame's 16,384 they would be 50 MB.
_MLP_TOKENS = 512


def make_mixer(kind: str, dim: int, heads: int) -> Mixer | None:
    """Build a mixer by its name in ``MIXERS``; nothing for ``none``. Heads are for attention alone."""
    if kind in ATTENTIONS:
        return ATTENTIONS[kind](dim, heads)
    if kind == "lstm":
        return RowColumnScan(dim)
    if kind == "none":
        return None
    raise SettingsError(f"unknown mixer {kind!r}; choose one of {', '.join(MIXERS)}")


class Block(nn.Module):
    """Pre-norm transformer block: x + mixer(norm x), then x + MLP(norm x)."""

    def __init__(self, kind: str, dim: int, heads: int, *, expansion: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.mixer = make_mixer(kind, dim, heads)
        self.norm_mixer = nn.LayerNorm(dim) if self.mixer is not None else nn.Identity()
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, expansion * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(expansion * dim, dim)
        )

    @property
    def attention(self) -> Attention | None:
        """The mixer, if it is one of attention."""
        return self.mixer if isinstance(self.mixer, Attention) else None

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        if self.mixer is not None:
            tokens = tokens + self.mixer(self.norm_mixer(tokens), grid)
        # Every token goes through the MLP by itself, so pieces of a large frame change nothing but where they are kept.
        parts = torch.split(tokens, _MLP_TOKENS, dim=1)
        return join_tokens([torch.add(part, self.mlp(self.norm_mlp(part))) for part in parts])

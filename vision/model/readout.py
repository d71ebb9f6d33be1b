"""Which defect is it, and what made the model say so: one computation answers both."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AdditiveReadout(nn.Module):
    """One learned query a class: ``logit_c = bias_c + Σ_i α_ci · (w_c · V x_i)``.

    ``α_c`` is the softmax of the class's query over the tokens. The term of token *i* is its contribution, so the
    saliency map adds up to the logit exactly: the explanation is the computation.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.queries = nn.Parameter(torch.randn(classes, dim) * dim**-0.5)
        self.weights = nn.Parameter(torch.randn(classes, dim) * dim**-0.5)
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens ``[N, T, dim]`` to logits ``[N, C]``, contributions ``[N, C, T]`` and attention ``[N, C, T]``."""
        tokens = self.norm(tokens)
        scores = self.key(tokens) @ self.queries.t() * self.queries.shape[1] ** -0.5
        attention = scores.float().transpose(1, 2).softmax(dim=-1)
        values = (self.value(tokens) @ self.weights.t()).float().transpose(1, 2)
        contributions = attention * values
        return contributions.sum(dim=-1) + self.bias, contributions, attention

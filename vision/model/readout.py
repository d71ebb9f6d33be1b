"""Which defect is it, and what made the model say so: one computation answers both."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.model.tokens import stretch_to, to_maps


class AdditiveReadout(nn.Module):
    """One learned query a class: ``logit_c = bias_c + Σ_i α_ci · (w_c · V x_i)``.

    ``α_c`` is the softmax of the class's query over the places *i*. The term of a place is its contribution, so the
    saliency map adds up to the logit exactly: the explanation is the computation.

    A ``guided`` read-out reads where the localizer sees something: its places are the cells of the mask (stride 4), the
    tokens' scores and values are stretched to them, and ``softplus(guidance_c) · log P(defective at i)`` joins the
    score. So a class is read off the defect itself, at the mask's resolution, and not off the blur that attention
    blocks make of it. Its values pass a softplus: a place can only speak for a class, so that the map shows all there
    is (docs/decisions/0017).
    """

    def __init__(self, dim: int, classes: int, *, guided: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.queries = nn.Parameter(torch.randn(classes, dim) * dim**-0.5)
        self.weights = nn.Parameter(torch.randn(classes, dim) * dim**-0.5)
        self.bias = nn.Parameter(torch.zeros(classes))
        # softplus(0.54) = 1: a place counts as much as it is probably defective.
        self.guidance = nn.Parameter(torch.full((classes,), 0.54)) if guided else None

    @torch.no_grad()
    def lower(self, logits: Sequence[float]) -> None:
        """Take something off each class's logit, wherever it comes from: off its bias."""
        self.bias.sub_(torch.tensor(list(logits), dtype=self.bias.dtype, device=self.bias.device))

    def forward(
        self, tokens: Tensor, grid: tuple[int, int], mask_logits: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Read the classes.

        Args:
            tokens: ``[N, T, dim]`` on ``grid`` (rows, columns).
            mask_logits: ``[N, h, w]``, "defective here"; for a guided read-out. In training they get no gradient.

        Returns:
            Logits ``[N, C]``, contributions and attention ``[N, C, h, w]``, on the mask's cells or on ``grid``.
        """
        return self.gather(*self.ask(tokens, grid), mask_logits)

    def ask(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What every token has to say: its score and its value for each class, ``[N, C, h, w]`` each."""
        tokens = self.norm(tokens)
        scores = to_maps(self.key(tokens) @ self.queries.t() * self.queries.shape[1] ** -0.5, grid).float()
        values = to_maps(self.value(tokens) @ self.weights.t(), grid).float()
        return scores, values

    def gather(
        self, scores: Tensor, values: Tensor, mask_logits: Tensor | None, area: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The classes from scores and values of all places; see ``forward``.

        Args:
            area: how many times as large the places' frame is as the frames of training. There are as many times more
                places without a defect, which would drown a small defect in the softmax; so they count the less.
        """
        if self.guidance is not None and mask_logits is not None:
            size = (mask_logits.shape[-2], mask_logits.shape[-1])
            # Classes must not teach the localizer; what explains the finished model has to follow this way too.
            seen = mask_logits.detach() if self.training else mask_logits
            guide = F.logsigmoid(seen.float())[:, None]
            scores = stretch_to(scores, size) + F.softplus(self.guidance).view(1, -1, 1, 1) * guide
            if area > 1.0:
                scores = scores - math.log(area) * torch.sigmoid(-seen.float())[:, None]
            values = stretch_to(F.softplus(values), size)
        attention = scores.flatten(2).softmax(dim=-1)
        contributions = (attention * values.flatten(2)).reshape(values.shape)
        # Row by row: ONNX Runtime adds a hundred thousand places of a large frame one after the other, which is off by
        # more than what a map may be off its logit.
        logits = contributions.sum(dim=-1).sum(dim=-1) + self.bias
        return logits, contributions, attention.reshape(values.shape)

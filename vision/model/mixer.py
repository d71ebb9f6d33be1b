"""What mixes tokens, whichever way."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Mixer(nn.Module, ABC):
    """Tokens ``[N, T, dim]`` in, tokens of the same shape out; ``grid`` is their (rows, columns)."""

    @abstractmethod
    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor: ...

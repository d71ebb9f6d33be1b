"""Recurrent mixing: what came before attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vision.model.mixer import Mixer


class RowColumnScan(Mixer):
    """A bidirectional LSTM along every row and another one along every column, side by side, each with half of the
    channels. Source: ReNet (Visin et al. 2015); there one scan follows the other.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.along_rows = nn.LSTM(dim, dim // 4, batch_first=True, bidirectional=True)
        self.along_columns = nn.LSTM(dim, dim // 4, batch_first=True, bidirectional=True)
        self.out = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        _, length, dim = tokens.shape
        rows, columns = grid
        plane = tokens.reshape(-1, rows, columns, dim)
        across, _ = self.along_rows(plane.reshape(-1, columns, dim))
        down, _ = self.along_columns(plane.transpose(1, 2).reshape(-1, rows, dim))
        across = across.reshape(-1, rows, columns, dim // 2)
        down = down.reshape(-1, columns, rows, dim // 2).transpose(1, 2)
        return torch.as_tensor(self.out(torch.cat([across, down], dim=-1).reshape(-1, length, dim)))

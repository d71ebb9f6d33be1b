"""Results of `benchmarks/overkill.py`: one row for each kind of calibration, in figures and as a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One kind of calibration; ``realised`` ``[runs]``: the share of good parts not passed, 0..1.

    ``confidence``: None where the promise holds on average over calibrations.
    """

    group: str
    name: str
    promised: float
    confidence: float | None
    realised: Floats

    @property
    def mean(self) -> float:
        return float(self.realised.mean())

    @property
    def broken(self) -> float:
        """Share of calibrations that realise more than was promised."""
        return float((self.realised > self.promised + 1e-12).mean())

    @property
    def is_kept(self) -> bool:
        """On average, or in so many calibrations as was promised; four standard errors are chance."""
        if self.confidence is None:
            return self.mean <= self.promised + 4 * float(self.realised.std()) / math.sqrt(len(self.realised))
        unlucky = 1 - self.confidence
        return self.broken <= unlucky + 4 * math.sqrt(unlucky * self.confidence / len(self.realised))

    def figures(self) -> dict[str, object]:
        low, high = np.quantile(self.realised, [0.05, 0.95])
        return {
            "group": self.group,
            "name": self.name,
            "promised": self.promised,
            "confidence": self.confidence,
            "mean": self.mean,
            "5 %": float(low),
            "95 %": float(high),
            "above promised": self.broken,
            "kept": self.is_kept,
        }


def draw(rows: list[Row], path: Path) -> None:
    """One line a row: the middle 90 % of calibrations, their mean, and what was promised."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.27 * len(rows) + 0.5 * len({row.group for row in rows}) + 1), layout="constrained")
    axes = figure.subplots()
    y, ticks, labels = 0.0, [], []
    group = ""
    for row in rows:
        if row.group != group:
            group = row.group
            y += 1.3
            axes.text(2.2e-4, y - 0.15, group, fontweight="bold", fontsize=9, va="bottom")
            y += 0.6
        colour = "#0068a8" if row.is_kept else "#c24e00"
        low, high = np.maximum(np.quantile(row.realised, [0.05, 0.95]), 2.2e-4)
        axes.plot([low, high], [y, y], color=colour, linewidth=5, alpha=0.35, solid_capstyle="butt")
        axes.plot([max(row.mean, 2.2e-4)], [y], marker="o" if row.is_kept else "X", color=colour, markersize=6)
        axes.plot([row.promised] * 2, [y - 0.42, y + 0.42], color="black", linewidth=1.6)
        ticks.append(y)
        labels.append(row.name)
        y += 1
    axes.set_yticks(ticks, labels, fontsize=8.5)
    axes.set_xscale("log")
    axes.set_xlim(2e-4, 0.4)
    axes.set_xticks(
        [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3], ["0.03 %", "0.1 %", "0.3 %", "1 %", "3 %", "10 %", "30 %"]
    )
    axes.minorticks_off()
    axes.set_ylim(y, 0)
    axes.grid(axis="x", color="#dfe3e8")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(
        f"good parts not passed\nblack line: promised    bar: the middle 90 % of {len(rows[0].realised):,} calibrations"
        "    point: their average\nblue: kept    orange cross: broken, on average or in too many calibrations"
    )
    figure.savefig(path, dpi=110)

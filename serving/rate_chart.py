"""How overkill, escapes and review depend on the review threshold, as a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vision.calibration.replay import CurvePoint
from vision.charts import Mark, Series, line_chart

LINES = {"overkill_rate": ("overkill", ""), "escape_rate": ("escapes", "7 4"), "review_rate": ("review", "2 3")}
"""Name and dash pattern of the rates that are drawn."""


def rate_chart(curve: Sequence[CurvePoint], marks: Sequence[Mark], colours: Mapping[str, str]) -> str:
    """Those rates of ``LINES`` that are known, with their intervals, as SVG.

    Args:
        colours: by key of ``LINES``, the page's CSS variable.
    """
    x = [point.threshold for point in curve]
    series = []
    for key, (name, dash) in LINES.items():
        if key in curve[0].rates:
            rates = [point.rates[key] for point in curve]
            values, low, high = ([getattr(rate, of) for rate in rates] for of in ("value", "low", "high"))
            series.append(Series(name, x, values, colours[key], low, high, dash))
    return line_chart(
        series,
        title="Rates by review threshold",
        x_label="review threshold: parts from here on are not passed (raw anomaly score)",
        y_label="share",
        marks=marks,
    )

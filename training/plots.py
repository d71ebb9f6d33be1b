"""The report's figures as inline SVG. Colours are CSS variables, so that one file serves light and dark."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from training.metrics import F64, curve
from vision.calibration.intervals import exact_interval
from vision.calibration.probability import Bin

# Placeholders that become CSS variables of the page; blue and orange are told apart with every kind of colour sight
# (Okabe, Ito, Color Universal Design, 2008).
_INK, _SOFT, _GRID = "#010101", "#020202", "#030303"
_GOOD, _DEFECT = "#040404", "#050505"
_VARIABLES = {_INK: "--ink", _SOFT: "--soft", _GRID: "--grid", _GOOD: "--good", _DEFECT: "--defect"}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "defectlens",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": _INK,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "hatch.linewidth": 0.6,
}
_LOG_RATIO = 30.0
"""From this ratio of the largest to the median score on, a linear axis would squeeze the good parts into one bar."""
_HIGHEST_STRIP = 400


def roc_figure(scores: F64, is_defect: Any, thresholds: dict[str, float]) -> str:
    """The ROC curve with the operating point on it."""
    distinct, hits, alarms = curve(scores, is_defect)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(4.6, 3.7)
        axes.plot([0, 1], [0, 1], color=_SOFT, linewidth=1, linestyle=(0, (3, 3)))
        axes.plot([0, *alarms / alarms[-1]], [0, *hits / hits[-1]], color=_DEFECT, linewidth=2)
        for (name, threshold), marker in zip(thresholds.items(), "os", strict=False):
            count = int((distinct >= threshold).sum())
            at = (alarms[count - 1] / alarms[-1], hits[count - 1] / hits[-1]) if count else (0.0, 0.0)
            axes.plot(*at, marker=marker, markersize=7, color=_INK, linestyle="none", label=name, clip_on=False)
        if thresholds:
            axes.legend(loc="lower right", frameon=False)
        axes.set(
            xlabel="share of good parts at or above the score",
            ylabel="share of defects found",
            xlim=(-0.01, 1.0),
            ylim=(0, 1.01),
        )
        return _svg(figure, "ROC curve")


def precision_recall_figure(scores: F64, is_defect: Any) -> str:
    """The precision-recall curve, with the level that guessing reaches."""
    _, hits, alarms = curve(scores, is_defect)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(4.6, 3.7)
        level = float(np.mean(is_defect))
        axes.axhline(level, color=_SOFT, linewidth=1, linestyle=(0, (3, 3)))
        axes.annotate(f"guessing: {level:.2f}", (0.02, level), xytext=(0, 4), textcoords="offset points", color=_SOFT)
        recall = np.concatenate([[0.0], hits / hits[-1]])
        precision = hits / (hits + alarms)
        axes.plot(recall, [precision[0], *precision], color=_DEFECT, linewidth=2, drawstyle="steps-pre")
        axes.set(xlabel="recall: share of defects found", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
        return _svg(figure, "Precision-recall curve")


def score_figure(groups: dict[str, F64], good: str | None, thresholds: dict[str, float]) -> str:
    """Histogram of good parts against defects, and below it every class on a strip of its own.

    Args:
        groups: class to the scores of its images, the good class first.
        good: the name of the good class, None where there is none.
        thresholds: name to score, drawn as vertical lines.
    """
    everything = np.concatenate(list(groups.values()))
    shown = np.concatenate([everything, list(thresholds.values())])
    low, high = float(shown.min()), float(shown.max())
    logarithmic = low > 0 and high / float(np.median(everything)) > _LOG_RATIO
    if high <= low:
        low, high = low - 0.5, high + 0.5
    edges = np.geomspace(low, high, 46) if logarithmic else np.linspace(low, high, 46)
    strips = [(label, values) for label, values in groups.items() if len(values)]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9.6, 2.9 + 0.3 * len(strips)), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2.4, 0.3 * len(strips) + 0.1))
        figure.patch.set_alpha(0)
        for axes in (top, bottom):
            axes.patch.set_alpha(0)
        good_values = groups.get(good or "", np.zeros(0))
        defect_values = np.concatenate([np.zeros(0), *(values for label, values in strips if label != good)])
        for values, colour, hatch, name in (
            (good_values, _GOOD, "", "good"),
            (defect_values, _DEFECT, "////", "defects"),
        ):
            if len(values):
                label = f"{name} ({len(values)})"
                top.hist(values, edges, histtype="stepfilled", color=colour, alpha=0.28)
                top.hist(values, edges, histtype="step", color=colour, linewidth=1.6, hatch=hatch, label=label)
        top.set_ylabel("images")
        _strips(bottom, strips, good)
        for (name, threshold), style in zip(thresholds.items(), ("-", (0, (4, 3))), strict=False):
            top.axvline(threshold, color=_INK, linewidth=1.3, linestyle=style, label=f"{name} {threshold:.4g}")
            bottom.axvline(threshold, color=_INK, linewidth=1.3, linestyle=style)
        top.legend(loc="upper right", frameon=False, ncols=1)
        top.tick_params(bottom=False)
        if logarithmic:
            bottom.set_xscale("log")
        bottom.set_xlabel("anomaly score (raw, higher is worse" + (", logarithmic)" if logarithmic else ")"))
        return _svg(figure, "Scores of good parts and defects")


def reliability_figure(before: Sequence[Bin], after: Sequence[Bin], what: str, title: str) -> str:
    """What was said against what came true, as scores said it and as probabilities do; on the diagonal lies the truth.

    Args:
        what: which event, in words.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(4.6, 3.9)
        axes.plot([0, 1], [0, 1], color=_SOFT, linewidth=1, linestyle=(0, (3, 3)))
        for bins, colour, marker, name in (
            (before, _DEFECT, "s", "class scores"),
            (after, _GOOD, "o", "probabilities"),
        ):
            intervals = [exact_interval(one.hits, one.count) for one in bins]
            stated, true = [one.stated for one in bins], [one.true for one in bins]
            reach = [
                [max(0.0, value - low) for value, (low, _) in zip(true, intervals, strict=True)],
                [max(0.0, high - value) for value, (_, high) in zip(true, intervals, strict=True)],
            ]
            axes.errorbar(stated, true, reach, color=colour, marker=marker, markersize=5, linewidth=1.6, label=name)
        axes.set(
            xlabel=f"said: the chance that {what}",
            ylabel="came true, with 95 % interval",
            xlim=(-0.02, 1.02),
            ylim=(-0.02, 1.02),
        )
        axes.legend(loc="upper left", frameon=False)
        return _svg(figure, title)


def error_time_figure(points: Mapping[str, tuple[float, float, float, float]], what: str) -> str:
    """What accuracy costs: by name, ms of a frame and the share of errors with its interval."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(7.2, 3.6)
        for (name, (ms, errors, low, high)), marker in zip(points.items(), itertools.cycle("osD^vPX*")):
            reach = [[100.0 * max(0.0, errors - low)], [100.0 * max(0.0, high - errors)]]
            axes.errorbar(
                [ms], [100.0 * errors], reach, color=_GOOD, marker=marker, markersize=7, linewidth=1.4, label=name
            )
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
        axes.set(xlabel="ms a frame, one CPU thread", ylabel=f"{what}, %")
        axes.margins(x=0.18, y=0.12)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        return _svg(figure, "Errors and time of each variant")


def _strips(axes: Any, strips: Sequence[tuple[str, F64]], good: str | None) -> None:
    """One row of small ticks a class: which classes lie on the wrong side shows at once."""
    for row, (label, values) in enumerate(strips):
        drawn = np.sort(values)
        if len(drawn) > _HIGHEST_STRIP:  # spread over the order, so that both ends stay
            drawn = drawn[np.linspace(0, len(drawn) - 1, _HIGHEST_STRIP).astype(np.intp)]
        colour = _GOOD if label == good else _DEFECT
        axes.vlines(drawn, row - 0.36, row + 0.36, color=colour, linewidth=1.1, alpha=0.6)
    axes.set_yticks(range(len(strips)), [label for label, _ in strips])
    axes.set_ylim(len(strips) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    return figure, axes


def _svg(figure: Figure, title: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, f"var({variable})")
    # Fixed sizes would not shrink on a narrow screen; the viewBox keeps the proportions.
    text = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"', rf'<svg role="img" aria-label="{title}" \1', text, count=1)
    # Every figure brings its own identifiers; in one page they must not meet.
    salt = re.sub(r"\W", "", title)
    text = re.sub(r'id="([^"]+)"', rf'id="{salt}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{salt}-\1)", text)
    return re.sub(r'href="#([^"]+)"', rf'href="#{salt}-\1"', text)

"""Makes the pictures of docs/operating-point.md: ``python -m docs.operating_point_picture PREDICTIONS BUNDLE``.

PREDICTIONS is the ``predictions.jsonl`` of an evaluation of BUNDLE on labelled images.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vision.bundle import load_bundle
from vision.calibration.bounds import units_needed
from vision.calibration.replay import Replay, Thresholds
from vision.calibration.stored import read_scores

FOLDER = Path(__file__).parent
# Okabe and Ito's colours, which the colour-blind can tell apart.
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#999999"
_BOUNDS = np.array([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1])


def main() -> None:
    replay = Replay(read_scores(Path(sys.argv[1])))
    thresholds = Thresholds.of(load_bundle(Path(sys.argv[2])).manifest.operating_point)
    if thresholds is None:
        raise SystemExit("the bundle has no anomaly score")
    figure = Figure(figsize=(9, 6), layout="constrained")
    hills, shares = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _hills(hills, replay, thresholds)
    _shares(shares, replay, thresholds)
    figure.savefig(FOLDER / "operating-point.png", dpi=110)
    figure = Figure(figsize=(7, 3), layout="constrained")
    _needed(figure.subplots())
    figure.savefig(FOLDER / "operating-point-images.png", dpi=110)


def _hills(axes: Axes, replay: Replay, thresholds: Thresholds) -> None:
    bins = np.linspace(float(replay.scores.min()), float(replay.scores.max()), 45).tolist()
    axes.hist(replay.scores[replay.good], bins, color=_BLUE, alpha=0.55, label="parts that are good")
    axes.hist(
        replay.scores[replay.bad], bins, color=_ORANGE, alpha=0.55, hatch="//", edgecolor="white",
        label="parts that are defective",
    )  # fmt: skip
    left, right = axes.get_xlim()
    top = axes.get_ylim()[1] * 1.25
    places = ((left, thresholds.review, "PASS"), (thresholds.review, thresholds.image, "REVIEW"))
    for low, high, name in (*places, (thresholds.image, right, "REJECT")):
        axes.axvspan(low, high, color=_GREY, alpha={"PASS": 0, "REVIEW": 0.3, "REJECT": 0.15}[name], zorder=0)
        narrow = name == "REVIEW"
        axes.text(
            (low + high) / 2, top * 0.96, name, ha="center", va="top", rotation=90 if narrow else 0, weight="bold"
        )
    escaped = replay.scores[replay.bad & (replay.scores < thresholds.review)].max()
    stopped = replay.scores[replay.good & (replay.scores >= thresholds.image)].min()
    for text, at, place, colour in (
        ("escapes: defective, and passed", escaped, 0.42, _ORANGE),
        ("overkill: good, and not passed", stopped, 0.74, _BLUE),
    ):
        axes.annotate(
            text, (float(at), 0.5), (place, 0.6), textcoords="axes fraction", color=colour,
            arrowprops={"arrowstyle": "->"},
        )  # fmt: skip
    axes.set(ylabel="parts", ylim=(0, top), xlim=(left, right))
    axes.legend(loc="upper left", frameon=False)


def _shares(axes: Axes, replay: Replay, thresholds: Thresholds) -> None:
    """What moving one threshold does: overkill is bought with escapes."""
    curve = replay.curve(Thresholds(thresholds.review, thresholds.review, thresholds.classes))
    x = [point.threshold for point in curve]
    for name, colour, style, label in (
        ("overkill_rate", _BLUE, "-", "overkill: of good parts, not passed"),
        ("escape_rate", _ORANGE, "--", "escapes: of defective parts, passed"),
    ):
        rates = [point.rates[name] for point in curve]
        axes.plot(x, [100 * rate.value for rate in rates], style, color=colour, label=label)
        axes.fill_between(
            x, [100 * rate.low for rate in rates], [100 * rate.high for rate in rates], color=colour, alpha=0.15
        )
    axes.axvline(thresholds.review, color="black", linewidth=1)
    axes.set(xlabel="anomaly score: a part is not passed from the threshold on", ylabel="share in %", ylim=(0, 100))
    axes.legend(loc="upper left", bbox_to_anchor=(0.25, 1.0), frameon=False)


def _needed(axes: Axes) -> None:
    for confidence, colour, style, label in ((None, _BLUE, "o-", "on average"), (0.95, _ORANGE, "s--", "95 % sure")):
        counts = [units_needed(float(bound), confidence) for bound in _BOUNDS]
        axes.plot(100 * _BOUNDS, counts, style, color=colour, label=label, markersize=4)
        for bound, count in zip(_BOUNDS, counts, strict=True):
            axes.annotate(
                f"{count}",
                (100 * bound, count),
                (0, 6 if confidence else -13),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=colour,
            )
    axes.set(
        xscale="log", yscale="log", ylim=(4, 7000), xlabel="promised: at most this share of good parts is not passed"
    )
    axes.set_ylabel("good images, at least")
    axes.set_xticks((100 * _BOUNDS).tolist(), [f"{100 * bound:g} %" for bound in _BOUNDS])
    axes.minorticks_off()
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


if __name__ == "__main__":
    main()

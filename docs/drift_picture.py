"""Makes the pictures of docs/drift.md: ``python -m docs.drift_picture RESULTS.json ...``.

The files are what ``python -m benchmarks.drift ... --out RESULTS.json`` wrote. The other pictures are of the drawn
plates of ``docs/picture.py``, so that they may be shared; whatever is computed is computed by the product.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from benchmarks.drift import WITHIN, Bench
from benchmarks.drift_frames import CHANGES, plates
from vision.drift.monitor import Monitor
from vision.drift.signals import BLOCK, IMAGE_SIGNALS, dirt
from vision.types import FloatArray

FOLDER = Path(__file__).parent
# Okabe and Ito's colours, which the colour-blind can tell apart.
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#999999"
_CLEAN, _AFTER = 250, 60
# Clean frames before the change, of the rows that are drawn.
_BEFORE = 300


def main() -> None:
    mpl.use("Agg")
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    bench = Bench(plates()[0], None, 100_000, own_only=False)
    evidence(bench)
    signals(bench)
    if rows := [row for path in sys.argv[1:] for row in json.loads(Path(path).read_text())["rows"]]:
        delays([row for row in rows if row["clean_before"] == _BEFORE])


def evidence(bench: Bench) -> None:
    """One camera: clean frames, then a lens out of focus; the sharpness of each frame, and the evidence."""
    rng = np.random.default_rng(4)
    monitor = Monitor(bench.rules)
    row = bench.rules.row("focus")
    values, strengths, alarm = [], [], None
    for index in range(_CLEAN + _AFTER):
        shots = bench.shots("clean" if index < _CLEAN else "defocus, 1 px")
        one = shots[rng.integers(len(shots))]
        _, begun = monitor.feed(one.look)
        values.append((float(one.look.values[0]) - bench.rules.middle[row]) / bench.rules.spread[row])
        strengths.append(1.0 if begun else monitor.report().levels[row].strength)
        if begun and alarm is None:
            alarm = begun[0]
    figure, (above, below) = plt.subplots(2, 1, figsize=(7.2, 4.0), sharex=True, layout="constrained")
    above.plot(values, ".", color=_BLUE, markersize=3)
    above.axvline(_CLEAN, color=_GREY, linestyle=":")
    place = {"textcoords": "offset points", "ha": "right"}
    above.annotate("the lens is moved", (_CLEAN, min(values)), (-6, 0), **place)
    above.set_ylabel("sharpness of a frame,\nspreads from calibration")
    below.plot(strengths, color=_ORANGE)
    below.axhline(1.0, color=_GREY, linestyle="--")
    below.axvline(_CLEAN, color=_GREY, linestyle=":")
    below.set(ylabel="evidence, as a share of\nwhat an alarm takes", xlabel="frame")
    below.set(ylim=(0, 1.15), xlim=(0, _CLEAN + _AFTER))
    if alarm is not None:
        words = f"alarm, {alarm.frame - _CLEAN} frames after; evidence begins anew"
        below.annotate(words, (_CLEAN, 1.0), (-6, 4), **place)
    figure.savefig(FOLDER / "drift-evidence.png", dpi=110)


def signals(bench: Bench) -> None:
    """How far each change moves each signal, in spreads of the reference."""
    names = [signal.name for signal in bench.rules.signals]
    table = np.array([_shifts(bench, change, names) for change in CHANGES])
    figure, axes = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    shown = np.sign(table) * np.log1p(np.abs(table))
    axes.imshow(shown, cmap="RdBu", vmin=-np.log1p(20), vmax=np.log1p(20), aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axes.set_yticks(range(len(CHANGES)), list(CHANGES))
    for (line, column), value in np.ndenumerate(table):
        colour = "white" if abs(value) > 8 else "black"
        axes.text(column, line, f"{value:+.1f}", ha="center", va="center", fontsize=7, color=colour)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.savefig(FOLDER / "drift-signals.png", dpi=110)


def _shifts(bench: Bench, change: str, names: list[str]) -> FloatArray:
    shots = bench.shots(change)
    image = [signal.name for signal in IMAGE_SIGNALS if signal.period == 1]
    columns: dict[str, list[float]] = {
        name: [float(one.look.values[image.index(name)]) for one in shots] for name in names if name in image
    }
    blocks = [shots[start::97][:BLOCK] for start in range(97)]
    columns["dirt"] = [dirt(np.stack([one.look.specks for one in block])) for block in blocks if len(block) == BLOCK]
    medians = np.array([np.median(columns[name]) for name in names])
    return np.asarray((medians - bench.rules.middle) / bench.rules.spread)


def delays(rows: list[dict[str, Any]]) -> None:
    """Frames until the alarm, by station and change; what was missed stands at the right border."""
    changes = [change for change in CHANGES if any(row["change"] == change for row in rows)]
    stations = list(dict.fromkeys(row["station"] for row in rows))
    figure, axes = plt.subplots(figsize=(7.2, 4.8), layout="constrained")
    marks = ["o", "s", "^", "v", "D", "P", "X", "*", "<"]
    for index, station in enumerate(stations):
        known = {row["change"]: row for row in rows if row["station"] == station}
        for line, change in enumerate(changes):
            if change not in known:
                continue
            delay, within = known[change]["median_delay"], known[change]["within"]
            axes.plot(
                min(delay or 300, 300),
                line + 0.07 * (index - len(stations) / 2),
                marks[index % len(marks)],
                color=_BLUE if within >= 0.95 else _ORANGE,
                markersize=5,
                label=station if line == 0 else None,
            )
    axes.axvline(WITHIN, color=_GREY, linestyle="--")
    axes.set(xscale="log", xlabel="median number of frames until the alarm (blue: within 50 in at least 95 % of runs)")
    axes.set_xticks([3, 5, 10, 20, 50, 100, 300], ["3", "5", "10", "20", "50", "100", "300 or never"])
    axes.minorticks_off()
    axes.set_yticks(range(len(changes)), changes)
    axes.invert_yaxis()
    axes.legend(fontsize=7, loc="center right")
    for handle in axes.get_legend().legend_handles:
        handle.set_color("black")
    figure.savefig(FOLDER / "drift-delays.png", dpi=110)


if __name__ == "__main__":
    main()

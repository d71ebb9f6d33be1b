"""Does the overkill that comes true keep to the overkill that was promised? 1,000 calibrations of each kind.

    python -m benchmarks.overkill --predictions one-class=PREDICTIONS --predictions supervised=PREDICTIONS \
        --picture docs/overkill.png

Every calibration draws good scores, chooses the threshold as `defectlens calibrate` does, and measures the share of
good parts that reach it: exactly where the distribution is known, on the parts that were not drawn where the scores are
real (`predictions.jsonl` of an evaluation; file names ending in a number are grouped into parts by gaps between the
numbers). Real scores choose nothing here. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vision.calibration.bounds import allowed_mass, good_scores, threshold_for
from vision.calibration.choose import About, Classes, MaxOverkill, choose_point
from vision.calibration.images import ScoredImages
from vision.calibration.stored import read_scores

RUNS = 1000
SURE = 0.95
# Numbers in file names of one part lie closer together than this.
GAP = 300

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One kind of calibration; ``realised`` ``[RUNS]`` of overkill. ``note``: what was done to it."""

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


def threshold(scores: Floats, bound: float, confidence: float | None, lots: list[str] | None = None) -> float:
    goods = good_scores(scores.astype(np.float32), lots, confidence)
    mass = allowed_mass(goods.units, bound, confidence)
    if mass < 0:
        raise ValueError(f"{goods.units} are too few for a bound of {bound}")
    return threshold_for(goods, mass)


def repeat(work: Callable[[np.random.Generator], float], seed: int) -> Floats:
    return np.array([work(np.random.default_rng((seed, run))) for run in range(RUNS)])


def known(seed: int) -> Iterator[Row]:
    """Independent parts from distributions whose tail is known."""
    kinds = {
        "normal": (stats.norm(), lambda x: x),
        "heavy tail": (stats.lognorm(1.5), lambda x: x),
        "few values (ties)": (stats.norm(), lambda x: np.round(2 * x) / 2),
    }

    def tail(name: str, limit: float) -> float:
        if name.startswith("few"):  # a rounded score reaches the limit from the middle below it on
            return float(stats.norm.sf(math.ceil(2 * limit) / 2 - 0.25))
        return float(kinds[name][0].sf(limit))

    for index, (name, (distribution, shape)) in enumerate(kinds.items()):
        for count, bound, confidence in ((99, 0.01, None), (300, 0.01, None), (300, 0.01, SURE), (1000, 0.01, SURE)):

            def once(rng, name=name, of=distribution, shape=shape, n=count, bound=bound, sure=confidence):  # type: ignore[no-untyped-def]
                return tail(name, threshold(shape(of.rvs(n, random_state=rng)), bound, sure))

            how = "on average" if confidence is None else f"{SURE:.0%} sure"
            # Ranks alone count: with the same draws, two distributions would give the very same figures.
            found = repeat(once, seed + 10 * index)
            yield Row("independent parts", f"{name}, {count} images, {how}", bound, confidence, found)


def with_classes(seed: int) -> Iterator[Row]:
    """The whole choice: an anomaly score and a class that takes some good parts for defective, whatever their score."""

    def once(rng: np.random.Generator, share: float, count: int) -> float:
        def draw(number: int) -> ScoredImages:
            sure = np.where(rng.random(number) < share, rng.uniform(0.5, 1.0, number), rng.uniform(0, 0.5, number))
            return ScoredImages(
                names=tuple(map(str, range(number))),
                scores=rng.normal(size=number).astype(np.float32),
                is_defect=np.zeros(number, np.bool_),
                defect_classes=("crack",),
                probabilities=sure[:, None],
            )

        point = choose_point(
            draw(count),
            MaxOverkill(0.05),
            max_review=0.03,
            classes=Classes({"crack": 0.5}),
            pixel_threshold=None,
            about=About("simulated", ""),
        )
        fresh = draw(20_000).combined(point.class_thresholds)
        return float((fresh >= np.float32(point.review_threshold)).mean())

    for share in (0.0, 0.005, 0.02, 0.2):
        name = f"a class stops {share:.1%} of good parts, 199 images"
        yield Row("class thresholds", name, 0.05, None, repeat(lambda rng, share=share: once(rng, share, 199), seed))


def grouped(seed: int) -> Iterator[Row]:
    """Lots that differ as much as the parts within one: half of the variance lies between lots."""

    def once(rng: np.random.Generator, lots: int, bound: float, confidence: float | None, by_lot: bool) -> float:
        size = 20
        centers = rng.normal(size=lots)
        scores = (centers[:, None] + rng.normal(size=(lots, size))).ravel()
        names = [str(lot) for lot in np.repeat(np.arange(lots), size)] if by_lot else None
        return float(stats.norm(scale=math.sqrt(2)).sf(threshold(scores, bound, confidence, names)))

    for lots, bound, confidence in ((20, 0.05, None), (100, 0.05, None), (100, 0.05, SURE)):
        how = "on average" if confidence is None else f"{SURE:.0%} sure"
        for by_lot in (False, True):
            counted = "lots counted" if by_lot else "images counted"
            name = f"{lots} lots of 20, {counted}, {how}"
            found = repeat(
                lambda rng, lots=lots, bound=bound, sure=confidence, by_lot=by_lot: once(
                    rng, lots, bound, sure, by_lot
                ),
                seed,
            )
            yield Row("lots that differ", name, bound, confidence, found)


def drifted(seed: int) -> Iterator[Row]:
    """What the assumption excludes: parts unlike those of the calibration, and a calibration with defects in it."""
    changes = {
        "scores rise by 0.25 standard deviations": lambda limit: stats.norm(0.25).sf(limit),
        "scores rise by 1 standard deviation": lambda limit: stats.norm(1.0).sf(limit),
        "scores spread by 20 % more": lambda limit: stats.norm(scale=1.2).sf(limit),
    }
    for name, tail in changes.items():
        found = repeat(lambda rng, tail=tail: float(tail(threshold(rng.normal(size=500), 0.01, None))), seed)
        yield Row("not as calibrated", name, 0.01, None, found)

    def tainted(rng: np.random.Generator, share: float) -> float:
        scores = np.where(rng.random(500) < share, rng.normal(3, 1, 500), rng.normal(size=500))
        return float(stats.norm.sf(threshold(scores, 0.01, None)))

    name = "2 % defects among the good images"
    yield Row("not as calibrated", name, 0.01, None, repeat(lambda rng: tainted(rng, 0.02), seed))


def real(name: str, path: Path, seed: int) -> Iterator[Row]:
    """Scores of a trained model: images drawn singly, and parts (all pictures of one) drawn whole."""
    good = [one for one in read_scores(path) if one.is_defect is False and one.anomaly_score is not None]
    scores = np.array([one.anomaly_score for one in good], np.float64)
    parts = group_by_number([one.name for one in good])
    names, places = np.unique(parts, return_inverse=True)

    def singly(rng: np.random.Generator, confidence: float | None, count: int, bound: float) -> float:
        order = rng.permutation(len(scores))
        limit = threshold(scores[order[:count]], bound, confidence)
        return float((scores[order[count:]].astype(np.float32) >= np.float32(limit)).mean())

    def whole(rng: np.random.Generator, by_lot: bool, drawn: int, bound: float) -> float:
        chosen = np.isin(places, rng.permutation(len(names))[:drawn])
        lots = [str(place) for place in places[chosen]] if by_lot else None
        hits = scores.astype(np.float32) >= np.float32(threshold(scores[chosen], bound, None, lots))
        # A new part is one of a new lot, and every lot is as likely.
        return float(np.mean([hits[places == place].mean() for place in np.unique(places[~chosen])]))

    half, bound = len(scores) // 2, 0.05
    group = f"{name}: {len(scores)} good images of {len(names)} parts"
    yield Row(
        group, f"{half} images drawn, on average", bound, None, repeat(lambda rng: singly(rng, None, half, bound), seed)
    )
    yield Row(
        group,
        f"{half} images drawn, {SURE:.0%} sure",
        bound,
        SURE,
        # What is left over is a sample too, and varies by itself; the promise is about all parts.
        repeat(lambda rng: singly(rng, SURE, half, bound), seed),
    )
    drawn = len(names) // 2
    for by_lot in (False, True):
        counted = "parts counted" if by_lot else "images counted"
        found = repeat(lambda rng, by_lot=by_lot: whole(rng, by_lot, drawn, bound), seed)
        yield Row(group, f"{drawn} parts drawn whole, {counted}", bound, None, found)


def group_by_number(names: list[str]) -> list[int]:
    """A group for each name: the numbers at the end of names of one group have no gap of more than ``GAP``."""
    numbers = [int(match.group(1)) if (match := re.search(r"(\d+)\D*$", Path(name).stem)) else 0 for name in names]
    ordered = np.argsort(numbers, kind="stable")
    groups = np.zeros(len(names), np.intp)
    groups[ordered] = np.concatenate([[0], np.cumsum(np.diff(np.array(numbers)[ordered]) > GAP)])
    return [int(group) for group in groups]


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
        "good parts not passed: promised (black line), realised in the middle 90 % of 1,000 calibrations (bar), on "
        "average (point)\nblue: promise kept    orange cross: broken"
    )
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = [*known(options.seed)]
    for item in options.predictions:
        name, _, path = item.partition("=")
        rows += real(name, Path(path), options.seed)
    rows += [*with_classes(options.seed), *grouped(options.seed), *drifted(options.seed)]
    print(f"{'':46}{'promised':>9}{'mean':>9}{'5 %':>9}{'95 %':>9}{'above':>8}  kept")
    group = ""
    for row in rows:
        if row.group != group:
            group = row.group
            print(group)
        figures = row.figures()
        shares = "".join(f"{100 * figures[key]:8.2f}%" for key in ("promised", "mean", "5 %", "95 %"))  # type: ignore[operator]
        print(f"  {row.name:44}{shares}{100 * row.broken:7.1f}%  {'yes' if row.is_kept else 'NO'}")
    if options.picture is not None:
        draw(rows, options.picture)
    print(json.dumps({"benchmark": "overkill", "runs": RUNS, "rows": [row.figures() for row in rows]}))


if __name__ == "__main__":
    main()

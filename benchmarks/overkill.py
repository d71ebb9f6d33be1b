"""Does the overkill that comes true keep to the overkill that was promised? 1,000 calibrations of each kind.

    python -m benchmarks.overkill --predictions one-class=PREDICTIONS --predictions supervised=PREDICTIONS \
        --picture docs/overkill.png

Every calibration draws good scores, chooses the threshold as `defectlens calibrate` does, and measures the share of
good parts that reach it, exactly: of the distribution, or of all real scores that were drawn from (`predictions.jsonl`
of an evaluation; file names ending in a number are grouped into parts by gaps between the numbers). Real scores choose
nothing here. Prints a table, then one JSON line.
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
from scipy import stats

from benchmarks.overkill_rows import Floats, Row, draw
from vision.calibration.bounds import allowed_mass, good_scores, threshold_for, units_needed
from vision.calibration.choose import About, Classes, MaxOverkill, choose_point
from vision.calibration.images import ScoredImages
from vision.calibration.pixels import PixelThresholds
from vision.calibration.stored import read_scores

SURE = 0.95
_SURE = "95 % sure"
# Numbers in file names of one part lie closer together than this.
GAP = 300


def threshold(scores: Floats, bound: float, confidence: float | None, lots: list[str] | None = None) -> float:
    goods = good_scores(scores.astype(np.float32), lots, confidence)
    mass = allowed_mass(goods.units, bound, confidence)
    if mass < 0:
        raise ValueError(f"{goods.units} are too few for a bound of {bound}")
    return threshold_for(goods, mass)


@dataclass(frozen=True)
class Repeat:
    """Calls work ``runs`` times, each with a generator of its own; the same seed gives the same draws."""

    runs: int
    seed: int

    def __call__(self, work: Callable[[np.random.Generator], float], stream: int = 0) -> Floats:
        return np.array([work(np.random.default_rng((self.seed, stream, run))) for run in range(self.runs)])


def known(repeat: Repeat) -> Iterator[Row]:
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

            how = "on average" if confidence is None else _SURE
            # Ranks alone count: with the same draws, two distributions would give the very same figures.
            found = repeat(once, index)
            yield Row("independent parts", f"{name}, {count} images, {how}", bound, confidence, found)


def with_classes(repeat: Repeat) -> Iterator[Row]:
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
            pixels=PixelThresholds(),
            about=About("simulated", ""),
        )
        fresh = draw(20_000).combined(point.class_thresholds)
        return float((fresh >= np.float32(point.review_threshold)).mean())

    for share in (0.0, 0.005, 0.02, 0.2):
        name = f"a class stops {100 * share:g} % of good parts, 199 images"
        yield Row("class thresholds", name, 0.05, None, repeat(lambda rng, share=share: once(rng, share, 199)))


def grouped(repeat: Repeat) -> Iterator[Row]:
    """Lots that differ as much as the parts within one: half of the variance lies between lots."""

    def once(rng: np.random.Generator, lots: int, bound: float, confidence: float | None, by_lot: bool) -> float:
        size = 20
        centers = rng.normal(size=lots)
        scores = (centers[:, None] + rng.normal(size=(lots, size))).ravel()
        names = [str(lot) for lot in np.repeat(np.arange(lots), size)] if by_lot else None
        return float(stats.norm(scale=math.sqrt(2)).sf(threshold(scores, bound, confidence, names)))

    for lots, bound, confidence in ((20, 0.05, None), (100, 0.05, None), (100, 0.05, SURE)):
        how = "on average" if confidence is None else _SURE
        for by_lot in (False, True):
            counted = "lots counted" if by_lot else "images counted"
            name = f"{lots} lots of 20, {counted}, {how}"
            found = repeat(
                lambda rng, lots=lots, bound=bound, sure=confidence, by_lot=by_lot: once(
                    rng, lots, bound, sure, by_lot
                ),
            )
            yield Row("lots that differ", name, bound, confidence, found)


def drifted(repeat: Repeat) -> Iterator[Row]:
    """What the assumption excludes: parts unlike those of the calibration, and a calibration with defects in it."""
    changes = {
        "scores rise by 0.25 standard deviations": lambda limit: stats.norm(0.25).sf(limit),
        "scores rise by 1 standard deviation": lambda limit: stats.norm(1.0).sf(limit),
        "scores spread by 20 % more": lambda limit: stats.norm(scale=1.2).sf(limit),
    }
    for name, tail in changes.items():
        found = repeat(lambda rng, tail=tail: float(tail(threshold(rng.normal(size=500), 0.01, None))))
        yield Row("not as calibrated", name, 0.01, None, found)

    def tainted(rng: np.random.Generator, share: float) -> float:
        scores = np.where(rng.random(500) < share, rng.normal(3, 1, 500), rng.normal(size=500))
        return float(stats.norm.sf(threshold(scores, 0.01, None)))

    name = "2 % defects among the good images"
    yield Row("not as calibrated", name, 0.01, None, repeat(lambda rng: tainted(rng, 0.02)))


def real(name: str, path: Path, repeat: Repeat) -> Iterator[Row]:
    """Scores of a trained model, drawn anew with replacement: images singly, or parts with all their pictures.

    What is drawn from is all that there is here, so that the share of it that reaches a threshold is known exactly.
    """
    good = [one for one in read_scores(path) if one.is_defect is False and one.anomaly_score is not None]
    scores = np.array([one.anomaly_score for one in good], np.float64)
    parts = group_by_number([one.name for one in good])
    names, places = np.unique(parts, return_inverse=True)

    def singly(rng: np.random.Generator, confidence: float | None) -> float:
        limit = threshold(rng.choice(scores, len(scores)), bound, confidence)
        return float((scores.astype(np.float32) >= np.float32(limit)).mean())

    def whole(rng: np.random.Generator, confidence: float | None, by_lot: bool) -> float:
        drawn = rng.integers(len(names), size=len(names))
        found = [scores[places == place] for place in drawn]
        # A part that is drawn twice is two parts that look alike.
        lots = [str(lot) for lot, part in enumerate(found) for _ in part] if by_lot else None
        limit = np.float32(threshold(np.concatenate(found), bound, confidence, lots))
        # A new image is of a new part, and every part is as likely.
        return float(np.bincount(places, scores.astype(np.float32) >= limit).dot(1 / np.bincount(places)) / len(names))

    bound = 0.05
    group = f"{name}: {len(scores)} good images of {len(names)} parts"
    for confidence in (None, SURE):
        how = "on average" if confidence is None else _SURE
        found = repeat(lambda rng, sure=confidence: singly(rng, sure))
        yield Row(group, f"images drawn singly, {how}", bound, confidence, found)
        for by_lot in (False, True):
            if by_lot and units_needed(bound, confidence) > len(names):
                continue
            counted = "parts counted" if by_lot else "images counted"
            found = repeat(lambda rng, sure=confidence, by_lot=by_lot: whole(rng, sure, by_lot))
            yield Row(group, f"parts drawn whole, {counted}, {how}", bound, confidence, found)


def group_by_number(names: list[str]) -> list[int]:
    """A group for each name: the numbers at the end of names of one group have no gap of more than ``GAP``."""
    numbers = [int(match.group(1)) if (match := re.search(r"(\d+)\D*$", Path(name).stem)) else 0 for name in names]
    ordered = np.argsort(numbers, kind="stable")
    groups = np.zeros(len(names), np.intp)
    groups[ordered] = np.concatenate([[0], np.cumsum(np.diff(np.array(numbers)[ordered]) > GAP)])
    return [int(group) for group in groups]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=1000, help="Calibrations of each kind.")
    options = parser.parse_args(arguments)
    repeat = Repeat(options.runs, options.seed)
    rows = [*known(repeat)]
    for item in options.predictions:
        name, _, path = item.partition("=")
        rows += real(name, Path(path), repeat)
    rows += [*with_classes(repeat), *grouped(repeat), *drifted(repeat)]
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
    print(json.dumps({"benchmark": "overkill", "runs": options.runs, "rows": [row.figures() for row in rows]}))


if __name__ == "__main__":
    main()

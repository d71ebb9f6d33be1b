"""From maps and curves to figures: methods side by side, and a check of every class that travels in the bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from training.explain.figures import (
    RESAMPLES,
    Standing,
    area_under_curve,
    mass_in_mask,
    mean_with_interval,
    points_at,
    resampled_means,
    standings,
)
from training.explain.measure import Measured
from training.explain.methods import OURS
from training.metrics import F64, percentile_interval
from training.pixel_metrics import PixelCounter, score_bins
from vision.explanations import ClassCheck, Estimate
from vision.postprocess import resize_map

FEWEST_FRAMES = 5
"""Of a class; fewer say nothing about it."""
MOST_CORRELATION = 0.5
"""An explanation whose ranks agree more than this with those of a model with random weights does not explain the model.
Maps of unrelated models have about 0; 0.5 leaves room for what the architecture alone shares."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of one map on one frame; ``required``: the product promises to be best or tied on it."""

    title: str
    meaning: str
    higher_is_better: bool = True
    required: bool = False


METRICS = {
    "mass_in_mask": Metric("Mass in mask", "share of the evidence that lies on the defect", required=True),
    "insertion": Metric("Insertion", "mean class score while patches are shown, best first", required=True),
    "deletion": Metric(
        "Deletion", "mean class score while patches are taken away, best first; lower is better", False, required=True
    ),
    "aupro": Metric("AUPRO", "the map as a detector of the masks' regions, up to 30 % false positive pixels"),
    "pointing": Metric("Pointing", "the largest value hits the mask, give or take 15 px; known to saturate"),
}


def column(metric: str, method: str, measured: Sequence[Measured]) -> F64:
    """A metric of a method, one value a frame. Not for ``aupro``, which is of all frames together."""
    value: dict[str, Callable[[Measured], float]] = {
        "mass_in_mask": lambda one: mass_in_mask(one.maps[method], one.subject.mask),
        "pointing": lambda one: float(points_at(one.maps[method], one.subject.mask)),
        "insertion": lambda one: area_under_curve(one.curves[method].shares, one.curves[method].insertion),
        "deletion": lambda one: area_under_curve(one.curves[method].shares, one.curves[method].deletion),
    }
    return np.array([value[metric](one) for one in measured], np.float64)


def compare(measured: Sequence[Measured], seed: int) -> dict[str, dict[str, Standing]]:
    """By metric and method, how each stands; on the same frames and the same resamples."""
    methods = list(measured[0].maps)
    result = {}
    for name, metric in METRICS.items():
        if name == "aupro":
            counters = {method: _counter(method, measured) for method in methods}
            means = {method: counter.figures(seed).aupro for method, counter in counters.items()}
            draws = {method: counter.resampled(seed, RESAMPLES)["aupro"] for method, counter in counters.items()}
        else:
            columns = {method: column(name, method, measured) for method in methods}
            means = {method: float(values.mean()) for method, values in columns.items()}
            draws = {method: resampled_means(values, seed) for method, values in columns.items()}
        result[name] = standings(means, draws, higher_is_better=metric.higher_is_better)
    return result


def _counter(method: str, measured: Sequence[Measured]) -> PixelCounter:
    maps = [resize_map(one.maps[method], *one.subject.mask.shape) for one in measured]
    counter = PixelCounter(score_bins(maps, sum(one.size for one in maps)))
    for values, one in zip(maps, measured, strict=True):
        counter.add(values, one.subject.mask)
    return counter


def times_random(measured: Sequence[Measured], seed: int) -> Estimate:
    """How many times as much of our evidence lies on the defect as of a random map's."""
    ours, random = (column("mass_in_mask", method, measured) for method in (OURS, "random"))
    drawn = [resampled_means(values, seed) for values in (ours, random)]
    low, high = percentile_interval(drawn[0] / np.maximum(drawn[1], 1e-12))
    return Estimate(float(ours.mean() / max(random.mean(), 1e-12)), low, high)


def check_classes(
    measured: Sequence[Measured], classes: Sequence[str], randomised: F64 | None, seed: int
) -> dict[str, ClassCheck]:
    """The check of every class.

    A class fails if its saliency puts no more on the defect than random maps do (the 95 % interval of the paired
    difference reaches 0), or if randomising the weights leaves its maps as they were.

    Args:
        randomised: rank correlations of our maps with those of models with random weights; None: not measured.
    """
    correlation = None if randomised is None else mean_with_interval(randomised, seed)
    return {
        name: _check(name, [one for one in measured if one.subject.target == index], correlation, seed)
        for index, name in enumerate(classes)
    }


def _check(name: str, measured: Sequence[Measured], randomised: Estimate | None, seed: int) -> ClassCheck:
    if len(measured) < FEWEST_FRAMES:
        why = f"{len(measured) or 'no'} frames of {name} with a mask; {FEWEST_FRAMES} are needed to measure its maps"
        return ClassCheck("unchecked", why, len(measured))
    columns = partial(column, measured=measured)
    mass, random = columns("mass_in_mask", OURS), columns("mass_in_mask", "random")
    low, _ = percentile_interval(resampled_means(mass - random, seed))
    shares = f"{mass.mean():.0%} of the evidence lies on the defect, {random.mean():.1%} of random maps"
    if low <= 0:
        status, why = "failed", f"{shares}: no more than by chance"
    elif randomised is not None and randomised.value > MOST_CORRELATION:
        status = "failed"
        why = f"a model with random weights gives nearly the same maps (rank correlation {randomised.value:.2f})"
    else:
        status, why = "passed", shares
        if randomised is None:
            why += "; not tested with random weights"
    return ClassCheck(
        status=status,  # type: ignore[arg-type]
        why=why,
        frames=len(measured),
        mass_in_mask=mean_with_interval(mass, seed),
        random_mass=mean_with_interval(random, seed),
        insertion=mean_with_interval(columns("insertion", OURS), seed),
        deletion=mean_with_interval(columns("deletion", OURS), seed),
        randomised=randomised,
    )


def promises(comparison: dict[str, dict[str, Standing]], times: Estimate) -> dict[str, bool]:
    """What the product promises of its own saliency, and whether it holds on these frames."""
    kept = {name: comparison[name][OURS].verdict != "worse" for name, metric in METRICS.items() if metric.required}
    return {**kept, "three_times_random": times.value >= 3.0}

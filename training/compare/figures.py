"""Variants against each other, on the same images, seeds and resamples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from training.compare.variants import Trial, by_variant
from training.metrics import F64, bootstrap_draws, image_auroc, percentile_interval

FIGURES = ("image_auroc", "accuracy", "aupro", "pixel_ap", "miou")
_RESAMPLES = 1000
Measure = Literal["labels", "order"]


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation over seeds; ``deviation`` is None of one seed."""

    mean: float
    deviation: float | None


@dataclass(frozen=True, slots=True)
class Contest:
    """One variant against another: ``errors`` of each (shares), and the ``difference`` with its 95 % interval.

    ``is_significant``: the interval, over images and seeds drawn together, leaves out 0.
    """

    first: str
    second: str
    errors: tuple[float, float]
    difference: float
    interval: tuple[float, float]

    @property
    def is_significant(self) -> bool:
        return self.interval[0] > 0.0 or self.interval[1] < 0.0

    @property
    def fewer(self) -> float:
        """By which share the first makes fewer errors than the second; negative if it makes more."""
        return 1.0 - self.errors[0] / self.errors[1] if self.errors[1] > 0 else 0.0


def spreads(trials: Sequence[Trial]) -> dict[str, dict[str, Spread]]:
    """By variant and figure, over the seeds; figures that no report has are left out."""
    found: dict[str, dict[str, Spread]] = {}
    for name, group in by_variant(trials).items():
        reports = [trial.report for trial in group]
        found[name] = {
            figure: _spread([report[figure] for report in reports])
            for figure in FIGURES
            if all(report.get(figure) is not None for report in reports)
        }
    return found


def _spread(values: Sequence[float]) -> Spread:
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def choose_measure(trials: Sequence[Trial]) -> Measure:
    """What an error is: a wrong label where defect classes are told apart, else a defect scored below a good image."""
    truths = {line["truth"] for line in trials[0].predictions}
    return "labels" if len(truths) > 2 or not _scored(trials[0]) else "order"


class Errors:
    """The share of errors of every variant, on all images and on resamples of images and seeds.

    Every variant is resampled alike, so that differences are paired.
    """

    def __init__(self, trials: Sequence[Trial], measure: Measure, seed: int = 0) -> None:
        groups = by_variant(trials)
        rows = len(next(iter(groups.values())))
        images = len(_scored(trials[0])) if measure == "order" else len(trials[0].predictions)
        draws = bootstrap_draws(images, seed, _RESAMPLES)
        seeds = np.random.default_rng(seed).integers(0, rows, (_RESAMPLES, rows))
        self.whole: dict[str, float] = {}
        self.resampled: dict[str, F64] = {}
        for name, group in groups.items():
            share = _share_wrong if measure == "labels" else _share_misordered
            per_trial = np.stack([share(trial, draws) for trial in group])
            self.whole[name] = float(np.mean([share(trial, np.ones((1, images)))[0] for trial in group]))
            self.resampled[name] = np.stack([per_trial[seeds[:, row], np.arange(_RESAMPLES)] for row in range(rows)])
            self.resampled[name] = self.resampled[name].mean(axis=0)

    @property
    def best(self) -> str:
        """The variant with the fewest errors; the first of equals."""
        return min(self.whole, key=self.whole.__getitem__)

    def interval(self, name: str) -> tuple[float, float]:
        return percentile_interval(self.resampled[name])

    def contest(self, first: str, second: str) -> Contest:
        difference = self.resampled[first] - self.resampled[second]
        errors = self.whole[first], self.whole[second]
        return Contest(first, second, errors, errors[0] - errors[1], percentile_interval(difference))


def _share_wrong(trial: Trial, draws: F64) -> F64:
    wrong = np.array([line["truth"] != line["predicted"] for line in trial.predictions], np.float64)
    return np.asarray(draws @ wrong / draws.sum(axis=1))


def _share_misordered(trial: Trial, draws: F64) -> F64:
    lines = _scored(trial)
    scores = [line["anomaly_score"] for line in lines]
    is_defect = [line["is_defect"] for line in lines]
    return np.array([1.0 - image_auroc(scores, is_defect, draw) for draw in draws])


def _scored(trial: Trial) -> list[dict[str, Any]]:
    """Images that have an anomaly score and are surely good or defective."""
    return [line for line in trial.predictions if line["anomaly_score"] is not None and not line["is_ambiguous"]]

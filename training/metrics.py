"""Image and class metrics: pure functions in float64 that agree with scikit-learn.

``weights`` are how often each image counts; the bootstrap passes the counts of a resample. Where a metric is not
defined (one class only, no image) it is NaN, never an exception: a report has other things to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]
NAN = float("nan")


def curve(scores: ArrayLike, is_defect: ArrayLike, weights: ArrayLike | None = None) -> tuple[F64, F64, F64]:
    """True and false positives at or above each distinct score.

    Returns:
        Three arrays of one length: the distinct scores, descending, and the weight of defects and of good images
        whose score is ``>=`` each.
    """
    values, truth = np.asarray(scores, np.float64), np.asarray(is_defect, bool)
    weight = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    distinct, place = np.unique(values, return_inverse=True)
    count = len(distinct)
    positives = np.bincount(place, weight * truth, minlength=count)[::-1]
    negatives = np.bincount(place, weight * ~truth, minlength=count)[::-1]
    return distinct[::-1], np.cumsum(positives), np.cumsum(negatives)


def image_auroc(scores: ArrayLike, is_defect: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The chance that a defect scores above a good image, ties counting half.

    Source: Hanley, McNeil, *The meaning and use of the area under a ROC curve*, Radiology 1982.
    """
    _, hits, alarms = curve(scores, is_defect, weights)
    return float(area_under_roc(hits, alarms))


def average_precision(scores: ArrayLike, is_defect: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Σ (R_n − R_{n−1}) P_n over the distinct scores, without interpolation (Davis, Goadrich, ICML 2006)."""
    _, hits, alarms = curve(scores, is_defect, weights)
    return float(area_under_precision_recall(hits, alarms))


def f1_max(scores: ArrayLike, is_defect: ArrayLike, weights: ArrayLike | None = None) -> tuple[float, float]:
    """The best F1 = 2TP / (2TP + FP + FN) over all thresholds, and the highest score threshold (``>=``) that gives it.

    Source: van Rijsbergen, *Information Retrieval*, 2nd ed., 1979, chapter 7.
    """
    distinct, hits, alarms = curve(scores, is_defect, weights)
    if not len(distinct) or hits[-1] <= 0 or alarms[-1] <= 0:
        return NAN, NAN
    f1 = 2 * hits / (hits + alarms + hits[-1])
    best = int(np.argmax(f1))
    return float(f1[best]), float(distinct[best])


def area_under_roc(hits: F64, alarms: F64, max_fpr: float = 1.0) -> F64:
    """Area under cumulated hits against cumulated false alarms up to ``max_fpr``, divided by it; by trapezoids.

    Args:
        hits, alarms: ``[..., bins]``, cumulated from the highest score down; the last value is the total.

    Returns:
        ``[...]``, NaN where one of the two is empty.
    """
    start = np.zeros((*hits.shape[:-1], 1))
    if not hits.shape[-1]:
        return np.full(hits.shape[:-1], NAN)
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = np.concatenate([start, hits / hits[..., -1:]], axis=-1)
        fpr = np.concatenate([start, alarms / alarms[..., -1:]], axis=-1)
    low, high = fpr[..., :-1], fpr[..., 1:]
    width = np.clip(high, None, max_fpr) - np.clip(low, None, max_fpr)
    # The segment that crosses the limit is cut there: its mean height is the one of the part that remains.
    share = np.divide(width, high - low, out=np.zeros_like(width), where=high > low)
    height = rate[..., :-1] + (rate[..., 1:] - rate[..., :-1]) * share / 2
    return np.asarray((width * height).sum(axis=-1) / max_fpr)


def area_under_precision_recall(hits: F64, alarms: F64) -> F64:
    """Average precision of cumulated hits and false alarms ``[..., bins]``; NaN where one of the two is empty."""
    if not hits.shape[-1]:
        return np.full(hits.shape[:-1], NAN)
    gained = np.diff(hits, axis=-1, prepend=0.0)
    both = hits + alarms
    precision = np.divide(hits, both, out=np.zeros_like(both), where=both > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        area = (gained * precision).sum(axis=-1) / hits[..., -1]
    return np.asarray(np.where(alarms[..., -1] > 0, area, NAN))


def accuracy(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """The share of equal labels."""
    return float(np.mean(np.asarray(truth) == np.asarray(predicted))) if len(truth) else NAN


def confusion_matrix(truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> NDArray[np.int64]:
    """Counts ``[truth, predicted]`` in the order of ``labels``, which must name every label that occurs."""
    place = {label: index for index, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), np.int64)
    for one, other in zip(truth, predicted, strict=True):
        counts[place[one], place[other]] += 1
    return counts


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Of one class; ``support`` is how many images truly are of it. NaN where it divides by none."""

    precision: float
    recall: float
    f1: float
    support: int


def per_class(counts: NDArray[np.int64], labels: Sequence[str]) -> dict[str, ClassFigures]:
    """Precision, recall and F1 of each class from a confusion matrix ``[truth, predicted]`` (van Rijsbergen, 1979)."""
    figures = {}
    for index, label in enumerate(labels):
        hit, actual, said = int(counts[index, index]), int(counts[index].sum()), int(counts[:, index].sum())
        figures[label] = ClassFigures(
            precision=hit / said if said else NAN,
            recall=hit / actual if actual else NAN,
            f1=2 * hit / (actual + said) if actual + said else NAN,
            support=actual,
        )
    return figures


def miou(counts: NDArray[np.int64]) -> float:
    """Mean of TP / (TP + FP + FN) over the classes of a pixel confusion matrix ``[truth, predicted]``.

    Pixels are pooled over all images; classes absent from truth and prediction are left out. Source: Everingham et al.,
    *The Pascal Visual Object Classes Challenge: A Retrospective*, IJCV 2015, section 4.2.
    """
    hit = np.diag(counts)
    union = counts.sum(axis=0) + counts.sum(axis=1) - hit
    present = union > 0
    return float(np.mean(hit[present] / union[present])) if present.any() else NAN


def bootstrap_interval(
    metric: Callable[[F64], float], count: int, seed: int, *, confidence: float = 0.95, resamples: int = 1000
) -> tuple[float, float]:
    """The percentile interval of a metric under resampling of images with replacement.

    Resamples in which the metric is not defined are left out. Source: Efron, Tibshirani, *An Introduction to the
    Bootstrap*, 1993, chapter 13.

    Args:
        metric: takes ``[count]``, how often each image was drawn.
    """
    if count == 0:
        return NAN, NAN
    draws = bootstrap_draws(count, seed, resamples)
    return percentile_interval(np.asarray([metric(draw) for draw in draws]), confidence)


def share_interval(hits: ArrayLike, seed: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The bootstrap interval of a share; ``hits`` ``[n]`` is bool.

    None or all of n never vary under resampling, which would claim certainty; there the exact bound of Clopper and
    Pearson (Biometrika 1934) stands instead: 0 of n does not exclude 1 − (α/2)^(1/n).
    """
    values = np.asarray(hits, np.float64)
    count = len(values)
    if not count:
        return NAN, NAN
    if values.all() or not values.any():
        reach = ((1 - confidence) / 2) ** (1 / count)
        return (reach, 1.0) if values.all() else (0.0, 1 - reach)
    return percentile_interval(bootstrap_draws(count, seed, 1000) @ values / count, confidence)


def bootstrap_draws(count: int, seed: int, resamples: int) -> F64:
    """``[resamples, count]``: how often each of ``count`` images is in each resample."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1.0 / count), size=resamples).astype(np.float64)


def percentile_interval(values: F64, confidence: float = 0.95) -> tuple[float, float]:
    """The central interval of the finite ``values``."""
    finite: NDArray[Any] = values[np.isfinite(values)]
    if not len(finite):
        return NAN, NAN
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)

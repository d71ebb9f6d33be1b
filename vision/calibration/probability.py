"""From class scores to probabilities that keep their word, and the measure of how well they do.

A network's softmax adds up to 1 and is no probability: trained to zero loss it says 0.99 and is wrong in one case of
ten. One number (the temperature) or two numbers a class (vector scaling) mend most of that, fitted on images that did
not train the model. Source: Guo, Pleiss, Sun, Weinberger, *On Calibration of Modern Neural Networks*, ICML 2017.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vision.decision import softmax_of
from vision.errors import SettingsError

F64 = NDArray[np.float64]
Method = Literal["temperature", "vector"]

ENOUGH_IMAGES, ENOUGH_DEFECTS = 40, 8
"""Fewer images, or defects among them, say nothing about how sure the model may be: probabilities are not set then."""
# Two numbers a class from fewer images of it would be fitted to chance.
_ENOUGH_FOR_VECTOR = 20
_FOLDS = 5
# How far vector scaling may leave the temperature before the images must speak for it: standard deviations of a
# normal prior on the relative scale and on the bias of each class.
_PRIOR_SCALE, _PRIOR_BIAS = 0.5, 1.0
_NEWTON_STEPS = 50


@dataclass(frozen=True)
class ClassCalibration:
    """How class logits become probabilities: softmax(scale · logits + bias), one value a class in the bundle's order.

    ``images``: how many it was fitted on; ``mix``: their shares by class, for which the probabilities hold (in a
    factory with far fewer defects, a defect is less probable than they say). ``source``: which images, in words.
    ``figures``: ``ece_before``, ``ece_after`` and ``nll_before``, ``nll_after``, on images left out of each fit.
    """

    method: Method
    scale: tuple[float, ...]
    bias: tuple[float, ...]
    images: int
    mix: dict[str, float]
    source: str
    figures: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = (*self.scale, *self.bias)
        if len(self.scale) != len(self.bias) or not all(math.isfinite(value) for value in values):
            raise SettingsError(f"a class calibration needs one finite scale and bias a class; got {values}")
        if min(self.scale, default=1.0) <= 0:
            raise SettingsError(f"the scales of a class calibration must be above 0; got {self.scale}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ClassCalibration:
        """From what ``dataclasses.asdict`` and JSON made of it."""
        return cls(**{**values, "scale": tuple(values["scale"]), "bias": tuple(values["bias"])})

    def probabilities(self, logits: Sequence[float]) -> list[float]:
        """Of one frame, in the order of the classes."""
        return softmax_of([a * x + b for a, x, b in zip(self.scale, logits, self.bias, strict=True)])

    def of_many(self, logits: ArrayLike) -> F64:
        """Of frames ``[N, C]``: probabilities ``[N, C]``."""
        return _softmax(np.asarray(logits, np.float64) * np.array(self.scale) + np.array(self.bias))


@dataclass(frozen=True, slots=True)
class Bin:
    """Frames of similar stated probability: what was said on average, what came true, and how many they are."""

    stated: float
    true: float
    count: int
    hits: int


def fit_class_calibration(
    logits: ArrayLike,
    labels: Sequence[int],
    classes: Sequence[str],
    good_class: str | None,
    source: str,
    *,
    good_stands_for: int = 1,
    biases: bool = True,
) -> ClassCalibration | None:
    """Fit a temperature, or vector scaling where it is better on images left out; None where the images are too few.

    Args:
        logits: ``[N, C]`` of images that did not train the model.
        labels: their true classes, as indices.
        good_stands_for: of how many good images each one here was taken: it counts as often, so that the mix is right.
        biases: False keeps to the temperature. How much a model favours one class over another does not last while it
            goes on learning.
    """
    values, truth = np.asarray(logits, np.float64), np.asarray(labels, np.intp)
    defects = sum(classes[label] != good_class for label in truth)
    if len(truth) < ENOUGH_IMAGES or defects < ENOUGH_DEFECTS or len(set(truth.tolist())) < 2:
        return None
    is_good = np.array([name == good_class for name in classes])[truth]
    weights = np.where(is_good, good_stands_for, 1)
    left_out = {"temperature": _left_out(values, truth, weights, _fit_temperature)}
    if biases and np.bincount(truth, minlength=len(classes)).min() >= _ENOUGH_FOR_VECTOR:
        left_out["vector"] = _left_out(values, truth, weights, _fit_vector)
    method = _better(left_out, truth, weights)
    scale, bias = (_fit_vector if method == "vector" else _fit_temperature)(values, truth, weights)
    mix = np.bincount(truth, weights, minlength=len(classes)) / weights.sum()
    before, after, repeated = _softmax(values), left_out[method], np.repeat(np.arange(len(truth)), weights)
    return ClassCalibration(
        method=method,
        scale=tuple(float(value) for value in scale),
        bias=tuple(float(value) for value in bias),
        images=len(truth),
        mix={name: float(share) for name, share in zip(classes, mix, strict=True)},
        source=source,
        figures={
            "ece_before": expected_calibration_error(*top_label(before[repeated], truth[repeated])),
            "ece_after": expected_calibration_error(*top_label(after[repeated], truth[repeated])),
            "nll_before": float(_loss_of_each(before, truth)[repeated].mean()),
            "nll_after": float(_loss_of_each(after, truth)[repeated].mean()),
        },
    )


def top_label(probabilities: F64, truth: NDArray[np.intp]) -> tuple[F64, NDArray[np.bool_]]:
    """What was said of the most probable class of each frame, and whether it was right."""
    said = probabilities.argmax(axis=1)
    return probabilities[np.arange(len(truth)), said], said == truth


def reliability(stated: ArrayLike, came_true: ArrayLike, bins: int = 10) -> list[Bin]:
    """Frames in the order of their stated probability, cut into ``bins`` of about one size (fewer for few frames).

    Frames of which the same was stated stay together: which of them comes first must not matter.
    """
    values, hits = np.asarray(stated, np.float64), np.asarray(came_true, np.bool_)
    order = np.argsort(values, kind="stable")
    values, hits = values[order], hits[order]
    ends = np.linspace(0, len(values), min(bins, max(1, len(values) // 5)) + 1).astype(np.intp)[1:]
    ends = np.unique(np.searchsorted(values, values[ends - 1], side="right")) if len(values) else ends[:0]
    return [
        Bin(float(part.mean()), float(true.mean()), len(part), int(true.sum()))
        for part, true in zip(np.split(values, ends[:-1]), np.split(hits, ends[:-1]), strict=True)
        if len(part)
    ]


def expected_calibration_error(stated: ArrayLike, came_true: ArrayLike, bins: int = 10) -> float:
    """Σ (n_b / n) · |came true − stated| over bins of equal size: 0 keeps its word; NaN without a frame.

    Source: Naeini, Cooper, Hauskrecht, *Obtaining Well Calibrated Probabilities Using Bayesian Binning*, AAAI 2015;
    bins of equal size as in Nguyen, O'Connor (2015): most frames say nearly 1, and equal widths leave bins empty.
    """
    found = reliability(stated, came_true, bins)
    total = sum(one.count for one in found)
    return sum(one.count * abs(one.true - one.stated) for one in found) / total if total else math.nan


def chance_error(stated: ArrayLike, bins: int = 10, draws: int = 200) -> float:
    """The error that probabilities which keep their word exactly would show on so many images, by chance alone."""
    values = np.asarray(stated, np.float64)
    rng = np.random.default_rng(0)
    found = [expected_calibration_error(values, rng.random(len(values)) < values, bins) for _ in range(draws)]
    return float(np.mean(found)) if len(values) else math.nan


def _better(left_out: dict[str, F64], truth: NDArray[np.intp], weights: NDArray[np.intp]) -> Method:
    """Vector scaling only if its loss on images left out is lower by more than the difference's standard error."""
    if "vector" not in left_out:
        return "temperature"
    gain = _loss_of_each(left_out["temperature"], truth) - _loss_of_each(left_out["vector"], truth)
    mean = float((gain * weights).sum() / weights.sum())
    error = math.sqrt(float((weights**2 * (gain - mean) ** 2).sum())) / float(weights.sum())
    return "vector" if mean > error else "temperature"


def _left_out(logits: F64, truth: NDArray[np.intp], weights: NDArray[np.intp], fit: Any) -> F64:
    """Probabilities of every image by a fit on the other folds; folds hold every class alike."""
    by_class = np.argsort(truth, kind="stable")
    fold = np.empty(len(truth), np.intp)
    fold[by_class] = np.arange(len(truth)) % _FOLDS
    probabilities = np.empty_like(logits)
    for number in range(_FOLDS):
        inside = fold == number
        scale, bias = fit(logits[~inside], truth[~inside], weights[~inside])
        probabilities[inside] = _softmax(logits[inside] * scale + bias)
    return probabilities


def _fit_temperature(logits: F64, truth: NDArray[np.intp], weights: NDArray[np.intp]) -> tuple[F64, F64]:
    """One scale for all classes: the root of the loss's derivative, which rises with the scale (the loss is convex)."""
    targets = _targets(truth, logits.shape[1])
    wanted = (targets * logits).sum(axis=1)

    def slope(scale: float) -> float:
        return float((((_softmax(scale * logits) * logits).sum(axis=1) - wanted) * weights).sum())

    low, high = math.log(1e-3), math.log(1e3)
    for _ in range(_NEWTON_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(math.exp(middle)) > 0 else (middle, high)
    classes = logits.shape[1]
    return np.full(classes, math.exp((low + high) / 2)), np.zeros(classes)


def _fit_vector(logits: F64, truth: NDArray[np.intp], weights: NDArray[np.intp]) -> tuple[F64, F64]:
    """A scale and a bias for each class by Newton's method, held near the temperature by a normal prior."""
    start, _ = _fit_temperature(logits, truth, weights)
    classes = logits.shape[1]
    targets = _targets(truth, classes)
    prior = np.concatenate([(_PRIOR_SCALE * start) ** -2, np.full(classes, _PRIOR_BIAS**-2)])
    center = np.concatenate([start, np.zeros(classes)])
    values = center.copy()
    for _ in range(_NEWTON_STEPS):
        probabilities = _softmax(logits * values[:classes] + values[classes:])
        error = (probabilities - targets) * weights[:, None]
        slope = np.concatenate([(error * logits).sum(axis=0), error.sum(axis=0)]) + prior * (values - center)
        # d²loss / d(score)²: diag(p) − p pᵀ for each image, spread to scales (times the logit) and biases (times 1).
        inner = np.eye(classes) * probabilities[:, :, None] - probabilities[:, :, None] * probabilities[:, None, :]
        inner *= weights[:, None, None]
        scaled = inner * logits[:, :, None]
        curve = np.block(
            [
                [(scaled * logits[:, None, :]).sum(axis=0), scaled.sum(axis=0)],
                [scaled.sum(axis=0).T, inner.sum(axis=0)],
            ]
        )
        step = np.linalg.solve(curve + np.diag(prior), slope)
        values = values - step
        if np.abs(step).max() < 1e-9:
            break
    # A negative scale would turn a class upside down; the prior keeps clear of it except on nonsense.
    return np.maximum(values[:classes], 0.05 * start), values[classes:]


def _targets(truth: NDArray[np.intp], classes: int) -> F64:
    """Labels as probabilities that n images can vouch for: (n + 1) / (n + 2) for the true class (Platt, 1999).

    With 1 a model without a mistake among few images would be scaled up to absolute certainty.
    """
    rest = 1.0 / (len(truth) + 2)
    targets = np.full((len(truth), classes), rest / max(1, classes - 1))
    targets[np.arange(len(truth)), truth] = 1.0 - rest
    return targets


def _loss_of_each(probabilities: F64, truth: NDArray[np.intp]) -> F64:
    found: F64 = -np.log(np.maximum(probabilities[np.arange(len(truth)), truth], 1e-12))
    return found


def _softmax(values: F64) -> F64:
    raised = np.exp(values - values.max(axis=1, keepdims=True))
    found: F64 = raised / raised.sum(axis=1, keepdims=True)
    return found

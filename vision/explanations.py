"""What explains an answer, and what a bundle says about its own explanations.

Two sums are exact, whatever the frame:

- a class's logit = its bias + the sum of its saliency map, on the model's own grid (``ModelOutputs.saliency_map``);
- the anomaly score = the sum of the anomaly map's values, each times its share in the score (``score_shares``); a model
  that never saw a good part has no score.

Whether the maps are any *good* as explanations is measured by ``defectlens explain``, and travels in the bundle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from vision.errors import BundleError
from vision.types import FloatArray

TOP_SHARE = 0.01
"""The anomaly score is the mean of this share of the map's largest values: one noisy pixel cannot make a reject."""

EXACT = 1e-4
"""Published: how far the two sums may be off, by rounding alone, in fp32."""

Status = Literal["passed", "failed", "unchecked"]
"""Of a class's saliency: measured and found good, measured and found misleading, or not measured."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(number) for number in (self.value, self.low, self.high)):
            raise BundleError(f"a measured figure must be finite; got {self}")


@dataclass(frozen=True, slots=True)
class ClassCheck:
    """How good the saliency of one class was on labelled ``frames`` of this class, and what follows from it.

    ``mass_in_mask``: share of the class's evidence that lies on the defect, 0..1; ``random_mass``: the same of random
    maps. ``insertion`` and ``deletion``: mean class score while the frame is built up (higher is better) or taken away
    (lower is better), most important patches first. ``randomised``: rank correlation with the maps of the same model
    with random weights; an explanation that explains the model must lose it. ``why`` says the status in words.
    """

    status: Status
    why: str
    frames: int = 0
    mass_in_mask: Estimate | None = None
    random_mass: Estimate | None = None
    insertion: Estimate | None = None
    deletion: Estimate | None = None
    randomised: Estimate | None = None

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise BundleError(f"the status of a class is one of {', '.join(get_args(Status))}; got {self.status!r}")


@dataclass(frozen=True, slots=True)
class Explanations:
    """The ``explanations`` of a bundle's manifest.

    ``biases``: one a class, in the order of the classes; with the saliency map they give the logit. ``top_share``: the
    share of the anomaly map's cells whose mean is the anomaly score. ``evidence_scale``: one a class, the contribution
    of a cell at which colours are full, so that frames can be compared. ``checks``: by class, once measured;
    ``measured`` says in words on what.
    """

    biases: tuple[float, ...]
    top_share: float = TOP_SHARE
    evidence_scale: tuple[float, ...] = ()
    checks: dict[str, ClassCheck] = field(default_factory=dict)
    measured: str = ""

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in (*self.biases, *self.evidence_scale)):
            raise BundleError(f"biases and scales must be finite; got {self.biases} and {self.evidence_scale}")
        if any(value <= 0 for value in self.evidence_scale):
            raise BundleError(f"a scale of evidence must be above 0; got {self.evidence_scale}")
        if len(self.evidence_scale) not in (0, len(self.biases)):
            raise BundleError(f"got {len(self.evidence_scale)} scales of evidence for {len(self.biases)} classes")
        if not 0.0 < self.top_share <= 1.0:
            raise BundleError(f"the share of the map that makes the score lies in 0..1; got {self.top_share}")

    def check_classes(self, classes: tuple[str, ...]) -> None:
        """Raise BundleError unless this fits a model with these classes."""
        if len(self.biases) != len(classes):
            raise BundleError(f"got {len(self.biases)} biases for the {len(classes)} classes {', '.join(classes)}")
        if unknown := sorted(self.checks.keys() - set(classes)):
            raise BundleError(f"explanations of classes that the model does not have: {', '.join(unknown)}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Explanations:
        """The inverse of ``dataclasses.asdict``, from JSON."""
        found: dict[str, dict[str, Any]] = values.get("checks", {})
        checks = {name: _check_from_dict(check) for name, check in found.items()}
        tuples: dict[str, Any] = {name: tuple(values[name]) for name in ("biases", "evidence_scale") if name in values}
        return cls(**(values | tuples | {"checks": checks}))


_ESTIMATES = ("mass_in_mask", "random_mass", "insertion", "deletion", "randomised")


def _check_from_dict(values: dict[str, Any]) -> ClassCheck:
    found = {name: Estimate(**values[name]) for name in _ESTIMATES if values.get(name) is not None}
    return ClassCheck(**{**values, **found})


def score_shares(anomaly_map: FloatArray, top_share: float = TOP_SHARE) -> FloatArray:
    """Which cells of the map make the anomaly score, and with what share: ``score = (shares * anomaly_map).sum()``.

    The score is the mean of the largest cells, so each of them has the same share and all others have none. Of equal
    values at the edge any may be taken; the sum is the same.

    Args:
        anomaly_map: ``[h, w]``, on the model's own grid.
        top_share: see ``Explanations``.

    Returns:
        float32 ``[h, w]``, adding up to 1.
    """
    count = max(1, round(top_share * anomaly_map.size))
    shares = np.zeros(anomaly_map.size, np.float32)
    shares[np.argpartition(anomaly_map.ravel(), -count)[-count:]] = 1.0 / count
    return shares.reshape(anomaly_map.shape)


def evidence(saliency_map: FloatArray) -> FloatArray:
    """What speaks *for* a class: the positive contributions of its saliency map ``[..., h, w]``, NaN counting as none.

    The negative ones speak against it; they are in the sum, and not in the picture.
    """
    positive: FloatArray = np.maximum(np.nan_to_num(saliency_map), 0.0)
    return positive


def round_up(value: float) -> float:
    """To 1, 1.5, 2, 3, 5 or 7 times a power of ten: a scale that reads easily, and colours that stay bright."""
    if not value > 0.0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    steps = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)
    return float(next(step * power for step in steps if step * power >= value * 0.999))

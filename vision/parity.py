"""The gate that every engine passes before it may answer: golden frames, and, below fp32, the verdicts themselves.

What is published, by precision (``TOLERANCES``):

=========  ==========================================  =================================================  ==========
precision  golden frames                               why                                                 verdicts
=========  ==========================================  =================================================  ==========
fp32       scores to 1e-4, maps to 1e-3 (largest       kernels sum in another order, nothing else         (follows)
           difference)
fp16       differences of 5 % (root mean square, as    11 bits of mantissa: 3 digits; some layers lose    at most 2 %
           a share of the output's own spread)         a factor of ten of that                            change
bf16       30 %, likewise                              8 bits of mantissa: 2 digits                       at most 5 %
int8       50 %, likewise                              256 levels a tensor, and ranges that the           at most 5 %
                                                       calibration frames did not reach are cut off
=========  ==========================================  =================================================  ==========

The loose ones only find broken kernels (NaN, rows mixed up, a wrong bias); whether the reduced model is still *good* is
measured on the bundle's check frames: image AUROC may fall by 0.2 points at most, whatever the precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vision.engine import Precision
from vision.errors import ParityError
from vision.types import OUTPUT_NAMES, FloatArray, ModelOutputs

SCORE_TOLERANCE = 1e-4
"""Published: |Δ anomaly score| and |Δ class score| between runtimes and batch sizes, fp32."""
MAP_TOLERANCE = 1e-3
"""Published: |Δ| of every map, likewise."""
MAX_AUROC_LOSS = 0.002
"""Published: how much image AUROC may fall on the check frames, whatever the precision."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """``spread``: most root mean square difference, as a share of the expected output's standard deviation.
    ``flips``: most share of check frames whose verdict changes.
    """

    spread: float
    flips: float


TOLERANCES: dict[Precision, Tolerance] = {
    "fp16": Tolerance(spread=0.05, flips=0.02),
    "bf16": Tolerance(spread=0.30, flips=0.05),
    "int8": Tolerance(spread=0.50, flips=0.05),
}
"""Published: of the precisions below fp32."""


def compare_outputs(expected: ModelOutputs, got: ModelOutputs) -> dict[str, float]:
    """The largest absolute difference of each output; NaN anywhere counts as infinite."""
    return _compare(expected, got, lambda one, other: float(np.max(np.abs(one - other), initial=0.0)))


def compare_spread(expected: ModelOutputs, got: ModelOutputs) -> dict[str, float]:
    """The root mean square difference of each output as a share of the expected one's standard deviation."""

    def share(one: FloatArray, other: FloatArray) -> float:
        difference = float(np.sqrt(np.mean(np.square(one - other, dtype=np.float64))))
        # An output that is the same everywhere has no spread: then only equality will do, but for rounding.
        return difference / max(float(np.std(one, dtype=np.float64)), MAP_TOLERANCE)

    differences = _compare(expected, got, share)
    # No verdict depends on it, and golden frames of one kind of part hardly differ in it: rounding would look large.
    differences.pop("embedding", None)
    return differences


def _compare(
    expected: ModelOutputs, got: ModelOutputs, measure: Callable[[FloatArray, FloatArray], float]
) -> dict[str, float]:
    differences: dict[str, float] = {}
    for name in OUTPUT_NAMES:
        one, other = getattr(expected, name), getattr(got, name)
        if (one is None) != (other is None):
            differences[name] = float("inf")
        elif one is not None:
            value = measure(one, other) if one.shape == other.shape else float("inf")
            differences[name] = value if np.isfinite(value) else float("inf")
    return differences


def check_tolerance(differences: dict[str, float], what: str) -> None:
    """Raise ``ParityError`` above ``SCORE_TOLERANCE`` (anomaly score) or ``MAP_TOLERANCE`` (maps, logits)."""
    limits = {name: SCORE_TOLERANCE if name == "anomaly_score" else MAP_TOLERANCE for name in differences}
    _refuse_above(differences, limits, what, "differs by")


def check_spread(differences: dict[str, float], precision: Precision, what: str) -> None:
    """Raise ``ParityError`` above the tolerance of a precision below fp32."""
    limit = TOLERANCES[precision].spread
    _refuse_above(differences, dict.fromkeys(differences, limit), what, "differs, as a share of its spread, by")


def _refuse_above(differences: dict[str, float], limits: dict[str, float], what: str, words: str) -> None:
    wrong = [
        f"{name} {words} {value:.3g} (tolerance {limits[name]:g})"
        for name, value in differences.items()
        if value > limits[name]
    ]
    if wrong:
        raise ParityError(f"{what}: {'; '.join(wrong)}; export the bundle again or use another provider or precision")


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How a model does on the check frames beside the expected one. ``flips`` is the share of frames whose verdict
    changes; the AUROCs are None where the model has no anomaly score, or the frames are all of one kind. ``pairs`` is
    the number of pairs of a good and a defective frame, whose order image AUROC counts.
    """

    frames: int
    pairs: int
    flips: float
    auroc: float | None
    expected_auroc: float | None

    @property
    def auroc_loss(self) -> float:
        """Positive where the model got worse."""
        return 0.0 if self.auroc is None or self.expected_auroc is None else self.expected_auroc - self.auroc

    def check(self, precision: Precision, what: str) -> None:
        """Raise ``ParityError`` with the figures where they are worse than ``precision`` is allowed."""
        wrong = []
        # 1e-9: a loss of exactly 0.2 points must not fail by rounding.
        if self.auroc_loss > MAX_AUROC_LOSS + 1e-9:
            wrong.append(
                f"image AUROC on {self.frames} check frames falls from {self.expected_auroc:.4f} to {self.auroc:.4f}, "
                f"by {100 * self.auroc_loss:.2f} points (allowed: {100 * MAX_AUROC_LOSS:g}; one pair of a good and a "
                f"defective frame in the wrong order is {100 / self.pairs:.2g} points)"
            )
        if self.flips > TOLERANCES[precision].flips + 1e-9:
            wrong.append(
                f"{round(self.flips * self.frames)} of {self.frames} verdicts change, {self.flips:.1%} "
                f"(allowed: {TOLERANCES[precision].flips:.0%})"
            )
        if wrong:
            raise ParityError(f"{what} in {precision}: {'; '.join(wrong)}; use fp32 or another precision")


def image_auroc(scores: FloatArray, is_defect: NDArray[np.bool_]) -> float | None:
    """Share of pairs (good, defect) in the right order, ties counting half; None where one kind is missing.

    Quadratic, for the few hundred frames of a check. NaN is in the wrong order with everything.
    """
    good, defect = scores[~is_defect], scores[is_defect]
    if not len(good) or not len(defect):
        return None
    right = (defect[:, None] > good).mean() + 0.5 * (defect[:, None] == good).mean()
    return float(right)

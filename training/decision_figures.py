"""What an evaluation says of decisions: does the operating point keep its promise, and are probabilities true ones?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.metrics import F64, bootstrap_interval
from vision.calibration.evidence import percent
from vision.calibration.intervals import Rate, rate
from vision.calibration.probability import Bin, chance_error, expected_calibration_error, reliability, top_label
from vision.decision import OperatingPoint
from vision.manifest import Manifest
from vision.types import Verdict

if TYPE_CHECKING:
    from training.evaluate import Prediction

# Recall, too, is told by the images that are not passed.
_PASSED = Verdict.PASS


def promise_figures(predictions: Sequence[Prediction], point: OperatingPoint) -> dict[str, Any] | None:
    """The promise beside what these images show, with exact 95 % intervals; None without structured evidence.

    ``rows``: each bound, what was measured, and whether the interval leaves room for the bound.
    """
    basis = point.basis
    if basis is None:
        return None
    good = [one.verdict for one in predictions if not one.sample.is_defect and not one.sample.is_ambiguous]
    bad = [one.verdict for one in predictions if one.sample.is_defect]
    # Without a review band both bounds are one.
    rejected = None if basis.rejected_bound == basis.not_passed_bound else basis.rejected_bound
    asked = (
        ("good parts not passed", basis.not_passed_bound, good, lambda verdict: verdict is not _PASSED),
        ("good parts rejected", rejected, good, lambda verdict: verdict is Verdict.REJECT),
        (
            "defective parts passed",
            None if basis.recall_bound is None else 1 - basis.recall_bound,
            bad,
            lambda verdict: verdict is _PASSED,
        ),
    )
    rows = []
    for name, bound, verdicts, is_hit in asked:
        measured = rate(sum(map(is_hit, verdicts)), len(verdicts))
        rows.append({"what": name, "bound": bound, "measured": asdict(measured), "judgement": _judge(bound, measured)})
    return {**asdict(basis), "promise": basis.promise, "basis": basis.basis, "rows": rows}


def _judge(bound: float | None, measured: Rate) -> str:
    """In words, and no more than the number of images allows."""
    if bound is None:
        return "nothing promised"
    if not measured.of:
        return "no such image here"
    if measured.low > bound:
        return f"broken here: even {percent(measured.low)} would be more than promised"
    if measured.high <= bound:
        return "kept here"
    return "kept or not, these images are too few to tell" if measured.value > bound else "agrees with the promise"


def known_labels(predictions: Sequence[Prediction], manifest: Manifest) -> tuple[F64, F64, NDArray[np.intp]] | None:
    """Class scores, probabilities ``[N, C]`` and true classes of the images whose class the model knows."""
    known = [
        one
        for one in predictions
        if one.sample.label in manifest.classes and not one.sample.is_ambiguous and one.class_probabilities is not None
    ]
    if not known or manifest.class_calibration is None:
        return None
    scores = np.array([one.class_scores for one in known], np.float64)
    probabilities = np.array([one.class_probabilities for one in known], np.float64)
    return scores, probabilities, np.array([manifest.classes.index(one.sample.label) for one in known])


def probability_figures(predictions: Sequence[Prediction], manifest: Manifest, seed: int) -> dict[str, Any] | None:
    """Calibration errors of the uncalibrated scores and of the probabilities; None where there are none.

    ``ece``: expected calibration error of the most probable class; ``by_chance``: what true probabilities would show on
    so many images; ``defective``: the same of "this part is defective"; ``nll``: mean negative log likelihood.
    """
    found, calibration = known_labels(predictions, manifest), manifest.class_calibration
    if found is None or calibration is None:
        return None
    scores, probabilities, truth = found

    def error(values: F64, draw: F64) -> float:
        picked = np.repeat(np.arange(len(truth)), draw.astype(np.intp))
        return expected_calibration_error(*top_label(values[picked], truth[picked]))

    figures: dict[str, Any] = {"images": len(truth), "fitted_on": asdict(calibration)}
    for name, values in (("scores", scores), ("probabilities", probabilities)):
        stated, right = top_label(values, truth)
        picked = values[np.arange(len(truth)), truth]
        figures[name] = {
            "ece": expected_calibration_error(stated, right),
            "interval": bootstrap_interval(lambda draw, of=values: error(of, draw), len(truth), seed, resamples=200),  # type: ignore[misc]
            "by_chance": chance_error(stated),
            "nll": float(-np.log(np.maximum(picked, 1e-12)).mean()),
        }
        if manifest.good_class is not None:
            good = manifest.classes.index(manifest.good_class)
            figures[name]["defective_ece"] = expected_calibration_error(1 - values[:, good], truth != good)
    return figures


def reliability_bins(predictions: Sequence[Prediction], manifest: Manifest) -> dict[str, list[Bin]] | None:
    """For the diagram: of the most probable class, by score and by probability; and of "defective", by probability."""
    found = known_labels(predictions, manifest)
    if found is None:
        return None
    scores, probabilities, truth = found
    bins = {
        "class score": reliability(*top_label(scores, truth)),
        "probability": reliability(*top_label(probabilities, truth)),
    }
    if manifest.good_class is not None:
        good = manifest.classes.index(manifest.good_class)
        bins["score of a defect"] = reliability(1 - scores[:, good], truth != good)
        bins["probability of a defect"] = reliability(1 - probabilities[:, good], truth != good)
    return bins

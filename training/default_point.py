"""The operating point that a new model starts with; `defectlens calibrate` asks for another one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from training.data import Sample
from vision.calibration.bounds import units_needed
from vision.calibration.choose import CLEARLY, About, Classes, MaxOverkill, choose_point
from vision.calibration.evidence import Evidence
from vision.calibration.images import ScoredImages, measure
from vision.calibration.pixels import PixelThresholds
from vision.calibration.probability import ClassCalibration, fit_class_calibration
from vision.decision import OperatingPoint
from vision.model.config import ModelConfig
from vision.postprocess import ANOMALY

MAX_OVERKILL, MAX_REVIEW = 0.05, 0.03
"""Of good parts, how many may not be passed, and how many of these may go to a person instead of being rejected."""

# Below this bound of the rejects, so few images cannot afford class thresholds (see `vision.calibration.choose`).
_COARSEST = 0.25
# From this share on, and from so many on of so many, a training says that its point passes defects.
_TOO_MANY_PASSED, _FEWEST_PASSED, _FEWEST_DEFECTIVE = 0.25, 2, 4
_SHOWN = 5


def fit_probabilities(
    config: ModelConfig, logits: NDArray[np.float32], validation: Sequence[Sample], *, good_stand_for: int = 1
) -> ClassCalibration | None:
    """What makes probabilities of class logits ``[N, C]``, fitted on validation images; None where they are too few.

    None, too, for a model that never saw a labelled defect: no image can tell what its "anomaly" is worth. What experts
    were not sure about says nothing about how sure the model may be, and is left out.
    """
    if config.classes[1:] == (ANOMALY,):
        return None
    sure = [index for index, sample in enumerate(validation) if not sample.is_ambiguous]
    labels = [config.classes.index(validation[index].label) for index in sure]
    return fit_class_calibration(
        logits[sure],
        labels,
        config.classes,
        config.good_class,
        "validation images",
        good_stands_for=good_stand_for,
        biases=False,  # where validation has defects, the model goes on to learn from them (training.rounds)
    )


def class_policy(
    config: ModelConfig,
    probabilities: ClassCalibration | None,
    logits: NDArray[np.float32],
    validation: Sequence[Sample],
) -> Classes:
    """A class stops a part where it is likelier than all else, and likelier than for any good validation image."""
    if probabilities is None:
        return Classes({})
    good = [index for index, sample in enumerate(validation) if sample.label == config.good_class]
    highest = probabilities.of_many(logits[good]).max(axis=0, initial=0.0)
    thresholds = {
        # Just above the highest, in thousandths: for people to read.
        name: max(CLEARLY, min(1.0, (math.floor(1000 * float(highest[place])) + 1) / 1000))
        for place, name in enumerate(config.classes)
        if name != config.good_class
    }
    return Classes(thresholds, unknown_below=CLEARLY)


def default_point(
    images: ScoredImages,
    classes: Classes,
    pixels: PixelThresholds,
    pixel_source: str,
    calibration: Sequence[Sample],
) -> OperatingPoint:
    """The usual bounds, or the smallest that so few images can keep.

    Args:
        images: good calibration images, scored.
        classes: chosen without them.
        pixel_source: how ``pixels`` were chosen, in words.
        calibration: the samples of ``images``.
    """
    count = len(images)
    if classes.thresholds and 2 / (count + 1) > _COARSEST:
        classes = Classes({}, classes.unknown_below)
    # With class thresholds, two parts' worth of rejects: one for the classes, one for the anomaly score.
    usual = MAX_OVERKILL - MAX_REVIEW
    rejected = max(usual, (2 if classes.thresholds else 1) / (count + 1))
    bound = max(MAX_OVERKILL, rejected)
    missing = units_needed(usual, None) - count
    notes = [f"Pixel threshold: {'the image threshold' if pixels.usual is None else pixel_source}."]
    if missing > 0:
        notes.append(
            f"So few images cannot keep the usual {usual:.0%} of good parts rejected, which needs {missing} more good "
            "images."
        )
    contents = "".join(sorted(f"{sample.content}\n" for sample in calibration))
    return choose_point(
        images,
        MaxOverkill(bound, name="default"),
        max_review=bound - rejected if bound > rejected else None,
        classes=classes,
        pixels=pixels,
        about=About(
            "calibration images cut from the training data",
            hashlib.sha256(contents.encode()).hexdigest(),
            tuple(notes),
        ),
    )


def about_passes(point: OperatingPoint, good: ScoredImages, defective: ScoredImages) -> tuple[str, ...]:
    """What to say where the thresholds pass many defective images, one sentence each; nothing where they do not.

    A bound on good parts is kept by letting defects pass where good images look like these, above all where a defective
    part is labelled good. Whoever reads this can look.

    Args:
        good: calibration images that the thresholds were put on.
        defective: validation images. The model has learned from them since, so that the share of new defects which
            pass is hardly smaller.
    """
    if point.image_threshold is None or point.review_threshold is None or len(defective) < _FEWEST_DEFECTIVE:
        return ()
    passed = measure(defective, point.image_threshold, point.review_threshold, point.class_thresholds)["escape_rate"]
    if passed.hits < max(_FEWEST_PASSED, _TOO_MANY_PASSED * passed.of):
        return ()
    usual = float(np.median(defective.scores))
    order = np.argsort(-good.scores, kind="stable")
    alike = [good.names[place] for place in order if good.scores[place] >= usual]
    said = [f"Of {passed.of} defective validation images {passed.hits} would pass at these thresholds."]
    if alike:
        score = "1 good calibration image scores" if len(alike) == 1 else f"{len(alike)} good calibration images score"
        said.append(
            f"{score} as high as half of these, first of all {', '.join(alike[:_SHOWN])}: look whether that is a good "
            "part, and if not, move it to its class and train again."
        )
    said.append("`defectlens calibrate` with a larger --max-overkill, or with --min-recall, lets fewer pass.")
    return tuple(said)


def with_notes(point: OperatingPoint, basis: Evidence, notes: Sequence[str]) -> OperatingPoint:
    """The point with more sentences in its evidence, which so far is ``basis``."""
    basis = replace(basis, notes=(*basis.notes, *notes))
    return replace(point, evidence=basis.words(), basis=basis)

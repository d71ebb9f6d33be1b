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
from vision.calibration.images import ScoredImages
from vision.calibration.pixels import PixelThresholds
from vision.calibration.probability import ClassCalibration, fit_class_calibration
from vision.decision import OperatingPoint
from vision.model.config import ModelConfig
from vision.postprocess import ANOMALY

MAX_OVERKILL, MAX_REVIEW = 0.05, 0.03
"""Of good parts, how many may not be passed, and how many of these may go to a person instead of being rejected."""

# Below this bound of the rejects, so few images cannot afford class thresholds (see `vision.calibration.choose`).
_COARSEST = 0.25
# From this share on, of so many or more, a training says that its point passes the defects that the model learned from.
_TOO_MANY_PASSED, _FEWEST_LEARNED = 0.25, 4
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


def about_passes(point: OperatingPoint, good: ScoredImages, learned: ScoredImages) -> str | None:
    """What to say where the thresholds pass many defects that the model has learned from; None where they do not.

    A bound on good parts is kept by letting defects pass where good images look like these, be it that a defective part
    is labelled good. Whoever reads this can look.

    Args:
        good: calibration images that the thresholds were put on.
        learned: defective images that the model has learned from: what it misses of them, it misses for certain.
    """
    if point.review_threshold is None or len(learned) < _FEWEST_LEARNED:
        return None
    passed = int((learned.combined(point.class_thresholds) < point.review_threshold).sum())
    if passed < _TOO_MANY_PASSED * len(learned):
        return None
    usual = float(np.median(learned.scores))
    alike = [int(place) for place in np.argsort(-good.scores) if good.scores[place] >= usual]
    names = ", ".join(good.names[place] for place in alike[:_SHOWN])
    why = f"{len(alike)} good calibration images score as high as half of these, first of all {names}; look whether "
    why += "these parts are really good. " if len(alike) > 1 else "this part is really good. "
    return (
        f"Of {len(learned)} labelled defects that the model has learned from, {passed} would pass at these thresholds. "
        f"{why if alike else ''}`defectlens calibrate` with a larger --max-overkill, or --min-recall, lets fewer pass."
    )


def with_note(point: OperatingPoint, note: str) -> OperatingPoint:
    """The point with one more sentence in its evidence."""
    if point.basis is None:
        return replace(point, evidence=f"{point.evidence} {note}")
    basis = replace(point.basis, notes=(*point.basis.notes, note))
    return replace(point, evidence=basis.words(), basis=basis)

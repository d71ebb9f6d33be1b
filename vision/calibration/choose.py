"""The operating point that keeps what was asked for, chosen on calibration images, with its evidence.

A part is stopped (not passed) when its anomaly score reaches the review threshold or a class its class threshold. For
the bounds both tests are one score: the anomaly score, infinite where a class is a hit. So the class thresholds must
stand before the good calibration images are looked at; what happens where too many of these reach them is in
``_afford_class_hits``, with the proof in docs/decisions/0016.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vision.calibration.bounds import (
    GoodScores,
    allowed_mass,
    check_bound,
    good_scores,
    kept_bound,
    require_units,
    threshold_for,
    units_needed,
)
from vision.calibration.cost import Costs, cheapest
from vision.calibration.evidence import EXCHANGEABLE, EXCHANGEABLE_LOTS, SAME_DEFECTS, Evidence, percent
from vision.calibration.images import Flags, ScoredImages, measure
from vision.calibration.intervals import CONFIDENCE, lower_bound
from vision.calibration.pixels import PixelThresholds
from vision.decision import OperatingPoint
from vision.errors import SettingsError, TooFewImagesError

# Where too many good images reach the class thresholds, the first of these that leaves room; then no class threshold.
_RAISED = (0.9, 0.99, 0.999)
_ALIKE = (
    "The rates measured on the calibration images count images, so their intervals are too narrow where lots differ."
)


@dataclass(frozen=True, slots=True)
class MaxOverkill:
    """At most ``bound`` of good parts are not passed: on average, or with ``confidence`` in this very calibration."""

    bound: float
    confidence: float | None = None
    name: str = "max-overkill"


@dataclass(frozen=True, slots=True)
class MinRecall:
    """At least ``share`` of defective parts are not passed, with ``confidence``."""

    share: float
    confidence: float = CONFIDENCE


@dataclass(frozen=True, slots=True)
class About:
    """Where the images come from, for the evidence: see ``Evidence``."""

    data: str
    digest: str
    notes: tuple[str, ...] = ()


Asked = MaxOverkill | MinRecall | Costs


CLEARLY = 0.5
"""A class says clearly that a part is defective where it is more probable than everything else together."""


@dataclass(frozen=True, slots=True)
class Classes:
    """Thresholds of the defect classes on calibrated probabilities, and below what a defect is unknown."""

    thresholds: Mapping[str, float]
    unknown_below: float | None = None


@dataclass(frozen=True, slots=True)
class _Chosen:
    image: float
    review: float
    thresholds: Mapping[str, float]
    evidence: dict[str, object]
    notes: tuple[str, ...] = ()


def choose_point(
    images: ScoredImages,
    asked: Asked,
    *,
    max_review: float | None = None,
    classes: Classes,
    pixels: PixelThresholds,
    about: About,
) -> OperatingPoint:
    """Choose image, review and class thresholds.

    Args:
        max_review: share of good parts that may go to a person, of those that are not passed; None for no review band.

    Raises:
        TooFewImagesError: for what was asked; says how many are missing.
        SettingsError: what was asked is not possible, or a kind of images is missing.
    """
    if max_review is not None:
        check_bound(max_review, None)
    if isinstance(asked, MaxOverkill):
        chosen = _by_overkill(images, asked, max_review, classes.thresholds)
    elif isinstance(asked, MinRecall):
        chosen = _by_recall(images, asked, max_review, classes.thresholds)
    else:
        chosen = _by_cost(images, asked, max_review, classes.thresholds)
    evidence = Evidence(
        **chosen.evidence,  # type: ignore[arg-type]
        good_images=int((~images.is_defect).sum()),
        defective_images=int(images.is_defect.sum()),
        data=about.data,
        data_digest=about.digest,
        class_policy=dict(classes.thresholds),
        measured=measure(images, chosen.image, chosen.review, chosen.thresholds, classes.unknown_below),
        notes=(*chosen.notes, *([] if images.lots is None else [_ALIKE]), *about.notes),
    )
    return OperatingPoint(
        image_threshold=chosen.image,
        review_threshold=chosen.review,
        pixel_threshold=chosen.image if pixels.usual is None else pixels.usual,
        evidence=evidence.words(),
        class_thresholds=dict(chosen.thresholds),
        class_pixel_thresholds=dict(pixels.by_class),
        unknown_below=classes.unknown_below,
        basis=evidence,
    )


def check_enough(asked: Asked, is_defect: Flags, lots: Sequence[str] | None) -> None:
    """What can be said before a single image is scored.

    Raises:
        TooFewImagesError: however the scores turn out, these images are too few for what is asked.
    """

    def units(chosen: Flags, confidence: float | None) -> GoodScores:
        kept = None if lots is None else [lot for lot, keep in zip(lots, chosen, strict=True) if keep]
        return good_scores(np.zeros(int(chosen.sum()), np.float32), kept, confidence)

    if isinstance(asked, MaxOverkill):
        require_units(units(~is_defect, asked.confidence), asked.bound, asked.confidence)
    elif isinstance(asked, MinRecall):
        _allowed_misses(units(is_defect, asked.confidence), asked)


def _by_overkill(
    images: ScoredImages, asked: MaxOverkill, max_review: float | None, thresholds: Mapping[str, float]
) -> _Chosen:
    good, confidence = images.good, asked.confidence
    goods = good_scores(good.combined(thresholds), good.lots, confidence)
    require_units(goods, asked.bound, confidence)
    stopped = allowed_mass(goods.units, asked.bound, confidence)
    rejected = stopped
    if max_review is not None:
        # At least one unit's worth: no threshold is above every part that will ever come.
        least = 0.0
        if max_review < asked.bound:
            least = max(0.0, allowed_mass(goods.units, asked.bound - max_review, confidence))
        rejected = min(stopped, least)
    keeps = asked.bound if rejected == stopped else min(asked.bound, kept_bound(rejected, goods.units, confidence))
    notes: tuple[str, ...] = ()
    if goods.mass_always_hit:
        thresholds, taken = _afford_class_hits(good, goods, thresholds, rejected, confidence)
        stopped, rejected = stopped - taken, rejected - taken
        goods = good_scores(good.combined(thresholds), good.lots, confidence)
        notes = _about_raised(thresholds) if taken else ()
    given = {} if max_review is None else {"max_review": max_review}
    by_lots = ", by lots" if goods.by_lot else ""
    return _Chosen(
        threshold_for(goods, rejected),
        threshold_for(goods, stopped),
        thresholds,
        {
            "rule": asked.name,
            "asked": {"max_overkill": asked.bound, **given},
            "method": f"split-conformal bound{by_lots}" if confidence is None else f"tolerance limit{by_lots}",
            "confidence": confidence,
            "not_passed_bound": asked.bound,
            "rejected_bound": keeps,
            "recall_bound": None,
            "lots": goods.units if goods.by_lot else None,
            "assumption": EXCHANGEABLE_LOTS if goods.by_lot else EXCHANGEABLE,
        },
        notes,
    )


def _afford_class_hits(
    good: ScoredImages,
    goods: GoodScores,
    thresholds: Mapping[str, float],
    rejected: float,
    confidence: float | None,
) -> tuple[Mapping[str, float], float]:
    """Class thresholds that good images seldom reach, and how many units the anomaly thresholds then have less.

    On average over images, and with room for ``rejected`` good images among the rejects: while fewer than a quarter of
    these are class hits, nothing changes. Otherwise all class thresholds rise together until that is so, and the
    quarter is taken from what the anomaly thresholds may hit; docs/decisions/0016 shows that the bound holds exactly.
    """
    hit = [name for name, score in zip(good.names, good.combined(thresholds), strict=True) if np.isposinf(score)]
    if confidence is not None or goods.by_lot:
        if goods.mass_always_hit <= rejected:
            return thresholds, 0.0
    else:
        room = max(1, int(rejected + 1) // 4)
        if len(hit) < room:
            return thresholds, 0.0
        if rejected >= room:
            for level in (*_RAISED, None):
                raised = {} if level is None else {name: max(value, level) for name, value in thresholds.items()}
                if int(good.class_hits(raised).sum()) < room:
                    return raised, float(room)
    raise TooFewImagesError(
        f"{len(hit)} good calibration images reach a class threshold, such as {', '.join(hit[:5])}; with "
        f"{goods.units} {'lots' if goods.by_lot else 'images'} the bound has no room for that. Look whether these "
        "parts are really good; then take more good images, or raise the threshold (--class-threshold CLASS=0.99, "
        "--class-threshold none)"
    )


def _about_raised(thresholds: Mapping[str, float]) -> tuple[str]:
    """What to say of thresholds that were raised."""
    if not thresholds:
        return (
            "Too many good images reached the class thresholds: there are none now, and a class alone stops no part.",
        )
    lowest = min(thresholds.values())
    return (f"Too many good images reached the class thresholds: they were raised to {lowest:g} or more.",)


def _by_recall(
    images: ScoredImages, asked: MinRecall, max_review: float | None, thresholds: Mapping[str, float]
) -> _Chosen:
    bad, good = images.defective, images.good
    units = good_scores(bad.combined(thresholds), bad.lots, asked.confidence)
    missed = _allowed_misses(units, asked)
    # The (k + 1)-th smallest defect is still stopped: k are missed at most.
    review = float(np.sort(units.scores)[int(missed)])
    if not np.isfinite(review):  # all but k are stopped by their class
        review = float(images.scores.max())
    image, overkill = review, None
    if len(good):
        goods = good_scores(good.combined(thresholds), None, None)
        stopped = goods.mass_from(review)
        if max_review is not None:
            image = max(review, threshold_for(goods, max(goods.mass_always_hit, stopped - max_review * len(good))))
        if good.lots is None:
            overkill = kept_bound(stopped, len(good), asked.confidence)
    given = {} if max_review is None else {"max_review": max_review}
    return _Chosen(
        image,
        review,
        thresholds,
        {
            "rule": "min-recall",
            "asked": {"min_recall": asked.share, **given},
            "method": "tolerance limit" + (", one image of each lot" if units.by_lot else ""),
            "confidence": asked.confidence,
            "not_passed_bound": overkill,
            "rejected_bound": None,
            "recall_bound": asked.share,
            "lots": units.units if units.by_lot else None,
            "assumption": f"{SAME_DEFECTS}, and {EXCHANGEABLE}" if overkill is not None else SAME_DEFECTS,
        },
    )


def _allowed_misses(units: GoodScores, asked: MinRecall) -> float:
    """How many of the defective images (or lots) may be missed; raises ``TooFewImagesError`` where they are too few."""
    missed = allowed_mass(units.units, 1 - asked.share, asked.confidence) if units.units else -1.0
    if missed >= 0:
        return missed
    needed = units_needed(1 - asked.share, asked.confidence)
    can = f" {units.units} can show {percent(lower_bound(units.units, units.units, asked.confidence))}."
    raise TooFewImagesError(
        f"a recall of {asked.share:g} with {asked.confidence:.4g} confidence needs at least {needed} defective "
        f"calibration images of which none is missed{' (one from each lot)' if units.by_lot else ''}; got "
        f"{units.units}, {needed - units.units} more are missing.{can if units.units else ''}",
        needed - units.units,
    )


def _by_cost(images: ScoredImages, asked: Costs, max_review: float | None, thresholds: Mapping[str, float]) -> _Chosen:
    if max_review is not None:
        raise SettingsError(
            "with costs, the price of a review decides on the review band: give --cost ...,review=PRICE"
        )
    found = cheapest(images, images.combined(thresholds), asked)
    values = {"overkill": asked.overkill, "escape": asked.escape, "review": asked.review}
    mix = "as given" if asked.defect_rate is not None else "as among the calibration images"
    share = found.figures["defect_rate"]
    note = (
        f"Expected cost a part: {found.figures['expected_cost']:.4g} ({found.figures['expected_cost_low']:.4g} to "
        f"{found.figures['expected_cost_high']:.4g}), {found.figures['cost_left_out']:.4g} on images left out of the "
        f"choice, at {percent(share)} defective parts ({mix})."
    )
    return _Chosen(
        found.image_threshold,
        found.review_threshold,
        thresholds,
        {
            "rule": "cost",
            "asked": {name: value for name, value in values.items() if value is not None} | {"defect_rate": share},
            "method": "least expected cost, bootstrap intervals",
            "confidence": None,
            "not_passed_bound": None,
            "rejected_bound": None,
            "recall_bound": None,
            "lots": None if images.lots is None else len(set(images.lots)),
            "assumption": f"{SAME_DEFECTS}, and {EXCHANGEABLE}",
            "figures": found.figures,
        },
        (note,),
    )

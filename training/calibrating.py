"""What `defectlens calibrate` does: a new operating point for a bundle, by its own ONNX model and without torch."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.calibration_data import CalibrationData
from training.data import Sample
from training.layout import GOOD
from training.masks import mask_at_input, mask_on_grid
from training.predictor import EnginePredictor
from vision.bundle import MANIFEST, Bundle, load_bundle, new_bundle, write_manifest
from vision.calibration.choose import CLEARLY, About, Asked, Classes, check_enough, choose_point
from vision.calibration.images import ScoredImages
from vision.calibration.pixels import ENOUGH_MASKS, KnownPixels, PixelThresholds, best_pixel_thresholds
from vision.calibration.probability import (
    ENOUGH_DEFECTS,
    ENOUGH_IMAGES,
    ClassCalibration,
    fit_class_calibration,
)
from vision.console import say, track
from vision.decision import OperatingPoint
from vision.engine import Engine
from vision.errors import SettingsError
from vision.manifest import Manifest
from vision.types import FloatArray

PixelChoice = Literal["keep", "best"] | float
# Of the good images, where class probabilities are fitted anew: these fit them, and never count for a bound.
_FITTING_SHARE = 5


@dataclass(frozen=True)
class Wishes:
    """What is to be chosen besides the thresholds on the anomaly score.

    ``class_thresholds``: by class, those that are given; None switches them off. ``unknown_below``: None keeps the
    bundle's. ``pixel_threshold``: keep the bundle's (also those of classes), choose the best on masks, or a number for
    all classes. ``fit_probabilities``: fit them even if the bundle has some.
    """

    class_thresholds: Mapping[str, float] | None
    unknown_below: float | None = None
    pixel_threshold: PixelChoice = "keep"
    fit_probabilities: bool = False


@dataclass(frozen=True)
class Answers:
    """What the model says of N images: ``logits`` ``[N, C]``, ``scores`` ``[N]``, and of images whose pixels are known
    these as well, if they were asked for.
    """

    logits: FloatArray
    scores: FloatArray
    pixels: list[KnownPixels]


def calibrate_bundle(
    bundle: Bundle,
    engine: Engine,
    data: CalibrationData,
    asked: Asked,
    wishes: Wishes,
    *,
    max_review: float | None,
) -> Manifest:
    """Score the images and choose; the manifest of the bundle's next version.

    Raises:
        SettingsError, DataError: what was asked is not possible with this bundle or these images.
    """
    manifest = bundle.manifest
    if not manifest.has_anomaly_score:
        raise SettingsError(
            f"{bundle.path} never saw a good part: it has no anomaly score that a threshold could be put on, and can "
            "never pass a part; train it with good images too"
        )
    check_enough(asked, np.array([one.label != GOOD for one in data.samples]), data.lots)
    bundle.replay_golden(engine)
    answers = run(engine, manifest, data.samples, with_maps=wishes.pixel_threshold == "best")
    probabilities, fitting = _probabilities(manifest, data, answers.logits, wishes)
    classes = _class_policy(manifest, probabilities, wishes)
    images = _scored(manifest, data, answers, probabilities).only(~fitting)
    notes = list(data.notes)
    if fitting.any():
        notes.append(f"{int(fitting.sum())} good images fitted the class probabilities and count for no bound.")
    point = choose_point(
        images,
        asked,
        max_review=max_review,
        classes=classes,
        pixels=_pixel_thresholds(manifest, answers, wishes.pixel_threshold),
        about=About(f"{data.source}; {engine.provider} in {engine.precision}", data.digest, tuple(notes)),
    )
    return _next_manifest(bundle, point, images, probabilities)


def run(engine: Engine, manifest: Manifest, samples: tuple[Sample, ...], *, with_maps: bool) -> Answers:
    """Let the model look at every image."""
    logits, scores = [], []
    pixels: list[KnownPixels] = []
    inspections = EnginePredictor(engine, manifest).predict(samples)
    for sample, one in zip(samples, track(inspections, "Scoring", total=len(samples)), strict=True):
        logits.append(one.class_logits)
        scores.append(one.anomaly_score)
        if with_maps and one.anomaly_map is not None and (sample.mask is not None or not sample.is_defect):
            truth = mask_on_grid(mask_at_input(sample.mask, manifest.input), one.anomaly_map.shape)
            favoured = None if one.class_map is None else one.class_map.argmax(axis=0)
            pixels.append(KnownPixels(one.anomaly_map, truth, sample.label, favoured))
    return Answers(np.stack(logits), np.array(scores, np.float32), pixels)


def write_bundle(bundle: Bundle, manifest: Manifest, out: Path) -> Bundle:
    """A copy of the bundle with another manifest; ``out`` must not exist yet."""
    with new_bundle(out) as folder:
        shutil.copytree(bundle.path, folder, ignore=shutil.ignore_patterns(MANIFEST))
        write_manifest(folder, manifest)
        load_bundle(folder)
    return load_bundle(out)


def next_version(version: str) -> str:
    """The last number of a version, one higher; ``.1`` behind a version without one."""
    match = re.search(r"(\d+)(\D*)$", version)
    if match is None:
        return f"{version}.1"
    return f"{version[: match.start()]}{int(match.group(1)) + 1}{match.group(2)}"


def _probabilities(
    manifest: Manifest, data: CalibrationData, logits: FloatArray, wishes: Wishes
) -> tuple[ClassCalibration | None, NDArray[np.bool_]]:
    """The bundle's own, or fitted anew; and which good images did the fitting."""
    nobody = np.zeros(len(data.samples), np.bool_)
    if manifest.class_calibration is not None and not wishes.fit_probabilities:
        return manifest.class_calibration, nobody
    if manifest.predicts_by_anomaly_score:
        if wishes.fit_probabilities:
            raise SettingsError("this bundle was trained on good images alone: it has no classes to calibrate")
        return None, nobody
    fitting = _fitting_images(data)
    labels = np.array(
        [manifest.classes.index(one.label) if one.label in manifest.classes else -1 for one in data.samples]
    )
    used = (fitting | np.array([one.is_defect for one in data.samples])) & (labels >= 0)
    source = f"{int(used.sum())} images of {data.source}"
    found = fit_class_calibration(
        logits[used],
        labels[used].tolist(),
        manifest.classes,
        manifest.good_class,
        source,
        good_stands_for=_FITTING_SHARE,
    )
    if found is not None:
        return found, fitting
    few = f"at least {ENOUGH_IMAGES} images, {ENOUGH_DEFECTS} of them of the model's defect classes"
    if wishes.fit_probabilities:
        raise SettingsError(
            f"class probabilities need {few} (of the good ones, a fifth is taken); got {int(used.sum())}"
        )
    say(f"note: class scores stay scores: the bundle has no class probabilities, and fitting them needs {few}")
    return None, nobody


def _fitting_images(data: CalibrationData) -> NDArray[np.bool_]:
    """About a fifth of the good images, whole lots, by their contents: chosen by nothing that the model says."""
    keys = data.lots or tuple(sample.content for sample in data.samples)
    return np.array(
        [
            not sample.is_defect and _number(key) % _FITTING_SHARE == 0
            for sample, key in zip(data.samples, keys, strict=True)
        ]
    )


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _class_policy(manifest: Manifest, probabilities: ClassCalibration | None, wishes: Wishes) -> Classes:
    """Given thresholds before the bundle's own, and those before the usual ones; none without probabilities.

    Of the bundle's own, as they stood before good images had raised them: on the same images they would otherwise be
    chosen by these, and the bound would not hold any more.
    """
    given = wishes.class_thresholds
    if probabilities is None:
        if given:
            raise SettingsError(
                "class thresholds are on probabilities, and this bundle has nothing to calibrate them with"
            )
        return Classes({})
    if unknown := set(given or ()) - set(manifest.defect_classes):
        raise SettingsError(
            f"{', '.join(sorted(unknown))} is no defect class of the model; choose from "
            + ", ".join(manifest.defect_classes)
        )
    point = manifest.operating_point
    kept = probabilities is manifest.class_calibration
    thresholds: dict[str, float] = {}
    if given is not None:
        usual = (point.class_thresholds if point.basis is None else point.basis.class_policy) if kept else {}
        thresholds = {name: usual.get(name, CLEARLY) for name in manifest.defect_classes} | dict(given)
    unknown_below = wishes.unknown_below
    if unknown_below is None:
        unknown_below = point.unknown_below if kept and point.unknown_below is not None else CLEARLY
    return Classes(thresholds, unknown_below)


def _scored(
    manifest: Manifest, data: CalibrationData, answers: Answers, probabilities: ClassCalibration | None
) -> ScoredImages:
    return ScoredImages(
        names=tuple(f"{sample.path.parent.name}/{sample.path.name}" for sample in data.samples),
        scores=answers.scores,
        is_defect=np.array([sample.label != GOOD for sample in data.samples]),
        defect_classes=manifest.defect_classes,
        probabilities=None
        if probabilities is None
        else probabilities.of_many(answers.logits)[:, manifest.defect_places],
        lots=data.lots,
    )


def _pixel_thresholds(manifest: Manifest, answers: Answers, choice: PixelChoice) -> PixelThresholds:
    if choice == "keep":
        point = manifest.operating_point
        return PixelThresholds(point.pixel_threshold, point.class_pixel_thresholds)
    if choice != "best":
        return PixelThresholds(choice)
    found = best_pixel_thresholds(answers.pixels, manifest.defect_classes)
    if found.usual is None:
        raise SettingsError(
            f"--pixel-threshold best needs at least {ENOUGH_MASKS} defective images with a mask (MVTec layout, "
            "ground_truth/); give a number, or keep the bundle's"
        )
    return found


def _next_manifest(
    bundle: Bundle, point: OperatingPoint, images: ScoredImages, probabilities: ClassCalibration | None
) -> Manifest:
    before = bundle.manifest
    good = np.sort(images.good.scores)
    return replace(
        before,
        version=next_version(before.version),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        operating_point=point,
        calibration_scores=tuple(float(score) for score in good) if len(good) else before.calibration_scores,
        class_calibration=probabilities,
        provenance={**before.provenance, "calibrated_from": {"version": before.version, "digest": bundle.digest}},
    )

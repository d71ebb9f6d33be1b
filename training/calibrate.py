"""After training: how the localizer's signals are combined, what the class scores are worth, and where thresholds lie.

The combination, the class probabilities and the class thresholds are chosen on validation frames, the thresholds on the
anomaly score on calibration frames; none ever sees a test image. Between the two the model may learn from the
validation frames as well (``training.rounds``). That the class thresholds stand before the calibration frames are
looked at is what their bound rests on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.default_point import about_passes, class_policy, default_point, fit_probabilities, with_notes
from training.masks import mask_on_grid
from training.metrics import image_auroc
from training.options import Recipe
from training.stores import FrameStore, Pictures, in_batches
from training.synthesis import add_defect_in
from vision.calibration.choose import Classes
from vision.calibration.images import ScoredImages
from vision.calibration.pixels import ENOUGH_MASKS, KnownPixels, PixelThresholds, best_pixel_thresholds
from vision.calibration.probability import ClassCalibration
from vision.console import say
from vision.decision import OperatingPoint
from vision.errors import DataError
from vision.model.config import ModelConfig
from vision.model.detector import NO_FLOOR, Detector
from vision.postprocess import ANOMALY

# All signals are standardised; without real defects nothing speaks for one of them.
SYNTHETIC_MASK_WEIGHT = 1.0
SUBSPACE_WEIGHT = 1.0
# Beside a mask head that has learned from real defects the subspace is for what no label shows. Validation images are
# often of the parts that trained the model and need it less than new parts do, so they do not choose its weight.
LABELLED_SUBSPACE_WEIGHT = 0.25
_MASK_WEIGHTS = (0.0, 0.5, 1.0, 2.0)
# Where good frames foresee so much of new good ones, what is left of a frame shows defects of kinds that no synthetic
# one resembles; a mask head that has seen no others speaks against them by so many standard deviations at most
# (docs/decisions/0040).
_ENOUGH_FORESEEN, _MASK_FLOOR = 0.55, -2.0


@dataclass(frozen=True)
class Calibration:
    """The outcome: operating point, sorted anomaly scores of good calibration frames, what makes probabilities of class
    logits (None where labels are too few), and figures for people.
    """

    point: OperatingPoint
    scores: tuple[float, ...]
    figures: dict[str, Any]
    class_calibration: ClassCalibration | None = None


@dataclass(frozen=True)
class Fitted:
    """What validation frames say: the weight of the mask signal in the detector's combination, what makes probabilities
    of class logits (None where labels are too few), class thresholds, and pixel thresholds with how they were chosen.
    ``foreseen`` as given to ``fit_on_validation``.
    """

    mask_weight: float
    foreseen: float | None
    probabilities: ClassCalibration | None
    classes: Classes
    pixels: PixelThresholds
    pixel_source: str


def fit_on_validation(
    detector: Detector,
    recipe: Recipe,
    validation: FrameStore,
    *,
    foreseen: float | None = None,
    good_stand_for: int = 1,
) -> Fitted:
    """Set the detector's combination, and find what else is chosen on validation frames.

    Args:
        foreseen: how much of good frames the others foresee, as ``fit_subspace`` found; None where a labelled defect
            is known.
        good_stand_for: of how many good images each good one of ``validation`` was taken (``Split.good_stand_for``).
    """
    config = detector.config
    weight = _combine(detector, recipe, validation, foreseen)
    rows = list(_rows(detector, validation))
    pixels, source = _pixel_thresholds(rows, config), "best pixel F1 on validation masks"
    if pixels.usual is None and config.good_class is None and config.localizes:
        pixels, source = PixelThresholds(0.0), "as likely a defect as not: too few validation images have a mask"
    elif pixels.usual is None and config.good_class is not None and recipe.synthetic:
        damaged = _Damaged(validation, config.good_class, config.piece)
        pixels, source = (
            _pixel_thresholds(list(_rows(detector, damaged)), config),
            "best pixel F1 on validation frames with synthetic defects",
        )
    logits = np.array([row.logits for row in rows], np.float32).reshape(-1, len(config.classes))
    probabilities = fit_probabilities(config, logits, validation.samples, good_stand_for=good_stand_for)
    classes = Classes({})
    if config.good_class is not None:
        classes = class_policy(config, probabilities, logits, validation.samples)
    return Fitted(weight, foreseen, probabilities, classes, pixels, source)


def calibrate(detector: Detector, fitted: Fitted, calibration: FrameStore, validation: FrameStore) -> Calibration:
    """Find the operating point, and say where it passes too many of the defects in ``validation``.

    Raises:
        DataError: the model has a good class, but no good image was left for calibration.
    """
    good = detector.config.good_class
    if good is None:
        text = (
            "The training data hold no good part: the model tells defect classes apart and has no anomaly score; it "
            "can reject or send to review, but never pass a part."
        )
        pixels = fitted.pixels
        if pixels.usual is not None:
            text = f"{text} Pixel threshold: {fitted.pixel_source}."
        point = OperatingPoint(None, None, pixels.usual, evidence=text, class_pixel_thresholds=dict(pixels.by_class))
        return Calibration(point, (), {}, fitted.probabilities)
    if not any(sample.label == good for sample in calibration.samples):
        raise DataError("no good image is left for calibration; at least 8 good training images are needed")
    probabilities = fitted.probabilities
    images = _scored(detector, calibration, probabilities)
    point = default_point(images, fitted.classes, fitted.pixels, fitted.pixel_source, calibration.samples)
    defective = _scored(detector, _Defective(validation, good), probabilities)
    notes = about_passes(point, images, defective)
    if notes and point.basis is not None:
        say(" ".join(notes))
        point = with_notes(point, point.basis, notes)
    figures: dict[str, Any] = {"mask_weight": fitted.mask_weight, "calibration_images": len(images)}
    if fitted.foreseen is not None:
        figures["good_foreseen"] = fitted.foreseen
    if probabilities is not None:
        figures["class_calibration"] = {"method": probabilities.method, **probabilities.figures}
    scores = tuple(float(score) for score in np.sort(images.scores))
    return Calibration(point, scores, figures, probabilities)


class _Damaged:
    """The good frames of a store, each with a synthetic defect; the same ones every time."""

    def __init__(self, store: FrameStore, good: str, piece: tuple[int, int]) -> None:
        self._store, self._piece = store, piece
        self._good = [index for index, sample in enumerate(store.samples) if sample.label == good]
        # Any path will do: what matters is that the mask is known.
        self.samples = tuple(
            replace(store.samples[index], label=ANOMALY, mask=store.samples[index].path) for index in self._good
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        other = self._good[(index + 1) % len(self._good)]
        rng = np.random.default_rng((11, index))
        return add_defect_in(self._store[self._good[index]][0], self._store[other][0], rng, self._piece)


class _Defective:
    """The defective frames of a store."""

    def __init__(self, store: FrameStore, good: str) -> None:
        self._store = store
        self._places = [index for index, sample in enumerate(store.samples) if sample.label != good]
        self.samples = tuple(store.samples[place] for place in self._places)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        return self._store[self._places[index]]


@dataclass(frozen=True, slots=True)
class _Row:
    """One frame: class logits ``[C]``, its pooled signals and score (0 where the model has none), and its pixels, where
    they are known.
    """

    is_defect: bool
    logits: NDArray[np.float32]
    reconstruction: float
    mask: float
    subspace: float
    score: float
    pixels: KnownPixels | None


@torch.no_grad()
def _rows(detector: Detector, store: Pictures) -> Iterator[_Row]:
    device = next(detector.parameters()).device
    detector.eval()
    for samples, pictures, masks in in_batches(store, detector.config.inference_batch):
        outputs = detector(torch.from_numpy(pictures).to(device))
        none = outputs.class_logits.new_zeros(len(samples))
        maps = outputs.anomaly_map
        rebuilt = none
        if outputs.distances is not None and maps is not None:
            rebuilt = detector.pool(detector.reconstruction_map(outputs.distances, (maps.shape[-2], maps.shape[-1])))
        mask = none if outputs.mask_logits is None else detector.pool(outputs.mask_logits[:, 0])
        left = none if outputs.subspace_map is None else detector.pool(outputs.subspace_map)
        score = none if outputs.anomaly_score is None else outputs.anomaly_score
        favoured = None if outputs.class_map is None else outputs.class_map.argmax(dim=1).cpu().numpy()
        for row, (sample, marked) in enumerate(zip(samples, masks, strict=True)):
            is_defect = sample.label != detector.config.good_class
            pixels = None
            if maps is not None and (sample.mask is not None or not is_defect):
                pixels = KnownPixels(
                    maps[row].float().cpu().numpy(),
                    mask_on_grid(marked, maps.shape[1:]),
                    sample.label,
                    None if favoured is None else favoured[row],
                )
            yield _Row(
                is_defect,
                outputs.class_logits[row].float().cpu().numpy(),
                float(rebuilt[row]),
                float(mask[row]),
                float(left[row]),
                float(score[row]),
                pixels,
            )


def _combine(detector: Detector, recipe: Recipe, validation: FrameStore, foreseen: float | None) -> float:
    """Set the combination; the weight of the mask signal."""
    if not recipe.reconstruction and not recipe.subspace:
        detector.set_combination((0.0, 1.0), (0.0, 0.0), (1.0, 1.0))
        return 1.0
    rows = list(_rows(detector, validation))
    truth = np.array([row.is_defect for row in rows])
    signals = np.array([[row.reconstruction, row.mask, row.subspace] for row in rows])[:, : len(detector.map_weight)]
    center = signals[~truth].mean(axis=0)
    scale = np.maximum(signals[~truth].std(axis=0), 1e-3)
    beside = SUBSPACE_WEIGHT if recipe.synthetic else LABELLED_SUBSPACE_WEIGHT
    weights = np.array([float(recipe.reconstruction), SYNTHETIC_MASK_WEIGHT, beside])[: signals.shape[1]]
    if recipe.synthetic and truth.sum() >= ENOUGH_MASKS:
        scaled = (signals - center) / scale
        weights[1] = max(
            _MASK_WEIGHTS,
            key=lambda candidate: image_auroc(
                scaled @ np.where(np.arange(len(weights)) == 1, candidate, weights), truth
            ),
        )
    floor = NO_FLOOR
    if foreseen is not None and foreseen >= _ENOUGH_FORESEEN and not recipe.reconstruction:
        floor = _MASK_FLOOR
        say(
            f"good frames foresee {foreseen:.0%} of what others look like: that the mask head, which knows synthetic "
            "defects alone, sees none counts for little in the anomaly map"
        )
    detector.set_combination(weights.tolist(), center.tolist(), scale.tolist(), mask_floor=floor)
    return float(weights[1])


def _pixel_thresholds(rows: list[_Row], config: ModelConfig) -> PixelThresholds:
    return best_pixel_thresholds([row.pixels for row in rows if row.pixels is not None], config.defect_classes)


def _scored(detector: Detector, store: FrameStore | _Defective, probabilities: ClassCalibration | None) -> ScoredImages:
    config = detector.config
    rows = list(_rows(detector, store))
    defects = [place for place, name in enumerate(config.classes) if name != config.good_class]
    found = None
    if probabilities is not None:
        found = probabilities.of_many(np.array([row.logits for row in rows]))[:, defects]
    return ScoredImages(
        names=tuple(sample.path.name for sample in store.samples),
        scores=np.array([row.score for row in rows], np.float32),
        is_defect=np.array([row.is_defect for row in rows], np.bool_),
        defect_classes=tuple(config.classes[place] for place in defects),
        probabilities=found,
    )

"""The combination and the operating point, on detectors whose signals are set by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.images import make_folder, write_defect
from training.calibrate import SYNTHETIC_MASK_WEIGHT, Calibration, calibrate, fit_on_validation
from training.data import read_data
from training.default_point import about_passes, fit_probabilities
from training.options import Recipe, TrainOptions, choose_recipe
from training.splits import split
from training.stores import FrameStore
from training.subspace import fit_subspace
from vision.calibration.images import ScoredImages
from vision.decision import OperatingPoint, decide
from vision.errors import DataError
from vision.model.config import ModelConfig
from vision.model.detector import NO_FLOOR, Detector
from vision.preprocess import InputSpec
from vision.types import Verdict

_SPEC = InputSpec(64, 96)


def _parts(root: Path, options: TrainOptions):  # type: ignore[no-untyped-def]
    data = read_data(root)
    parts = split(data, 0)
    recipe = choose_recipe(data, parts, options)
    config = ModelConfig(
        "test_efficientnet", 64, 96, data.classes, data.good_class, recipe.reconstruction, recipe.class_map, dim=32,
        depth=1, heads=4, reconstruction_dim=32, reconstruction_depth=1, subspace=recipe.subspace,
        guided_readout=data.good_class is not None or recipe.class_map,
    )  # fmt: skip
    torch.manual_seed(0)
    stores = (FrameStore(parts.validation, _SPEC), FrameStore(parts.calibration, _SPEC))
    return Detector(config), recipe, *stores


def calibrated(detector: Detector, recipe: Recipe, validation: FrameStore, calibration: FrameStore) -> Calibration:
    return calibrate(detector, fit_on_validation(detector, recipe, validation), calibration, validation)


def test_good_calibration_parts_are_rejected_no_more_often_than_promised(tmp_path: Path, options: TrainOptions) -> None:
    detector, recipe, validation, calibration = _parts(make_folder(tmp_path, train={"good": 60}), options)
    outcome = calibrated(detector, recipe, validation, calibration)
    scores, point = np.array(outcome.scores), outcome.point
    assert list(scores) == sorted(scores)
    assert len(scores) == len(calibration)
    verdicts = [decide(point, float(score), "anomaly", 0.0)[0] for score in scores]
    # The largest of n calibration scores is below the threshold of the bound 1 / (n + 1).
    assert verdicts.count(Verdict.REJECT) == 0
    assert f"at most {100 / (len(scores) + 1):.3g} % of good parts are not passed" in point.evidence
    assert "the usual 2% of good parts rejected" in point.evidence
    assert point.basis is not None
    assert (point.basis.rule, point.basis.good_images) == ("default", len(scores))
    assert outcome.class_calibration is None, "synthetic defects tell nothing about how sure the classes may be"
    assert outcome.figures["mask_weight"] == SYNTHETIC_MASK_WEIGHT
    # Six validation frames are too few to choose a pixel threshold by.
    assert point.pixel_threshold == point.image_threshold


def test_without_masks_synthetic_defects_choose_the_pixel_threshold(tmp_path: Path, options: TrainOptions) -> None:
    detector, recipe, validation, calibration = _parts(make_folder(tmp_path, train={"good": 240}), options)
    first, again = (calibrated(detector, recipe, validation, calibration).point for _ in range(2))
    assert first == again
    assert first.pixel_threshold != first.image_threshold
    assert "best pixel F1 on validation frames with synthetic defects" in first.evidence


def test_signals_are_scaled_by_the_good_validation_frames(tmp_path: Path, options: TrainOptions) -> None:
    everything = replace(options, reconstruction=True)
    detector, recipe, validation, calibration = _parts(make_folder(tmp_path, train={"good": 60}), everything)
    fit_subspace(detector, [calibration])
    calibrated(detector, recipe, validation, calibration)
    frames = torch.from_numpy(np.stack([validation[index][0] for index in range(len(validation))]))
    for alone in torch.eye(3):
        detector.map_weight.copy_(alone)
        with torch.no_grad():
            scores = detector.eval()(frames).anomaly_score.numpy()
        assert scores.mean() == pytest.approx(0, abs=1e-3)
        assert scores.std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("foreseen", "floor"),
    [(0.7, -2.0), (0.5, NO_FLOOR), (None, NO_FLOOR)],  # 0.5: such as surfaces that never lie alike
)
def test_a_mask_head_says_little_against_a_defect_of_parts_that_good_frames_foresee(
    tmp_path: Path, options: TrainOptions, foreseen: float | None, floor: float
) -> None:
    detector, recipe, validation, calibration = _parts(make_folder(tmp_path, train={"good": 60}), options)
    fitted = fit_on_validation(detector, recipe, validation, foreseen=foreseen)
    assert float(detector.mask_floor) == floor
    assert calibrate(detector, fitted, calibration, validation).figures.get("good_foreseen") == foreseen
    # The reconstruction sees what no label shows, too, and was not tried with a floor.
    other = Detector(replace(detector.config, reconstruction=True))
    fit_on_validation(other, replace(recipe, reconstruction=True), validation, foreseen=foreseen)
    assert float(other.mask_floor) == pytest.approx(NO_FLOOR)


def test_real_defects_choose_the_weight_of_the_mask_signal(tmp_path: Path, options: TrainOptions) -> None:
    root = make_folder(tmp_path, train={"good": 60, "crack": 70})
    detector, recipe, validation, calibration = _parts(root, options)
    assert not recipe.reconstruction
    both = replace(recipe, reconstruction=True)
    detector = Detector(replace(detector.config, reconstruction=True))
    outcome = calibrated(detector, both, validation, calibration)
    assert outcome.figures["mask_weight"] in (0.0, 0.5, 1.0, 2.0)
    assert "best pixel F1 on validation masks" in outcome.point.evidence


def test_labelled_defects_make_probabilities_and_class_thresholds(tmp_path: Path, options: TrainOptions) -> None:
    root = make_folder(tmp_path, train={"good": 300, "crack": 70, "fray": 40}, values={"fray": 0})
    detector, recipe, validation, calibration = _parts(root, options)
    outcome = calibrated(detector, recipe, validation, calibration)
    found, point = outcome.class_calibration, outcome.point
    assert found is not None
    assert found.images == len(validation)
    assert found.mix == pytest.approx(
        {name: np.mean([one.label == name for one in validation.samples]) for name in ("good", "crack", "fray")}
    )
    assert outcome.figures["class_calibration"]["ece_after"] == found.figures["ece_after"]
    assert point.class_thresholds.keys() == {"crack", "fray"}
    assert point.unknown_below == 0.5
    frames = torch.from_numpy(np.stack([validation[index][0] for index in range(len(validation))]))
    good = [sample.label == "good" for sample in validation.samples]
    with torch.no_grad():
        probabilities = found.of_many(detector.eval()(frames).class_logits.numpy())[good]
    for place, name in enumerate(("crack", "fray"), 1):
        assert point.class_thresholds[name] > probabilities[:, place].max()
        assert point.class_thresholds[name] >= 0.5


def test_classes_with_enough_masks_get_pixel_thresholds_of_their_own(tmp_path: Path, options: TrainOptions) -> None:
    root = make_folder(tmp_path, train={"good": 60, "crack": 60})
    point = calibrated(*_parts(root, options)).point
    assert set(point.class_pixel_thresholds) == {"crack"}
    assert "best pixel F1 on validation masks" in point.evidence


def test_what_experts_were_not_sure_of_calibrates_nothing(tmp_path: Path, options: TrainOptions) -> None:
    root = make_folder(tmp_path, train={"good": 400, "crack": 70})
    detector, _, validation, _ = _parts(root, options)
    logits = np.random.default_rng(0).normal(size=(len(validation), 2)).astype(np.float32)
    samples = validation.samples
    whole = fit_probabilities(detector.config, logits, samples)
    assert whole is not None
    good = [index for index, sample in enumerate(samples) if sample.label == "good"][:5]
    soft = [replace(one, defect_probability=1 / 3) if index in good else one for index, one in enumerate(samples)]
    fewer = fit_probabilities(detector.config, logits, soft)
    assert fewer is not None
    assert fewer.images == whole.images - 5


def test_validation_does_not_move_the_classes_of_a_model_that_learns_from_it_next(
    tmp_path: Path, options: TrainOptions
) -> None:
    root = make_folder(tmp_path, train={"good": 400, "crack": 200})
    detector, _, validation, _ = _parts(root, options)
    truth = [float(sample.label == "crack") for sample in validation.samples]
    logits = np.random.default_rng(0).normal(size=(len(validation), 2)).astype(np.float32)
    logits[:, 1] += 2 * np.array(truth, np.float32) + 3  # takes nearly all for cracks
    found = fit_probabilities(detector.config, logits, validation.samples)
    assert found is not None
    assert (found.of_many(logits).argmax(axis=1) == logits.argmax(axis=1)).all()


@pytest.mark.parametrize("masks", [True, False])
def test_a_model_without_good_parts_gets_no_anomaly_thresholds(
    tmp_path: Path, options: TrainOptions, masks: bool
) -> None:
    root = make_folder(tmp_path, train={"crack": 70, "fray": 20}, masks=masks)
    outcome = calibrated(*_parts(root, options))
    assert outcome.point.image_threshold is outcome.point.review_threshold is None
    assert (outcome.point.pixel_threshold is not None) == masks
    assert ("best pixel F1 on validation masks" in outcome.point.evidence) == masks
    assert outcome.scores == ()
    assert decide(outcome.point, None, "crack", 0.99)[0] is Verdict.REJECT
    assert decide(outcome.point, None, "crack", 0.2)[0] is Verdict.REVIEW


def test_few_masks_without_good_parts_show_what_is_likelier_a_defect_than_not(
    tmp_path: Path, options: TrainOptions
) -> None:
    outcome = calibrated(*_parts(make_folder(tmp_path, train={"crack": 12, "fray": 12}), options))
    assert outcome.point.pixel_threshold == 0.0
    assert "too few validation images have a mask" in outcome.point.evidence


def test_no_good_image_for_calibration_is_an_error(tmp_path: Path, options: TrainOptions) -> None:
    detector, recipe, validation, _ = _parts(make_folder(tmp_path, train={"good": 60}), options)
    with pytest.raises(DataError, match="no good image is left for calibration"):
        calibrated(detector, recipe, validation, FrameStore((), _SPEC))


def _images(scores: list[float], *, is_defect: bool, probability: float = 0.0) -> ScoredImages:
    names = tuple(f"{'bad' if is_defect else 'ok'}{index}.png" for index in range(len(scores)))
    flags = np.full(len(scores), is_defect)
    return ScoredImages(names, np.array(scores, np.float32), flags, ("crack",), np.full((len(scores), 1), probability))


def test_a_point_that_passes_defects_says_so_and_names_the_good_images_behind_it() -> None:
    point = OperatingPoint(9.0, 8.0, 1.0, class_thresholds={"crack": 0.99})
    good = _images([1, 2, 7.5, 1, 7.9], is_defect=False)
    said = about_passes(point, good, _images([5, 6, 7, 9], is_defect=True))
    assert said[0] == "Of 4 defective validation images 3 would pass at these thresholds."
    assert said[1].startswith(
        "2 good calibration images score as high as half of these, first of all ok4.png, ok2.png:"
    )
    assert len(about_passes(point, _images([1, 2], is_defect=False), _images([5, 6, 7, 9], is_defect=True))) == 2


@pytest.mark.parametrize(
    ("scores", "probability"),
    [([8, 9, 9, 9, 7.9], 0.0), ([8, 9, 9, 7.9], 0.0), ([5, 6, 7, 9], 0.995), ([1, 1, 1], 0.0)],
    ids=["one of five passes", "one of four passes", "their class stops them", "too few to tell"],
)
def test_a_point_that_stops_most_defects_needs_no_word(scores: list[float], probability: float) -> None:
    point = OperatingPoint(9.0, 8.0, 1.0, class_thresholds={"crack": 0.99})
    defective = _images(scores, is_defect=True, probability=probability)
    assert about_passes(point, _images([1, 2], is_defect=False), defective) == ()


def test_a_training_whose_thresholds_pass_its_defects_says_so_in_its_evidence(
    tmp_path: Path, options: TrainOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(tmp_path, train={"good": 60, "crack": 50})
    for index in range(0, 60, 2):  # defective parts among the good ones
        write_defect(root / "train" / "good" / f"t{index:03d}.png", at=(8 * (index % 5), 8 * (index % 9)))
        (root / "train" / "crack" / f"t{index:03d}.png").unlink(missing_ok=True)
        (root / "ground_truth" / "crack" / f"t{index:03d}_mask.png").unlink(missing_ok=True)
    detector, recipe, validation, calibration = _parts(root, options)
    point = calibrated(detector, recipe, validation, calibration).point
    assert point.basis is not None
    defective = sum(sample.label == "crack" for sample in validation.samples)
    assert f"Of {defective} defective validation images" in point.evidence
    assert point.basis.good_images == len(calibration)
    assert any("first of all" in note for note in point.basis.notes)
    assert "would pass at these thresholds" in capsys.readouterr().err

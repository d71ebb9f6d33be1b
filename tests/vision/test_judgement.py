from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vision.calibration.evidence import Evidence
from vision.calibration.probability import ClassCalibration
from vision.decision import UNKNOWN, OperatingPoint
from vision.errors import BundleError, SettingsError
from vision.judgement import judge_scores
from vision.manifest import Manifest
from vision.postprocess import judge
from vision.preprocess import InputSpec
from vision.types import ModelOutputs, Verdict

CLASSES = ("good", "bright", "dark")
POINT = OperatingPoint(0.8, 0.6, 0.5, class_thresholds={"bright": 0.5, "dark": 0.7}, unknown_below=0.5)
MANIFEST = Manifest(
    name="made up",
    version="1",
    created="2026-01-01T00:00:00Z",
    input=InputSpec(32, 64),
    classes=CLASSES,
    good_class="good",
    predicts_by_anomaly_score=False,
    operating_point=POINT,
    class_calibration=ClassCalibration("temperature", (1.0,) * 3, (0.0,) * 3, 50, {}, "a test"),
)
BASIS = Evidence(
    "max-overkill", {}, "a test", None, 0.05, 0.02, None, 100, 0, None, "images", "0" * 64, "nothing changes"
)


def logits(*probabilities: float) -> np.ndarray:
    return np.log(np.array(probabilities, np.float32))


@pytest.mark.parametrize(
    ("score", "probabilities", "verdict", "hits", "predicted"),
    [
        (0.1, (0.9, 0.06, 0.04), Verdict.PASS, (), "good"),
        (0.1, (0.4, 0.51, 0.09), Verdict.REJECT, ("bright",), "bright"),
        (0.1, (0.35, 0.01, 0.64), Verdict.PASS, (), "dark"),
        (0.1, (0.2, 0.05, 0.75), Verdict.REJECT, ("dark",), "dark"),
        (0.7, (0.9, 0.06, 0.04), Verdict.REVIEW, (), "good"),
        (0.9, (0.9, 0.06, 0.04), Verdict.REJECT, (), UNKNOWN),
        (0.9, (0.45, 0.3, 0.25), Verdict.REJECT, (), "good"),
        (0.9, (0.1, 0.8, 0.1), Verdict.REJECT, ("bright",), "bright"),
        (float("nan"), (0.1, 0.8, 0.1), Verdict.NO_VERDICT, ("bright",), "bright"),
    ],
)
def test_classes_and_score_decide_together(
    score: float, probabilities: tuple[float, ...], verdict: Verdict, hits: tuple[str, ...], predicted: str
) -> None:
    found = judge_scores(logits(*probabilities), score, MANIFEST)
    assert (found.verdict, found.class_hits, found.predicted) == (verdict, hits, predicted)
    assert found.is_unknown == (predicted == UNKNOWN)
    assert found.probabilities == pytest.approx(probabilities, abs=1e-6)
    if hits and verdict is Verdict.REJECT:
        assert f"{hits[0]} probability {max(probabilities):.3f} >= class threshold" in found.reason
    if found.is_unknown:
        assert "unknown defect: no class explains it" in found.reason


def test_several_class_hits_are_told_the_surest_first() -> None:
    manifest = replace(MANIFEST, operating_point=replace(POINT, class_thresholds={"bright": 0.3, "dark": 0.3}))
    found = judge_scores(logits(0.1, 0.4, 0.5), 0.1, manifest)
    assert found.class_hits == ("dark", "bright")
    assert found.reason.startswith("dark probability 0.500 >= class threshold 0.300")


def test_without_calibration_a_score_is_no_probability() -> None:
    bare = replace(MANIFEST, class_calibration=None, operating_point=OperatingPoint(0.8, 0.6, 0.5))
    found = judge_scores(logits(0.01, 0.98, 0.01), 0.1, bare)
    assert (found.verdict, found.predicted, found.probabilities) == (Verdict.PASS, "bright", None)
    assert judge_scores(logits(0.9, 0.05, 0.05), 0.9, bare).predicted == "good"


def test_the_temperature_changes_the_verdict_and_not_the_score() -> None:
    hot = replace(MANIFEST, class_calibration=ClassCalibration("temperature", (0.5,) * 3, (0.0,) * 3, 50, {}, "a test"))
    found = judge_scores(logits(0.2, 0.05, 0.75), 0.1, hot)
    assert found.verdict is Verdict.PASS
    assert found.class_scores == pytest.approx((0.2, 0.05, 0.75), abs=1e-6)
    assert found.probabilities is not None
    assert found.probabilities[2] == pytest.approx(0.75**0.5 / (0.2**0.5 + 0.05**0.5 + 0.75**0.5), abs=1e-6)


def test_a_model_without_a_good_class_rejects_by_probability_too() -> None:
    manifest = replace(
        MANIFEST,
        classes=("bright", "dark"),
        good_class=None,
        operating_point=OperatingPoint(None, None, None, class_threshold=0.99, class_thresholds={"dark": 0.6}),
        class_calibration=ClassCalibration("temperature", (1.0, 1.0), (0.0, 0.0), 50, {}, "a test"),
    )
    assert judge_scores(logits(0.3, 0.7), None, manifest).verdict is Verdict.REJECT
    assert judge_scores(logits(0.7, 0.3), None, manifest).verdict is Verdict.REVIEW


def test_the_reason_tells_what_is_promised() -> None:
    sure = replace(MANIFEST, operating_point=replace(POINT, basis=BASIS))
    good = logits(0.9, 0.05, 0.05)
    assert judge_scores(good, 0.7, sure).reason.endswith("(at most 5 % of good parts reach it)")
    assert "(at most 2 % of good parts reach it); unknown defect" in judge_scores(good, 0.9, sure).reason
    signed = replace(sure, operating_point=replace(POINT, basis=replace(BASIS, confidence=0.95)))
    assert judge_scores(good, 0.1, signed).reason.endswith("(at most 5 % of good parts reach it, 95 % sure)")


def test_regions_of_an_unknown_defect_say_so() -> None:
    anomaly = np.zeros((1, 4, 4), np.float32)
    anomaly[0, 1, 1] = 0.9
    maps = np.zeros((1, 3, 4, 4), np.float32)
    outputs = ModelOutputs(
        logits(0.9, 0.06, 0.04)[None],
        maps,
        maps,
        np.array([0.9], np.float32),
        anomaly,
        np.full((1, 2, 4, 4), 0.5, np.float32),
    )
    found = judge(outputs, MANIFEST, 32, 64)
    assert found.is_unknown
    assert [region.label for region in found.regions] == [UNKNOWN]
    known = judge(replace(outputs, anomaly_score=np.array([0.7], np.float32)), MANIFEST, 32, 64)
    assert [region.label for region in known.regions] == ["bright"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"class_calibration": None}, "nothing calibrates them"),
        ({"classes": ("good", "bright")}, "does not fit"),
        ({"operating_point": replace(POINT, class_thresholds={"good": 0.5})}, "good, which is no defect class"),
        ({"operating_point": replace(POINT, class_thresholds={"rust": 0.5})}, "rust, which is no defect class"),
        ({"operating_point": replace(POINT, class_pixel_thresholds={"rust": 1.0})}, "rust, which is no defect class"),
    ],
)
def test_a_manifest_whose_classes_do_not_fit(change: dict[str, object], reason: str) -> None:
    with pytest.raises(BundleError, match=reason):
        replace(MANIFEST, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("thresholds", [{"bright": 0.0}, {"bright": 1.1}, {"bright": float("nan")}])
def test_impossible_class_thresholds(thresholds: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match="class_thresholds"):
        OperatingPoint(0.8, 0.6, 0.5, class_thresholds=thresholds)
    with pytest.raises(SettingsError, match="unknown_below"):
        OperatingPoint(0.8, 0.6, 0.5, unknown_below=1.5)
    with pytest.raises(SettingsError, match="only beside a pixel_threshold"):
        OperatingPoint(None, None, None, class_pixel_thresholds={"dark": 0.5})
    with pytest.raises(SettingsError, match="class_pixel_thresholds must be finite"):
        OperatingPoint(0.8, 0.6, 0.5, class_pixel_thresholds={"dark": float("nan")})

"""What a report says of promises and probabilities, on a bundle whose answers can be worked out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes import make_bundle
from tests.images import make_folder
from training.data import DataSet, Sample, read_data
from training.decision_figures import probability_figures, promise_figures
from training.evaluate import BundlePredictor, Prediction, evaluate
from vision.bundle import load_bundle, write_manifest
from vision.calibration.evidence import Evidence
from vision.calibration.probability import ClassCalibration
from vision.decision import UNKNOWN, OperatingPoint
from vision.manifest import Manifest
from vision.preprocess import InputSpec
from vision.types import Verdict

BASIS = Evidence(
    "max-overkill",
    {},
    "a test",
    0.95,
    0.1,
    0.05,
    None,
    100,
    0,
    None,
    "images",
    "0" * 64,
    "nothing changes",
    notes=("x",),
)


@pytest.fixture(scope="module")
def spots(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    root = make_folder(
        tmp_path_factory.mktemp("spots"),
        test={"good": 12, "bright": 6, "dark": 6, "rust": 2},
        values={"bright": 250, "dark": 5, "rust": 250},
    )
    return read_data(root)


@pytest.fixture(scope="module")
def measured(spots: DataSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = make_bundle(tmp_path_factory.mktemp("bundle") / "fake", probabilities=True)
    manifest = load_bundle(folder).manifest
    write_manifest(folder, replace(manifest, operating_point=replace(manifest.operating_point, basis=BASIS)))
    out = tmp_path_factory.mktemp("out")
    return evaluate(BundlePredictor(load_bundle(folder), "cpu"), spots, spots.test, out), out


@pytest.mark.slow
def test_the_promise_stands_beside_what_was_measured(measured: tuple[dict[str, Any], Path]) -> None:
    report, out = measured
    promise = report["promise"]
    assert promise["promise"].startswith("at most 10 % of good parts are not passed, at most 5 % are rejected")
    first, second, third = promise["rows"]
    assert (first["measured"]["hits"], first["measured"]["of"], first["bound"]) == (0, 12, 0.1)
    assert (second["what"], second["bound"]) == ("good parts rejected", 0.05)
    assert third["judgement"] == "nothing promised"
    page = (out / "report.html").read_text()
    assert "What the operating point promises" in page
    assert "At most 10 % of good parts are not passed" in page
    assert "nothing changes" in page


def test_probabilities_are_measured_and_drawn(measured: tuple[dict[str, Any], Path]) -> None:
    report, out = measured
    figures = report["class_probabilities"]
    assert figures["images"] == 24, "without the class that the model does not know"
    assert figures["fitted_on"]["method"] == "temperature"
    # The temperature is 1: scores and probabilities are the same, and always right, so that the error is what is
    # missing to certainty.
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    known = [line for line in lines if line["label"] != "rust"]
    missing = 1 - np.mean([max(line["class_probabilities"].values()) for line in known])
    assert figures["probabilities"]["ece"] == pytest.approx(missing, abs=1e-6)
    assert figures["probabilities"]["ece"] == pytest.approx(figures["scores"]["ece"], abs=1e-6)
    page = (out / "report.html").read_text()
    assert "Are class probabilities true ones?" in page
    assert 'aria-label="Reliability of the class"' in page
    assert 'aria-label="Reliability of being defective"' in page


def test_of_an_unknown_class_unknown_is_the_right_answer(measured: tuple[dict[str, Any], Path]) -> None:
    report, out = measured
    assert report["confusion_matrix"]["labels"] == ["good", "bright", "dark", UNKNOWN]
    assert sum(report["confusion_matrix"]["counts"][3]) == 2
    assert any("does not know rust; the right answer is 'unknown defect'" in note for note in report["notes"])
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert {line["unknown_defect"] for line in lines} == {False}
    assert all(line["class_hits"] == [] for line in lines)


def test_earlier_bundles_have_neither(spots: DataSet, tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path / "fake"))
    report = evaluate(BundlePredictor(bundle, "cpu"), spots, spots.test, tmp_path / "out")
    assert report["promise"] is report["class_probabilities"] is None
    page = (tmp_path / "out" / "report.html").read_text()
    assert "What the operating point promises" not in page
    assert "Are class probabilities" not in page


def prediction(label: str, verdict: Verdict, probabilities: tuple[float, ...] = (1.0, 0.0)) -> Prediction:
    values = np.array(probabilities, np.float32)
    sample = Sample(Path("x.png"), label, defect_probability=float(label != "good"))
    return Prediction(sample, label, label, values**2, values, (), False, 0.5, 0.5, verdict, "")


@pytest.mark.parametrize(
    ("stopped", "judgement"),
    [(0, "kept here"), (9, "agrees with"), (14, "too few to tell"), (30, "broken here: even 21.2 %")],
)
def test_a_promise_is_judged_by_what_the_images_can_tell(stopped: int, judgement: str) -> None:
    verdicts = [Verdict.REVIEW] * stopped + [Verdict.PASS] * (100 - stopped)
    point = OperatingPoint(0.8, 0.6, 0.5, basis=BASIS)
    found = promise_figures([prediction("good", verdict) for verdict in verdicts], point)
    assert found is not None
    assert judgement in found["rows"][0]["judgement"]
    assert found["rows"][2]["judgement"] == "nothing promised"


def test_without_a_band_the_bound_stands_once() -> None:
    point = OperatingPoint(0.8, 0.8, 0.5, basis=replace(BASIS, rejected_bound=0.1, recall_bound=0.99))
    found = promise_figures([prediction("crack", Verdict.PASS)] * 9, point)
    assert found is not None
    assert [row["bound"] for row in found["rows"]] == [0.1, None, pytest.approx(0.01)]
    assert found["rows"][0]["judgement"] == "no such image here"
    assert found["rows"][2]["judgement"].startswith("broken here")


def test_the_error_of_probabilities_is_that_of_the_right_column() -> None:
    manifest = Manifest(
        name="made up",
        version="1",
        created="",
        input=InputSpec(32, 32),
        classes=("good", "crack"),
        good_class="good",
        predicts_by_anomaly_score=False,
        operating_point=OperatingPoint(0.8, 0.6, 0.5),
        class_calibration=ClassCalibration("temperature", (1.0, 1.0), (0.0, 0.0), 50, {}, "a test"),
    )
    # 80 % sure of crack, and right in 12 of 20 cases.
    found = [prediction("crack" if index < 12 else "good", Verdict.REJECT, (0.2, 0.8)) for index in range(20)]
    figures = probability_figures(found, manifest, 0)
    assert figures is not None
    assert figures["probabilities"]["ece"] == pytest.approx(0.2, abs=1e-6)
    assert figures["probabilities"]["defective_ece"] == pytest.approx(0.2, abs=1e-6)
    assert figures["probabilities"]["nll"] == pytest.approx(-(0.6 * np.log(0.8) + 0.4 * np.log(0.2)), abs=1e-5)
    low, high = figures["probabilities"]["interval"]
    assert low <= figures["probabilities"]["ece"] <= high

"""What a calibrated bundle's decisions look like to a client."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import defectlens
from serving import Outputs
from tests.fakes import CLASS_CALIBRATION, GREY, make_bundle, part
from tests.serving.conftest import Serve, png
from vision.bundle import load_bundle, write_manifest
from vision.calibration.evidence import EXCHANGEABLE, Evidence
from vision.calibration.intervals import rate
from vision.types import Verdict

BASIS = Evidence(
    rule="max-overkill",
    asked={"max_overkill": 0.05, "max_review": 0.03},
    method="split-conformal bound, by lots",
    confidence=None,
    not_passed_bound=0.05,
    rejected_bound=0.02,
    recall_bound=None,
    good_images=400,
    defective_images=3,
    lots=60,
    data="good, defects",
    data_digest="ab" * 32,
    assumption=EXCHANGEABLE,
    measured={"overkill_rate": rate(15, 400)},
    figures={"expected_cost": 0.25},
    class_policy={"bright": 0.5, "dark": 0.9},
    notes=("one", "two"),
)


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    folder = make_bundle(tmp_path / "signed", probabilities=True)
    manifest = load_bundle(folder).manifest
    point = replace(
        manifest.operating_point, basis=BASIS, evidence=BASIS.words(), class_pixel_thresholds={"bright": 0.2}
    )
    write_manifest(folder, replace(manifest, operating_point=point))
    return folder


@pytest.mark.parametrize("confidence", [None, 0.95])
async def test_get_model_tells_what_an_operating_point_rests_on(
    serve: Serve, signed: Path, confidence: float | None
) -> None:
    manifest = load_bundle(signed).manifest
    basis = replace(BASIS, confidence=confidence, lots=None if confidence else 60)
    write_manifest(signed, replace(manifest, operating_point=replace(manifest.operating_point, basis=basis)))
    async with serve(signed) as (_, client):
        info = await client.get_model()
    assert info.operating_point == load_bundle(signed).manifest.operating_point
    assert info.operating_point.basis == basis
    assert info.class_calibration == CLASS_CALIBRATION


def test_info_tells_the_promise_and_what_it_rests_on(signed: Path) -> None:
    shown = CliRunner().invoke(defectlens.main, ["info", "--bundle", str(signed)]).stdout
    for text in (
        "promise: at most 5 % of good parts are not passed, at most 2 % are rejected outright, on average",
        "rests_on: 400 good calibration images from 60 lots (the bound counts lots)",
        "holds_while: good parts stay as they were",
        "overkill_rate: 3.75 % (15 of 400; 2.11 % to 6.11 %)",
        "bright: 0.9",
    ):
        assert text in shown
    facts = json.loads(CliRunner().invoke(defectlens.main, ["info", "--bundle", str(signed), "--json"]).stdout)
    assert facts["operating_point"]["basis"]["not_passed_bound"] == 0.05
    assert facts["class_calibration"]["scale"] == [1.0, 1.0, 1.0]


async def test_an_earlier_bundle_has_neither_basis_nor_probabilities(serve: Serve) -> None:
    async with serve() as (_, client):
        info = await client.get_model()
        reply = await client.inspect(png(part()))
    assert (info.operating_point.basis, info.class_calibration) == (None, None)
    assert info.operating_point.class_thresholds == {}
    assert reply.inspection.class_probabilities is None


async def test_classes_and_unknown_defects_reach_the_client(serve: Serve, signed: Path) -> None:
    spotless, bright = part(), np.full((64, 96, 3), GREY + 30, np.uint8)
    spot = spotless.copy()
    spot[16:24, 24:32] = 255  # one cell: much for the anomaly score, little for the classes
    async with serve(signed) as (_, client):
        good, by_class, unknown = [
            (await client.inspect(png(frame), outputs=Outputs(regions=True, overlay=True))).inspection
            for frame in (spotless, bright, spot)
        ]
    assert (good.verdict, good.class_hits, good.is_unknown) == (Verdict.PASS, (), False)
    assert good.reason.endswith("(at most 5 % of good parts reach it)")
    assert good.class_probabilities is not None
    assert good.class_probabilities.sum() == pytest.approx(1)
    assert (by_class.verdict, by_class.class_hits, by_class.predicted) == (Verdict.REJECT, ("bright",), "bright")
    assert by_class.anomaly_score is not None
    assert by_class.anomaly_score < 0.2, "the score alone would have passed it"
    assert "bright probability 1.000 >= class threshold 0.900" in by_class.reason
    assert (unknown.verdict, unknown.is_unknown, unknown.predicted) == (Verdict.REJECT, True, "unknown defect")
    assert "at most 2 % of good parts reach it" in unknown.reason
    assert {region.label for region in unknown.regions} == {"unknown defect"}

"""The simulation of overkill must find a promise that is broken; else it proves nothing."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import overkill
from benchmarks.overkill_rows import Row
from vision.calibration.bounds import allowed_mass

REPEAT = overkill.Repeat(runs=200, seed=1)


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.name: row for row in rows}


def test_independent_parts_keep_both_kinds_of_promise() -> None:
    rows = list(overkill.known(REPEAT))
    assert all(row.is_kept for row in rows)
    # On average the bound is used up and not merely kept: a threshold that is too high would let defects through.
    assert by_name(rows)["normal, 300 images, on average"].mean == pytest.approx(0.01, abs=0.002)


def test_two_images_too_many_above_the_threshold_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def loose(units: int, bound: float, confidence: float | None) -> float:
        return allowed_mass(units, bound, confidence) + 2

    monkeypatch.setattr(overkill, "allowed_mass", loose)
    rows = by_name(list(overkill.known(REPEAT)))
    assert not rows["normal, 300 images, on average"].is_kept
    assert not rows["normal, 300 images, 95 % sure"].is_kept


@pytest.mark.slow
def test_lots_that_differ_break_what_counts_images_and_not_what_counts_lots() -> None:
    rows = by_name(list(overkill.grouped(REPEAT)))
    assert not rows["100 lots of 20, images counted, 95 % sure"].is_kept
    assert rows["100 lots of 20, lots counted, 95 % sure"].is_kept
    assert rows["20 lots of 20, lots counted, on average"].is_kept


def test_drifted_parts_break_it_and_defects_among_the_good_images_do_not() -> None:
    rows = by_name(list(overkill.drifted(REPEAT)))
    assert not rows["scores rise by 1 standard deviation"].is_kept
    assert rows["2 % defects among the good images"].is_kept


def test_numbers_that_lie_close_together_are_pictures_of_one_part() -> None:
    names = ["good/exp1_num_9000.jpg", "good/exp2_num_120.jpg", "good/exp3_num_9250.jpg", "good/exp1_num_100.jpg"]
    assert overkill.group_by_number(names) == [1, 0, 1, 0]


@pytest.mark.slow
def test_real_scores_come_from_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    lines = [
        {"path": f"good/num_{1000 * (index // 4) + index % 4}.png", "label": "good", "verdict": "PASS"}
        | {"anomaly_score": float(rng.normal())}
        for index in range(200)
    ]
    lines.append({"path": "scratch/num_9.png", "label": "scratch", "verdict": "REJECT", "anomaly_score": 50.0})
    scores = tmp_path / "predictions.jsonl"
    scores.write_text("".join(json.dumps(line) + "\n" for line in lines))
    picture = tmp_path / "overkill.png"
    overkill.main(["--predictions", f"plates={scores}", "--picture", str(picture), "--runs", "20"])
    shown = capsys.readouterr().out.splitlines()
    document = json.loads(shown[-1])
    real = [row for row in document["rows"] if row["group"] == "plates: 200 good images of 50 parts"]
    assert [row["name"] for row in real[:3]] == [
        "images drawn singly, on average",
        "parts drawn whole, images counted, on average",
        "parts drawn whole, parts counted, on average",
    ]
    assert "parts drawn whole, parts counted, 95 % sure" not in [row["name"] for row in real], "50 parts are too few"
    assert 0.03 < real[0]["mean"] <= 0.06
    assert cv2.imread(str(picture)) is not None

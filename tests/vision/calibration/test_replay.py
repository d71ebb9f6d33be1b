from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vision.calibration.replay import Replay, Thresholds
from vision.calibration.stored import StoredScore, read_scores
from vision.errors import DataError
from vision.types import Verdict


def stored(score: float | None, label: str = "", verdict: Verdict = Verdict.PASS, crack: float = 0.0) -> StoredScore:
    return StoredScore(
        name=f"{label}{score}",
        verdict=verdict,
        anomaly_score=score,
        is_defect=None if not label else label != "good",
        label=label,
        class_probabilities={"good": 1 - crack, "crack": crack},
    )


FRAMES = [
    stored(0.1, "good"),
    stored(0.2, "good", Verdict.REJECT),
    stored(0.3, "good", crack=0.95),
    stored(0.25, "crack"),
    stored(0.6, "crack", Verdict.REJECT),
    stored(0.5),
    stored(None, "good", Verdict.NO_VERDICT),
]


def test_rates_as_stored_and_as_they_would_be() -> None:
    replay = Replay(FRAMES)
    assert replay.left_out == 1
    before = replay.outcome(replay.stored_verdicts()).rates
    assert (before["overkill_rate"].hits, before["overkill_rate"].of) == (1, 3)
    assert (before["escape_rate"].hits, before["escape_rate"].of) == (1, 2)
    assert (before["pass_rate"].hits, before["pass_rate"].of) == (4, 6)
    after = replay.outcome(replay.verdicts(Thresholds(0.5, 0.25))).rates
    assert {name: rate.hits for name, rate in after.items()} == {
        "overkill_rate": 1,
        "good_rejected": 0,
        "good_to_review": 1,
        "escape_rate": 0,
        "defects_to_review": 1,
        "pass_rate": 2,
        "review_rate": 2,
        "reject_rate": 2,
    }


def test_a_class_stops_a_frame_whatever_its_score() -> None:
    replay = Replay(FRAMES)
    verdicts = replay.verdicts(Thresholds(0.9, 0.9, {"crack": 0.9}))
    assert [verdict.name for verdict in verdicts] == ["PASS", "PASS", "REJECT", "PASS", "PASS", "PASS"]


def test_the_parts_that_change_the_highest_score_first() -> None:
    replay = Replay(FRAMES)
    changes = replay.changes(replay.verdicts(Thresholds(0.25, 0.25)))
    assert [(change.anomaly_score, change.before.name, change.after.name) for change in changes] == [
        (0.5, "PASS", "REJECT"),
        (0.3, "PASS", "REJECT"),
        (0.25, "PASS", "REJECT"),
        (0.2, "REJECT", "PASS"),
    ]


def test_the_curve_runs_from_everything_stopped_to_everything_passed() -> None:
    random = np.random.default_rng(0)
    frames = [stored(float(score), "good") for score in random.normal(size=300)]
    frames += [stored(float(score), "crack") for score in random.normal(2, 1, 300)]
    curve = Replay(frames).curve(Thresholds(1.0, 0.5))
    overkill = [point.rates["overkill_rate"].value for point in curve]
    escapes = [point.rates["escape_rate"].value for point in curve]
    assert overkill[0] == 1.0 == escapes[-1]
    assert overkill[-1] == 0.0 == escapes[0]
    assert overkill == sorted(overkill, reverse=True)
    assert escapes == sorted(escapes)
    # From the image threshold on there is no room for review.
    assert all(point.rates["review_rate"].hits == 0 for point in curve if point.threshold >= 1.0)
    assert any(point.rates["review_rate"].hits for point in curve)


def test_nothing_to_replay() -> None:
    with pytest.raises(DataError, match="none of 1 stored frames"):
        Replay([stored(None)])


def test_both_kinds_of_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    lines = [
        {"path": "a.png", "label": "good", "verdict": "PASS", "anomaly_score": 0.5, "class_probabilities": None},
        {"path": "b.png", "label": "crack", "verdict": "REJECT", "anomaly_score": 1, "class_probabilities": {"a": 0.5}},
        {"path": "c.png", "verdict": "NO_VERDICT", "reason": "broken", "error": {}},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    one, two, three = read_scores(path)
    assert (one.is_defect, two.is_defect, three.is_defect) == (False, True, None)
    assert (one.anomaly_score, two.anomaly_score, three.anomaly_score) == (0.5, 1.0, None)
    assert (dict(one.class_probabilities), dict(two.class_probabilities)) == ({}, {"a": 0.5})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "line 2: no JSON"),
        ("[1]", "line 2: a JSON object was expected, got list"),
        ('{"path": "a"}', "line 2.*verdict"),
        ('{"path": "a", "verdict": "MAYBE"}', "line 2.*MAYBE"),
        ('{"path": "a", "verdict": "PASS", "anomaly_score": "high"}', "line 2.*high"),
        ('{"path": "a", "verdict": "PASS", "class_probabilities": [1]}', "line 2"),
    ],
)
def test_a_line_that_is_something_else_is_named(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text('{"path": "a", "verdict": "PASS"}\n' + text)
    with pytest.raises(DataError, match=reason):
        list(read_scores(path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        list(read_scores(tmp_path / "none.jsonl"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        list(read_scores(tmp_path / "binary"))

"""`defectlens calibrate` on real bundles and files, from the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import defectlens
from tests.fakes import make_bundle
from tests.images import make_folder, texture, write, write_defect
from training.calibrating import next_version
from training.data import read_data
from vision.bundle import load_bundle, write_manifest

ROOT = Path(__file__).parents[2]
Calibrate = Callable[..., dict[str, Any]]


def good_images(folder: Path, count: int, prefix: str = "good") -> Path:
    """Parts of different texture, so that their scores differ."""
    for index in range(count):
        write(folder / f"{prefix}_{index:03d}.png", texture(f"{prefix} {index}"))
    return folder


def defects(folder: Path, **classes: tuple[int, int]) -> Path:
    """By class, how many images with a spot of which grey."""
    for name, (count, value) in classes.items():
        for index in range(count):
            write_defect(folder / name / f"{name}_{index:02d}.png", value=value, at=(8 * (index % 5), 8 * (index % 9)))
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle", probabilities=True, seen={})


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return good_images(tmp_path / "good", 120)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[int, str, dict[str, Any]]]:
    def call(folder: Path, *options: str | Path) -> tuple[int, str, dict[str, Any]]:
        words = ["calibrate", "--bundle", folder, "--out", tmp_path / "next", *options, "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "defectlens", *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        figures = json.loads(done.stdout) if done.stdout else {}
        return done.returncode, done.stderr, figures

    return call


@pytest.fixture
def calibrate(tmp_path: Path) -> Calibrate:
    """In this process, which is faster; the figures, and ``error`` for what was said of a failure."""

    def call(folder: Path, *options: str | Path) -> dict[str, Any]:
        shutil.rmtree(tmp_path / "next", ignore_errors=True)
        words = ["calibrate", "--bundle", folder, "--out", tmp_path / "next", *options, "--json"]
        done = CliRunner().invoke(defectlens.main, [str(word) for word in words])
        if done.exit_code == 0:
            figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
            return {**figures, "said": done.stderr}
        return {"exit": done.exit_code, "error": done.stderr}

    return call


def test_a_new_version_with_the_same_model_and_its_evidence(
    bundle: Path, good: Path, tmp_path: Path, run: Callable[..., tuple[int, str, dict[str, Any]]]
) -> None:
    code, said, figures = run(bundle, "--data", good, "--max-overkill", "0.05", "--max-review", "0.03")
    assert code == 0, said
    before, after = load_bundle(bundle), load_bundle(tmp_path / "next")
    assert after.manifest.model_digest == before.manifest.model_digest == figures["model_digest"]
    assert after.digest != before.digest
    assert (before.manifest.version, after.manifest.version) == ("1", "2")
    assert after.manifest.provenance["calibrated_from"] == {"version": "1", "digest": before.digest}
    point, basis = after.manifest.operating_point, after.manifest.operating_point.basis
    assert basis is not None
    assert (basis.rule, basis.not_passed_bound, basis.good_images) == ("max-overkill", 0.05, 120)
    assert basis.rejected_bound == pytest.approx(0.02)
    assert basis.asked == {"max_overkill": 0.05, "max_review": 0.03}
    assert point.pixel_threshold == before.manifest.operating_point.pixel_threshold
    assert point.class_thresholds == before.manifest.operating_point.class_thresholds
    # Of 121 places 6 are stopped and 2 rejected, one of them the new part's own.
    scores = after.manifest.calibration_array
    assert len(scores) == 120
    assert (scores >= np.float32(point.review_threshold)).sum() == 5
    assert (scores >= np.float32(point.image_threshold)).sum() == 1
    assert "at most 5 % of good parts are not passed, at most 2 % are rejected outright, on average" in said
    assert "120 good calibration images" in said
    assert after.replay_golden(after.engine(provider="cpu"))
    assert not list(tmp_path.glob(".next-*"))


def test_it_runs_in_the_serving_installation(tmp_path: Path, bundle: Path, good: Path) -> None:
    """A fresh interpreter that cannot import the training stack does the whole job."""
    defects(tmp_path / "bad", bright=(10, 250), dark=(10, 5))
    code = f"""
import sys
blocked = {{"torch", "torchvision", "timm", "albumentations", "matplotlib", "jinja2", "accelerate", "safetensors"}}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
sys.argv[1:] = ["calibrate", "--bundle", {str(bundle)!r}, "--data", {f"{good},{tmp_path / 'bad'}"!r},
    "--max-overkill", "0.05", "--fit-probabilities", "--out", {str(tmp_path / "next")!r}, "--json"]
import defectlens
try:
    defectlens.main()
finally:
    print(sorted(blocked & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().endswith("[]")
    assert json.loads(done.stdout)["good_images"] < 120, "a fifth of them fitted the probabilities"
    load_bundle(tmp_path / "next")


def test_recall_and_cost_weigh_the_defects(bundle: Path, good: Path, tmp_path: Path, calibrate: Calibrate) -> None:
    bad = defects(tmp_path / "bad", bright=(30, 190), dark=(30, 60))
    found = calibrate(bundle, "--data", f"{good},{bad}", "--min-recall", "0.9", "--max-review", "0.1")
    assert found["recall_bound"] == 0.9
    assert found["defective_images"] == 60
    assert found["measured"]["escape_rate"] <= 0.05
    cost = "overkill=1,escape=50,review=0.2"
    found = calibrate(bundle, "--data", f"{good},{bad}", "--cost", cost, "--defect-rate", "0.02")
    assert found["expected_cost_low"] <= found["expected_cost"] <= found["expected_cost_high"]
    assert found["defect_rate"] == 0.02
    assert "Nothing is promised" in found["said"]


def test_images_of_the_training_are_refused_by_content(tmp_path: Path, good: Path, calibrate: Calibrate) -> None:
    parts = make_folder(tmp_path / "parts", train={"good": 30}, test={"good": 4})
    data = read_data(parts)
    contents = [sample.content for sample in data.train]
    seen = {
        "train": frozenset(contents[:20]),
        "validation": frozenset(contents[20:24]),
        "calibration": frozenset(contents[24:]),
        "test": frozenset(sample.content for sample in data.test),
    }
    bundle = make_bundle(tmp_path / "bundle", seen=seen)
    for index, name in enumerate(("t003.png", "t021.png")):  # the same pictures in other files
        shutil.copy(parts / "train/good" / name, good / f"renamed_{index}.png")
    found = calibrate(bundle, "--data", good, "--max-overkill", "0.05")
    assert found["exit"] == 2
    assert "2 of 122 images were used in training this model" in found["error"]
    assert "good/renamed_0.png" in found["error"]
    assert not (tmp_path / "next").exists()
    found = calibrate(bundle, "--data", good, "--max-overkill", "0.05", "--leave-out-seen")
    assert found["good_images"] == 120
    assert "2 images were left out because they were used in training" in found["said"]
    # Its own calibration images never trained it, and may be used again.
    found = calibrate(bundle, "--data", parts, "--max-overkill", "0.2", "--leave-out-seen")
    assert found["good_images"] == 6


def test_a_test_part_is_used_only_when_asked_and_never_silently(tmp_path: Path, calibrate: Calibrate) -> None:
    parts = make_folder(tmp_path / "parts", train={"good": 8}, test={"good": 30, "bright": 3})
    data = read_data(parts)
    tests = frozenset(sample.content for sample in data.test)
    bundle = make_bundle(
        tmp_path / "bundle", seen={"train": frozenset(one.content for one in data.train), "test": tests}
    )
    assert (
        "8 of 8 images were used in training" in calibrate(bundle, "--data", parts, "--max-overkill", "0.05")["error"]
    )
    found = calibrate(bundle, "--data", parts, "--split", "test", "--max-overkill", "0.05")
    assert found["good_images"] == 30
    basis = load_bundle(tmp_path / "next").manifest.operating_point.basis
    assert basis is not None
    assert basis.data.startswith("parts, test part")
    assert any("test part of parts" in note for note in basis.notes)
    assert "33 images were test images when the model was trained" in found["said"]
    # The same images as a plain folder are recognised by their content.
    found = calibrate(bundle, "--data", parts / "test" / "good", "--max-overkill", "0.05")
    assert "30 images were test images" in found["said"]


def test_a_bundle_of_an_earlier_version_knows_its_golden_frames(
    tmp_path: Path, good: Path, calibrate: Calibrate
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    found = calibrate(bundle, "--data", good, "--max-overkill", "0.05")
    assert "does not say which images it was trained on" in found["said"]
    frames, _ = load_bundle(bundle).golden()
    write(good / "golden.png", frames[1][:, :, ::-1])
    found = calibrate(bundle, "--data", good, "--max-overkill", "0.05")
    assert "1 of 121 images were used in training" in found["error"]


def test_too_few_images_say_how_many_are_missing(bundle: Path, good: Path, calibrate: Calibrate) -> None:
    found = calibrate(bundle, "--data", good, "--max-overkill", "0.005")
    assert found["exit"] == 2
    assert "needs at least 199 good calibration images; got 120, 79 more are missing" in found["error"]
    found = calibrate(bundle, "--data", good, "--max-overkill", "0.02", "--confidence", "0.95")
    assert "needs at least 149 good calibration images; got 120, 29 more are missing" in found["error"]


def test_lots_are_named_by_a_pattern(bundle: Path, tmp_path: Path, calibrate: Calibrate) -> None:
    good = tmp_path / "good"
    for lot in range(24):
        good_images(good, 3, prefix=f"lot{lot}")
    found = calibrate(bundle, "--data", good, "--max-overkill", "0.05", "--lot-pattern", r"(lot\d+)_")
    assert (found["lots"], found["good_images"]) == (24, 72)
    assert "24 lots of 3 to 3 images" in found["said"]
    found = calibrate(bundle, "--data", good, "--max-overkill", "0.02", "--lot-pattern", r"(lot\d+)_")
    assert "needs at least 49 lots of good parts; got 24, 25 more are missing" in found["error"]
    found = calibrate(bundle, "--data", good, "--max-overkill", "0.05", "--lot-pattern", r"(lot1\d)_")
    assert "finds no lot in 42 paths" in found["error"]


def test_copies_count_once_and_contradictions_are_refused(
    bundle: Path, good: Path, tmp_path: Path, calibrate: Calibrate
) -> None:
    shutil.copy(good / "good_000.png", good / "copy.png")
    assert calibrate(bundle, "--data", good, "--max-overkill", "0.05")["good_images"] == 120
    bad = defects(tmp_path / "bad", bright=(3, 250))
    shutil.copy(good / "good_000.png", bad / "bright" / "copy.png")
    found = calibrate(bundle, "--data", f"{good},{bad}", "--max-overkill", "0.05")
    assert "the same picture is among the good and among the defective images" in found["error"]
    (good / "broken.png").write_bytes(b"no picture")
    assert "broken.png" in calibrate(bundle, "--data", good, "--max-overkill", "0.05")["error"]


def test_probabilities_are_fitted_from_labelled_folders(tmp_path: Path, good: Path, calibrate: Calibrate) -> None:
    bundle = make_bundle(tmp_path / "bundle", seen={})
    shutil.move(good, tmp_path / "all" / "good")
    defects(tmp_path / "all", bright=(25, 250), dark=(25, 5), rust=(4, 220))
    found = calibrate(bundle, "--data", tmp_path / "all", "--max-overkill", "0.05", "--class-threshold", "dark=0.8")
    after = load_bundle(tmp_path / "next").manifest
    assert after.class_calibration is not None
    assert after.class_calibration.mix["dark"] == pytest.approx(25 / (25 + 25 + 115), abs=0.01)
    assert after.operating_point.class_thresholds == {"bright": 0.5, "dark": 0.8}
    assert found["good_images"] < 120
    assert found["defective_images"] == 54
    # The class that the model does not know is stopped by its score, and said to be unknown or taken for a known one.
    assert after.operating_point.basis is not None
    assert after.operating_point.basis.measured["defects_unknown"].of == 54


def test_a_class_stops_a_part_that_its_score_passes(
    tmp_path: Path, bundle: Path, good: Path, calibrate: Calibrate
) -> None:
    calibrate(bundle, "--data", good, "--max-overkill", "0.05", "--class-threshold", "none")
    assert load_bundle(tmp_path / "next").manifest.operating_point.class_thresholds == {}
    found = calibrate(bundle, "--data", good, "--max-overkill", "0.05", "--class-threshold", "dark=0.75")
    assert found["class_thresholds"] == {"bright": 0.9, "dark": 0.75}


def test_the_same_images_twice_raise_class_thresholds_from_where_they_stood(
    tmp_path: Path, bundle: Path, good: Path, calibrate: Calibrate
) -> None:
    """Raised ones were chosen by these images: taken as given, they would cost nothing and break the bound."""
    write(good / "odd.png", np.full((64, 96), 158, np.uint8))  # bright all over: of the class bright for sure
    first = calibrate(bundle, "--data", good, "--max-overkill", "0.05", "--class-threshold", "bright=0.6")
    assert first["class_thresholds"] == {}
    raised = tmp_path / "raised"
    shutil.move(tmp_path / "next", raised)
    again = calibrate(raised, "--data", good, "--max-overkill", "0.05")
    same = ("image_threshold", "review_threshold", "class_thresholds")
    assert [again[name] for name in same] == [first[name] for name in same]
    basis = load_bundle(tmp_path / "next").manifest.operating_point.basis
    assert basis is not None
    assert basis.class_policy == {"bright": 0.6, "dark": 0.9}


def test_the_pixel_threshold_is_kept_given_or_chosen_by_masks(tmp_path: Path, calibrate: Calibrate) -> None:
    parts = make_folder(tmp_path / "parts", train={"good": 60, "bright": 12})
    bundle = make_bundle(tmp_path / "bundle", seen={})
    manifest = load_bundle(bundle).manifest
    own = replace(manifest.operating_point, class_pixel_thresholds={"bright": 0.3})
    write_manifest(bundle, replace(manifest, operating_point=own))
    given = ["--data", parts, "--max-overkill", "0.05", "--pixel-threshold"]
    assert calibrate(bundle, *given, "keep")["class_pixel_thresholds"] == {"bright": 0.3}
    number = calibrate(bundle, *given, "0.125")
    assert (number["pixel_threshold"], number["class_pixel_thresholds"]) == (0.125, {})
    chosen = calibrate(bundle, *given, "best")["pixel_threshold"]
    # Spots differ from mid grey by 0.5, good cells by about 0.01.
    assert 0.1 < chosen <= 0.5
    assert "best or a number" in calibrate(bundle, *given, "most")["error"]
    shutil.rmtree(parts / "ground_truth")
    assert "defective images with a mask" in calibrate(bundle, *given, "best")["error"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "exactly one of --max-overkill"),
        (["--max-overkill", "0.05", "--min-recall", "0.9"], "got --max-overkill, --min-recall"),
        (["--max-overkill", "1.5"], "between 0 and 1"),
        (["--max-overkill", "0.05", "--max-review", "2"], "between 0 and 1"),
        (["--max-overkill", "0.05", "--confidence", "95"], "confidence is at least 0.5"),
        (["--max-overkill", "0.05", "--defect-rate", "0.1"], "--defect-rate"),
        (["--min-recall", "1"], "between 0 and 1"),
        (["--min-recall", "0.9"], "got 0"),
        (["--cost", "overkill=1"], "needs a price of escape too"),
        (["--cost", "overkill=1,escape=50,escape=3"], "each once"),
        (["--cost", "overkill=1,escape=much"], "overkill=PRICE"),
        (["--cost", "overkill=1,escape=50"], "both kinds"),
        (["--max-overkill", "0.05", "--class-threshold", "rust=0.5"], "rust is no defect class"),
        (["--max-overkill", "0.05", "--class-threshold", "dark"], "CLASS=P"),
        (["--max-overkill", "0.05", "--class-threshold", "dark=0.5", "--class-threshold", "none"], "stands alone"),
        (["--max-overkill", "0.05", "--class-threshold", "dark=1.5"], "above 0 and at most 1"),
        (["--max-overkill", "0.05", "--lot-pattern", "("], "no regular expression"),
        (["--max-overkill", "0.05", "--lot-pattern", "lot"], "no group"),
        (["--max-overkill", "0.05", "--split", "test"], "MVTec layout"),
    ],
)
def test_what_cannot_be_asked(
    bundle: Path, good: Path, tmp_path: Path, calibrate: Calibrate, options: Sequence[str], reason: str
) -> None:
    found = calibrate(bundle, "--data", good, *options)
    assert found["exit"] == 2
    assert reason in found["error"]
    assert not (tmp_path / "next").exists()


def test_what_is_no_place_for_images_or_a_bundle(
    bundle: Path, good: Path, tmp_path: Path, calibrate: Calibrate
) -> None:
    asked = ["--max-overkill", "0.05"]
    assert "is no folder" in calibrate(bundle, "--data", tmp_path / "nowhere", *asked)["error"]
    assert "takes GOOD or GOOD,DEFECTS" in calibrate(bundle, "--data", f"{good},{good},{good}", *asked)["error"]
    (tmp_path / "empty").mkdir()
    assert "has no train image" in calibrate(bundle, "--data", tmp_path / "empty", *asked)["error"]
    assert "never overwritten" in calibrate(bundle, "--data", good, *asked, "--out", good)["error"]
    bare = make_bundle(tmp_path / "bare", anomaly=False)
    assert "never saw a good part" in calibrate(bare, "--data", good, *asked)["error"]


def test_versions_count_on() -> None:
    assert [next_version(text) for text in ("1", "1.9", "2026-rc3b", "first")] == ["2", "1.10", "2026-rc4b", "first.1"]

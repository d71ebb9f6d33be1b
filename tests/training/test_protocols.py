"""The data sets that the figures are measured on."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import protocols
from benchmarks.pictures import read_grey
from tests.images import make_folder, write, write_folds

_SPOT = 255


def _draw(monkeypatch: pytest.MonkeyPatch, protocol: str, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["protocols", protocol, *map(str, arguments)])
    protocols.main()


def _count(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): len(list(path.iterdir())) for path in sorted(root.glob("*/*"))}


def test_few_labels_five_defects_of_each_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_folder(tmp_path / "data", train={"good": 4}, test={"good": 2, "crack": 7, "fray": 5})
    _draw(monkeypatch, "few", "--data", data, "--out", tmp_path / "few")
    assert _count(tmp_path / "few") == {
        "ground_truth/crack": 7,
        "ground_truth/fray": 5,
        "test/crack": 2,
        "test/good": 2,
        "train/crack": 5,
        "train/fray": 5,
        "train/good": 4,
    }


def test_few_labels_of_other_folds_leave_the_fold_to_measure_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = _spotted_parts(tmp_path, spot=20)
    out = tmp_path / "few"
    arguments = ["--data", tmp_path / "data", "--folds", listed, "--fold", "0", "--per-class", "3"]
    _draw(monkeypatch, "few", *arguments, "--out", out)
    assert _count(out) == {
        "ground_truth/crack": 7,
        "test/crack": 4,
        "test/good": 4,
        "train/crack": 3,
        "train/good": 4,
    }
    assert {path.name for path in (out / "test/crack").iterdir()} == {f"crack{index}.png" for index in range(4)}
    with pytest.raises(SystemExit, match="give --folds FILE, too"):
        _draw(monkeypatch, "few", "--data", tmp_path / "data", "--fold", "0", "--out", tmp_path / "unsaid")


def test_a_class_that_only_the_fold_to_measure_has_makes_no_few_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_folder(tmp_path / "data", test={"good": 4, "crack": 4, "fray": 2})
    named = {label: sorted(path.name for path in (data / "test" / label).iterdir()) for label in ("good", "crack")}
    folds = {"0": {label: files[:2] for label, files in named.items()}, "1": {k: v[2:] for k, v in named.items()}}
    folds["0"]["fray"] = sorted(path.name for path in (data / "test" / "fray").iterdir())
    listed = write_folds(tmp_path / "folds.json", folds)
    with pytest.raises(SystemExit, match="fray has 0 images whose mask marks something; 2 are needed"):
        _draw(monkeypatch, "few", "--data", data, "--folds", listed, "--per-class", "2", "--out", tmp_path / "few")


def test_too_few_masked_defects_make_no_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_folder(tmp_path / "data", train={"good": 4}, test={"crack": 4})
    with pytest.raises(SystemExit, match="crack has 4 images whose mask marks something; 5 are needed"):
        _draw(monkeypatch, "few", "--data", data, "--out", tmp_path / "few")
    assert not (tmp_path / "few").exists()


def test_of_defects_alone_so_many_of_each_class_are_learned_from_and_all_of_the_fold_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_folder(tmp_path / "data", test={"good": 4, "crack": 8, "fray": 8})
    # In the other folds three cracks and four frays have a mask.
    next((data / "ground_truth" / "crack").glob("*7_mask*")).unlink()
    named = {label: sorted(path.name for path in (data / "test" / label).iterdir()) for label in ("crack", "fray")}
    folds = {str(fold): {label: names[4 * fold : 4 * fold + 4] for label, names in named.items()} for fold in (1, 0)}
    arguments = ["--data", data, "--folds", write_folds(tmp_path / "folds.json", folds), "--fold", "0"]
    _draw(monkeypatch, "defects", *arguments, "--per-class", "3", "--out", tmp_path / "three")
    counts = {f"{side}/{label}": n for label in named for side, n in (("ground_truth", 7), ("test", 4), ("train", 3))}
    assert _count(tmp_path / "three") == counts
    measured = {path.name for path in (tmp_path / "three/test/crack").iterdir()}
    assert measured == set(named["crack"][:4])
    _draw(monkeypatch, "defects", *arguments, "--out", tmp_path / "all")
    assert _count(tmp_path / "all")["train/crack"] == 4
    for asked, why in (
        ("4", "crack has 3 images whose mask marks something; 4 are needed"),
        ("0", "at least 1; got 0"),
    ):
        with pytest.raises(SystemExit, match=why):
            _draw(monkeypatch, "defects", *arguments, "--per-class", asked, "--out", tmp_path / asked)
        assert not (tmp_path / asked).exists()
    with pytest.raises(SystemExit, match="--per-class goes with few and defects, not with no-masks"):
        _draw(monkeypatch, "no-masks", *arguments, "--per-class", "3", "--out", tmp_path / "wrong")


def _spotted_parts(root: Path, *, spot: int) -> Path:
    """Eight good parts and eight with a bright spot of ``spot`` px, in two folds; the folds file."""
    names = {label: [f"{label}{index}.png" for index in range(8)] for label in ("good", "crack")}
    for label, files in names.items():
        for index, name in enumerate(files):
            pixels = np.full((64, 40), 50 + index, np.uint8)  # narrow parts: five of them do not fill a strip
            mask = np.zeros_like(pixels)
            if label == "crack":
                pixels[21 : 21 + spot, 11 : 11 + spot] = _SPOT
                mask[21 : 21 + spot, 11 : 11 + spot] = 255
                write(root / "data" / "ground_truth" / label / f"{Path(name).stem}_mask.png", mask)
            write(root / "data" / "test" / label / name, pixels)
    folds = {"0": {label: files[:4] for label, files in names.items()}, "1": {k: v[4:] for k, v in names.items()}}
    return write_folds(root / "folds.json", folds)


def test_a_strip_shows_no_defect_outside_of_its_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = _spotted_parts(tmp_path, spot=20)
    out = tmp_path / "strips"
    _draw(monkeypatch, "strips", "--data", tmp_path / "data", "--folds", listed, "--out", out)
    strips = sorted(out.glob("t*/crack/*.png"))
    assert [path.parent.parent.name for path in strips] == ["test"] * 4 + ["train"] * 4
    for path in strips:
        frame, mask = read_grey(path), read_grey(out / "ground_truth" / "crack" / f"{path.stem}_mask.png")
        assert frame.shape == mask.shape == (256, 1600)
        inside = cv2.dilate(mask, np.ones((9, 9), np.uint8)) > 0
        assert (frame[~inside] < 150).all()
        assert (frame[mask > 0] > 150).mean() > 0.9


def test_a_board_marks_every_defect_of_its_parts_however_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = _spotted_parts(tmp_path, spot=1)
    out = tmp_path / "boards"
    _draw(monkeypatch, "boards", "--data", tmp_path / "data", "--folds", listed, "--out", out)
    assert _count(out) == {"ground_truth/crack": 20, "test/crack": 5, "train/crack": 15}
    for path in out.glob("t*/crack/*.png"):
        frame, mask = read_grey(path), read_grey(out / "ground_truth" / "crack" / f"{path.stem}_mask.png")
        assert frame.shape == mask.shape == (1600, 2400)
        np.testing.assert_array_equal(frame > 60, mask > 0)
        first = 54 if path.parent.parent.name == "train" else 50
        assert set(np.unique(frame[mask == 0])) <= set(range(first, first + 4))


def test_folds_are_needed_where_a_fold_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_folder(tmp_path / "data", train={"good": 4})
    with pytest.raises(SystemExit, match="give --folds FILE"):
        _draw(monkeypatch, "strips", "--data", data, "--out", tmp_path / "out")

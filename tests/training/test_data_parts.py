"""Which pictures belong together, by their names and in files of folds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.images import make_folder, texture, write, write_folds
from tests.training.reading import problems
from training.data import read_data
from vision.errors import DataError, SettingsError


class TestParts:
    def folder(self, root: Path) -> Path:
        for name in ("p1_a", "p1_b", "p2_a", "p3_a"):
            write(root / "train" / "good" / f"{name}.png", texture(name))
        return root

    def test_the_first_group_is_the_part(self, tmp_path: Path) -> None:
        parts = [sample.part for sample in read_data(self.folder(tmp_path), part_pattern=r"(p\d+)_").train]
        assert parts == ["p1", "p1", "p2", "p3"]

    def test_parts_that_share_a_picture_are_one(self, tmp_path: Path) -> None:
        self.folder(tmp_path)
        write(tmp_path / "train" / "good" / "p2_b.png", texture("p1_b"))
        write(tmp_path / "train" / "good" / "p3_b.png", texture("p2_a"))
        parts = {sample.part for sample in read_data(tmp_path, part_pattern=r"(p\d+)_").train}
        assert len(parts) == 1

    def test_a_part_in_train_and_test_is_a_leak(self, tmp_path: Path) -> None:
        write(self.folder(tmp_path) / "test" / "good" / "p2_z.png", texture("z"))
        (line,) = problems(tmp_path, part_pattern=r"(p\d+)_")
        assert "part p2 is in train" in line

    def test_names_without_a_part_are_told(self, tmp_path: Path) -> None:
        write(self.folder(tmp_path) / "train" / "good" / "other.png", texture("z"))
        (line,) = problems(tmp_path, part_pattern=r"(p\d+)_")
        assert "train/good/other.png" in line

    @pytest.mark.parametrize("pattern", ["p\\d+", "(p"])
    def test_patterns_that_cannot_work(self, tmp_path: Path, pattern: str) -> None:
        with pytest.raises(SettingsError):
            read_data(self.folder(tmp_path), part_pattern=pattern)


class TestFolds:
    def folder(self, root: Path) -> Path:
        """Files of one fold lie in ``train`` and in ``test``."""
        make_folder(root, train={"good": 4}, test={"good": 2, "dent": 5})
        return write_folds(
            root / "folds.json",
            {
                "0": {"good": ["t000.png", "e000.png"], "dent": ["e000.png", "e001.png"]},
                "1": {"good": ["t001.png", "t002.png"], "dent": ["e002.png", "e003.png"]},
            },
        )

    def test_fold_k_is_the_test_set_and_the_rest_trains(self, tmp_path: Path) -> None:
        data = read_data(tmp_path, folds=self.folder(tmp_path), fold=0)
        assert {(sample.label, sample.path.name) for sample in data.test} == {
            ("good", "t000.png"),
            ("good", "e000.png"),
            ("dent", "e000.png"),
            ("dent", "e001.png"),
        }
        assert {sample.path.name for sample in data.train if sample.is_defect} == {"e002.png", "e003.png"}
        assert all(sample.mask is not None for sample in (*data.train, *data.test) if sample.is_defect)
        assert data.classes == ("good", "dent")
        assert "3 images" in data.remarks[0]  # t003 and e001 of good, e004 of dent, whose mask is no stray

    def test_the_digest_does_not_depend_on_the_fold(self, tmp_path: Path) -> None:
        folds = self.folder(tmp_path)
        assert read_data(tmp_path, folds=folds, fold=0).digest == read_data(tmp_path, folds=folds, fold=1).digest

    def test_unknown_fold(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no fold 7; choose one of 0, 1"):
            read_data(tmp_path, folds=self.folder(tmp_path), fold=7)

    def test_folds_and_fold_go_together(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="--fold"):
            read_data(tmp_path, folds=self.folder(tmp_path))
        with pytest.raises(SettingsError, match="--folds"):
            read_data(tmp_path, fold=0)

    def test_missing_doubled_and_repeated_names_are_all_listed(self, tmp_path: Path) -> None:
        self.folder(tmp_path)
        write(tmp_path / "test" / "good" / "t001.png", texture("another"))
        write_folds(
            tmp_path / "folds.json",
            {
                "0": {"good": ["t000.png", "nowhere.png"], "dent": ["e000.png"]},
                "1": {"good": ["t001.png", "t000.png"], "dent": []},
            },
        )
        found = problems(tmp_path, folds=tmp_path / "folds.json", fold=0)
        assert any("nowhere.png (good) is missing" in line for line in found)
        assert any("t001.png (good) is doubled" in line and "test/good/t001.png" in line for line in found)
        assert any("t000.png (good) is named 2 times" in line for line in found)
        assert any("fold 1 names no image of 'dent'" in line for line in found)

    def test_the_same_picture_in_two_folds_is_a_leak(self, tmp_path: Path) -> None:
        folds = self.folder(tmp_path)
        shutil.copy(tmp_path / "train" / "good" / "t000.png", tmp_path / "train" / "good" / "t001.png")
        (line,) = problems(tmp_path, folds=folds, fold=0)
        assert "same picture" in line

    @pytest.mark.parametrize("text", ["", "{}", '{"folds": []}', '{"folds": {"0": {"good": "a.png"}}}', "[1"])
    def test_no_folds_file(self, tmp_path: Path, text: str) -> None:
        self.folder(tmp_path).write_text(text)
        with pytest.raises(DataError, match="expected"):
            read_data(tmp_path, folds=tmp_path / "folds.json", fold=0)

    def test_a_folder_a_class_is_enough(self, tmp_path: Path) -> None:
        for label in ("good", "dent"):
            for index in range(2):
                write(tmp_path / label / f"{index}.png", texture(f"{label}{index}"))
        names = {"0": {"good": ["0.png"], "dent": ["0.png"]}, "1": {"good": ["1.png"], "dent": ["1.png"]}}
        data = read_data(tmp_path, folds=write_folds(tmp_path / "folds.json", names), fold=1)
        assert [sample.path.parent.name for sample in data.test] == ["good", "dent"]

"""The packaged solar cells: how their list is read, and how they are cut."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks import protocols
from tests.images import write, write_folds
from training.data import read_data
from training.elpv import read_elpv
from training.layout import deal_out
from vision.errors import DataError


class TestElpv:
    def package(self, root: Path, count: int = 480) -> Path:
        rng = np.random.default_rng(0)
        kinds = ["mono"] * (count // 2) + ["poly"] * (count - count // 2)
        thirds = ["0.0", "0.3333333333333333", "0.6666666666666666", "1.0"]
        lines = [
            f"images/cell{index + 1:04d}.png  {rng.choice(thirds, p=[0.5, 0.1, 0.1, 0.3])}   {kind}"
            for index, kind in enumerate(kinds)
        ]
        (root / "labels.csv").write_text("\n".join(lines) + "\n")
        return root

    def test_a_quarter_in_blocks_of_neighbours_of_both_kinds(self, tmp_path: Path) -> None:
        sources = read_elpv(self.package(tmp_path, 960))
        sides = [source.side for source in sources]
        assert sides.count("test") == 240
        assert sum(one != other for one, other in pairwise(sides)) <= 2 * 240 / 48
        assert 48 <= sides[:480].count("test") <= 192
        assert [source.side for source in read_elpv(tmp_path)] == sides

    def test_soft_labels(self, tmp_path: Path) -> None:
        sources = read_elpv(self.package(tmp_path))
        assert {source.defect_probability for source in sources} == {0.0, 1 / 3, 2 / 3, 1.0}
        assert all((source.label == "defect") == (source.defect_probability >= 0.5) for source in sources)

    def test_another_list_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "labels.csv").write_text("images/cell0001.png,1.0,mono\n")
        with pytest.raises(DataError, match="install it again"):
            read_elpv(tmp_path)

    def test_a_folds_file_deals_the_cells_out_anew(self, tmp_path: Path) -> None:
        sources = read_elpv(self.package(tmp_path))
        names = {label: [one.path.name for one in sources if one.label == label] for label in ("good", "defect")}
        folds = {"0": {"good": names["good"][:30], "defect": names["defect"][:20]}, "1": {"good": names["good"][30:]}}
        found = deal_out(sources, write_folds(tmp_path / "folds.json", folds), 0)
        assert found.problems == []
        tested = {one.path.name for one in found.sources if one.side == "test"}
        assert tested == {*names["good"][:30], *names["defect"][:20]}
        assert {one.path.name for one in found.sources if one.side == "train"} == set(names["good"][30:])
        assert found.left_out == len(names["defect"]) - 20
        assert {one.defect_probability for one in found.sources} == {0.0, 1 / 3, 2 / 3, 1.0}

    def test_a_random_cut_is_drawn_and_read_fold_by_fold(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root = self.package(tmp_path, 40)
        for number in range(1, 41):
            write(root / "images" / f"cell{number:04d}.png", np.full((16, 16), number, np.uint8))
        for place in ("training.data.find_elpv", "benchmarks.protocols.find_elpv"):
            monkeypatch.setattr(place, lambda: root)
        folds = tmp_path / "folds.json"
        arguments = ["protocols", "random", "--data", "elpv", "--cut", "4", "--out", str(folds)]
        monkeypatch.setattr(sys, "argv", arguments)
        protocols.main()
        parts = [read_data("elpv", folds=folds, fold=fold) for fold in range(4)]
        assert max(len(data.test) for data in parts) - min(len(data.test) for data in parts) <= 2
        assert len({sample.path for data in parts for sample in data.test}) == 40
        for data in parts:
            assert len(data.train) + len(data.test) == 40
            assert not {sample.path for sample in data.train} & {sample.path for sample in data.test}

    def test_folds_of_other_cells_are_refused(self, tmp_path: Path) -> None:
        sources = read_elpv(self.package(tmp_path))
        one = sources[0]
        other = {"good": "defect", "defect": "good"}[one.label]
        folds = {"0": {one.label: [one.path.name]}, "1": {one.label: [one.path.name], other: []}}
        folds["2"] = {"good": ["cell9999.png"]}
        found = deal_out(sources, write_folds(tmp_path / "folds.json", folds), 1)
        assert found.problems == [
            f"folds.json: fold 1 names no image of {other!r}",
            f"folds.json: {one.path.name} ({one.label}) is named 2 times",
            "folds.json: cell9999.png (good) is missing",
        ]
        with pytest.raises(DataError, match="has no fold 3; choose one of 0, 1, 2"):
            deal_out(sources, tmp_path / "folds.json", 3)

    @pytest.mark.slow
    def test_the_real_package(self) -> None:
        pytest.importorskip("elpv_dataset")
        data = read_data("elpv")
        assert len(data.train) + len(data.test) == 2624
        assert 0.2 < len(data.test) / 2624 < 0.26
        assert data.classes == ("good", "defect")
        ambiguous = [sample for sample in (*data.train, *data.test) if sample.is_ambiguous]
        assert len(ambiguous) == 295
        assert not any(sample.is_defect for sample in ambiguous)
        rates = [np.mean([sample.is_defect for sample in side]) for side in (data.train, data.test)]
        assert abs(rates[0] - rates[1]) < 0.08

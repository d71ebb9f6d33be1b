"""Splits keep parts whole, never see the test part and are the same for the same seed."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.images import make_folder, texture, write
from training.data import DataSet, Sample, read_data
from training.splits import Split, running_order, split
from vision.errors import DataError

# A busy machine is no failure.
patient = settings(suppress_health_check=[HealthCheck.too_slow])
ROOT = Path("/data")


def data_set(counts: dict[str, int], *, part_size: int = 1, test: int = 3) -> DataSet:
    """Samples without files; neighbours share a part where ``part_size`` says so."""
    train = tuple(
        Sample(ROOT / "train" / label / f"img{index:04d}.png", label, part=f"{label}{index // part_size}")
        for label, count in counts.items()
        for index in range(count)
    )
    held_out = tuple(
        Sample(ROOT / "test" / "good" / f"img{index:04d}.png", "good", part=f"x{index}") for index in range(test)
    )
    return DataSet(ROOT, train, held_out, ("good", "dent"), "good", 65535, "")


def sides(result: Split) -> tuple[tuple[Sample, ...], ...]:
    return result.train, result.validation, result.calibration


@st.composite
def any_data(draw: Any) -> DataSet:
    """Parts of any size and mixture, in any order of names."""
    labels = draw(st.lists(st.sampled_from(["good", "good", "good", "dent", "crack"]), min_size=1, max_size=90))
    parts = draw(st.integers(1, 40))
    samples = tuple(
        Sample(
            ROOT / "train" / label / f"n{index}.png", label, part=draw(st.sampled_from(["", *map(str, range(parts))]))
        )
        for index, label in enumerate(labels)
    )
    held_out = tuple(Sample(ROOT / "test" / "good" / f"n{index}.png", "good", part=f"t{index}") for index in range(4))
    return DataSet(ROOT, samples, held_out, ("good", "dent"), "good", 65535, "")


@patient
@given(data=any_data(), seed=st.integers(0, 1000))
def test_whatever_the_data_is(data: DataSet, seed: int) -> None:
    result = split(data, seed)
    everything = [sample for side in sides(result) for sample in side]
    assert Counter(everything) == Counter(data.train), "every training image exactly once, and nothing else"
    assert not set(everything) & set(data.test)
    parts = [{sample.part for sample in side if sample.part} for side in sides(result)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert {sample.label for sample in result.train} == {sample.label for sample in data.train}
    assert split(data, seed) == result


@patient
@given(good=st.integers(1, 400), dents=st.integers(0, 120), seed=st.integers(0, 50))
def test_shares_of_single_images(good: int, dents: int, seed: int) -> None:
    result = split(data_set({"good": good, "dent": dents}), seed)
    train, validation, calibration = ([sample.label for sample in side] for side in sides(result))
    assert "dent" not in calibration
    if good >= 40:
        assert abs(validation.count("good") - 0.10 * good) <= good / 20 + 1
        assert abs(calibration.count("good") - 0.15 * good) <= good / 20 + 1
    elif good >= 6:
        assert validation.count("good") >= max(2, int(0.15 * good))
        assert calibration.count("good") >= max(2, int(0.15 * good))
        assert train.count("good") >= good // 3
    elif good >= 4:
        assert calibration.count("good") >= 2
    else:
        assert train.count("good") == good
    if dents >= 4:
        assert abs(validation.count("dent") - 0.15 * dents) <= dents / 10 + 1
        assert validation.count("dent") >= 1
    else:
        assert train.count("dent") == dents


def test_the_test_part_is_never_even_read() -> None:
    """A test part that explodes when touched: model selection and calibration cannot have seen it."""

    class Untouchable(tuple):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            raise AssertionError("the test part was touched")

        __getitem__ = __len__ = __contains__ = __iter__  # type: ignore[assignment]

    data = data_set({"good": 60, "dent": 20})
    hidden = DataSet(ROOT, data.train, Untouchable(), data.classes, "good", 65535, "")
    assert split(hidden, 0) == split(data, 0)


def test_good_images_of_validation_stand_for_those_that_calibration_took() -> None:
    result = split(data_set({"good": 400, "dent": 400}), 0)
    counts = Counter(sample.label for sample in result.validation)
    weight = result.good_stand_for("good")
    assert weight > 1
    assert abs(counts["good"] * weight / counts["dent"] - 1.0) < 0.5
    assert split(data_set({"dent": 40}), 0).good_stand_for(None) == 1


def test_seeds_differ_and_classes_do_not_disturb_each_other() -> None:
    alone = split(data_set({"good": 100}), 3)
    with_dents = split(data_set({"good": 100, "dent": 40}), 3)
    assert [sample for sample in with_dents.calibration if sample.label == "good"] == list(alone.calibration)
    assert split(data_set({"good": 100}), 4) != alone


def test_neighbours_stay_together() -> None:
    result = split(data_set({"good": 400}), 0)
    where = {sample.path: index for index, side in enumerate(sides(result)) for sample in side}
    in_order = [where[path] for path in sorted(where)]
    changes = sum(one != other for one, other in pairwise(in_order))
    assert changes < 20, "cut into at most 20 blocks"
    runs = sum(in_order[i] == 2 and (i == 0 or in_order[i - 1] != 2) for i in range(400))
    assert runs >= 2, "calibration is not one stretch of production"


def test_blocks_of_large_sets_stay_short() -> None:
    calibration = split(data_set({"good": 4000}), 1).calibration
    numbers = sorted(int(sample.path.stem[3:]) for sample in calibration)
    runs = 1 + sum(other - one > 1 for one, other in pairwise(numbers))
    assert runs >= 6


def test_one_large_part_does_not_swallow_calibration() -> None:
    data = data_set({"good": 100})
    train = tuple(
        Sample(sample.path, "good", part="huge" if index < 80 else f"small{index}")
        for index, sample in enumerate(data.train)
    )
    result = split(DataSet(ROOT, train, (), ("good",), "good", 65535, ""), 0)
    assert {sample.part for sample in result.train} >= {"huge"}
    assert result.validation
    assert result.calibration


def test_parts_of_both_kinds_stay_whole() -> None:
    """Every part has a good and a defective view: no good view may calibrate what the defective one trained."""
    train = tuple(
        Sample(ROOT / "train" / label / f"{index}.png", label, part=str(index))
        for label in ("good", "dent")
        for index in range(60)
    )
    result = split(DataSet(ROOT, train, (), ("good", "dent"), "good", 65535, ""), 0)
    for side in sides(result):
        assert Counter(sample.part for sample in side if sample.label == "good") == Counter(
            sample.part for sample in side if sample.label == "dent"
        )


def test_a_few_defective_parts_with_good_views_keep_out_of_calibration() -> None:
    train = tuple(
        Sample(ROOT / "train" / label / f"{index}.png", label, part=str(index))
        for label, count in (("good", 100), ("dent", 20))
        for index in range(count)
    )
    result = split(DataSet(ROOT, train, (), ("good", "dent"), "good", 65535, ""), 0)
    assert {sample.label for sample in result.calibration} == {"good"}
    assert {sample.label for sample in result.validation} == {"good", "dent"}


def test_a_class_that_came_along_with_another_one_is_still_trained() -> None:
    """All dents are views of one part, which goes where its rarer crack goes; the larger part with cracks trains."""
    views = {"small": {"crack": 1, "dent": 9}, "large": {"crack": 7, "scratch": 20}, "clean": {"good": 50}}
    train = tuple(
        Sample(ROOT / "train" / label / f"{part}{index}.png", label, part=part)
        for part, labels in views.items()
        for label, count in labels.items()
        for index in range(count)
    )
    for seed in range(5):
        result = split(DataSet(ROOT, train, (), ("good", "dent"), "good", 65535, ""), seed)
        assert {sample.label for sample in result.train} == {"crack", "dent", "scratch", "good"}


def test_identical_pictures_are_never_split(tmp_path: Path) -> None:
    root = make_folder(tmp_path, train={"good": 30})
    for index in range(0, 30, 3):
        write(root / "train" / "good" / f"z{index}.png", texture(f"train good {index}"))
    result = split(read_data(root), 0)
    parts = [{sample.part for sample in side} for side in sides(result)]
    assert not parts[0] & (parts[1] | parts[2])
    assert not parts[1] & parts[2]


def test_no_training_image() -> None:
    with pytest.raises(DataError, match="no training images"):
        split(data_set({}), 0)


@pytest.mark.parametrize(
    "names",
    [
        ["1.png", "2.png", "10.png", "100.png"],
        ["exp3_num_5.jpg", "exp1_num_6.jpg", "exp2_num_70.jpg", "exp1_num_100.jpg"],
        ["part2_view1.png", "part2_view2.png", "part10_view1.png", "part11_view2.png"],
        ["2024-01-31_23-59-58.png", "2024-01-31_23-59-59.png", "2024-02-01_00-00-01.png", "2024-02-01_00-00-02.png"],
        ["20240131_9.png", "20240131_10.png", "20240201_1.png", "20240201_2.png"],
        ["a.png", "b9_extra.png", "b10.png", "c.png"],
    ],
)
def test_running_order(names: list[str]) -> None:
    shuffled = sorted(names, key=lambda name: re.sub(r"\d", "", name)[::-1] + name[::-1])
    assert [shuffled[index] for index in running_order(shuffled)] == names


def test_folds_are_ordered_over_both_folders() -> None:
    """With folds, images of one class come out of train/ and test/; their running numbers still count as one row."""
    train = tuple(
        Sample(ROOT / ("train" if index % 2 else "test") / "good" / f"{index:03d}.png", "good", part=str(index))
        for index in range(80)
    )
    result = split(DataSet(ROOT, train, (), ("good",), "good", 65535, ""), 0)
    where = {int(sample.path.stem): side for side, samples in enumerate(sides(result)) for sample in samples}
    assert sum(where[index] != where[index + 1] for index in range(79)) < 20


def test_a_bound_rests_on_surely_good_images_alone() -> None:
    good = Sample(Path("good.png"), "good")
    perhaps = Sample(Path("perhaps.png"), "good", defect_probability=1 / 3)
    beside = Sample(Path("beside.png"), "crack", defect_probability=1.0)
    assert Split((), (), (good, perhaps, beside)).surely_good("good") == (good,)

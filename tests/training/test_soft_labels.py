"""Soft labels, as the solar cells have them: what is only perhaps a defect must not count as surely good."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.images import make_folder
from training.batches import TrainingFrames
from training.data import DataSet, read_data
from training.options import TrainOptions, choose_recipe
from training.run import train_run
from training.splits import split
from training.stores import FrameStore
from vision.model.config import ModelConfig
from vision.preprocess import InputSpec


def _soften(data: DataSet) -> DataSet:
    """Every fourth good image is a defect with a probability of one third."""
    train = tuple(
        replace(sample, defect_probability=1 / 3) if index % 4 == 0 and sample.label == "good" else sample
        for index, sample in enumerate(data.train)
    )
    return replace(data, train=train)


def test_an_ambiguous_image_has_a_soft_target_and_no_known_mask(tmp_path: Path, options: TrainOptions) -> None:
    data = _soften(read_data(make_folder(tmp_path, train={"good": 40, "defect": 60})))
    parts = split(data, 0)
    recipe = choose_recipe(data, parts, options)
    config = ModelConfig("none", 64, 96, data.classes, data.good_class, recipe.reconstruction, recipe.class_map)
    frames = TrainingFrames(FrameStore(parts.train, InputSpec(64, 96)), config, recipe, seed=0)
    rows = [frames[index] for index in range(len(frames))]
    soft = [row for row in rows if 0 < float(row.defect) < 0.5]
    assert soft
    for row in soft:
        assert row.target[0].tolist() == pytest.approx([2 / 3, 1 / 3])
        assert not bool(row.has_mask)
    assert all(bool(row.has_mask) for row in rows if float(row.defect) == 0)


@pytest.mark.slow
def test_thresholds_rest_on_surely_good_images_alone(tmp_path: Path, options: TrainOptions) -> None:
    data = _soften(read_data(make_folder(tmp_path / "data", train={"good": 60, "defect": 80})))
    # Each good part was photographed once more when it was defective: the two pictures stay together.
    paired = tuple(replace(sample, part=sample.path.stem) for sample in data.train)
    data = replace(data, train=paired)
    calibration = split(data, 0).calibration
    ambiguous = sum(sample.is_ambiguous for sample in calibration)
    defective = sum(sample.label == "defect" for sample in calibration)
    assert ambiguous
    assert defective
    run = train_run(data, replace(options, epochs=1), tmp_path / "run", resume=False)
    assert len(run.manifest.calibration_scores) == len(calibration) - ambiguous - defective

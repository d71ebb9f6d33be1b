"""Which loss applies to which frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.images import make_folder
from tests.vision.test_model import BASE
from training.batches import FrameStore, TrainingFrames, join
from training.data import read_data
from training.objective import Objective
from training.options import TrainOptions, choose_recipe
from training.splits import split
from vision.model.detector import Detector
from vision.preprocess import InputSpec


@pytest.mark.parametrize("labels", [{"good": 12}, {"good": 20, "crack": 50}], ids=["synthetic", "labelled"])
def test_evidence_is_asked_of_defects_whose_class_and_mask_are_known(
    tmp_path: Path, options: TrainOptions, labels: dict[str, int]
) -> None:
    """Synthetic ones as well, where they have a class; and never of good frames, whose evidence may lie anywhere."""
    data = read_data(make_folder(tmp_path, train=labels))
    parts = split(data, 0)
    recipe = choose_recipe(data, parts, options)
    config = replace(BASE, height=64, width=96, classes=data.classes, class_map=recipe.class_map)
    torch.manual_seed(0)
    frames = TrainingFrames(FrameStore(parts.train, InputSpec(64, 96)), config, recipe, seed=4)
    batch = join([frames[index] for index in range(min(10, len(frames)))])
    objective = Objective(Detector(config), recipe)
    _, found = objective(batch)
    assert float(found["evidence"]) > 0
    batch.target[batch.target[:, 1:].sum(dim=1) > 0] = 0.0  # their class is not known any more
    _, found = objective(batch)
    assert float(found["evidence"]) == 0

"""Which loss applies to which frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.images import make_folder
from tests.vision.test_model import BASE
from training.batches import Batch, TrainingFrames, join
from training.data import read_data
from training.objective import Objective
from training.options import Recipe, TrainOptions, choose_recipe
from training.splits import split
from training.stores import FrameStore
from vision.model.config import ModelConfig
from vision.model.detector import Detector
from vision.preprocess import InputSpec


def _made(
    tmp_path: Path, options: TrainOptions, labels: dict[str, int], items: int
) -> tuple[ModelConfig, Recipe, Batch]:
    """A small model's config and recipe for images with masks of these labels, and a batch of the first items."""
    data = read_data(make_folder(tmp_path, train=labels))
    parts = split(data, 0)
    recipe = choose_recipe(data, parts, options)
    config = replace(
        BASE, height=64, width=96, classes=data.classes, good_class=data.good_class, class_map=recipe.class_map
    )
    torch.manual_seed(0)
    frames = TrainingFrames(FrameStore(parts.train, InputSpec(64, 96)), config, recipe, seed=4)
    return config, recipe, join([frames[index] for index in range(min(items, len(frames)))])


@pytest.mark.parametrize("labels", [{"good": 12}, {"good": 20, "crack": 50}], ids=["synthetic", "labelled"])
def test_evidence_is_asked_of_defects_whose_class_and_mask_are_known(
    tmp_path: Path, options: TrainOptions, labels: dict[str, int]
) -> None:
    """Synthetic ones as well, where they have a class; and never of good frames, whose evidence may lie anywhere."""
    config, recipe, batch = _made(tmp_path, options, labels, 10)
    objective = Objective(Detector(config), recipe)
    _, found = objective(batch)
    assert float(found["evidence"]) > 0
    batch.target[batch.target[:, 1:].sum(dim=1) > 0] = 0.0  # their class is not known any more
    _, found = objective(batch)
    assert float(found["evidence"]) == 0


def test_defects_alone_teach_where_they_are_and_not_whether_a_frame_has_one(
    tmp_path: Path, options: TrainOptions
) -> None:
    config, recipe, batch = _made(tmp_path, options, {"crack": 12, "fray": 12}, 8)
    objective = Objective(Detector(config), recipe)
    _, found = objective(batch)
    assert set(found) == {"class", "pixel", "class_map", "evidence"}, "that every frame has one needs no learning"
    assert min(float(value) for value in found.values()) > 0
    batch.target[batch.target[:, 0] == 0] = 0.0  # the first class is a defect here, and its evidence has a place
    _, found = objective(batch)
    assert float(found["evidence"]) > 0


def test_training_changes_the_backbone_s_weights_and_not_the_statistics_of_its_normalisation(
    tmp_path: Path, options: TrainOptions
) -> None:
    config, recipe, batch = _made(tmp_path, options, {"good": 20, "crack": 50}, 6)
    objective = Objective(Detector(config), recipe).train()
    before = {name: value.clone() for name, value in objective.detector.state_dict().items()}
    loss, _ = objective(batch)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.optim.SGD([one for one in objective.parameters() if one.grad is not None], lr=0.1).step()
    changed = {name for name, value in objective.detector.state_dict().items() if not torch.equal(value, before[name])}
    assert not [name for name in changed if name.startswith("backbone") and "running" in name]
    assert [name for name in changed if name.startswith("backbone") and name.endswith("bn1.weight")]
    assert [name for name in changed if name.startswith("mask_head") and "running" in name]  # these begin from nothing

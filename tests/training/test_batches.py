from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.images import make_folder, spot_mask, texture, write
from training.batches import Batch, TrainingFrames, draws, join, shown
from training.data import DataSet, Sample, frame_shapes, read_data
from training.options import Recipe, TrainOptions, choose_recipe
from training.run import choose_input
from training.splits import Split, split
from training.stores import FrameStore
from training.validate import Validation
from vision.model.config import ModelConfig
from vision.preprocess import InputSpec


def _frames(root: Path, options: TrainOptions) -> TrainingFrames:
    data = read_data(root)
    parts = split(data, 0)
    recipe = choose_recipe(data, parts, options)
    config = ModelConfig("none", 64, 96, data.classes, data.good_class, recipe.reconstruction, recipe.class_map)
    return TrainingFrames(FrameStore(parts.train, InputSpec(64, 96)), config, recipe, seed=4)


def test_good_images_come_with_a_synthetic_defect_beside_them(tmp_path: Path, options: TrainOptions) -> None:
    frames = _frames(make_folder(tmp_path, train={"good": 12}), options)
    batch = join([frames[0], frames[1]])
    assert batch.frames.shape == (4, 64, 96, 3)
    assert batch.clean_row.tolist() == [0, 0, 2, 2]
    assert batch.defect.tolist() == [0, 1, 0, 1]
    assert batch.target.tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]
    assert float(batch.mask[0].sum()) == 0
    assert float(batch.mask[1].sum()) > 0
    assert not torch.equal(batch.frames[0], batch.frames[1])


def test_labels_masks_and_classes_of_labelled_defects(tmp_path: Path, options: TrainOptions) -> None:
    root = make_folder(tmp_path, train={"good": 30, "crack": 50, "fray": 6})
    frames = _frames(root, options)
    found: dict[int, Batch] = {}
    for index in range(len(frames)):
        batch = frames[index]
        found.setdefault(int(batch.target.argmax()), batch)
    assert sorted(found) == [0, 1, 2]
    assert [int(found[index].defect_class) for index in range(3)] == [-1, 0, 1]
    assert all(bool(batch.has_mask) for batch in found.values())
    assert float(found[0].mask.sum()) == 0
    assert float(found[1].mask.sum()) > 0


def test_rare_classes_come_up_more_often_than_their_share(tmp_path: Path, options: TrainOptions) -> None:
    frames = _frames(make_folder(tmp_path, train={"good": 160, "crack": 60}), options)
    drawn = [int(frames[index].target.argmax()) for index in range(len(frames))]
    share = drawn.count(1) / len(drawn)
    labels = [sample.label for sample in frames._store.samples]
    assert share > 1.2 * labels.count("crack") / len(labels)
    assert 0.85 < len(drawn) / len(labels) < 1.15


def test_an_epoch_depends_on_seed_and_number_alone(tmp_path: Path, options: TrainOptions) -> None:
    root = make_folder(tmp_path, train={"good": 10})
    one, other = _frames(root, options), _frames(root, options)
    other.set_epoch(1)
    assert not torch.equal(one[0].frames, other[0].frames)
    one.set_epoch(1)
    for index in (3, 0):
        assert torch.equal(one[index].frames, other[index].frames)
        assert torch.equal(one[index].mask, other[index].mask)


def test_a_defect_of_a_few_pixels_survives_the_resize(tmp_path: Path) -> None:
    root = make_folder(tmp_path, train={"good": 3})
    pixels = texture("large", height=640, width=960)
    pixels[100:106, 200:206] = 255
    write(root / "train" / "dot" / "d.png", pixels)
    write(root / "ground_truth" / "dot" / "d_mask.png", np.where(pixels == 255, 255, 0).astype(np.uint8))
    data = read_data(root)
    samples = [sample for sample in data.train if sample.label == "dot"]
    _, mask = FrameStore(samples, InputSpec(64, 96))[0]
    assert mask.sum() >= 1
    assert mask[10, 20] == 1


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((64, 96), (224, 320)), ((50, 350), (96, 672)), ((30, 600), (96, 736)), ((90, 90), (256, 256))],
    ids=["usual", "a strip", "a strip beyond 8:1", "square"],
)
def test_the_input_has_the_aspect_ratio_of_the_frames(
    tmp_path: Path, shape: tuple[int, int], expected: tuple[int, int]
) -> None:
    for index in range(3):
        write(tmp_path / "train" / "good" / f"{index}.png", texture(str(index), height=shape[0], width=shape[1]))
    spec = choose_input(frame_shapes(read_data(tmp_path).train, 65535), 256, 65535)
    assert (spec.height, spec.width) == expected


@pytest.mark.parametrize(
    ("side", "largest", "expected"),
    [(64, 320, 256), (288, 320, 288), (640, 320, 320), (640, 224, 224)],
    ids=["enlarged to the usual", "its own", "down to the preset's", "a preset below the usual"],
)
def test_without_a_size_the_frames_and_the_preset_choose_it(
    tmp_path: Path, side: int, largest: int, expected: int
) -> None:
    for index in range(3):
        write(tmp_path / "train" / "good" / f"{index}.png", texture(str(index), height=side, width=side))
    spec = choose_input(frame_shapes(read_data(tmp_path).train, 65535), None, 65535, largest)
    assert (spec.height, spec.width) == (expected, expected)


def test_masks_without_a_defect_pixel_and_frames_without_masks_are_told_apart(
    tmp_path: Path, options: TrainOptions
) -> None:
    root = make_folder(tmp_path, train={"good": 20, "crack": 60}, masks=False)
    write(root / "ground_truth" / "crack" / "t000_mask.png", spot_mask(at=(0, 0)))
    frames = _frames(root, options)
    rows = [frames[index] for index in range(len(frames))]
    masked = [bool(row.has_mask) for row in rows if len(row) == 1 and int(row.defect_class) == 0]
    assert 0 < sum(masked) < len(masked)


def test_rare_labels_are_drawn_more_often_and_an_epoch_is_as_long_as_the_data() -> None:
    labels = ["good"] * 90 + ["crack"] * 10
    often = draws(labels)
    assert often["crack"] == pytest.approx(3 * often["good"])
    assert sum(often[label] for label in labels) == pytest.approx(100)


def test_a_few_labelled_defects_are_shown_on_other_parts_too(tmp_path: Path, options: TrainOptions) -> None:
    frames = _frames(make_folder(tmp_path, train={"good": 40, "crack": 12, "fray": 12}), options)
    pairs = [batch for batch in (frames[index] for index in range(len(frames))) if len(batch) == 2]
    copied = [pair for pair in pairs if float(pair.target[1].sum()) > 0]
    assert 0.2 < len(copied) / len(pairs) < 0.8
    assert {int(pair.defect_class[1]) for pair in copied} == {0, 1}
    for pair in copied:
        assert pair.target[0].tolist() == [1, 0, 0]  # the good part keeps its label
        assert pair.clean_row.tolist() == [0, 0]
        assert float(pair.mask[1].max()) == 1


def test_where_the_backbone_is_trained_a_copy_takes_the_place_of_a_good_image(
    tmp_path: Path, options: TrainOptions
) -> None:
    frames = _frames(make_folder(tmp_path, train={"good": 120, "crack": 60}), options)
    labels = [sample.label for sample in frames._store.samples]
    rows: list[Batch] = []
    for epoch in range(2):
        frames.set_epoch(epoch)
        rows += [frames[index] for index in range(len(frames))]
    assert all(len(row) == 1 for row in rows)
    defects = sum(int(row.defect_class) == 0 for row in rows)
    often = shown(frames._store.samples, "good", frames._recipe.copy_paste)
    assert defects == pytest.approx(2 * often["crack"] * labels.count("crack"), rel=0.15)
    assert often["crack"] > 1.1 * draws(labels)["crack"]
    assert often["good"] == pytest.approx(0.7 * draws(labels)["good"])
    assert sum(often[label] for label in labels) == pytest.approx(len(labels))


class _Many:
    """A store of very many labelled pictures that all look alike."""

    def __init__(self, counts: dict[str, int]) -> None:
        self.samples = tuple(
            Sample(Path(f"{label}{index}.png"), label, defect_probability=float(label != "good"))
            for label, count in counts.items()
            for index in range(count)
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)

    def set_epoch(self, epoch: int) -> None:
        """The same pictures in every epoch."""


def _recipe(store: _Many, config: ModelConfig) -> Recipe:
    data = DataSet(Path(), store.samples, (), config.classes, config.good_class, 255, "")
    return choose_recipe(data, Split(store.samples, (), ()), TrainOptions())


def test_an_epoch_of_very_many_images_is_bounded_and_shows_others_each_time() -> None:
    store = _Many({"good": 9000, "crack": 400})
    config = ModelConfig("none", 64, 64, ("good", "crack"), "good", reconstruction=False, class_map=False)
    recipe = _recipe(store, config)
    frames = TrainingFrames(store, config, recipe, seed=0)
    assert len(frames) == 4096
    assert frames.left_out > 4000
    first = set(frames._order)
    labels = [store.samples[index].label for index in frames._order]
    # As often as the root of their number says: a sixth of what is shown, not a twentieth.
    assert 0.13 < labels.count("crack") / len(labels) < 0.22
    frames.set_epoch(1)
    assert len(set(frames._order) - first) > 1500


def test_validation_of_very_many_images_looks_at_all_labels() -> None:
    store = _Many({"good": 3000, "crack": 40, "fray": 1500})
    config = ModelConfig("none", 64, 64, ("good", "crack", "fray"), "good", reconstruction=False, class_map=False)
    validation = Validation(store, config, _recipe(store, config), seed=0)  # type: ignore[arg-type]
    assert np.bincount(validation._labels).tolist() == [492, 40, 492]

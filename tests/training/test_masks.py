"""The truth that pixel thresholds are chosen by, in training as in `defectlens calibrate`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.fakes import make_bundle
from tests.images import texture, write
from training.calibrating import run
from training.data import Sample
from training.masks import mask_at_input, mask_on_grid, masked_share
from training.stores import FrameStore
from vision.bundle import load_bundle
from vision.preprocess import InputSpec


def test_a_cell_counts_where_half_of_it_is_defective() -> None:
    mask = np.zeros((8, 12), np.uint8)
    mask[0:4, 0:2] = 1  # half of the first cell
    mask[0:4, 4:5] = 1  # a quarter of the second
    mask[4:8, 8:12] = 1
    assert mask_on_grid(mask, (2, 3)).tolist() == [[True, False, False], [False, False, True]]


def test_a_class_without_any_mask_counts_as_if_there_were_none() -> None:
    masked, bare = Sample(Path("a.png"), "dot", Path("m.png")), Sample(Path("b.png"), "dot")
    other = Sample(Path("c.png"), "line")
    assert masked_share([masked, masked, bare, bare]) == 0.5
    assert masked_share([masked, masked, masked, other]) == 0.0
    assert masked_share([]) == 1.0


def test_a_grid_that_does_not_divide_the_mask_counts_shares_of_pixels() -> None:
    mask = np.zeros((6, 10), np.uint8)
    mask[:, :2] = 1  # the cells are 2.5 pixels wide: 0.8 of the first column is defective
    mask[:, 5:6] = 1  # 0.4 of the third
    assert mask_on_grid(mask, (3, 4)).tolist() == [[True, False, False, False]] * 3


def test_an_empty_mask_file_marks_nothing(tmp_path: Path) -> None:
    write(tmp_path / "m.png", np.zeros((50, 70), np.uint8))
    assert not mask_at_input(tmp_path / "m.png", InputSpec(32, 64)).any()
    assert mask_at_input(None, InputSpec(32, 64)).shape == (32, 64)


def test_calibrate_judges_a_map_by_the_masks_that_training_judges_it_by(tmp_path: Path) -> None:
    """Rows at input size that are half defective count there, and so the scratch fills half of a cell of the map."""
    bundle = load_bundle(make_bundle(tmp_path / "bundle"))
    spec = bundle.manifest.input
    pixels = texture("large", height=10 * spec.height, width=10 * spec.width)
    mask = np.zeros(pixels.shape[:2], np.uint8)
    mask[15:45, 50:900] = 255
    write(tmp_path / "scratch.png", pixels)
    write(tmp_path / "scratch_mask.png", mask)
    sample = Sample(tmp_path / "scratch.png", "bright", mask=tmp_path / "scratch_mask.png", defect_probability=1.0)
    engine = bundle.engine(provider="cpu")
    found = run(engine, bundle.manifest, (sample,), with_maps=True)
    stored = FrameStore([sample], spec)[0][1]
    assert stored.any()
    (known,) = found.pixels
    assert np.array_equal(known.truth, mask_on_grid(stored, known.truth.shape))
    assert known.truth.any()
    assert not mask_on_grid(mask // 255, known.truth.shape).any(), "from the file to the grid in one step, it is lost"

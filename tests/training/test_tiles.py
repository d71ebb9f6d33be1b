"""Training on tiles: what a tile is labelled, what an epoch shows, when frames are cut, and one score everywhere."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from serving import AsyncInspectionClient, InspectionServer, Outputs, ServerSettings
from tests.images import make_folder, texture, write
from training.batches import TrainingFrames, join
from training.data import NO_DEFECT, Sample, frame_shapes, read_data
from training.evaluate import evaluate
from training.export import export_bundle
from training.masks import find_blobs
from training.options import TrainOptions, choose_recipe
from training.predictor import BundlePredictor
from training.run import Run, load_run, train_run
from training.splits import split
from training.stores import FrameStore
from training.synthesis import add_defect_in
from training.tile_choice import Survey, even_tile, plan_tiles, survey
from training.tiles import GridTiles, TileStore, shows_defect, training_store
from training.torch_engine import TorchEngine
from vision.errors import SettingsError
from vision.model.config import ModelConfig
from vision.model.tiling import TileGrid
from vision.preprocess import InputSpec

GRID = TileGrid(128, 352, 96, 128)


def _folder(root: Path, *, good: int, dots: int, masks: bool = True, side: int = 10) -> Path:
    """Frames of 352x128 px, defective ones with a bright dot."""
    for index in range(good):
        write(root / "train" / "good" / f"g{index:03d}.png", texture(f"good {index}", height=128, width=352))
    for index in range(dots):
        pixels, mask = texture(f"dot {index}", height=128, width=352), np.zeros((128, 352), np.uint8)
        top, left = 7 * (index % 16), 23 * (index % 14)
        mask[top : top + side, left : left + side] = 255
        pixels[mask > 0] = 255
        write(root / "train" / "dot" / f"d{index:03d}.png", pixels)
        if masks:
            write(root / "ground_truth" / "dot" / f"d{index:03d}_mask.png", mask)
    return root


def _store(root: Path) -> FrameStore:
    return FrameStore(read_data(root).train, InputSpec(128, 352))


def test_a_tile_is_defective_if_it_shows_enough_and_unclear_if_it_shows_a_little() -> None:
    mask = np.zeros((128, 352), np.uint8)
    mask[20:30, 60:70] = 1
    mask[100:102, 300:302] = 1  # a speck of 4 px
    blobs = find_blobs(mask)
    assert [int(blob.mask.sum()) for blob in blobs] == [100, 4]
    assert shows_defect(blobs, 0, 0, GRID) is True
    assert shows_defect(blobs, 0, 69, GRID) is None, "10 px of 100 say nothing"
    assert shows_defect(blobs, 0, 70, GRID) is False
    assert shows_defect(blobs, 32, 200, GRID) is True, "a speck that is wholly there is a defect"
    assert shows_defect(blobs, 32, 301, GRID) is True, "half of it as well"


def test_specks_of_one_defect_are_one() -> None:
    mask = np.zeros((128, 352), np.uint8)
    mask[20:24, 60:64] = mask[20:24, 70:74] = mask[90:94, 300:304] = 1
    assert [int(blob.mask.sum()) for blob in find_blobs(mask)] == [32, 16]


def test_an_epoch_shows_defects_often_good_tiles_boundedly_and_labels_what_is_there(tmp_path: Path) -> None:
    store = TileStore(_store(_folder(tmp_path, good=8, dots=10)), GRID, "good", seed=3)
    labels = Counter(sample.label for sample in store.samples)
    assert labels["dot"] == 40
    assert labels["good"] <= 20 + 8 * len(GRID)
    for index, sample in enumerate(store.samples):
        tile, mask = store[index]
        assert tile.shape == (96, 128, 3)
        assert mask.shape == (96, 128)
        assert (mask.sum() >= 16) == (sample.label == "dot"), "labels are those of the piece"
        assert (sample.mask is not None) == (sample.label == "dot")
        np.testing.assert_array_equal(tile[mask > 0], 255)
    before = [store[index][0] for index in range(20)]
    store.set_epoch(1)
    assert not all(np.array_equal(one, store[index][0]) for index, one in enumerate(before))
    store.set_epoch(0)
    assert all(np.array_equal(one, store[index][0]) for index, one in enumerate(before))


def test_without_good_frames_what_is_beside_a_defect_has_no_class(tmp_path: Path, options: TrainOptions) -> None:
    root = _folder(tmp_path, good=0, dots=12)
    for side in ("train", "ground_truth"):  # a class before it, so that the place of a class is no accident
        for path in sorted((root / side / "dot").iterdir())[:4]:
            (root / side / "box").mkdir(exist_ok=True)
            path.rename(root / side / "box" / path.name)
    data = read_data(root)
    assert (data.classes, data.good_class) == (("box", "dot"), None)
    recipe = choose_recipe(data, split(data, 0), options)
    config = ModelConfig("none", 128, 352, data.classes, None, False, recipe.class_map, tile_height=96, tile_width=128)
    store = training_store(FrameStore(data.train, InputSpec(128, 352)), config, 0, cuts=True)
    counts = Counter(sample.label for sample in store.samples)
    assert (counts["box"], counts["dot"]) == (16, 32)
    assert 12 <= counts[NO_DEFECT] <= 24
    frames = TrainingFrames(store, config, recipe, seed=0)
    batch = join([frames[index] for index in range(len(frames))])
    assert bool(batch.has_mask.all())
    shown = batch.mask.amax(dim=(1, 2)) > 0.5
    torch.testing.assert_close(batch.target.sum(dim=1), shown.float())
    torch.testing.assert_close(batch.defect_class, torch.where(shown, batch.target.argmax(dim=1), -1))
    assert Counter(batch.defect_class.tolist())[1] > Counter(batch.defect_class.tolist())[0] > 0


def test_good_frames_give_each_about_as_many_tiles_and_no_more_than_an_epoch_can_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.tiles._GOOD_TILES", 20)
    store = TileStore(_store(_folder(tmp_path, good=8, dots=0)), GRID, "good", seed=3)
    counts = Counter(sample.path for sample in store.samples)
    assert sum(counts.values()) == 20
    assert set(counts.values()) <= {2, 3}


def test_defects_without_masks_give_no_tile(tmp_path: Path, options: TrainOptions) -> None:
    data = read_data(_folder(tmp_path, good=12, dots=10, masks=False))
    recipe = choose_recipe(data, split(data, 0), options)
    config = ModelConfig(
        "none", 128, 352, data.classes, "good", recipe.reconstruction, recipe.class_map, tile_height=96, tile_width=128
    )
    frames = FrameStore(data.train, InputSpec(128, 352))
    store = training_store(frames, config, 0, cuts=True)
    assert {sample.label for sample in store.samples} == {"good"}
    batch = TrainingFrames(store, config, recipe, seed=0)[0]
    assert batch.frames.shape == (2, 96, 128, 3)
    assert training_store(frames, config, 0, cuts=False) is frames


def test_the_models_own_tiles_are_those_of_good_frames(tmp_path: Path) -> None:
    tiles = GridTiles(_store(_folder(tmp_path, good=2, dots=2)), GRID, "good")
    assert len(tiles) == 2 * len(GRID)
    assert {sample.label for sample in tiles.samples} == {"good"}


def test_synthetic_defects_are_as_large_in_a_frame_as_in_a_tile() -> None:
    rng = np.random.default_rng(0)
    frame = np.full((1024, 1024, 3), 128, np.uint8)
    for _ in range(10):
        damaged, mask = add_defect_in(frame, frame, rng, (128, 128))
        assert 0 < mask.sum() <= 0.2 * 128 * 128
        assert (damaged[mask == 0] != 128).mean() < 0.02


ONE = InputSpec(256, 256)


@pytest.mark.parametrize(
    ("asked", "found", "few", "frame", "tile"),
    [
        ("auto", Survey(1024, 1024, 80.0, 1.0), False, (256, 256), None),  # seen in one input
        ("auto", Survey(1024, 1024, 10.0, 1.0), False, (832, 832), (320, 320)),
        ("auto", Survey(1024, 1024, 10.0, 0.2), False, (256, 256), None),  # image labels
        ("auto", Survey(400, 400, None, 1.0), True, (256, 256), None),
        ("auto", Survey(1024, 1280, None, 1.0), True, (256, 256), None),  # nothing says how small a defect is
        ("off", Survey(4096, 4096, 10.0, 1.0), False, (256, 256), None),
        ("128", Survey(256, 1600, 10.0, 1.0), False, (256, 1600), (128, 128)),
        ("256", Survey(256, 1600, 10.0, 1.0), False, (256, 1600), (256, 256)),
        ("512", Survey(400, 400, None, 1.0), True, (384, 384), None),
        ("480", Survey(3648, 5472, 10.0, 1.0), False, (3648, 5472), (480, 480)),  # 20 megapixels
        ("512", Survey(10000, 10000, None, 1.0), True, (4576, 4576), (480, 480)),
    ],
)
def test_frames_are_cut_where_one_input_is_not_enough(
    asked: str, found: Survey, few: bool, frame: tuple[int, int], tile: tuple[int, int] | None
) -> None:
    plan = plan_tiles(asked, ONE, found, few_labels=few)
    assert (plan.spec.height, plan.spec.width) == frame
    assert plan.tile == tile
    assert plan.cuts == (tile is not None)
    assert plan.why


@pytest.mark.parametrize(
    ("frame", "smallest", "says"),
    [
        ((1024, 1024), 10.0, None),
        (
            (2000, 2000),
            10.0,
            r"are 5.1 px then, and easily missed: `--tile 384` shows them at 9.9 px and takes 3.8 times the time",
        ),
        (
            (4472, 4472),
            10.0,
            r"are 2.3 px then, .* shows them at 10.0 px and takes 19.1 times the time and memory a frame$",
        ),
        ((4472, 4472), 5.0, r"are 1.1 px then, .* shows them at 5.0 px .*, a camera that sees less"),
        ((144, 1000), 5.0, r"are 4.7 px then, and easily missed: a camera that sees less of the part"),
    ],
)
def test_defects_that_are_too_small_in_tiles_as_well_are_said_to_be(
    frame: tuple[int, int], smallest: float, says: str | None
) -> None:
    why = plan_tiles("auto", ONE, Survey(*frame, smallest, 1.0), few_labels=False).why
    assert " tiles of " in why
    assert re.search(says, why) if says else "missed" not in why, why


def test_frames_that_train_whole_stay_smaller() -> None:
    plan = plan_tiles("512", ONE, Survey(10000, 10000, None, 0.0), few_labels=False)
    assert (plan.spec.height, plan.spec.width, plan.cuts) == (2048, 2048, False)


def test_a_size_that_is_asked_for_is_kept() -> None:
    found = Survey(1024, 1024, 10.0, 1.0)
    for asked, tile in (("auto", None), ("128", (128, 128))):
        plan = plan_tiles(asked, ONE, found, few_labels=False, size_asked=True)
        assert (plan.spec, plan.tile) == (ONE, tile)


def test_tiles_are_even_and_no_larger_than_asked() -> None:
    for side in range(64, 2100, 32):
        for most in (128, 256, 384):
            tile = even_tile(side, most)
            assert tile == side or (tile <= most and len(TileGrid(64, side, 64, tile)) * (most - 64) < side + most)


def test_wide_frames_are_cut_along_their_long_side_alone() -> None:
    plan = plan_tiles("auto", InputSpec(96, 640), Survey(256, 1600, 8.0, 1.0), few_labels=False)
    assert plan.tile is not None
    assert plan.tile[0] == plan.spec.height == 256
    assert 1.4 < 1600 / plan.spec.width * plan.spec.height / 256 < 1.6 or plan.spec.width == 1600


@pytest.mark.parametrize("asked", ["nonsense", "64", "4096", "-5", ""])
def test_impossible_tiles_are_refused(asked: str) -> None:
    with pytest.raises(SettingsError, match=r"--tile takes auto, off, or the most px"):
        TrainOptions(tile=asked)


def test_a_survey_sees_sizes_and_the_smallest_defects(tmp_path: Path) -> None:
    samples = read_data(_folder(tmp_path, good=5, dots=6)).train
    found = survey(samples, "good", frame_shapes(samples, 65535))
    assert found == Survey(128, 352, 10.0, 1.0)
    nothing = Sample(tmp_path / "train" / "good" / "g000.png", "good")
    assert survey([nothing], "good", frame_shapes([nothing], 65535)).smallest is None


def _tiled_run(root: Path, options: TrainOptions, *, good: int, dots: int, masks: bool = True, epochs: int = 1) -> Run:
    data = read_data(_folder(root / "data", good=good, dots=dots, masks=masks))
    return train_run(data, replace(options, size=None, tile="128", epochs=epochs), root / "run", resume=False)


@pytest.mark.slow
def test_good_frames_alone_train_a_tiled_model_that_loads_again(
    tmp_path: Path, options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.tiles._GOOD_TILES", 16)
    run = _tiled_run(tmp_path, options, good=16, dots=0)
    assert run.detector.config.tiles == TileGrid(128, 352, 128, 128)
    assert "128 x 128 px" in run.manifest.provenance["input"]
    assert run.detector.subspace is not None
    assert float(run.detector.subspace.basis0.abs().sum()) > 0  # type: ignore[operator, union-attr]
    frames = torch.from_numpy(run.golden[:1])
    with torch.no_grad():
        one, other = run.detector.eval()(frames), load_run(tmp_path / "run").detector.eval()(frames)
    torch.testing.assert_close(one.anomaly_map, other.anomaly_map)


@pytest.mark.slow
async def test_defects_alone_show_where_they_are_in_torch_report_overlay_and_reply(
    tmp_path: Path, options: TrainOptions
) -> None:
    """Through tiles, with a map and no score."""
    run = _tiled_run(tmp_path, options, good=0, dots=48, epochs=6)
    assert run.detector.config.tiles is not None
    assert "places from the masks" in run.manifest.provenance["recipe"]
    bundle = export_bundle(run, tmp_path / "bundle")
    data = read_data(tmp_path / "data")
    report = evaluate(BundlePredictor(bundle, "cpu"), data, data.train[:8], tmp_path / "report")
    assert report["pixel_ap"] > 0.5
    assert report["image_auroc"] is None
    threshold = bundle.manifest.operating_point.pixel_threshold
    assert f"pixels from {threshold:.4g} (raw logit of a defect)" in (tmp_path / "report" / "report.html").read_text()
    settings = ServerSettings(bundle=bundle.path, address="127.0.0.1:0", threads=1)
    wanted = Outputs(anomaly_map=True, class_map=True, overlay=True)
    async with InspectionServer(settings) as server, AsyncInspectionClient(server.address) as client:
        reply = await client.inspect(data.train[0].path.read_bytes(), outputs=wanted)
    found = reply.inspection
    assert found.anomaly_score is None
    assert found.anomaly_map is not None
    assert found.regions[0].label == "dot"
    assert cv2.imdecode(np.frombuffer(reply.overlay_jpeg, np.uint8), cv2.IMREAD_COLOR) is not None


@pytest.mark.slow
def test_defects_without_masks_train_through_the_whole_frame(tmp_path: Path, options: TrainOptions) -> None:
    run = _tiled_run(tmp_path, options, good=12, dots=48, masks=False)
    assert run.detector.config.tiles is not None
    assert np.isfinite(run.figures["validation"])


@pytest.mark.slow
async def test_torch_bundle_engines_and_server_give_one_score_for_tiled_frames(
    tmp_path: Path, options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So few check frames need no synthetic defects beside the eight real ones: after two epochs of dots a synthetic one
    # may score like a good frame, and int8 then changes their order.
    monkeypatch.setattr("training.probes._CHECK_FRAMES", 16)
    run = _tiled_run(tmp_path, options, good=16, dots=60, epochs=2)
    assert run.probes is not None
    assert int(run.probes.is_defect.sum()) == 8
    bundle = export_bundle(run, tmp_path / "bundle", quantize=["int8"])
    reference = TorchEngine(run.detector)
    for provider, precision in (("cpu", "fp32"), ("openvino", "fp32")):
        engine = bundle.engine(provider=provider, precision=precision)
        for size in (1, 2, 5):
            frames = run.golden[np.arange(size) % len(run.golden)]
            expected, got = reference.run(frames), engine.run(frames)
            np.testing.assert_allclose(got.anomaly_score, expected.anomaly_score, atol=1e-3)
            np.testing.assert_allclose(got.anomaly_map, expected.anomaly_map, atol=1e-2)
            rest = got.class_logits - got.saliency_map.sum(axis=(2, 3))
            np.testing.assert_allclose(rest, np.broadcast_to(run.detector.readout.bias.detach(), rest.shape), atol=1e-3)
    told = bundle.manifest.explanations
    assert told is not None
    assert told.top_share == pytest.approx(0.01 * 128 * 128 / (128 * 352))
    settings = ServerSettings(bundle=bundle.path, address="127.0.0.1:0", threads=1)
    samples = read_data(tmp_path / "data").train[:3] + read_data(tmp_path / "data").train[-3:]
    async with InspectionServer(settings) as server, AsyncInspectionClient(server.address) as client:
        for sample in samples:
            reply = await client.inspect(sample.path.read_bytes())
            frame = FrameStore([sample], run.manifest.input)[0][0]
            outputs = reference.run(frame[None])
            assert reply.inspection.anomaly_score == pytest.approx(float(outputs.anomaly_score[0]), abs=1e-4)
            assert (reply.inspection.frame_height, reply.inspection.frame_width) == (128, 352)


def test_large_frames_go_in_smaller_batches() -> None:
    assert InputSpec(256, 256).most_frames(8) == 8
    assert InputSpec(2048, 2048).most_frames(8) == 2
    assert InputSpec(4096, 4096).most_frames(8) == 1
    assert InputSpec(4096, 4096).goes_alone
    assert not InputSpec(2048, 2048).goes_alone


def test_a_tiled_model_takes_more_tiles_than_frames_at_a_time() -> None:
    whole = ModelConfig("none", 2048, 2048, ("good", "dot"), "good", True, True)
    tiled = replace(whole, height=4096, tile_height=256, tile_width=2048)
    assert (whole.inference_batch, whole.inference_piece_batch) == (2, 2)
    assert (tiled.inference_batch, tiled.inference_piece_batch) == (1, 16)


@pytest.mark.slow
def test_a_folder_of_small_frames_is_not_tiled(tmp_path: Path, options: TrainOptions) -> None:
    root = make_folder(tmp_path / "data", train={"good": 24})
    run = train_run(read_data(root), replace(options, size=None, epochs=1), tmp_path / "run", resume=False)
    assert run.detector.config.tiles is None

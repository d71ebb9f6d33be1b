"""Frames cut into tiles and stitched: nothing lost, nothing added, no seam, and one frame in one piece as before."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.vision.test_model import VARIANTS, frames
from vision.errors import SettingsError
from vision.explanations import score_shares
from vision.model.detector import Detector
from vision.model.tiling import TileGrid, Tiling, blend_shares
from vision.postprocess import find_regions

# Wide, high, and of odd numbers of tiles; as (frame height, frame width, tile height, tile width).
GRIDS = [(96, 128, 96, 128), (64, 416, 64, 160), (352, 96, 128, 96), (224, 320, 96, 128), (288, 288, 224, 160)]
LARGE = {name: replace(config, height=224, width=320) for name, config in VARIANTS.items()}
TILED = {name: replace(config, tile_height=96, tile_width=128) for name, config in LARGE.items()}


def _made(config: object) -> Detector:
    torch.manual_seed(0)
    return Detector(config).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("sides", GRIDS)
def test_tiles_cover_the_frame_overlap_and_are_stitched_to_what_they_were_cut_from(
    sides: tuple[int, int, int, int],
) -> None:
    grid = TileGrid(*sides)
    for starts, tile, side in ((grid.tops, sides[2], sides[0]), (grid.lefts, sides[3], sides[1])):
        assert (starts[0], starts[-1] + tile) == (0, side)
        assert all(start % 32 == 0 for start in starts)
        assert all(later - earlier <= tile - 32 for earlier, later in pairwise(starts))
    tiling = Tiling(grid)
    for stride in (4, 8, 16):
        maps = torch.randn(2, 3, sides[0] // stride, sides[1] // stride)
        pixels = torch.nn.functional.interpolate(maps, scale_factor=stride).permute(0, 2, 3, 1)
        tiles = tiling.cut(pixels)
        assert tiles.shape == (2 * len(grid), sides[2], sides[3], 3)
        pieces = tiles[:, ::stride, ::stride].permute(0, 3, 1, 2)
        torch.testing.assert_close(tiling.stitch(pieces), maps)
        torch.testing.assert_close(tiling.stitch(torch.ones_like(pieces)), torch.ones_like(maps))


def test_a_tile_counts_the_less_the_nearer_its_edge_is() -> None:
    shares = blend_shares([0, 6, 12], 8, 20)
    torch.testing.assert_close(shares[0, :6], torch.ones(6))
    assert shares[0, 6] > shares[1, 0] > 0.0
    assert shares[1, 7] < shares[2, 1]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_grid_of_one_tile_is_a_frame_in_one_piece(name: str) -> None:
    config = VARIANTS[name]
    whole, tiled = _made(config), _made(replace(config, tile_height=config.height, tile_width=config.width))
    assert tiled.tiling is not None
    with torch.no_grad():
        for one, other in zip(whole(frames(2))[:7], tiled(frames(2))[:7], strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                assert torch.equal(one, other)
    assert tiled.top_share == whole.top_share


@pytest.mark.parametrize("name", ["everything", "sparse mixer", "no good class", "masks of defects alone"])
def test_tiled_frames_have_one_answer_that_adds_up_in_any_batch(name: str) -> None:
    detector = _made(TILED[name])
    batch = frames(3, 224, 320)
    with torch.no_grad():
        together, alone = detector(batch), detector(batch[1:2])
    count = len(detector.config.classes)
    torch.testing.assert_close(together.saliency_map.sum(dim=(2, 3)) + detector.readout.bias, together.class_logits)
    torch.testing.assert_close(together.attention_map.sum(dim=(2, 3)), torch.ones(3, count))
    for one, other in zip(alone[:7], together[:7], strict=True):
        if one is not None:
            torch.testing.assert_close(one[0], other[1], atol=1e-4, rtol=1e-4)
    if together.anomaly_score is not None:
        shares = score_shares(together.anomaly_map[0].numpy(), detector.top_share)
        assert (shares > 0).sum() == round(0.01 * 24 * 32), "as many cells as of one tile"
        score = float((shares * together.anomaly_map[0].numpy()).sum())
        assert score == pytest.approx(float(together.anomaly_score[0]), abs=1e-4)


def test_what_lies_in_one_tile_alone_is_what_that_tile_says() -> None:
    """The middle of a tile that no other reaches: maps there are those of the tile by itself."""
    detector = _made(replace(VARIANTS["everything"], height=96, width=320, tile_height=96, tile_width=192))
    frame = frames(1, 96, 320)
    with torch.no_grad():
        whole = detector(frame).mask_logits
        alone = detector.read(detector.backbone(frame[:, :, :192])).mask_logits
    torch.testing.assert_close(whole[..., :32], alone[..., :32], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(whole[..., 34:48], alone[..., 34:48], atol=1e-5), "there it is blended with the next one"


def test_a_defect_on_a_seam_is_one_region_and_an_even_frame_has_none() -> None:
    """The mask of tiles whose every pixel speaks for itself, cut through a defect by four tiles."""
    tiling = Tiling(TileGrid(224, 320, 96, 128))
    frame = torch.full((1, 224, 320, 1), -4.0)
    frame[:, 72:96, 112:136] = 4.0  # rows 64..96 and columns 64..128 are shared by tiles
    stitched = tiling.stitch(tiling.cut(frame)[:, ::4, ::4].permute(0, 3, 1, 2))[0, 0].numpy()
    regions = find_regions(stitched, 0.0, 224, 320)
    assert len(regions) == 1
    assert abs(regions[0].area_px - 24 * 24) < 80
    even = tiling.stitch(torch.full((len(tiling.grid), 1, 24, 32), -4.0))
    assert float(np.ptp(even.numpy())) < 1e-5


def test_a_small_defect_is_not_drowned_by_a_large_frame() -> None:
    """The class read off a defect must not depend on how much good surface is around it."""
    readout = _made(TILED["masks"]).readout
    values = torch.full((1, 3, 6, 8), -3.0)
    values[0, 1, 2, 3] = 5.0
    logits: list[float] = []
    for repeats, area in ((1, 1.0), (16, 16.0), (16, 1.0)):
        mask = torch.full((1, 24, 32), -6.0)
        mask[0, 10:12, 14:16] = 6.0
        wide = torch.cat([mask] + [torch.full_like(mask, -6.0)] * (repeats - 1), dim=2)
        scores = torch.zeros(1, 3, 6, 8 * repeats)
        spread = torch.cat([values] + [torch.full_like(values, -3.0)] * (repeats - 1), dim=3)
        logits.append(float(readout.gather(scores, spread, wide, area)[0][0, 1].detach()))
    assert logits[1] == pytest.approx(logits[0], rel=0.05)
    assert logits[2] < 0.8 * logits[0]


@pytest.mark.slow
def test_gradients_go_through_all_tiles_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = frames(2, 224, 320)
    gradients = []
    for pixels in (2**30, 1):
        monkeypatch.setattr("vision.model.tiling._CHUNK_PIXELS", pixels)
        detector = _made(TILED["masks"])  # in evaluation mode: batch statistics would be those of a chunk
        outputs = detector(batch)
        (outputs.class_logits.sum() + outputs.mask_logits.square().mean()).backward()
        gradients.append({name: value.grad for name, value in detector.named_parameters()})
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], atol=1e-4, rtol=1e-3)


def test_impossible_tiles_say_what_is_wrong() -> None:
    with pytest.raises(SettingsError, match="larger than the frame's 96 px"):
        replace(VARIANTS["masks"], tile_height=128, tile_width=128)
    with pytest.raises(SettingsError, match="both sides or none; got 96x0"):
        replace(VARIANTS["masks"], tile_height=96)
    with pytest.raises(SettingsError, match="must be larger; got 64 px"):
        TileGrid(96, 96, 64, 96)
    with pytest.raises(SettingsError, match="multiples of 32 px"):
        TileGrid(96, 100, 96, 96)

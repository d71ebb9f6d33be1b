from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from serving.maps import (
    decode_map,
    encode_map,
    encoded_size,
    mask_to_polygon,
    mask_to_runs,
    polygon_to_mask,
    runs_to_mask,
)
from serving.messages import MapFormat
from vision.errors import TruncatedImageError
from vision.postprocess import resize_map
from vision.types import Box

GRID = np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32)


def test_float_maps_come_back_exactly() -> None:
    encoded = encode_map(GRID, MapFormat.FLOAT32_GRID, 70, 90)
    np.testing.assert_array_equal(decode_map(encoded), GRID)
    assert len(encoded.data) == encoded_size(GRID, 70, 90, MapFormat.FLOAT32_GRID)
    encoded = encode_map(GRID, MapFormat.FLOAT32_FRAME, 70, 90)
    np.testing.assert_array_equal(decode_map(encoded), resize_map(GRID, 70, 90))
    assert len(encoded.data) == encoded_size(GRID, 70, 90, MapFormat.FLOAT32_FRAME)


def test_png16_is_exact_to_half_a_step() -> None:
    encoded = encode_map(GRID, MapFormat.PNG16_FRAME, 70, 90)
    np.testing.assert_allclose(decode_map(encoded), resize_map(GRID, 70, 90), atol=encoded.scale * 0.51)
    assert len(encoded.data) < encoded_size(GRID, 70, 90, MapFormat.PNG16_FRAME)


def test_a_flat_png16_map_keeps_its_value() -> None:
    encoded = encode_map(np.full((3, 4), 0.25, np.float32), MapFormat.PNG16_FRAME, 6, 8)
    np.testing.assert_array_equal(decode_map(encoded), np.full((6, 8), 0.25, np.float32))


def test_a_damaged_png_map_is_an_error() -> None:
    encoded = encode_map(GRID, MapFormat.PNG16_FRAME, 70, 90)
    broken = type(encoded)(b"\x89PNG", 90, 70, MapFormat.PNG16_FRAME, 1.0, 0.0)
    with pytest.raises(TruncatedImageError):
        decode_map(broken)


@given(arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
@settings(max_examples=60)
def test_runs_give_the_mask_back(mask: np.ndarray) -> None:
    runs = mask_to_runs(mask)
    box = Box(3, 4, mask.shape[1], mask.shape[0])
    np.testing.assert_array_equal(runs_to_mask(runs, box), mask)
    assert all(run > 0 for run in runs[1:])


def test_a_polygon_gives_back_a_mask_without_holes() -> None:
    rows, columns = np.mgrid[:40, :50]
    mask = (rows - 20) ** 2 / 400 + (columns - 25) ** 2 / 625 <= 1
    box = Box(100, 200, 50, 40)
    points = mask_to_polygon(mask, box)
    assert min(points[::2]) == 100
    assert min(points[1::2]) == 200
    np.testing.assert_array_equal(polygon_to_mask(points, box), mask)
    holed = mask.copy()
    holed[18:22, 20:30] = False
    np.testing.assert_array_equal(polygon_to_mask(mask_to_polygon(holed, box), box), mask)

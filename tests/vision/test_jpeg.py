from __future__ import annotations

from io import BytesIO
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vision.errors import ImageError, ImageTooLargeError, TruncatedImageError
from vision.jpeg import decode_jpeg
from vision.preprocess import InputSpec, decode_for, decode_image, to_model_input

SPEC = InputSpec(64, 96)


def photo(height: int, width: int) -> NDArray[np.uint8]:
    """Shapes and grain, so that every block has something to compress; uint8 ``[H, W, 3]``."""
    rng = np.random.default_rng(0)
    shapes = cv2.resize(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8), (width, height))
    return np.clip(shapes.astype(np.int16) + rng.integers(-9, 10, shapes.shape), 0, 255).astype(np.uint8)


def jpeg(pixels: NDArray[np.uint8], **options: Any) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **{"quality": 90, **options})
    return stream.getvalue()


KINDS: list[dict[str, Any]] = [
    {"subsampling": 0},
    {"subsampling": 1},
    {"subsampling": 2},
    {"progressive": True},
    {"keep_rgb": True},
    {"restart_marker_blocks": 4},
]


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (97, 131)])
def test_the_pixels_are_those_of_opencv(options: dict[str, Any], size: tuple[int, int]) -> None:
    data = jpeg(photo(*size), **options)
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decode_image(data), bgr[:, :, ::-1])


def test_so_are_grey_ones() -> None:
    data = jpeg(photo(97, 131)[:, :, 0])
    np.testing.assert_array_equal(decode_image(data), cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))


@pytest.mark.parametrize("size", [(7, 9), (97, 131)])
def test_so_are_those_of_four_inks(size: tuple[int, int]) -> None:
    stream = BytesIO()
    Image.fromarray(photo(*size)).convert("CMYK").save(stream, "JPEG")
    data = stream.getvalue()
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(decode_image(data), expected)
    with pytest.raises(ImageError):
        decode_image(data[: len(data) - 300] + b"\xff\xd9")


@pytest.mark.parametrize("options", KINDS)
def test_bytes_lost_inside_are_noticed(options: dict[str, Any]) -> None:
    data = jpeg(photo(240, 320), **options)
    with pytest.raises(ImageError, match=r"damaged .* send the complete file again"):
        decode_image(data[: len(data) // 2] + data[len(data) // 2 + 2000 :])


def test_a_block_of_zeros_is_noticed_where_restart_markers_tell_where_rows_begin() -> None:
    data = bytearray(jpeg(photo(240, 320), restart_marker_rows=1))
    data[len(data) // 2 : len(data) // 2 + 1500] = bytes(1500)
    with pytest.raises(ImageError, match="damaged"):
        decode_image(bytes(data))


def test_rows_missing_before_the_end_marker_count_as_truncated() -> None:
    data = jpeg(photo(240, 320))
    with pytest.raises(TruncatedImageError, match="premature end"):
        decode_image(data[: len(data) // 2] + b"\xff\xd9")


def test_libjpegs_own_reading_of_the_size_is_held_to_the_limit() -> None:
    with pytest.raises(ImageTooLargeError, match="131x97"):
        decode_jpeg(jpeg(photo(97, 131)), max_pixels=97 * 131 - 1)


@pytest.mark.parametrize(
    ("size", "factor"),
    [((255, 384), 1), ((256, 383), 1), ((256, 384), 2), ((511, 768), 2), ((513, 769), 4), ((3000, 4000), 8)],
)
def test_the_scale_leaves_twice_the_input(size: tuple[int, int], factor: int) -> None:
    height, width = size
    frame, whole = decode_for(jpeg(photo(height, width)), SPEC)
    assert whole == size
    assert frame.shape == (-(-height // factor), -(-width // factor), 3)


@pytest.mark.parametrize("grey", [False, True])
def test_the_models_input_hardly_changes(grey: bool) -> None:
    pixels = photo(600, 900)
    data = jpeg(pixels[:, :, 0] if grey else pixels)
    reduced, _ = decode_for(data, SPEC)
    assert reduced.shape[0] == 150
    full = to_model_input(decode_image(data), SPEC)
    difference = np.abs(to_model_input(reduced, SPEC).astype(int) - full.astype(int))
    assert difference.mean() < 1
    assert difference.max() < 16


def test_only_jpegs_are_reduced() -> None:
    data = cv2.imencode(".png", photo(600, 900))[1].tobytes()
    frame, whole = decode_for(data, SPEC)
    assert frame.shape[:2] == whole == (600, 900)


def test_damage_is_noticed_at_a_reduced_scale_too() -> None:
    data = jpeg(photo(600, 900))
    with pytest.raises(ImageError, match="damaged"):
        decode_for(data[: len(data) // 2] + data[len(data) // 2 + 4000 :], SPEC)

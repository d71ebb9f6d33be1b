from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision.errors import EmptyRequestError, ImageTooLargeError, RawSizeError
from vision.preprocess import PixelFormat, decode_raw

BYTES = {
    PixelFormat.MONO8: 1,
    PixelFormat.MONO12: 2,
    PixelFormat.MONO16: 2,
    PixelFormat.BAYER_RG8: 1,
    PixelFormat.RGB8: 3,
    PixelFormat.BGR8: 3,
}
sizes = st.tuples(st.integers(2, 12), st.integers(2, 12), st.integers(0, 9), st.sampled_from(list(PixelFormat)))


def even(padding: int, pixel_format: PixelFormat) -> int:
    return padding * 2 if BYTES[pixel_format] == 2 else padding


@given(size=sizes, last_row_padded=st.booleans())
def test_every_fitting_size_is_read(size: tuple[int, int, int, PixelFormat], last_row_padded: bool) -> None:
    width, height, padding, pixel_format = size
    row = width * BYTES[pixel_format]
    stride = row + even(padding, pixel_format)
    data = bytes(stride * height if last_row_padded else stride * (height - 1) + row)
    frame = decode_raw(data, width=width, height=height, stride=stride, pixel_format=pixel_format)
    assert frame.shape[:2] == (height, width)
    assert frame.dtype == np.uint8
    assert frame.ndim == (2 if "MONO" in pixel_format.name else 3)


@given(size=sizes, missing=st.integers(1, 500))
def test_too_few_bytes_are_refused(size: tuple[int, int, int, PixelFormat], missing: int) -> None:
    width, height, padding, pixel_format = size
    row = width * BYTES[pixel_format]
    stride = row + even(padding, pixel_format)
    data = bytes(max(1, stride * (height - 1) + row - missing))
    with pytest.raises(RawSizeError, match="check width, height, stride and pixel format"):
        decode_raw(data, width=width, height=height, stride=stride, pixel_format=pixel_format)


@given(size=sizes, extra=st.integers(1, 500))
def test_too_many_bytes_are_refused(size: tuple[int, int, int, PixelFormat], extra: int) -> None:
    width, height, padding, pixel_format = size
    stride = width * BYTES[pixel_format] + even(padding, pixel_format)
    with pytest.raises(RawSizeError, match=f"got {stride * height + extra} bytes"):
        decode_raw(bytes(stride * height + extra), width=width, height=height, stride=stride, pixel_format=pixel_format)


@given(
    width=st.integers(-5, 40),
    height=st.integers(-5, 40),
    stride=st.integers(-5, 90),
    length=st.integers(0, 4000),
    pixel_format=st.sampled_from(list(PixelFormat)),
)
def test_any_numbers_give_a_frame_or_our_error(
    width: int, height: int, stride: int, length: int, pixel_format: PixelFormat
) -> None:
    try:
        frame = decode_raw(bytes(length), width=width, height=height, stride=stride, pixel_format=pixel_format)
    except (RawSizeError, EmptyRequestError):
        return
    assert frame.shape[:2] == (height, width)


def test_padding_is_left_out() -> None:
    data = bytes([1, 2, 3, 99, 4, 5, 6])
    frame = decode_raw(data, width=3, height=2, stride=4, pixel_format=PixelFormat.MONO8)
    np.testing.assert_array_equal(frame, [[1, 2, 3], [4, 5, 6]])


def test_a_stride_of_zero_means_no_padding() -> None:
    frame = decode_raw(bytes(range(6)), width=3, height=2, stride=0, pixel_format=PixelFormat.MONO8)
    np.testing.assert_array_equal(frame, [[0, 1, 2], [3, 4, 5]])


def test_a_stride_narrower_than_a_row() -> None:
    with pytest.raises(RawSizeError, match="a stride of at least 9"):
        decode_raw(bytes(18), width=3, height=2, stride=8, pixel_format=PixelFormat.RGB8)


def test_two_byte_formats() -> None:
    data = np.array([[0, 2048, 4095]], "<u2").tobytes()
    twelve = decode_raw(data, width=3, height=1, stride=0, pixel_format=PixelFormat.MONO12)
    np.testing.assert_array_equal(twelve, [[0, 128, 255]])
    sixteen = decode_raw(data, width=3, height=1, stride=0, pixel_format=PixelFormat.MONO16)
    np.testing.assert_array_equal(sixteen, [[0, 8, 16]])
    scaled = decode_raw(data, width=3, height=1, stride=0, pixel_format=PixelFormat.MONO16, white_level=4095)
    np.testing.assert_array_equal(scaled, twelve)


def test_two_byte_formats_need_an_even_stride() -> None:
    with pytest.raises(RawSizeError, match="even stride; got 5"):
        decode_raw(bytes(9), width=2, height=2, stride=5, pixel_format=PixelFormat.MONO16)


def test_colour_orders() -> None:
    data = bytes([10, 20, 30] * 4)
    rgb = decode_raw(data, width=2, height=2, stride=6, pixel_format=PixelFormat.RGB8)
    bgr = decode_raw(data, width=2, height=2, stride=6, pixel_format=PixelFormat.BGR8)
    assert rgb[0, 0].tolist() == [10, 20, 30]
    assert bgr[0, 0].tolist() == [30, 20, 10]


def test_bayer_red_comes_first() -> None:
    """BAYER_RG8: red at even rows and columns, blue at odd ones."""
    mosaic = np.zeros((8, 8), np.uint8)
    mosaic[0::2, 0::2] = 200
    frame = decode_raw(mosaic.tobytes(), width=8, height=8, stride=8, pixel_format=PixelFormat.BAYER_RG8)
    assert frame[2:6, 2:6, 0].min() == 200
    assert frame[..., 1:].max() == 0


def test_a_bayer_frame_of_one_row() -> None:
    with pytest.raises(RawSizeError, match="at least 2x2"):
        decode_raw(bytes(8), width=8, height=1, stride=8, pixel_format=PixelFormat.BAYER_RG8)


def test_empty_and_too_large() -> None:
    with pytest.raises(EmptyRequestError):
        decode_raw(b"", width=1, height=1, stride=1, pixel_format=PixelFormat.MONO8)
    with pytest.raises(ImageTooLargeError, match="100000x100000"):
        decode_raw(b"x", width=100_000, height=100_000, stride=0, pixel_format=PixelFormat.MONO8)


def test_a_memoryview_is_read_without_a_copy() -> None:
    data = memoryview(bytearray(range(12)))
    frame = decode_raw(data, width=4, height=3, stride=4, pixel_format=PixelFormat.MONO8)
    assert np.shares_memory(frame, np.frombuffer(data, np.uint8))
    assert not frame.flags.writeable

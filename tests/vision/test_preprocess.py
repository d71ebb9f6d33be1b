from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from vision import preprocess
from vision.errors import (
    DefectLensError,
    EmptyRequestError,
    ImageError,
    ImageTooLargeError,
    NotAnImageError,
    TruncatedImageError,
    UnsupportedFormatError,
)
from vision.preprocess import InputSpec, decode_image, to_model_input

LOSSLESS = ("PNG", "BMP", "TIFF")
OTHERS = ("JPEG", "WEBP")


def picture(height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """Smooth colours, so that lossy formats stay close."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1).astype(np.uint8)


def encode(pixels: NDArray[np.generic], file_format: str, **options: object) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, file_format, **options)
    return stream.getvalue()


@pytest.mark.parametrize("file_format", LOSSLESS)
def test_lossless_colour(file_format: str) -> None:
    np.testing.assert_array_equal(decode_image(encode(picture(), file_format)), picture())


@pytest.mark.parametrize("file_format", OTHERS)
def test_lossy_colour(file_format: str) -> None:
    frame = decode_image(encode(picture(), file_format, quality=95))
    assert np.abs(frame.astype(int) - picture()).max() < 40
    assert np.abs(frame.astype(int) - picture()).mean() < 4


@pytest.mark.parametrize("file_format", [*LOSSLESS, "JPEG"])
def test_grey_stays_grey(file_format: str) -> None:
    frame = decode_image(encode(picture()[:, :, 0], file_format))
    assert frame.shape == (48, 64)
    assert frame.dtype == np.uint8


@pytest.mark.parametrize(("file_format", "opacity"), [("PNG", 200), ("WEBP", 200), ("TIFF", 255)])
def test_alpha_is_dropped(file_format: str, opacity: int) -> None:
    alpha = np.full((48, 64, 1), opacity, np.uint8)
    frame = decode_image(encode(np.concatenate([picture(), alpha], -1), file_format, lossless=True))
    np.testing.assert_array_equal(frame, picture())


def test_grey_with_alpha() -> None:
    stream = BytesIO()
    Image.fromarray(picture()).convert("LA").save(stream, "PNG")
    assert decode_image(stream.getvalue()).ndim in {2, 3}


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_by_the_white_level(file_format: str) -> None:
    values = np.array([[0, 257, 4095, 65535]], np.uint16).repeat(4, axis=0)
    data = encode(values, file_format)
    np.testing.assert_array_equal(decode_image(data)[0], [0, 1, 16, 255])
    np.testing.assert_array_equal(decode_image(data, white_level=4095)[0], [0, 16, 255, 255])


def test_sixteen_bit_colour() -> None:
    values = picture().astype(np.uint16) * 257
    data = cv2.imencode(".png", values[:, :, ::-1])[1].tobytes()
    np.testing.assert_array_equal(decode_image(data), picture())


@pytest.mark.parametrize(("mode", "file_format"), [("1", "PNG"), ("P", "PNG"), ("P", "BMP"), ("CMYK", "JPEG")])
def test_rarer_pixel_layouts(mode: str, file_format: str) -> None:
    stream = BytesIO()
    Image.fromarray(picture()).convert(mode).save(stream, file_format)
    frame = decode_image(stream.getvalue())
    assert frame.shape[:2] == (48, 64)
    assert frame.dtype == np.uint8


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_exif_orientation_is_ignored_so_that_masks_fit(file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encode(picture(), file_format, exif=exif)).shape == (48, 64, 3)


@pytest.mark.parametrize("options", [{"progressive": True}, {"optimize": True}, {"quality": 30}])
def test_kinds_of_jpeg(options: dict[str, object]) -> None:
    data = encode(picture(), "JPEG", **options)
    assert decode_image(data).shape == (48, 64, 3)
    assert decode_image(data + bytes(2000)).shape == (48, 64, 3)


@pytest.mark.parametrize("file_format", [*LOSSLESS, *OTHERS])
@pytest.mark.parametrize("keep", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_truncated(file_format: str, keep: float) -> None:
    data = encode(picture(240, 320), file_format)
    with pytest.raises(TruncatedImageError, match="send the complete file"):
        decode_image(data[: int(len(data) * keep)])


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "packbits"])
def test_truncated_tiff_whose_directory_comes_first(compression: str | None) -> None:
    data = encode(picture(), "TIFF", compression=compression)
    with pytest.raises(TruncatedImageError):
        decode_image(data[:-20])


def test_truncated_jpeg_with_a_thumbnail() -> None:
    """The thumbnail's own end marker must not pass for the picture's."""
    thumbnail = encode(picture(8, 8), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    data = encode(picture(), "JPEG")
    data = data[:2] + segment + data[2:]
    assert decode_image(data).shape == (48, 64, 3)
    with pytest.raises(TruncatedImageError):
        decode_image(data[:-100])


def test_damaged_png() -> None:
    data = bytearray(encode(picture(), "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(TruncatedImageError):
        decode_image(bytes(data))


def test_no_bytes() -> None:
    with pytest.raises(EmptyRequestError, match="no image"):
        decode_image(b"")


@pytest.mark.parametrize("data", [b"hello", b"%PDF-1.7 ...", bytes(100), b"RIFF\x00\x00\x00\x00WAVEfmt "])
def test_not_an_image(data: bytes) -> None:
    with pytest.raises(NotAnImageError, match=f"{len(data)} bytes starting with"):
        decode_image(data)


def test_unsupported_formats() -> None:
    with pytest.raises(UnsupportedFormatError, match="GIF image is not supported; send one of JPEG"):
        decode_image(encode(picture()[:, :, 0], "GIF"))
    with pytest.raises(UnsupportedFormatError, match="float32"):
        decode_image(encode(picture()[:, :, 0].astype(np.float32), "TIFF"))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims any size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def bmp_header(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("header", [png_header, bmp_header])
@pytest.mark.parametrize(("width", "height"), [(60000, 60000), (10000, 10000), (8001, 8000), (64_000_001, 1)])
def test_bombs_are_refused_before_decoding(
    monkeypatch: pytest.MonkeyPatch, header: Callable[[int, int], bytes], width: int, height: int
) -> None:
    def decode_pixels(data: bytes) -> NDArray[np.uint8]:
        pytest.fail("the pixels were decoded")

    monkeypatch.setattr(preprocess, "decode_pixels", decode_pixels)
    with pytest.raises(ImageTooLargeError, match="send a smaller frame"):
        decode_image(header(width, height))


def test_the_pixel_limit_is_inclusive() -> None:
    data = encode(picture(), "PNG")
    assert decode_image(data, max_pixels=48 * 64).shape == (48, 64, 3)
    with pytest.raises(ImageTooLargeError, match="64x48 = 3072 pixels, the limit is 3071"):
        decode_image(data, max_pixels=48 * 64 - 1)


SAMPLES = [encode(picture(16, 16), file_format) for file_format in (*LOSSLESS, *OTHERS)]


@given(data=st.binary(max_size=200), sample=st.sampled_from(SAMPLES), keep=st.integers(0, 60), at=st.integers(0, 200))
@example(data=b"", sample=SAMPLES[0], keep=0, at=0)
def test_any_bytes_give_a_frame_or_our_error(data: bytes, sample: bytes, keep: int, at: int) -> None:
    for attempt in (data, sample[:keep] + data, sample[:at] + data + sample[at + len(data) :]):
        try:
            frame = decode_image(attempt, max_pixels=1_000_000)
        except DefectLensError as error:
            assert isinstance(error, ImageError | EmptyRequestError)  # noqa: PT017 - either outcome is right
        else:
            assert frame.dtype == np.uint8


def test_model_input() -> None:
    spec = InputSpec(32, 64)
    grey = picture(50, 100)[:, :, 0]
    array = to_model_input(grey, spec)
    assert array.shape == (32, 64, 3)
    assert array.dtype == np.uint8
    assert array.flags["C_CONTIGUOUS"]
    assert (array[..., 0] == array[..., 1]).all()
    assert (array[..., 0] == array[..., 2]).all()


def test_a_frame_of_input_size_is_left_alone() -> None:
    np.testing.assert_array_equal(to_model_input(picture(32, 64), InputSpec(32, 64)), picture(32, 64))


def test_shrinking_does_not_alias() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (320, 320))
    array = to_model_input(stripes, InputSpec(32, 64))
    assert array.min() >= 127
    assert array.max() <= 128


@pytest.mark.parametrize("size", [(1, 1), (1, 999), (999, 1), (33, 31)])
def test_any_frame_fits(size: tuple[int, int]) -> None:
    assert to_model_input(np.full((*size, 3), 7, np.uint8), InputSpec(32, 64)).mean() == 7

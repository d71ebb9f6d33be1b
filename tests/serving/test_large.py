"""Frames of a 20-megapixel camera, both ways, and frames beyond every limit."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from serving import Outputs, RawImage
from tests.serving.conftest import Serve
from vision.errors import ImageTooLargeError
from vision.preprocess import PixelFormat, to_model_input
from vision.types import Verdict

WIDTH, HEIGHT = 5472, 3648


@pytest.mark.slow
async def test_20_megapixels_there_and_back(serve: Serve) -> None:
    frame = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    frame[1824:2280, 2736:3192] = 255
    image = RawImage(frame.tobytes(), WIDTH, HEIGHT, PixelFormat.RGB8)
    assert len(image.data) > 59_000_000
    async with serve() as (_, client):
        reply = await client.inspect(image, outputs=Outputs(anomaly_map=True))
    inspection = reply.inspection
    assert inspection.verdict is Verdict.REJECT
    assert inspection.anomaly_map is not None
    assert inspection.anomaly_map.shape == (HEIGHT, WIDTH)
    box = inspection.regions[0].box
    assert abs(box.x - 2736) < 60
    assert abs(box.width - 456) < 60


def large_jpeg() -> bytes:
    frame = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    frame[1824:2280, 2736:3192] = 255
    return cv2.imencode(".jpg", frame)[1].tobytes()


async def test_20_megapixels_as_a_jpeg(serve: Serve) -> None:
    """At whatever scale it is decoded: sizes, regions and the overlay are those of the frame."""
    overlays = []
    for fast_decode in (False, True):
        async with serve(fast_decode=fast_decode) as (_, client):
            assert (await client.get_model()).fast_decode is fast_decode
            reply = await client.inspect(large_jpeg(), outputs=Outputs(overlay=True))
            plain = await client.inspect(large_jpeg())
        inspection = reply.inspection
        assert (inspection.frame_width, inspection.frame_height) == (WIDTH, HEIGHT)
        assert inspection.verdict is Verdict.REJECT
        assert abs(inspection.regions[0].box.x - 2736) < 60
        assert abs(inspection.regions[0].box.height - 456) < 60
        # What is asked for besides does not change the verdict.
        assert plain.inspection.anomaly_score == inspection.anomaly_score
        overlays.append(cv2.imdecode(np.frombuffer(reply.overlay_jpeg or b"", np.uint8), cv2.IMREAD_GRAYSCALE))
    whole, reduced = (overlay.astype(int) for overlay in overlays)
    assert np.abs(whole - reduced).mean() < 2


async def test_fast_decoding_takes_less_than_a_whole_picture(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    monkeypatch.setattr(
        "serving.stages.to_model_input", lambda frame, spec: shapes.append(frame.shape) or to_model_input(frame, spec)
    )
    async with serve(fast_decode=True) as (_, client):
        await client.inspect(large_jpeg())
    assert shapes == [(HEIGHT // 8, WIDTH // 8, 3)]


async def test_a_message_beyond_the_servers_limit_is_told_as_an_image_too_large(serve: Serve) -> None:
    frame = np.zeros((6000, 5000, 3), np.uint8)
    async with serve(max_pixels=1_000_000) as (_, client):
        with pytest.raises(ImageTooLargeError, match="--max-pixels"):
            await client.inspect(frame)

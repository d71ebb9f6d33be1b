"""Frames of a 20-megapixel camera, both ways, and frames beyond every limit."""

from __future__ import annotations

import numpy as np
import pytest

from serving import Outputs, RawImage
from tests.serving.conftest import Serve
from vision.errors import ImageTooLargeError
from vision.preprocess import PixelFormat
from vision.types import Verdict

WIDTH, HEIGHT = 5472, 3648


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


async def test_a_message_beyond_the_servers_limit_is_told_as_an_image_too_large(serve: Serve) -> None:
    frame = np.zeros((6000, 5000, 3), np.uint8)
    async with serve(max_pixels=1_000_000) as (_, client):
        with pytest.raises(ImageTooLargeError, match="--max-pixels"):
            await client.inspect(frame)

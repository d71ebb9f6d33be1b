"""Work like that of a busy server, to measure inference beside."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from vision.bundle import Manifest
from vision.preprocess import decode_image, to_model_input

# A frame as many cameras send it.
_HEIGHT, _WIDTH = 1024, 1280
_GRAIN = 8


def decoding(manifest: Manifest) -> Callable[[], None]:
    """What a thread that prepares frames does for one: it decodes a grainy JPEG and brings it to the model's size."""
    rng = np.random.default_rng(0)
    surface = rng.integers(64, 192, (_HEIGHT // _GRAIN, _WIDTH // _GRAIN, 3), np.uint8)
    frame = cv2.resize(surface, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_CUBIC)
    jpeg = cv2.imencode(".jpg", frame)[1].tobytes()

    def decode() -> None:
        to_model_input(decode_image(jpeg), manifest.input)

    return decode

"""Frames, maps and drawings as the page shows and keeps them."""

from __future__ import annotations

from dataclasses import replace

import cv2
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from serving.audit import Answer, Blob, RawLayout, Store
from serving.audit.frames import seen_picture
from serving.inspector.drawing import Shape, rasterise, read_shapes
from serving.inspector.pictures import TILE, Pictures, Scale, draw_heat, levels
from tests.serving.inspector import plates
from tests.serving.inspector.conftest import Page
from tests.serving.inspector.test_safety import sign_in
from vision.drawing import blend
from vision.errors import AuditError, SettingsError
from vision.scales import anomaly_range
from vision.types import Verdict


def decoded(data: bytes) -> NDArray[np.uint8]:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def add(store: Store, data: bytes, media: str, **fields: object) -> int:
    blob = Blob.of(data, media)
    answer = Answer(request_id="r", verdict=Verdict.REVIEW, reason="", received_ns=1, frame=blob.ref)
    return store.append([replace(answer, **fields)], [blob])[0]


def test_tiles_at_full_size_are_the_frame_itself(store: Store) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (1400, 2500, 3), np.uint8)
    seq = add(store, cv2.imencode(".png", frame)[1].tobytes(), "image/png")
    pictures, top = Pictures(store), levels(2500, 1400)
    assert top == 2
    rows = [np.hstack([decoded(pictures.tile(seq, top, column, row)[0]) for column in range(3)]) for row in range(2)]
    assert np.array_equal(np.vstack(rows), frame)
    small = decoded(pictures.tile(seq, 0, 0, 0)[0])
    assert small.shape == (350, 625, 3)
    assert max(small.shape) <= TILE
    for wrong in ((3, 0, 0), (2, 3, 0), (2, 0, 2), (-1, 0, 0), (2, -1, 0)):
        with pytest.raises(AuditError):
            pictures.tile(seq, *wrong)


def test_raw_and_deep_frames_are_shown_as_bright_as_they_are(store: Store) -> None:
    grey = np.tile(np.linspace(0, 4095, 64, dtype=np.uint16), (48, 1))
    deep = add(store, cv2.imencode(".png", grey)[1].tobytes(), "image/png")
    raw = add(store, grey.astype("<u2").tobytes(), "application/octet-stream", layout=RawLayout(64, 48, 0, "MONO12"))
    pictures = Pictures(store)
    assert np.array_equal(pictures.frame(deep), pictures.frame(raw))
    assert pictures.frame(deep).max() == 255


def test_a_frame_that_was_changed_is_not_shown(store: Store) -> None:
    seq = add(store, cv2.imencode(".png", np.zeros((9, 9), np.uint8))[1].tobytes(), "image/png")
    frame = store.answer(seq).frame
    assert frame is not None
    store.files.path(frame.sha256).write_bytes(b"another")
    with pytest.raises(AuditError, match="was changed"):
        Pictures(store).frame(seq)


def test_colour_and_opacity_of_a_map_rise_with_its_value() -> None:
    values = np.linspace(0, 4, 65, dtype=np.float32)[None, :]
    heat = decoded(draw_heat(values, Scale(1.0, 3.0, 2.0))).astype(int)
    assert (heat[0, :17, 3] == 0).all()
    assert (np.diff(heat[0, :, 3]) >= 0).all()
    assert (heat[0, 48:] == heat[0, 48]).all()
    lightness = heat[0, 16:49, :3] @ [0.114, 0.587, 0.299]
    assert (np.diff(lightness) > -2).all()


def test_the_scale_of_an_anomaly_map_does_not_depend_on_the_frame(store: Store) -> None:
    pictures = Pictures(store)
    scales = {pictures.scale(seq, "anomaly") for seq in range(6, 12)}
    assert scales == {Scale(9.0, 36.0, plates.PIXEL)}


def test_overlay_sheet_and_page_colour_a_map_alike(store: Store) -> None:
    """The same value over the same grey gives the same colour, wherever an inspector sees it."""
    answer = replace(store.answer(6), regions=())
    values = np.full(plates.GRID, 1.3 * plates.PIXEL, np.float32)
    frame = np.full((plates.HEIGHT, plates.WIDTH), 96, np.uint8)
    sheet = seen_picture(frame, answer, {"anomaly": values}, plates.WIDTH)
    assert sheet is not None
    heat = decoded(draw_heat(values, Pictures(store).scale(6, "anomaly"))).astype(float)[0, 0]
    alpha = heat[3] / 255
    laid_over = 96 * (1 - alpha) + heat[2::-1] * alpha
    low, high = anomaly_range(plates.PIXEL)
    share = np.full((1, 1), (1.3 * plates.PIXEL - low) / (high - low), np.float32)
    overlay = blend(np.full((1, 1, 3), 96, np.uint8), share)[0, 0]
    assert np.abs(sheet[0, 0].astype(float) - overlay).max() <= 1
    assert np.abs(laid_over - overlay).max() <= 2


def test_pictures_of_records_may_be_kept_by_the_browser_and_pages_may_not(page: Page) -> None:
    with sign_in(page.url) as client:
        assert "immutable" in client.get("/pictures/7/heat.png", params={"plane": "anomaly"}).headers["cache-control"]
        assert client.get("/review").headers["cache-control"] == "no-store"
        assert client.get("/pictures/7/heat.png", params={"plane": "rust"}).status_code == 404
        assert client.get("/pictures/1/whole.png").status_code == 400
        missing: httpx.Response = client.get("/part/99999")
        assert missing.status_code == 400


def test_a_drawing_becomes_the_mask_that_was_seen() -> None:
    shapes = [
        Shape("brush", (20, 20, 60, 20), 9),
        Shape("polygon", (5, 40, 25, 40, 25, 60, 5, 60)),
        Shape("erase", (60, 20), 13),
    ]
    mask = rasterise(shapes, 80, 64)
    assert set(np.unique(mask)) == {0, 255}
    assert mask[20, 30] == 255
    assert mask[50, 15] == 255
    assert mask[20, 60] == 0
    assert mask[5, 5] == 0
    assert 8 <= int((mask[:, 40] == 255).sum()) <= 10


def test_a_drawing_may_leave_the_frame_and_not_the_numbers() -> None:
    assert rasterise([Shape("polygon", (-50, -50, 200, -50, 200, 10, -50, 10))], 30, 20)[:10].all()
    for text in (
        '{"kind": "brush"}',
        "[1]",
        '[{"kind": "star", "points": [1, 2]}]',
        '[{"kind": "brush", "points": [1e9, 0]}]',
    ):
        with pytest.raises(SettingsError):
            read_shapes(text)
    with pytest.raises(SettingsError, match="at most"):
        read_shapes("[" + ",".join(['{"kind": "brush", "points": [1, 2]}'] * 1001) + "]")

"""Single calls against a real server."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from protos.inspection.v1 import inspection_pb2 as pb
from protos.inspection.v1 import inspection_pb2_grpc as pb_grpc
from serving import ALL, FrameRequest, MapFormat, MaskFormat, Outputs, RawImage
from serving.calls import as_request
from serving.status import ERROR_KEY
from serving.wire import request_to_proto
from tests.fakes import EXPLAINED, GREY, make_bundle, part
from tests.serving.conftest import Serve, png
from vision import errors
from vision.bundle import load_bundle
from vision.explanations import EXACT, score_shares
from vision.postprocess import judge, resize_map
from vision.preprocess import PixelFormat, decode_image, to_model_input
from vision.types import Inspection, ModelOutputs, Verdict

GRID = Outputs(anomaly_map=True, saliency=ALL, attention=ALL, class_map=True, map_format=MapFormat.FLOAT32_GRID)
BAD = part(128, 192, spot=255, at=(32, 48))


def judged_here(folder: Path, data: bytes) -> Inspection:
    loaded = load_bundle(folder)
    frame = decode_image(data)
    outputs = loaded.engine(provider="cpu").run(to_model_input(frame, loaded.manifest.input)[None])
    return judge(outputs, loaded.manifest, *frame.shape[:2])


def assert_same(got: Inspection, expected: Inspection) -> None:
    for name in Inspection.__dataclass_fields__:
        one, other = getattr(got, name), getattr(expected, name)
        if isinstance(other, np.ndarray):
            np.testing.assert_allclose(one, other, atol=1e-6, err_msg=name)
        elif name == "regions":
            assert [(r.label, r.score, r.box, r.area_px) for r in one] == [
                (r.label, r.score, r.box, r.area_px) for r in other
            ]
            for mine, theirs in zip(one, other, strict=True):
                np.testing.assert_array_equal(mine.mask, theirs.mask)
        else:
            assert one == other, name


async def test_an_answer_says_the_same_as_the_bundle_itself(serve: Serve, bundle: Path) -> None:
    data = png(BAD)
    async with serve() as (server, client):
        reply = await client.inspect(data, outputs=GRID, request_id="r1", part_id="p1")
    expected = judged_here(bundle, data)
    assert expected.verdict is Verdict.REJECT
    assert expected.regions
    assert_same(reply.inspection, expected)
    assert reply.request_id == "r1"
    assert reply.classes == ("good", "bright", "dark")
    assert reply.batch_size == 1
    assert reply.model == server.info.model
    assert reply.provider == "CPUExecutionProvider"
    assert not reply.provider_fallback
    assert reply.overlay_jpeg is None
    parts = reply.timings
    known = parts.queue_ms + parts.decode_ms + parts.preprocess_ms + parts.inference_ms + parts.postprocess_ms
    assert 0 < known <= parts.total_ms * 1.05 <= reply.latency_ms * 1.05


async def test_saliency_on_the_grid_adds_up_to_the_logit(serve: Serve) -> None:
    async with serve() as (_, client):
        inspection = (await client.inspect(BAD, outputs=GRID)).inspection
    np.testing.assert_allclose(inspection.saliency_map.sum((1, 2)), inspection.class_logits, atol=1e-5)


async def test_explanations_come_with_the_model_and_add_up(serve: Serve, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "explained", explanations=EXPLAINED)
    async with serve(folder) as (_, client):
        told = (await client.get_model()).explanations
        found = (await client.inspect(BAD, outputs=GRID)).inspection
    assert told == EXPLAINED
    np.testing.assert_allclose(found.saliency_map.sum((1, 2)) + told.biases, found.class_logits, atol=EXACT)
    assert found.anomaly_map is not None
    shares = score_shares(found.anomaly_map, told.top_share)
    assert abs(float((shares * found.anomaly_map).sum()) - found.anomaly_score) <= EXACT


async def test_a_bundle_of_an_earlier_version_tells_nothing_of_its_explanations(serve: Serve) -> None:
    async with serve() as (_, client):
        assert (await client.get_model()).explanations is None


async def test_maps_come_only_as_asked(serve: Serve, bundle: Path) -> None:
    data = png(BAD)
    expected = judged_here(bundle, data)
    assert expected.anomaly_map is not None
    in_frame = resize_map(expected.anomaly_map, 128, 192)
    async with serve() as (_, client):
        nothing = (await client.inspect(data, outputs=Outputs(regions=False))).inspection
        framed = (await client.inspect(data, outputs=Outputs(anomaly_map=True, saliency=("dark",)))).inspection
        packed = (
            await client.inspect(data, outputs=Outputs(anomaly_map=True, map_format=MapFormat.PNG16_FRAME))
        ).inspection
    assert nothing.anomaly_map is nothing.class_map is None
    assert nothing.regions == ()
    assert nothing.saliency_map.shape == nothing.attention_map.shape == (3, 0, 0)
    assert framed.anomaly_map is not None
    assert packed.anomaly_map is not None
    np.testing.assert_array_equal(framed.anomaly_map, in_frame)
    np.testing.assert_allclose(packed.anomaly_map, in_frame, atol=1e-5)
    np.testing.assert_array_equal(framed.saliency_map[2], resize_map(expected.saliency_map[2], 128, 192))
    assert np.isnan(framed.saliency_map[:2]).all()


@pytest.mark.parametrize("mask_format", [MaskFormat.POLYGON, MaskFormat.NO_MASK])
async def test_masks_come_as_asked(serve: Serve, bundle: Path, mask_format: MaskFormat) -> None:
    data = png(BAD)
    expected = judged_here(bundle, data).regions[0]
    async with serve() as (_, client):
        region = (await client.inspect(data, outputs=Outputs(mask_format=mask_format))).inspection.regions[0]
    assert (region.box, region.area_px) == (expected.box, expected.area_px)
    if mask_format is MaskFormat.POLYGON:
        np.testing.assert_array_equal(region.mask, expected.mask)
    else:
        assert region.mask.size == 0


async def test_overlays_are_jpegs(serve: Serve) -> None:
    async with serve() as (_, client):
        plain = await client.inspect(BAD, outputs=Outputs(overlay=True))
        dark = await client.inspect(BAD, outputs=Outputs(overlay=True, overlay_class="dark"))
    assert plain.overlay_jpeg is not None
    assert dark.overlay_jpeg is not None
    assert plain.overlay_jpeg != dark.overlay_jpeg
    picture = cv2.imdecode(np.frombuffer(plain.overlay_jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert min(picture.shape[:2]) > 128


async def test_a_model_without_anomaly_score_works_throughout(serve: Serve, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", anomaly=False)
    data = png(BAD)
    async with serve(folder) as (_, client):
        info = await client.get_model()
        reply = await client.inspect(
            data, outputs=Outputs(anomaly_map=True, class_map=True, saliency=ALL, attention=ALL, overlay=True)
        )
        small = await client.inspect(data, outputs=GRID)
    assert info.good_class is None
    assert info.operating_point.image_threshold is None
    inspection = reply.inspection
    assert inspection.verdict in (Verdict.REJECT, Verdict.REVIEW)
    assert inspection.anomaly_score is inspection.calibrated_anomaly_score is None
    assert inspection.anomaly_map is inspection.class_map is None
    assert inspection.saliency_map.shape == (2, 128, 192)
    assert reply.overlay_jpeg
    assert_same(small.inspection, judged_here(folder, data))


def _raw(frame: NDArray[Any], pixel_format: PixelFormat, padding: int = 0) -> RawImage:
    rows = np.ascontiguousarray(frame).view(np.uint8).reshape(frame.shape[0], -1)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=7)
    return RawImage(padded.tobytes(), frame.shape[1], frame.shape[0], pixel_format, padded.shape[1] if padding else 0)


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("pixel_format", list(PixelFormat))
async def test_raw_pixels_give_the_score_of_the_same_pixels_in_a_file(
    serve: Serve, pixel_format: PixelFormat, padding: int
) -> None:
    frame = np.full((64, 96, 3), 230, np.uint8)  # flat: a Bayer mosaic blurs edges
    grey = frame[:, :, 0]
    raw = {
        PixelFormat.MONO8: grey,
        PixelFormat.MONO12: np.rint(grey * (4095 / 255)).astype("<u2"),
        PixelFormat.MONO16: grey.astype("<u2") * 257,
        PixelFormat.BAYER_RG8: grey,
        PixelFormat.RGB8: frame,
        PixelFormat.BGR8: frame[:, :, ::-1],
    }[pixel_format]
    async with serve() as (_, client):
        expected = await client.inspect(png(frame))
        reply = await client.inspect(_raw(raw, pixel_format, padding))
    assert reply.inspection.verdict is expected.inspection.verdict is Verdict.REJECT
    assert reply.inspection.anomaly_score == pytest.approx(expected.inspection.anomaly_score, abs=1e-4)


async def test_colour_order_of_raw_pixels_is_kept(serve: Serve) -> None:
    """The overlay shows the frame: a red part must stay red."""
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[:, :, 0] = 200
    async with serve() as (_, client):
        for image in (frame, _raw(frame[:, :, ::-1], PixelFormat.BGR8), png(frame)):
            reply = await client.inspect(image, outputs=Outputs(overlay=True))
            assert reply.overlay_jpeg is not None
            picture = cv2.imdecode(np.frombuffer(reply.overlay_jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
            assert (np.abs(picture.astype(int) - [200, 0, 0]).max(axis=2) < 30).mean() > 0.1


WHOLE_PNG, WHOLE_JPEG = png(part()), cv2.imencode(".jpg", part())[1].tobytes()
GIF = (
    b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
)
REFUSED: dict[str, tuple[FrameRequest | bytes, type[errors.DefectLensError], grpc.StatusCode, str]] = {
    "no image": (FrameRequest(None), errors.EmptyRequestError, grpc.StatusCode.INVALID_ARGUMENT, "no image"),
    "empty bytes": (b"", errors.EmptyRequestError, grpc.StatusCode.INVALID_ARGUMENT, "no image"),
    "text": (b"hello", errors.NotAnImageError, grpc.StatusCode.INVALID_ARGUMENT, "5 bytes"),
    "half a PNG": (WHOLE_PNG[:-20], errors.TruncatedImageError, grpc.StatusCode.INVALID_ARGUMENT, "complete file"),
    "half a JPEG": (WHOLE_JPEG[:-20], errors.TruncatedImageError, grpc.StatusCode.INVALID_ARGUMENT, "complete file"),
    "GIF": (GIF, errors.UnsupportedFormatError, grpc.StatusCode.INVALID_ARGUMENT, "GIF"),
    "large file": (
        png(np.zeros((200, 600), np.uint8)),
        errors.ImageTooLargeError,
        grpc.StatusCode.INVALID_ARGUMENT,
        "600x200",
    ),
    "large raw": (
        FrameRequest(RawImage(b"x" * 120_000, 600, 200, PixelFormat.MONO8)),
        errors.ImageTooLargeError,
        grpc.StatusCode.INVALID_ARGUMENT,
        "600x200",
    ),
    "raw too short": (
        FrameRequest(RawImage(b"xxx", 2, 2, PixelFormat.MONO8)),
        errors.RawSizeError,
        grpc.StatusCode.INVALID_ARGUMENT,
        "got 3 bytes",
    ),
    "raw without size": (
        FrameRequest(RawImage(b"xxx", 0, 0, PixelFormat.RGB8)),
        errors.RawSizeError,
        grpc.StatusCode.INVALID_ARGUMENT,
        "0x0",
    ),
    "saliency of an unknown class": (
        FrameRequest(RawImage(b"x", 1, 1, PixelFormat.MONO8), outputs=Outputs(saliency=("scratch",))),
        errors.UnknownClassError,
        grpc.StatusCode.INVALID_ARGUMENT,
        "good, bright, dark",
    ),
    "overlay of an unknown class": (
        FrameRequest(RawImage(b"x", 1, 1, PixelFormat.MONO8), outputs=Outputs(overlay=True, overlay_class="rust")),
        errors.UnknownClassError,
        grpc.StatusCode.INVALID_ARGUMENT,
        "'rust'",
    ),
    "another model": (
        FrameRequest(RawImage(b"x", 1, 1, PixelFormat.MONO8), model="other"),
        errors.WrongModelError,
        grpc.StatusCode.NOT_FOUND,
        "'fake'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_cannot_be_used_is_refused_with_code_and_reason(serve: Serve, case: str) -> None:
    image, kind, code, words = REFUSED[case]
    async with serve(max_pixels=100_000) as (server, client):
        with pytest.raises(errors.DefectLensError) as caught:
            await client.inspect(image)
        assert type(caught.value) is kind
        assert words in str(caught.value)
        # The bare contract, as a camera in another language sees it.
        async with grpc.aio.insecure_channel(server.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await pb_grpc.InspectionServiceStub(channel).Inspect(request_to_proto(as_request(image)))
        assert failed.value.code() is code
        assert ERROR_KEY in dict(failed.value.trailing_metadata())
        assert (await client.inspect(part())).inspection.verdict is Verdict.PASS
        assert server.telemetry.errors[kind.__name__] == 2


async def test_bytes_that_are_no_message_harm_nobody(serve: Serve) -> None:
    async with serve() as (server, client):
        async with grpc.aio.insecure_channel(server.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary("/inspection.v1.InspectionService/Inspect")(b"\xff\xff\xff\xff")
            call = channel.stream_stream("/inspection.v1.InspectionService/InspectStream")(iter([b"\xff\xff\xff"]))
            with pytest.raises(grpc.aio.AioRpcError):
                await call.read()
        assert (await client.inspect(part())).inspection.verdict is Verdict.PASS


async def test_maps_that_fit_no_reply_are_refused_before_they_are_made(serve: Serve) -> None:
    frame = np.full((4000, 4000), GREY, np.uint8)
    async with serve(max_pixels=16_000_000) as (_, client):
        with pytest.raises(errors.SettingsError, match="FLOAT32_GRID"):
            await client.inspect(frame, outputs=Outputs(saliency=ALL))
        small = await client.inspect(frame, outputs=GRID)
    assert small.inspection.saliency_map.shape == (3, 8, 12)


async def test_frames_of_many_callers_share_inferences_and_keep_their_results(serve: Serve, bundle: Path) -> None:
    frames = [png(part(spot=spot)) for spot in range(0, 256, 6)]
    expected = [judged_here(bundle, data) for data in frames]
    async with serve(max_wait_ms=50.0) as (_, client):
        replies = await asyncio.gather(*(client.inspect(data, outputs=GRID) for data in frames))
    assert max(reply.batch_size for reply in replies) > 1
    for reply, alone in zip(replies, expected, strict=True):
        assert reply.inspection.verdict is alone.verdict
        assert reply.inspection.anomaly_score == pytest.approx(alone.anomaly_score, abs=1e-4)
        np.testing.assert_allclose(reply.inspection.saliency_map, alone.saliency_map, atol=1e-3)


async def test_a_score_that_is_no_number_is_no_verdict(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_number(outputs: ModelOutputs, *rest: Any, **options: Any) -> Inspection:
        return judge(replace(outputs, anomaly_score=np.full(1, np.nan, np.float32)), *rest, **options)

    async with serve() as (server, client):
        monkeypatch.setattr("serving.stages.judge", without_number)
        reply = await client.inspect(part())
        assert server.telemetry.not_judged == 1
    assert reply.inspection.verdict is Verdict.NO_VERDICT
    assert "nan" in reply.inspection.reason


async def test_a_bug_is_an_internal_error_and_the_server_goes_on(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve() as (server, client):
        with monkeypatch.context() as broken:
            broken.setattr("serving.stages.judge", lambda *_, **__: 1 / 0)
            with pytest.raises(errors.DefectLensError, match="unexpected error") as caught:
                await client.inspect(part(), request_id="r7")
        assert type(caught.value) is errors.DefectLensError
        assert "r7" in caplog.text
        assert "ZeroDivisionError" in caplog.text
        assert (await client.inspect(part())).inspection.verdict is Verdict.PASS
        assert server.telemetry.errors == {"ZeroDivisionError": 1}


async def test_get_model_tells_everything(serve: Serve, bundle: Path) -> None:
    async with serve() as (server, client):
        info = await client.get_model()
    assert info == server.info
    loaded = load_bundle(bundle)
    assert info.model.bundle_digest == loaded.digest
    assert info.model.model_digest == loaded.manifest.model_digest
    assert info.operating_point == loaded.manifest.operating_point
    assert info.limits.max_batch == 8


async def test_without_a_request_id_the_server_makes_one_up(serve: Serve) -> None:
    async with serve() as (server, _), grpc.aio.insecure_channel(server.address) as channel:
        stub = pb_grpc.InspectionServiceStub(channel)
        replies = [await stub.Inspect(pb.InspectRequest(encoded=WHOLE_PNG)) for _ in range(2)]
    assert replies[0].request_id != replies[1].request_id != ""

from __future__ import annotations

from dataclasses import replace

import pytest

from protos.inspection.v1 import inspection_pb2 as pb
from serving.messages import ALL, EncodedImage, FrameRequest, MapFormat, MaskFormat, Outputs, RawImage, SharedPlace
from serving.wire import request_from_proto, request_to_proto
from serving.wire_reply import reply_from_proto
from vision.errors import SettingsError, UnsupportedFormatError
from vision.preprocess import PixelFormat
from vision.types import Verdict

WHOLE = FrameRequest(
    RawImage(b"\x01\x02\x03\x04", 2, 2, PixelFormat.MONO8, 2),
    request_id="r1",
    camera_id="c1",
    part_id="p1",
    lot="l1",
    capture_time_ns=1_700_000_000_123_456_789,
    model="fake",
    timeout_ms=250,
    outputs=Outputs(
        regions=False,
        anomaly_map=True,
        saliency=ALL,
        attention=("good", "dark"),
        class_map=True,
        overlay=True,
        overlay_class="dark",
        map_format=MapFormat.PNG16_FRAME,
        mask_format=MaskFormat.POLYGON,
    ),
)


def nowhere(region: str, offset: int, size: int) -> memoryview:
    pytest.fail("shared memory was looked at for a frame that was sent")


@pytest.mark.parametrize("request_", [WHOLE, FrameRequest(EncodedImage(b"x")), FrameRequest(None)])
def test_a_request_survives_the_wire(request_: FrameRequest) -> None:
    bytes_ = request_to_proto(request_).SerializeToString()
    assert request_from_proto(pb.InspectRequest.FromString(bytes_), nowhere) == request_


@pytest.mark.parametrize("raw", [True, False])
def test_of_a_frame_in_shared_memory_only_its_place_is_sent(raw: bool) -> None:
    region = memoryview(bytes(1000) + b"\x07" * 5000)
    place, data = SharedPlace("r", 1000), region[1000:]
    image = RawImage(data, 100, 50, PixelFormat.MONO8, 100, place) if raw else EncodedImage(data, place)
    bytes_ = request_to_proto(FrameRequest(image)).SerializeToString()
    assert len(bytes_) < 100

    def view(name: str, offset: int, size: int) -> memoryview:
        return {"r": region}[name][offset : offset + size]

    read = request_from_proto(pb.InspectRequest.FromString(bytes_), view).image
    assert read == replace(image, place=None)


def test_numbers_that_stand_for_nothing_are_refused() -> None:
    with pytest.raises(UnsupportedFormatError, match="BAYER_RG8"):
        request_from_proto(pb.InspectRequest(raw=pb.RawImage(width=1, height=1)), nowhere)
    with pytest.raises(SettingsError, match="77"):
        request_from_proto(pb.InspectRequest(outputs=pb.Outputs(map_format=77)), nowhere)  # type: ignore[arg-type]


def test_any_capture_time_is_taken() -> None:
    message = pb.InspectRequest(encoded=b"x")
    message.capture_time.seconds = 2**62
    assert request_from_proto(message, nowhere).capture_time_ns == 2**62 * 10**9


def test_a_verdict_of_a_later_contract_is_never_a_pass() -> None:
    message = pb.InspectResponse(verdict=99, class_scores=[pb.ClassScore(name="good")])  # type: ignore[arg-type]
    assert reply_from_proto(message, 0.0).inspection.verdict is Verdict.UNSPECIFIED

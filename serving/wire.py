"""Between the public contract and our own words: requests and model descriptions. Replies are in ``wire_reply``."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from google.protobuf.timestamp_pb2 import Timestamp

from protos.inspection.v1 import inspection_pb2 as pb
from serving import wire_drift
from serving.messages import (
    ALL,
    EncodedImage,
    FrameRequest,
    Limits,
    MapFormat,
    MaskFormat,
    ModelIdentity,
    ModelInfo,
    Outputs,
    RawImage,
)
from serving.wire_decision import calibration_from_proto, calibration_to_proto, point_from_proto, point_to_proto
from serving.wire_explanations import explanations_from_proto, explanations_to_proto
from vision.errors import SettingsError, UnsupportedFormatError
from vision.preprocess import PixelFormat

View = Callable[[str, int, int], memoryview]


def request_to_proto(request: FrameRequest) -> pb.InspectRequest:
    """As the client sends it."""
    message = pb.InspectRequest(
        request_id=request.request_id,
        camera_id=request.camera_id,
        part_id=request.part_id,
        lot=request.lot,
        model=request.model,
        model_version=request.model_version,
        timeout_ms=request.timeout_ms,
        station=request.station,
        outputs=_outputs_to_proto(request.outputs),
    )
    if request.capture_time_ns is not None:
        message.capture_time.FromNanoseconds(request.capture_time_ns)
    _image_to_proto(request.image, message)
    return message


def request_from_proto(message: pb.InspectRequest, view: View) -> FrameRequest:
    """As the server reads it.

    Args:
        view: region, offset and size to the bytes of a frame in shared memory.

    Raises:
        UnsupportedFormatError, SettingsError: a number that stands for nothing.
        SharedMemoryError: the frame is not where it is said to be.
    """
    image: EncodedImage | RawImage | None = None
    if message.HasField("encoded"):
        image = EncodedImage(message.encoded)
    elif message.HasField("raw"):
        image = _raw_from_proto(message.raw, message.raw.data)
    elif message.HasField("shared"):
        image = _shared_from_proto(message.shared, view)
    return FrameRequest(
        image=image,
        request_id=message.request_id,
        camera_id=message.camera_id,
        part_id=message.part_id,
        lot=message.lot,
        capture_time_ns=_nanoseconds(message.capture_time) if message.HasField("capture_time") else None,
        model=message.model,
        model_version=message.model_version,
        timeout_ms=message.timeout_ms,
        outputs=_outputs_from_bytes(message.outputs.SerializeToString()),
        station=message.station,
    )


def model_to_proto(info: ModelInfo) -> pb.GetModelResponse:
    """As the server describes itself."""
    limits = info.limits
    return pb.GetModelResponse(
        model=identity_to_proto(info.model),
        created=info.created,
        classes=info.classes,
        good_class=info.good_class,
        input_width=info.input_width,
        input_height=info.input_height,
        white_level=info.white_level,
        operating_point=point_to_proto(info.operating_point),
        metrics_json=info.metrics_json,
        parity_json=info.parity_json,
        provenance_json=info.provenance_json,
        gate_json=info.gate_json,
        provider=provider_to_proto(info),
        tolerances=pb.Tolerances(score=info.score_tolerance, map=info.map_tolerance),
        limits=pb.Limits(
            max_pixels=limits.max_pixels,
            max_request_bytes=limits.max_request_bytes,
            max_reply_bytes=limits.max_reply_bytes,
            max_batch=limits.max_batch,
            max_queue=limits.max_queue,
            max_stream_frames=limits.max_stream_frames,
            max_shared_bytes=limits.max_shared_bytes,
        ),
        fast_decode=info.fast_decode,
        explanations=None if info.explanations is None else explanations_to_proto(info.explanations),
        drift=None if info.drift is None else wire_drift.watch_to_proto(info.drift),
        class_calibration=calibration_to_proto(info.class_calibration),
    )


def provider_to_proto(info: ModelInfo) -> pb.Provider:
    """What the model runs on."""
    return pb.Provider(name=info.provider, fallback=info.provider_fallback, precision=info.precision)


def model_from_proto(message: pb.GetModelResponse) -> ModelInfo:
    """As the client reads it."""
    limits = message.limits
    return ModelInfo(
        model=identity_from_proto(message.model),
        created=message.created,
        classes=tuple(message.classes),
        good_class=message.good_class if message.HasField("good_class") else None,
        input_height=message.input_height,
        input_width=message.input_width,
        white_level=message.white_level,
        operating_point=point_from_proto(message.operating_point),
        metrics_json=message.metrics_json,
        parity_json=message.parity_json,
        provenance_json=message.provenance_json,
        provider=message.provider.name,
        provider_fallback=message.provider.fallback,
        precision=message.provider.precision,
        gate_json=message.gate_json,
        score_tolerance=message.tolerances.score,
        map_tolerance=message.tolerances.map,
        limits=Limits(
            max_pixels=limits.max_pixels,
            max_request_bytes=limits.max_request_bytes,
            max_reply_bytes=limits.max_reply_bytes,
            max_batch=limits.max_batch,
            max_queue=limits.max_queue,
            max_stream_frames=limits.max_stream_frames,
            max_shared_bytes=limits.max_shared_bytes,
        ),
        fast_decode=message.fast_decode,
        explanations=explanations_from_proto(message.explanations) if message.HasField("explanations") else None,
        drift=wire_drift.watch_from_proto(message.drift) if message.HasField("drift") else None,
        class_calibration=(
            calibration_from_proto(message.class_calibration) if message.HasField("class_calibration") else None
        ),
    )


def identity_to_proto(model: ModelIdentity) -> pb.ModelIdentity:
    return pb.ModelIdentity(
        name=model.name, version=model.version, bundle_digest=model.bundle_digest, model_digest=model.model_digest
    )


def identity_from_proto(message: pb.ModelIdentity) -> ModelIdentity:
    return ModelIdentity(message.name, message.version, message.bundle_digest, message.model_digest)


def _outputs_to_proto(outputs: Outputs) -> pb.Outputs:
    return pb.Outputs(
        regions=outputs.regions,
        anomaly_map=outputs.anomaly_map,
        saliency=_selection_to_proto(outputs.saliency),
        attention=_selection_to_proto(outputs.attention),
        class_map=outputs.class_map,
        overlay=pb.OverlayRequest(class_name=outputs.overlay_class) if outputs.overlay else None,
        map_format=pb.MapFormat.ValueType(outputs.map_format),
        mask_format=pb.MaskFormat.ValueType(outputs.mask_format),
    )


@lru_cache(maxsize=256)
def _outputs_from_bytes(data: bytes) -> Outputs:
    """A camera asks for the same thing every time."""
    message = pb.Outputs.FromString(data)
    try:
        map_format, mask_format = MapFormat(message.map_format), MaskFormat(message.mask_format)
    except ValueError as error:
        raise SettingsError(f"{error}; see the enums MapFormat and MaskFormat of inspection.proto") from None
    return Outputs(
        regions=message.regions,
        anomaly_map=message.anomaly_map,
        saliency=ALL if message.saliency.all else tuple(message.saliency.names),
        attention=ALL if message.attention.all else tuple(message.attention.names),
        class_map=message.class_map,
        overlay=message.HasField("overlay"),
        overlay_class=message.overlay.class_name,
        map_format=map_format,
        mask_format=mask_format,
    )


def _selection_to_proto(chosen: tuple[str, ...] | str) -> pb.ClassSelection:
    return pb.ClassSelection(all=True) if isinstance(chosen, str) else pb.ClassSelection(names=chosen)


def _image_to_proto(image: EncodedImage | RawImage | None, message: pb.InspectRequest) -> None:
    if image is None:
        return
    if image.place is not None:
        place = image.place
        shared = message.shared
        shared.region, shared.offset, shared.size = place.region, place.offset, len(image.data)
    elif isinstance(image, EncodedImage):
        message.encoded = bytes(image.data)
    else:
        message.raw.data = bytes(image.data)
    if isinstance(image, RawImage):
        layout = message.raw if image.place is None else message.shared
        layout.width, layout.height, layout.stride = image.width, image.height, image.stride
        layout.pixel_format = pb.PixelFormat.ValueType(image.pixel_format)


def _shared_from_proto(message: pb.SharedImage, view: View) -> EncodedImage | RawImage:
    data = view(message.region, message.offset, message.size)
    if message.pixel_format or message.width or message.height or message.stride:
        return _raw_from_proto(message, data)
    return EncodedImage(data)


def _raw_from_proto(message: pb.RawImage | pb.SharedImage, data: bytes | memoryview) -> RawImage:
    try:
        pixel_format = PixelFormat(message.pixel_format)
    except ValueError:
        raise UnsupportedFormatError(
            f"pixel format {message.pixel_format} is not supported; choose one of "
            f"{', '.join(kind.name for kind in PixelFormat)}"
        ) from None
    return RawImage(data, message.width, message.height, pixel_format, message.stride)


def _nanoseconds(stamp: Timestamp) -> int:
    # Not ToNanoseconds, which raises on the out-of-range values that any caller can send.
    return stamp.seconds * 1_000_000_000 + stamp.nanos

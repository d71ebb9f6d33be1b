"""What goes in and comes out, free of any transport: the client's and the pipeline's common words."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vision.calibration.probability import ClassCalibration
from vision.decision import OperatingPoint
from vision.drift.states import Drift
from vision.errors import DefectLensError, SettingsError
from vision.explanations import Explanations
from vision.preprocess import PixelFormat, raw_pixels
from vision.types import Frame, Inspection

ALL: Literal["all"] = "all"
"""Every class of the model, wherever classes are chosen."""

SHARED_PROOF_BYTES = 32
"""How many random bytes show that shared memory is the caller's own."""


class MapFormat(enum.IntEnum):
    """How a map travels. ``FLOAT32_GRID`` is the model's own grid: small, and saliency adds up to the logit exactly."""

    FLOAT32_FRAME = 0
    FLOAT32_GRID = 1
    PNG16_FRAME = 2


class MaskFormat(enum.IntEnum):
    """How a region's mask travels. A polygon is the outer outline: holes are filled."""

    RUN_LENGTHS = 0
    POLYGON = 1
    NO_MASK = 2


@dataclass(frozen=True, slots=True)
class SharedPlace:
    """Where an image's bytes lie in memory that the server maps too: they are then not sent."""

    region: str
    offset: int


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """A whole JPEG, PNG, BMP, TIFF or WebP file."""

    data: bytes | memoryview
    place: SharedPlace | None = None


@dataclass(frozen=True, slots=True)
class RawImage:
    """Camera pixels as they are. ``stride`` is bytes from one row to the next, 0 for rows without padding."""

    data: bytes | memoryview
    width: int
    height: int
    pixel_format: PixelFormat
    stride: int = 0
    place: SharedPlace | None = None

    @property
    def pixels(self) -> NDArray[Any]:
        """The bytes as ``[H, W]`` or ``[H, W, 3]``, uint8 or (MONO12, MONO16) uint16; to be written in a shared slot.

        Raises:
            RawSizeError: they do not fit width, height and stride.
        """
        return raw_pixels(self.data, self.width, self.height, self.stride, self.pixel_format)

    @classmethod
    def from_frame(cls, frame: Frame) -> RawImage:
        """From uint8 pixels, ``[H, W]`` grey or ``[H, W, 3]`` RGB."""
        if frame.dtype != np.uint8 or frame.ndim not in (2, 3) or (frame.ndim == 3 and frame.shape[2] != 3):
            raise SettingsError(f"a frame is uint8 [H, W] or [H, W, 3] RGB; got {frame.dtype} {list(frame.shape)}")
        height, width = frame.shape[:2]
        return cls(frame.tobytes(), width, height, PixelFormat.MONO8 if frame.ndim == 2 else PixelFormat.RGB8)


@dataclass(frozen=True, slots=True)
class Outputs:
    """What is wanted besides verdict, scores and timings.

    ``saliency`` and ``attention`` name classes, or are ``"all"``. ``overlay`` asks for a JPEG with the saliency of
    ``overlay_class``; where that is empty, with the anomaly map (or the predicted class's saliency, if there is none).
    Maps come in ``map_format``: for arithmetic on saliency, or for little traffic, take ``FLOAT32_GRID``.
    """

    regions: bool = True
    anomaly_map: bool = False
    saliency: tuple[str, ...] | Literal["all"] = ()
    attention: tuple[str, ...] | Literal["all"] = ()
    class_map: bool = False
    overlay: bool = False
    overlay_class: str = ""
    map_format: MapFormat = MapFormat.FLOAT32_FRAME
    mask_format: MaskFormat = MaskFormat.RUN_LENGTHS


@dataclass(frozen=True, slots=True)
class FrameRequest:
    """One frame to inspect. ``image`` is None only in a request that is refused as empty.

    ``station``: one of those that the server was started with; not needed where the server knows the camera's.
    ``capture_time_ns``: when the frame was exposed, in ns since 1970 (UTC). ``timeout_ms``: the answer is of no use
    later than this after the server received the frame; 0 sets no limit. ``model`` and ``model_version``: empty takes
    the default model, and the version that serves.
    """

    image: EncodedImage | RawImage | None
    request_id: str = ""
    camera_id: str = ""
    part_id: str = ""
    lot: str = ""
    capture_time_ns: int | None = None
    model: str = ""
    model_version: str = ""
    timeout_ms: int = 0
    outputs: Outputs = field(default_factory=Outputs)
    station: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.timeout_ms < 2**32:
            raise SettingsError(f"timeout_ms must be in 0..4294967295; got {self.timeout_ms}")


def with_regions(request: FrameRequest) -> FrameRequest:
    """The same request, asking for regions too."""
    return request if request.outputs.regions else replace(request, outputs=replace(request.outputs, regions=True))


@dataclass(frozen=True, slots=True)
class Timings:
    """In ms. ``inference_ms`` is that of the whole batch; ``total_ms`` runs from receipt to the finished answer."""

    queue_ms: float
    decode_ms: float
    preprocess_ms: float
    inference_ms: float
    postprocess_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model gave an answer. Digests are SHA-256 in hex: of ``bundle.json`` and of ``model.onnx``."""

    name: str
    version: str
    bundle_digest: str
    model_digest: str


@dataclass(frozen=True, slots=True)
class InspectionReply:
    """One answer.

    ``inspection`` holds the maps that were asked for, in the format that was asked for. What was not asked for is
    None or, for the saliency and attention maps, ``[C, 0, 0]``; planes of classes that were left out are NaN.
    ``classes`` is the order of ``class_scores`` and of the maps. ``provider`` is the execution provider that really ran
    the model, ``provider_fallback`` whether it is another than the one asked for, ``precision`` what it computes in
    (``fp32``, ``bf16``, ``fp16`` or ``int8``). ``latency_ms`` is from sending to the answer, as the client saw it,
    retries included. ``drift`` is the state of the frame's camera, None where nothing is watched.
    """

    request_id: str
    inspection: Inspection
    classes: tuple[str, ...]
    timings: Timings
    batch_size: int
    model: ModelIdentity
    provider: str
    provider_fallback: bool
    precision: str
    overlay_jpeg: bytes | None
    latency_ms: float = 0.0
    drift: Drift | None = None


@dataclass(frozen=True, slots=True)
class StreamAnswer:
    """The answer to one frame of a stream: a reply, or the error that the frame met. ``latency_ms`` as in the reply."""

    request_id: str
    latency_ms: float
    reply: InspectionReply | None = None
    error: DefectLensError | None = None

    def result(self) -> InspectionReply:
        """The reply, or raise the error."""
        if self.reply is None:
            raise self.error or DefectLensError(f"frame {self.request_id} has neither a reply nor an error")
        return self.reply


@dataclass(frozen=True, slots=True)
class Limits:
    """A server's limits: pixels of a frame, bytes of a message, frames in a batch, in work, in work of one stream;
    bytes of all shared memory (0: none is taken)."""

    max_pixels: int
    max_request_bytes: int
    max_reply_bytes: int
    max_batch: int
    max_queue: int
    max_stream_frames: int
    max_shared_bytes: int


@dataclass(frozen=True, slots=True)
class WatchInfo:
    """How cameras are watched for drift, and the promise: on average at most one false alarm of a camera in
    ``frames_per_false_alarm`` frames, while they are exchangeable with the ``reference_frames`` and with each other.

    ``against_calibration``: they are compared with the reference, and not only with the camera's own first frames.
    """

    signals: tuple[str, ...]
    reference_frames: int
    frames_per_false_alarm: int
    against_calibration: bool


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a server serves. The ``_json`` fields are JSON objects for people to read. ``drift`` is None where no camera
    is watched, ``explanations`` for a bundle of an earlier version.
    """

    model: ModelIdentity
    created: str
    classes: tuple[str, ...]
    good_class: str | None
    input_height: int
    input_width: int
    white_level: int
    operating_point: OperatingPoint
    metrics_json: str
    parity_json: str
    provenance_json: str
    provider: str
    provider_fallback: bool
    precision: str
    gate_json: str
    score_tolerance: float
    map_tolerance: float
    limits: Limits
    fast_decode: bool
    drift: WatchInfo | None = None
    class_calibration: ClassCalibration | None = None
    explanations: Explanations | None = None

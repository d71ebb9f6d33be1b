"""The steps of one frame, as plain functions that run in threads: check → prepare → (inference) → finish."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from serving.drift import DriftWatch
from serving.maps import EncodedMap, encode_map, encoded_size
from serving.messages import EncodedImage, FrameRequest, Outputs, RawImage
from vision.bundle import Manifest
from vision.drift.signals import Look
from vision.drift.states import Drift
from vision.errors import EmptyRequestError, SettingsError, UnknownClassError
from vision.overlay import render_overlay
from vision.postprocess import has_regions, judge
from vision.preprocess import decode_for, decode_image, decode_raw, to_model_input
from vision.types import FloatArray, Frame, Inspection, ModelOutputs

JPEG_QUALITY = 92
# Steps that take less than some 0.2 ms are done where they stand: handing them to a thread and back costs more than
# that, of a core that is needed elsewhere.
_LIGHT_BYTES = 256 * 1024
_LIGHT_PIXELS = 256 * 1024


@dataclass(frozen=True, slots=True)
class Prepared:
    """The model's input, uint8 ``[H, W, 3]`` RGB. ``frame`` is kept only where an overlay is to be drawn on it, and
    ``look`` where the camera is watched.
    """

    pixels: NDArray[np.uint8]
    frame: Frame | None
    frame_height: int
    frame_width: int
    decode_ms: float
    preprocess_ms: float
    look: Look | None = None


@dataclass(frozen=True, slots=True)
class EncodedMaps:
    """The maps that were asked for, keyed by class name where there is one a class."""

    anomaly: EncodedMap | None = None
    saliency: dict[str, EncodedMap] = field(default_factory=dict)
    attention: dict[str, EncodedMap] = field(default_factory=dict)
    classes: dict[str, EncodedMap] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finished:
    """A judged frame; ``overlay_jpeg`` is empty where none was asked for."""

    inspection: Inspection
    maps: EncodedMaps
    overlay_jpeg: bytes
    drift: Drift | None = None


def check_request(request: FrameRequest, manifest: Manifest) -> None:
    """Refuse what can be refused without looking at the pixels.

    Raises:
        UnknownClassError, EmptyRequestError.
    """
    outputs = request.outputs
    asked = {*_names(outputs.saliency, ()), *_names(outputs.attention, ()), outputs.overlay_class} - {""}
    if unknown := sorted(asked - set(manifest.classes)):
        raise UnknownClassError(
            f"the model {manifest.name!r} has no class {', '.join(map(repr, unknown))}; "
            f"choose from {', '.join(manifest.classes)}"
        )
    if request.image is None:
        raise EmptyRequestError("the request carries no image; set encoded or raw image bytes")


def is_light(request: FrameRequest) -> bool:
    """Whether ``prepare`` may be called on an event loop: little raw data, nothing to decode."""
    return isinstance(request.image, RawImage) and len(request.image.data) <= _LIGHT_BYTES


def prepare(
    request: FrameRequest,
    manifest: Manifest,
    max_pixels: int,
    *,
    fast_decode: bool = False,
    look: Callable[[NDArray[np.uint8]], Look] | None = None,
) -> Prepared:
    """Decode and bring to the model's size.

    Args:
        fast_decode: take a reduced scale of JPEGs much larger than the model's input. An overlay is drawn on the full
            picture all the same, which is then decoded too: what is asked for besides must not change the verdict.
        look: measures the model's input for the watch over the camera.

    Raises:
        ImageError, EmptyRequestError: the image cannot be used.
    """
    image, spec = request.image, manifest.input
    start = time.perf_counter()
    if isinstance(image, EncodedImage):
        white = spec.white_level
        frame, (height, width) = decode_for(
            image.data, spec if fast_decode else None, max_pixels=max_pixels, white_level=white
        )
    elif image is not None:
        frame = decode_raw(
            image.data,
            width=image.width,
            height=image.height,
            stride=image.stride,
            pixel_format=image.pixel_format,
            max_pixels=max_pixels,
            white_level=spec.white_level,
        )
        height, width = frame.shape[:2]
    else:
        raise EmptyRequestError("the request carries no image; set encoded or raw image bytes")
    kept: Frame | None = None
    if request.outputs.overlay:
        whole = frame.shape[:2] == (height, width)
        kept = frame if whole else decode_image(image.data, max_pixels=max_pixels)
    decoded = time.perf_counter()
    pixels = to_model_input(frame, spec)
    if isinstance(image.data, memoryview) and np.may_share_memory(pixels, frame):
        # A frame of the model's own size. Whoever keeps the input a little longer must not keep a camera's memory.
        pixels = pixels.copy()
    seen = None if look is None else look(pixels)
    done = time.perf_counter()
    return Prepared(pixels, kept, height, width, (decoded - start) * 1000.0, (done - decoded) * 1000.0, seen)


def is_light_to_finish(outputs: ModelOutputs, prepared: Prepared, wanted: Outputs, manifest: Manifest) -> bool:
    """Whether ``finish`` may be called on an event loop: no pictures, and no search for regions in a large frame."""
    if wanted.overlay or wanted.anomaly_map or wanted.saliency or wanted.attention or wanted.class_map:
        return False
    if not wanted.regions or prepared.frame_height * prepared.frame_width <= _LIGHT_PIXELS:
        return True
    return not has_regions(outputs, manifest)


def finish(
    outputs: ModelOutputs,
    prepared: Prepared,
    request: FrameRequest,
    manifest: Manifest,
    max_map_bytes: int,
    watch: DriftWatch | None = None,
) -> Finished:
    """Judge one frame, make the maps and the overlay that are wanted, and show the frame to the watch over its camera.

    Raises:
        SettingsError: the maps do not fit into a reply.
    """
    wanted = request.outputs
    regions = wanted.regions or wanted.overlay
    inspection = judge(outputs, manifest, prepared.frame_height, prepared.frame_width, regions=regions)
    maps = _encode_maps(inspection, wanted, manifest, max_map_bytes)
    overlay = b""
    if prepared.frame is not None:
        picture = render_overlay(prepared.frame, inspection, manifest, class_name=wanted.overlay_class or None)
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        overlay = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    drift = None
    if watch is not None and prepared.look is not None:
        drift = watch.feed(request.camera_id, prepared.look, outputs)
    return Finished(inspection, maps, overlay, drift)


def _names(chosen: tuple[str, ...] | str, classes: tuple[str, ...]) -> tuple[str, ...]:
    return classes if isinstance(chosen, str) else chosen


def _encode_maps(inspection: Inspection, wanted: Outputs, manifest: Manifest, max_map_bytes: int) -> EncodedMaps:
    height, width = inspection.frame_height, inspection.frame_width
    saliency = _planes(inspection.saliency_map, manifest.classes, _names(wanted.saliency, manifest.classes))
    attention = _planes(inspection.attention_map, manifest.classes, _names(wanted.attention, manifest.classes))
    anomaly = inspection.anomaly_map if wanted.anomaly_map else None
    classes: dict[str, FloatArray] = {}
    if wanted.class_map and inspection.class_map is not None:
        classes = _planes(inspection.class_map, manifest.defect_classes, manifest.defect_classes)
    if not (saliency or attention or classes) and anomaly is None:
        return EncodedMaps()
    every = [*saliency.values(), *attention.values(), *classes.values(), *([] if anomaly is None else [anomaly])]
    size = sum(encoded_size(plane, height, width, wanted.map_format) for plane in every)
    if size > max_map_bytes:
        raise SettingsError(
            f"{len(every)} maps of a {width}x{height} px frame take {size} bytes, a reply holds {max_map_bytes}; "
            "ask for fewer classes, for the model's grid (FLOAT32_GRID) or for PNG16_FRAME"
        )

    def encode(plane: FloatArray) -> EncodedMap:
        return encode_map(plane, wanted.map_format, height, width)

    return EncodedMaps(
        None if anomaly is None else encode(anomaly),
        *({name: encode(plane) for name, plane in planes.items()} for planes in (saliency, attention, classes)),
    )


def _planes(maps: FloatArray, classes: tuple[str, ...], chosen: Iterable[str]) -> dict[str, FloatArray]:
    return {name: maps[classes.index(name)] for name in chosen}

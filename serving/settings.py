"""Everything about a server that can be chosen, checked once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from serving.beside import PageOptions
from serving.recording_options import AuditSettings
from vision.drift.rules import FRAMES_PER_ALARM
from vision.engine import EngineOptions, Precision, Provider, check_choice
from vision.errors import SettingsError
from vision.preprocess import MAX_PIXELS

DriftMode = Literal["calibration", "own", "off"]
_MIB = 1024 * 1024
# What a message holds besides pixels: ids, regions, the overlay.
_MESSAGE_MARGIN = 16 * _MIB
# A 20-megapixel RGB frame always fits into a message, so that a smaller pixel limit answers in its own words.
_LEAST_MESSAGE = 64 * _MIB
# One stream must be able to fill a batch, and must not fill the whole server.
_STREAM_SHARE = 4
_UNIX = "unix:"
# sockaddr_un holds 108 bytes, one of which ends the path.
_LONGEST_PATH = 107


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How a bundle is served.

    Args:
        bundle: folder of the bundle that answers requests which name no model.
        further_bundles: folders of more bundles, asked for by name.
        watch: a folder whose subfolders are bundles: new ones are served as they come.
        admin: ``host:port`` of the AdminService; None offers none.
        address: ``host:port``, where port 0 takes a free one, or ``unix:/path`` of a socket to be made.
        provider: the execution provider asked for.
        precision: what the model is to compute in.
        strict_provider: refuse to start on another provider or precision than the one asked for.
        threads: CPU threads of one inference; 0 leaves the choice to the provider.
        gpu_memory_mib: most GPU memory that the provider's arena takes; 0 sets no limit.
        engine_cache: folder where TensorRT and OpenVINO keep what they built; without it, they build at every start.
        decode_threads: threads that decode, judge and encode; one frame occupies one at a time.
        max_batch: most frames in one inference; how many it is depends on what each size is measured to take.
        max_wait_ms: longest wait of a frame for others that are on their way; shorter where waiting pays less.
        max_queue: most frames in work at once, over all callers.
        max_queue_bytes: most bytes of images in work at once; a single frame is always let in.
        max_pixels: most pixels of one frame, checked before decoding.
        max_shared_bytes: most bytes of shared memory, over all regions of all cameras on this machine; 0 offers none.
        fast_decode: decode JPEGs much larger than the model's input at a reduced scale. Scores then differ from those
            of a full decode by far more than ``SCORE_TOLERANCE`` (docs/experiments.md).
        drain_seconds: how long a shutdown waits for accepted frames.
        metrics: ``host:port`` of the Prometheus metrics; None serves none.
        traces: OTLP endpoint that spans are sent to, e.g. ``http://127.0.0.1:4317``; None makes none.
        drift: what cameras are compared with: ``calibration`` and their own first frames, their ``own`` alone, or
            nothing (``off``).
        drift_frames_per_alarm: the promise: at most one false alarm of a camera in so many frames on average.
        stations: names of stations, each with the cameras that belong to it.
        station_log: file that checks and overrides of stations are written to.
        override_token_file: file with the token of those who may override a failed check.
        audit: where answers are recorded, and how; None records none.
        page: where the inspector's page is served beside the server; None serves none.
    """

    bundle: Path
    further_bundles: tuple[Path, ...] = ()
    watch: Path | None = None
    admin: str | None = None
    address: str = "127.0.0.1:50051"
    provider: Provider = "auto"
    precision: Precision = "fp32"
    strict_provider: bool = False
    threads: int = 0
    gpu_memory_mib: int = 0
    engine_cache: Path | None = None
    decode_threads: int = max(2, min(8, os.cpu_count() or 2))
    max_batch: int = 8
    max_wait_ms: float = 5.0
    max_queue: int = 64
    max_queue_bytes: int = 2048 * _MIB
    max_pixels: int = MAX_PIXELS
    max_shared_bytes: int = 4096 * _MIB
    fast_decode: bool = False
    drain_seconds: float = 10.0
    metrics: str | None = None
    traces: str | None = None
    drift: DriftMode = "calibration"
    drift_frames_per_alarm: int = FRAMES_PER_ALARM
    stations: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    station_log: Path | None = None
    override_token_file: Path | None = None
    audit: AuditSettings | None = None
    page: PageOptions | None = None

    def __post_init__(self) -> None:
        least = {"threads": 0, "decode_threads": 1, "max_batch": 1, "max_wait_ms": 0, "max_queue": 1}
        least |= {"gpu_memory_mib": 0, "drift_frames_per_alarm": 1000}
        least |= {"max_queue_bytes": 1, "max_pixels": 1, "max_shared_bytes": 0, "drain_seconds": 0}
        for name, smallest in least.items():
            if not getattr(self, name) >= smallest:
                raise SettingsError(f"{name} must be >= {smallest}; got {getattr(self, name)}")
        if self.max_batch > self.max_queue:
            raise SettingsError(
                f"max_batch ({self.max_batch}) must not be above max_queue ({self.max_queue}): it could never fill"
            )
        check_choice(self.provider, self.precision)
        check_address(self.address)
        for address in filter(None, (self.admin, self.metrics)):
            check_address(address, unix=False)
        if self.watch is not None and not self.watch.is_dir():
            raise SettingsError(f"the folder to be watched, {self.watch}, does not exist; make it or name another one")
        if self.drift not in get_args(DriftMode):
            raise SettingsError(f"drift is one of {', '.join(get_args(DriftMode))}; got {self.drift!r}")
        if self.stations and (self.station_log is None or self.admin is None):
            raise SettingsError(
                "stations need --station-log FILE, so that a stopped one is not forgotten, and --admin ADDR, where "
                "they are checked"
            )
        if self.page is not None and self.audit is None:
            raise SettingsError(
                "--inspector shows what the audit store holds, and this server records nothing; add --audit DIR_OR_URL"
            )
        if self.traces is not None and not self.traces.startswith(("http://", "https://")):
            raise SettingsError(f"traces go to an endpoint such as http://127.0.0.1:4317; got {self.traces!r}")

    @property
    def engine_options(self) -> EngineOptions:
        """What the engine is to be made for."""
        return EngineOptions(
            threads=self.threads,
            max_batch=self.max_batch,
            gpu_memory_mib=self.gpu_memory_mib,
            cache=self.engine_cache,
        )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.address)

    @property
    def offered_shared_bytes(self) -> int:
        """``max_shared_bytes`` where every caller is on this machine, 0 elsewhere: nobody else could share memory."""
        return self.max_shared_bytes if self.is_loopback else 0

    @property
    def max_request_bytes(self) -> int:
        """Fits a frame of ``max_pixels`` as raw RGB."""
        return max(_LEAST_MESSAGE, self.max_pixels * 3) + _MESSAGE_MARGIN

    @property
    def max_reply_bytes(self) -> int:
        """Fits a float32 map of ``max_pixels`` in frame pixels."""
        return max(_LEAST_MESSAGE, self.max_pixels * 4) + _MESSAGE_MARGIN

    @property
    def max_map_bytes(self) -> int:
        """What is left for maps in a reply."""
        return self.max_reply_bytes - _MESSAGE_MARGIN

    @property
    def max_calls(self) -> int:
        """Most calls at once; more are refused before their frames are received. Leaves room for health checks."""
        return 4 * self.max_queue + 64

    @property
    def max_stream_frames(self) -> int:
        """Most frames of one stream in work at once; fewer while many streams share the server, but never below 2."""
        return max(2, self.max_batch, self.max_queue // _STREAM_SHARE)


def parse_stations(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """``NAME=CAMERA,CAMERA`` or ``NAME`` alone to the cameras of each station.

    Raises:
        SettingsError: a station without a name, or named twice.
    """
    stations: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, _, cameras = text.partition("=")
        if not name or name in stations:
            raise SettingsError(f"a station is NAME or NAME=CAMERA,CAMERA and has a name of its own; got {text!r}")
        stations[name] = tuple(camera for camera in cameras.split(",") if camera)
    return stations


def is_loopback(address: str) -> bool:
    """Whether an address never leaves this machine."""
    host = address.rpartition(":")[0]
    return address.startswith(_UNIX) or host == "localhost" or host.startswith("127.") or host == "[::1]"


def socket_path(address: str) -> Path | None:
    """The file of ``unix:PATH``; None for ``host:port``."""
    return Path(address.removeprefix(_UNIX)) if address.startswith(_UNIX) else None


def check_address(address: str, *, unix: bool = True) -> None:
    """Refuse what is no address.

    Raises:
        SettingsError: neither ``host:port`` nor, where ``unix`` allows it, ``unix:/path``.
    """
    path = socket_path(address) if unix else None
    if path is not None:
        if not path.is_absolute() or len(os.fsencode(path)) > _LONGEST_PATH:
            raise SettingsError(
                f"a Unix socket is unix: and an absolute path of at most {_LONGEST_PATH} bytes, for example "
                f"unix:/run/defectlens.sock; got {address!r}"
            )
        return
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise SettingsError(f"an address is HOST:PORT or unix:/PATH, for example 127.0.0.1:50051; got {address!r}")

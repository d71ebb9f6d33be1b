"""Prometheus metrics over HTTP, made from the telemetry's counts when somebody asks: frames do not pay for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from protos.inspection.v1 import inspection_pb2 as pb
from serving.fleet import Fleet
from serving.logs import Event
from serving.messages import ModelInfo
from serving.metrics_watched import Audited, Watched
from serving.recent import STAGES, Histogram
from serving.stations import Stations
from serving.telemetry import Snapshot, Telemetry
from vision.errors import SettingsError

if TYPE_CHECKING:  # loads the audit store, which a server without one need not
    from serving.recording import Recording

_MS_PER_S = 1000.0
_DEADLINE = pb.ErrorCode.Name(pb.DEADLINE_PASSED)
_log = logging.getLogger(__name__)


class MetricsServer:
    """Answers ``GET /metrics`` in threads of its own until ``close``. Each has its own registry.

    Args:
        address: ``host:port``; port 0 takes a free one.

    Raises:
        SettingsError: the address cannot be bound.
    """

    def __init__(
        self,
        address: str,
        telemetry: Telemetry,
        fleet: Fleet,
        stations: Stations,
        recording: Recording | None = None,
    ) -> None:
        host, _, port = address.rpartition(":")
        registry = CollectorRegistry()
        registry.register(_Frames(telemetry, lambda: fleet.served))
        registry.register(Watched(lambda: fleet.watches, stations))
        if recording is not None:
            registry.register(Audited(recording.counts))
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        gpus = _open_gpus()
        if gpus is not None:
            registry.register(gpus)
        try:
            self._server, self._thread = start_http_server(int(port), host.strip("[]"), registry)
        except OSError as error:
            raise SettingsError(
                f"metrics cannot be served at {address} ({error.strerror or error}); choose another address, or port 0 "
                "for any free port"
            ) from error
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Answer no more, and free the port."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Frames(Collector):
    def __init__(self, telemetry: Telemetry, served: Callable[[], Sequence[ModelInfo]]) -> None:
        self._telemetry = telemetry
        self._served = served

    def collect(self) -> Iterator[Metric]:
        snapshot = self._telemetry.snapshot()
        yield from _accounts(snapshot)
        yield from _timings(snapshot)
        depth = self._telemetry.queue_depth()
        yield GaugeMetricFamily("defectlens_queue_depth", "Frames that wait for inference.", depth)
        yield GaugeMetricFamily("defectlens_uptime_seconds", "Since the server was made.", snapshot.uptime_s)
        yield from _models(self._served())


def _accounts(snapshot: Snapshot) -> Iterator[Metric]:
    received = CounterMetricFamily("defectlens_received", "Frames that came in.", labels=["camera"])
    verdicts = CounterMetricFamily(
        "defectlens_verdicts", "Frames that were judged; NO_VERDICT: could not be.", labels=["camera", "verdict"]
    )
    failed = CounterMetricFamily("defectlens_failed", "Frames that ended with an error.", labels=["camera"])
    in_flight = GaugeMetricFamily("defectlens_in_flight", "Frames received and not answered yet.", labels=["camera"])
    for camera, counts in snapshot.cameras.items():
        received.add_metric([camera], counts.received)
        failed.add_metric([camera], counts.errors)
        in_flight.add_metric([camera], counts.in_flight)
        for verdict, count in counts.by_verdict.items():
            verdicts.add_metric([camera, verdict], count)
    errors = CounterMetricFamily("defectlens_errors", "The same errors by their code.", labels=["code"])
    for code, count in snapshot.codes.items():
        errors.add_metric([code], count)
    yield from (received, verdicts, failed, in_flight, errors)
    misses = snapshot.codes.get(_DEADLINE, 0)
    yield CounterMetricFamily("defectlens_deadline_misses", "Frames whose deadline passed.", misses)
    text = "Accounts in which received is not verdicts + errors + in flight; anything but 0 is a bug."
    yield GaugeMetricFamily("defectlens_accounting_problems", text, snapshot.problems)


def _timings(snapshot: Snapshot) -> Iterator[Metric]:
    stages = HistogramMetricFamily(
        "defectlens_stage_seconds", "Time of answered frames in each stage; `total` is all of it.", labels=["stage"]
    )
    for name, histogram in zip(STAGES, snapshot.histograms.stages, strict=True):
        stages.add_metric([name], _buckets(histogram, 1 / _MS_PER_S), histogram.total / _MS_PER_S)
    sizes = snapshot.histograms.batch_size
    batches = HistogramMetricFamily(
        "defectlens_batch_size", "Frames in the inference that a frame shared; one a frame."
    )
    batches.add_metric([], _buckets(sizes, 1), sizes.total)
    yield from (stages, batches)


def _buckets(histogram: Histogram, unit: float) -> list[tuple[str, float]]:
    """Cumulative, as Prometheus wants them."""
    cumulated, found = 0, []
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        cumulated += count
        found.append(("+Inf" if bound == float("inf") else f"{bound * unit:g}", cumulated))
    return [(bound, float(count)) for bound, count in found]


def _models(served: Sequence[ModelInfo]) -> Iterator[Metric]:
    names = ["name", "version", "bundle_digest", "model_digest", "provider"]
    models = InfoMetricFamily("defectlens_model", "What is served, and what it really runs on.", labels=names)
    text = "1 if the model runs on another provider than was asked for."
    fallback = GaugeMetricFamily("defectlens_provider_fallback", text, labels=["name"])
    for info in served:
        model = info.model
        values = [model.name, model.version, model.bundle_digest, model.model_digest, info.provider]
        models.add_metric(values, {})
        fallback.add_metric([model.name], int(info.provider_fallback))
    yield from (models, fallback)


class _Gpus(Collector):
    def __init__(self, nvml: Any, handles: Sequence[Any]) -> None:
        self._nvml = nvml
        self._handles = handles

    def collect(self) -> Iterator[Metric]:
        used = GaugeMetricFamily("defectlens_gpu_memory_used_bytes", "Of all processes.", labels=["gpu"])
        size = GaugeMetricFamily("defectlens_gpu_memory_size_bytes", "Of the device.", labels=["gpu"])
        for index, handle in enumerate(self._handles):
            memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
            used.add_metric([str(index)], memory.used)
            size.add_metric([str(index)], memory.total)
        yield from (used, size)


def _open_gpus() -> _Gpus | None:
    """The NVIDIA devices of this machine; None without any, or without the extra ``nvml``."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        _log.debug(Event("no_gpu_metrics", reason=str(error)))
        return None
    return _Gpus(pynvml, handles)

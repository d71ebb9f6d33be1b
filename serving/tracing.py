"""OpenTelemetry spans of frames, joined to the caller's trace. The only place that loads the extra ``otel``."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serving.messages import Timings

_W3C = TraceContextTextMapPropagator()
_HEADERS = frozenset(_W3C.fields)
_NS_PER_MS = 1e6
# Callers may name their frames with megabytes.
_LONGEST_ATTRIBUTE = 200


class Tracing:
    """Makes one span a frame, with one child a stage, and sends them on in the background.

    Args:
        exporter: where spans go.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        # Not the process's global provider: two servers in one process must not clash.
        resource = Resource.create({SERVICE_NAME: "defectlens"})
        limits = SpanLimits(max_attribute_length=_LONGEST_ATTRIBUTE)
        self._provider = TracerProvider(resource=resource, span_limits=limits)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("defectlens.serving")

    def parent_of(self, metadata: Iterable[tuple[str, Any]] | None) -> Context:
        """The caller's trace context from a call's metadata; an empty one if it sent none, or none that is valid."""
        carrier = {key: value for key, value in metadata or () if key in _HEADERS and isinstance(value, str)}
        return _W3C.extract(carrier, Context())

    def frame(self, request_id: str, camera_id: str, parent: Context | None) -> FrameSpan:
        """Begin the span of a frame that has just come in."""
        return FrameSpan(self._tracer, request_id, camera_id, parent)

    def close(self) -> None:
        """Send what is left; waits for a while if nobody takes it."""
        self._provider.shutdown()


class FrameSpan:
    """The span of one frame; ends with ``finish`` or ``fail``."""

    __slots__ = ("_began_ns", "_clock_ns", "_span", "_tracer")

    def __init__(self, tracer: Tracer, request_id: str, camera_id: str, parent: Context | None) -> None:
        self._tracer = tracer
        # Spans carry the time of day; how long they last comes from the clock that never jumps.
        self._began_ns, self._clock_ns = time.time_ns(), time.monotonic_ns()
        self._span: Span = tracer.start_span(
            "inspect frame",
            Context() if parent is None else parent,
            SpanKind.SERVER,
            {"defectlens.request_id": request_id, "defectlens.camera_id": camera_id},
            start_time=self._began_ns,
        )

    def finish(self, verdict: str, batch_size: int, timings: Timings) -> None:
        """The frame was answered. Its stages are laid end to end; all waiting stands first, as ``queue``."""
        if self._span.is_recording():  # a trace that nobody samples costs no more
            self._span.set_attributes({"defectlens.verdict": verdict, "defectlens.batch_size": batch_size})
            self._stages(timings)
        self._end()

    def fail(self, code: str, message: str) -> None:
        """The frame met an error."""
        self._span.set_attribute("defectlens.error_code", code)
        self._span.set_status(StatusCode.ERROR, message)
        self._end()

    def _stages(self, timings: Timings) -> None:
        context, start = set_span_in_context(self._span, Context()), self._began_ns
        durations = asdict(timings)
        durations.pop("total_ms")
        for name, milliseconds in durations.items():
            end = start + round(milliseconds * _NS_PER_MS)
            self._tracer.start_span(name.removesuffix("_ms"), context, start_time=start).end(end)
            start = end

    def _end(self) -> None:
        self._span.end(self._began_ns + time.monotonic_ns() - self._clock_ns)


def otlp_tracing(endpoint: str) -> Tracing:
    """Spans over OTLP/gRPC to a collector, e.g. ``http://127.0.0.1:4317``; ``https`` goes encrypted."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return Tracing(OTLPSpanExporter(endpoint, insecure=not endpoint.startswith("https://"), timeout=5))

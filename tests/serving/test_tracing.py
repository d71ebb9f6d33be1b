"""Spans of real servers, joined to those of real clients."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags, use_span

from serving import FrameRequest, RawImage
from serving.recent import STAGES
from serving.tracing import Tracing
from tests.fakes import part
from tests.serving.conftest import Serve
from vision.errors import NotAnImageError, SettingsError

TRACER = TracerProvider().get_tracer("a camera's program")


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What servers started with ``traces`` sent; complete once they have stopped."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr("serving.tracing.otlp_tracing", lambda endpoint: Tracing(exporter))
    return exporter


def frames(exporter: InMemorySpanExporter) -> Iterator[tuple[ReadableSpan, list[ReadableSpan]]]:
    """Each frame's span with those of its stages, in their order."""
    every = exporter.get_finished_spans()
    for span in every:
        if span.name == "inspect frame":
            stages = [child for child in every if child.parent and child.parent.span_id == span.context.span_id]
            yield span, sorted(stages, key=lambda child: child.start_time or 0)


async def test_a_frame_joins_the_clients_trace(serve: Serve, spans: InMemorySpanExporter) -> None:
    async with serve(traces="http://127.0.0.1:4317") as (_, client):
        with TRACER.start_as_current_span("trigger") as mine:
            reply = await client.inspect(part(), request_id="r1", camera_id="left")
    [(span, stages)] = frames(spans)
    assert span.context.trace_id == mine.get_span_context().trace_id
    assert span.parent is not None
    assert span.parent.span_id == mine.get_span_context().span_id
    attributes = dict(span.attributes or {})
    assert attributes["defectlens.request_id"] == "r1"
    assert attributes["defectlens.camera_id"] == "left"
    assert attributes["defectlens.verdict"] == "PASS"
    assert tuple(stage.name for stage in stages) == STAGES[:-1]
    for stage in stages:
        took_ms = ((stage.end_time or 0) - (stage.start_time or 0)) / 1e6
        assert took_ms == pytest.approx(getattr(reply.timings, f"{stage.name}_ms"), abs=0.001)
    whole_ms = ((span.end_time or 0) - (span.start_time or 0)) / 1e6
    assert whole_ms >= reply.timings.total_ms


async def test_frames_of_a_stream_join_its_trace_and_errors_are_marked(
    serve: Serve, spans: InMemorySpanExporter
) -> None:
    requests = [FrameRequest(RawImage.from_frame(part()), f"r{index}") for index in range(3)]
    async with serve(traces="http://127.0.0.1:4317") as (_, client):
        with TRACER.start_as_current_span("shift") as mine:
            _ = [answer async for answer in client.inspect_stream(requests)]
        with pytest.raises(NotAnImageError):
            await client.inspect(b"text", request_id="bad")
    found = {dict(span.attributes or {})["defectlens.request_id"]: span for span, _ in frames(spans)}
    bad = found.pop("bad")
    assert {span.context.trace_id for span in found.values()} == {mine.get_span_context().trace_id}
    assert found.keys() == {"r0", "r1", "r2"}
    assert bad.parent is None
    assert bad.status.status_code is StatusCode.ERROR
    assert dict(bad.attributes or {})["defectlens.error_code"] == "NOT_AN_IMAGE"


async def test_a_trace_that_the_client_does_not_sample_is_not_sent(serve: Serve, spans: InMemorySpanExporter) -> None:
    unsampled = NonRecordingSpan(SpanContext(7, 7, is_remote=False, trace_flags=TraceFlags(0)))
    async with serve(traces="http://127.0.0.1:4317") as (_, client):
        with use_span(unsampled):
            await client.inspect(part())
    assert not spans.get_finished_spans()


@pytest.mark.parametrize("header", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 4000])
async def test_a_broken_trace_header_harms_no_frame(serve: Serve, spans: InMemorySpanExporter, header: str) -> None:
    from protos.inspection.v1 import inspection_pb2_grpc as pb_grpc
    from serving.calls import as_request
    from serving.wire import request_to_proto

    async with serve(traces="http://127.0.0.1:4317") as (server, client):
        stub: Any = pb_grpc.InspectionServiceStub(client._channel)
        await stub.Inspect(request_to_proto(as_request(part())), metadata=(("traceparent", header),))
        assert server.telemetry.judged == 1
    [(span, _)] = frames(spans)
    assert span.parent is None


async def test_names_of_megabytes_are_cut_in_spans_and_logs(
    serve: Serve, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(traces="http://127.0.0.1:4317") as (_, client):
        with pytest.raises(NotAnImageError):
            await client.inspect(b"text", request_id="x" * 1_000_000, lot="y" * 1_000_000)
    [(span, _)] = frames(spans)
    assert len(str(dict(span.attributes or {})["defectlens.request_id"])) < 1000
    assert "event=error request_id='xxx" in caplog.text
    assert len(caplog.text) < 5000


@pytest.mark.slow
async def test_a_collector_that_is_not_there_stops_nobody(serve: Serve) -> None:
    async with serve(traces="http://127.0.0.1:1") as (_, client):
        assert (await client.inspect(part())).inspection.verdict.name == "PASS"


async def test_traces_without_the_extra_say_what_to_install(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "serving.tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"defectlens\[otel\]"):
        async with serve(traces="http://127.0.0.1:4317"):
            pass


def test_without_the_option_nothing_of_it_is_loaded() -> None:
    code = (
        "import sys, serving.server, serving.client; from serving.calls import trace_metadata; "
        "assert trace_metadata() == (); "
        "sys.exit(any(name.partition('.')[0] in ('opentelemetry', 'prometheus_client') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_endpoint_that_is_none_is_refused(bundle: Any) -> None:
    from serving import ServerSettings

    with pytest.raises(SettingsError, match="4317"):
        ServerSettings(bundle=bundle, traces="collector:4317")

"""Metrics as Prometheus reads them, from real servers."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving import EncodedImage, FrameRequest, InspectionServer, ServerSettings
from serving.recent import STAGES
from serving.recording_options import AuditSettings
from tests.fakes import make_bundle, part
from tests.serving.conftest import Serve, png
from vision.errors import NotAnImageError, SettingsError

DASHBOARD = Path(__file__).parents[2] / "docs/grafana/defectlens.json"
WATCHING = DASHBOARD.parents[1] / "watching.md"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scrape(server: InspectionServer) -> Samples:
    assert server.metrics is not None
    url = f"http://{server.metrics.address}/metrics"

    def read() -> str:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())

    text = await asyncio.to_thread(read)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, /, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


async def test_metrics_say_what_happened(serve: Serve) -> None:
    async with serve(metrics="127.0.0.1:0") as (server, client):
        for index in range(3):
            await client.inspect(part(spot=255 if index else 128), camera_id="left")
        with pytest.raises(NotAnImageError):
            await client.inspect(b"text", camera_id="right")
        empty = FrameRequest(None, camera_id="right")
        _ = [answer async for answer in client.inspect_stream([empty])]
        samples = await scrape(server)
        assert value(samples, "defectlens_received_total", camera="left") == 3
        assert value(samples, "defectlens_verdicts_total", camera="left", verdict="PASS") == 1
        assert value(samples, "defectlens_verdicts_total", camera="left", verdict="REJECT") == 2
        assert value(samples, "defectlens_failed_total", camera="right") == 2
        assert value(samples, "defectlens_errors_total", code="NOT_AN_IMAGE") == 1
        assert value(samples, "defectlens_errors_total", code="EMPTY_REQUEST") == 1
        assert value(samples, "defectlens_deadline_misses_total") == 0
        assert value(samples, "defectlens_accounting_problems") == 0
        assert value(samples, "defectlens_in_flight", camera="left") == 0
        assert value(samples, "defectlens_batch_size_count") == 3
        for stage in STAGES:
            assert value(samples, "defectlens_stage_seconds_count", stage=stage) == 3
            assert value(samples, "defectlens_stage_seconds_bucket", stage=stage, le="+Inf") == 3
        total = value(samples, "defectlens_stage_seconds_sum", stage="total")
        assert 3e-4 < total < 60
        model = server.info.model
        labels = {"name": "fake", "version": "1", "provider": "CPUExecutionProvider"}
        digests = {"bundle_digest": model.bundle_digest, "model_digest": model.model_digest}
        assert value(samples, "defectlens_model_info", **labels, **digests) == 1
        assert value(samples, "defectlens_provider_fallback", name="fake") == 0
        assert value(samples, "process_resident_memory_bytes") > 1e7


async def test_deadlines_that_passed_are_counted(serve: Serve, slow_bundle: Path) -> None:
    async with serve(slow_bundle, metrics="127.0.0.1:0", max_batch=1) as (server, client):
        frames = [
            FrameRequest(EncodedImage(png(part())), f"r{index}", timeout_ms=1 if index else 0) for index in range(4)
        ]
        _ = [answer async for answer in client.inspect_stream(frames)]
        samples = await scrape(server)
    assert value(samples, "defectlens_deadline_misses_total") == 3
    assert value(samples, "defectlens_errors_total", code="DEADLINE_PASSED") == 3


async def test_frames_in_flight_are_in_the_accounts(serve: Serve, slow_bundle: Path) -> None:
    async with serve(slow_bundle, metrics="127.0.0.1:0", max_batch=1) as (server, client):
        calls = [asyncio.create_task(client.inspect(part(), camera_id="c")) for _ in range(8)]
        while server.telemetry.in_flight < 8:
            await asyncio.sleep(0.001)
        samples = await scrape(server)
        await asyncio.gather(*calls)
    in_flight = value(samples, "defectlens_in_flight", camera="c")
    verdicts = samples.get(("defectlens_verdicts_total", (("camera", "c"), ("verdict", "PASS"))), 0)
    assert value(samples, "defectlens_received_total", camera="c") == 8 == in_flight + verdicts
    assert 0 <= value(samples, "defectlens_queue_depth") <= 8


@pytest.mark.slow
async def test_two_servers_in_one_process_count_apart_and_free_their_ports(serve: Serve, bundle: Path) -> None:
    async with serve(metrics="127.0.0.1:0") as (one, client), serve(metrics="127.0.0.1:0") as (other, _):
        await client.inspect(part(), camera_id="c")
        assert value(await scrape(one), "defectlens_received_total", camera="c") == 1
        assert ("defectlens_received_total", (("camera", "c"),)) not in await scrape(other)
        assert one.metrics is not None
        address = one.metrics.address
        third = InspectionServer(ServerSettings(bundle=bundle, address="127.0.0.1:0", metrics=address))
        with pytest.raises(SettingsError, match="metrics cannot be served"):
            await third.start()
    async with serve(metrics=address) as (again, _):
        assert again.metrics is not None
        assert again.metrics.address == address


async def test_the_dashboard_asks_for_metrics_that_exist(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvml = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=1, total=2),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    watched = make_bundle(tmp_path / "watched", good_frames=40)
    stations = {"stations": {"press": ()}, "station_log": tmp_path / "log", "admin": "127.0.0.1:0"}
    audit = AuditSettings(where=str(tmp_path / "audit"))
    async with serve(watched, metrics="127.0.0.1:0", audit=audit, **stations) as (server, client):
        for _ in range(20):  # all alike, and unlike the reference: an alarm
            await client.inspect(part())
        with pytest.raises(NotAnImageError):
            await client.inspect(b"text")
        exported = {name for name, _ in await scrape(server)}
    dashboard = json.loads(DASHBOARD.read_text())
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    queries = [target["expr"] for target in targets]
    queries += [variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable]
    asked = {name for query in queries for name in re.findall(r"\b(?:defectlens|process)_\w+", query)}
    assert len(asked) > 12
    assert asked <= exported, sorted(asked - exported)
    # And nothing of ours is left out of the picture.
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported if name.startswith("defectlens_")}
    assert ours <= shown, sorted(ours - shown)
    described = set(re.findall(r"`(defectlens_\w+)`", WATCHING.read_text()))
    assert described <= ours, sorted(described - ours)
    assert ours <= described, sorted(ours - described)


@pytest.mark.parametrize("metrics", ["9100", ":9100", "host:port", "127.0.0.1:70000"])
def test_an_address_that_is_none_is_refused(bundle: Path, metrics: str) -> None:
    with pytest.raises(SettingsError, match="HOST:PORT"):
        ServerSettings(bundle=bundle, metrics=metrics)

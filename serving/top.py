"""The command ``top``: the live picture of a running server in a terminal."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from serving.cameras import worst
from serving.words import duration, printable
from vision.console import exits_cleanly, plain

if TYPE_CHECKING:
    from serving.live import FrameCounts, ServerStatus

_TIMEOUT_S = 5.0
_MOST_ROWS = 30
_MIB = 1024 * 1024


@click.command()
@click.option("--server", required=True, metavar="ADDR", help="HOST:PORT of a running server.")
@click.option(
    "--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds between two looks."
)
@click.option("--once", is_flag=True, help="Look once and end.")
@click.option("--json", "as_json", is_flag=True, help="Each look as one JSON line on stdout.")
@exits_cleanly
def top(server: str, interval: float, once: bool, as_json: bool) -> None:
    """Watch a running server: frames, verdicts, times of each stage, cameras. Ctrl-C ends.

    On a terminal the picture stays in place; elsewhere each look is one line.

    \b
    Example:
      defectlens top --server 127.0.0.1:50051
      defectlens top --server 127.0.0.1:50051 --once --json
    """
    console = Console()
    looks = _looks(server, interval, once=once)
    try:
        if as_json:
            for _, status in looks:
                click.echo(json.dumps(plain(as_dict(status)), ensure_ascii=False))
        elif once and console.is_terminal:
            for _, status in looks:
                console.print(picture(server, status, None))
        elif console.is_terminal:
            with Live(console=console, auto_refresh=False, screen=True) as live:
                for before, status in looks:
                    live.update(picture(server, status, before), refresh=True)
        else:
            for before, status in looks:
                click.echo(line(status, before))
    except KeyboardInterrupt:
        return


def _looks(server: str, interval: float, *, once: bool) -> Iterator[tuple[ServerStatus | None, ServerStatus]]:
    """Each look beside the one before it."""
    from serving.client import InspectionClient  # loads gRPC, which `--help` need not

    before: ServerStatus | None = None
    with InspectionClient(server) as client:
        while True:
            status = client.get_status(timeout_s=_TIMEOUT_S)
            # A server that was started anew counts from zero.
            yield (before if before is not None and before.uptime_s < status.uptime_s else None), status
            if once:
                return
            before = status
            time.sleep(interval)


def as_dict(status: ServerStatus) -> dict[str, Any]:
    """The live picture for a JSON line; ``recent`` gets its frames a second."""
    figures = asdict(status)
    if status.recent is not None:
        figures["recent"]["frames_per_second"] = status.recent.frames_per_second
    return figures


def line(status: ServerStatus, before: ServerStatus | None) -> str:
    """One look as ``key=value`` words."""
    total, recent = status.total, status.recent
    words: dict[str, Any] = {"frames_per_second": f"{_rate(status, before):.1f}"}
    if recent is not None:
        times = {stage.stage: stage for stage in recent.stages}["total"]
        words |= {"p50_ms": f"{times.p50_ms:.1f}", "p99_ms": f"{times.p99_ms:.1f}"}
        words["batch_size"] = f"{recent.mean_batch_size:.1f}"
    words |= {"queue": status.queue_depth, "in_flight": total.in_flight, "received": total.received}
    words |= {"verdicts": total.verdicts, "no_verdicts": total.no_verdicts, "errors": total.errors}
    words |= dict(sorted(total.by_verdict.items()))
    words |= {
        f"drift[{printable(camera.camera_id)}]": f"{found.now.state.name}:{found.now.signal}"
        for camera in status.cameras
        if (found := worst(camera.drift)) is not None and found.now.state.is_alarm
    }
    if stopped := [station.station for station in status.stations if not station.serving]:
        words["stopped"] = ",".join(map(printable, stopped))
    return " ".join(f"{key}={value}" for key, value in words.items())


def picture(server: str, status: ServerStatus, before: ServerStatus | None) -> RenderableType:
    """One look for a terminal."""
    parts: list[RenderableType] = [Text(f"{server}  up {duration(status.uptime_s)}", "bold")]
    for served in status.served:
        model = served.model
        fallback = "  FALLBACK" if served.provider_fallback else ""
        parts.append(
            Text(f"{model.name} {model.version} ({model.bundle_digest[:12]}) on {served.provider}")
            + Text(fallback, "bold red")
        )
    batch = "" if status.recent is None else f"batch {status.recent.mean_batch_size:.1f}   "
    memory = f"memory {status.resident_memory_bytes / _MIB:.0f} MiB" if status.resident_memory_bytes else ""
    parts.append(
        Text(
            f"\n{_rate(status, before):.1f} frames/s   queue {status.queue_depth}   "
            f"in flight {status.total.in_flight}   {batch}{memory}"
        )
    )
    if status.recent is not None:
        stages = Table("stage", *map(_number, ("p50 ms", "p99 ms", "max ms")), box=None)
        for times in status.recent.stages:
            values = (times.p50_ms, times.p99_ms, times.max_ms)
            stages.add_row(times.stage, *(f"{value:.1f}" for value in values))
        parts += [Text(f"\nthe last {status.recent.seconds:.0f} s", "dim"), stages]
    parts += [Text(""), _cameras(status, before), *_drift(status), *_stations(status)]
    if status.errors:
        mix = ", ".join(f"{code} {count}" for code, count in sorted(status.errors.items()))
        parts.append(Text(f"\nerrors: {mix}", "red"))
    return Group(*parts)


def _cameras(status: ServerStatus, before: ServerStatus | None) -> Table:
    heads = ("received", "per s", "PASS", "REJECT", "REVIEW", "NO_VERDICT", "errors", "in flight", "last seen")
    table = Table("camera", *map(_number, heads), box=None)
    then = {} if before is None else {camera.camera_id: camera.counts for camera in before.cameras}
    seconds = 0.0 if before is None else status.uptime_s - before.uptime_s

    def row(name: Text, counts: FrameCounts, earlier: FrameCounts | None, age: str) -> None:
        known = before is not None
        rate = (counts.received - (earlier.received if earlier else 0)) / seconds if known else None
        verdicts = [counts.by_verdict.get(verdict, 0) for verdict in ("PASS", "REJECT", "REVIEW", "NO_VERDICT")]
        values = [counts.received, "" if rate is None else f"{rate:.1f}", *verdicts, counts.errors, counts.in_flight]
        table.add_row(name, *map(str, values), age)

    row(Text("all", "bold"), status.total, None if before is None else before.total, "")
    latest = sorted(status.cameras, key=lambda camera: camera.last_frame_age_s)
    for camera in sorted(latest[:_MOST_ROWS], key=lambda camera: camera.camera_id):
        age = f"{duration(camera.last_frame_age_s)} ago"
        name = Text(printable(camera.camera_id) or "(no name)")
        row(name, camera.counts, then.get(camera.camera_id), age)
    if len(latest) > _MOST_ROWS:
        table.add_row(Text(f"and {len(latest) - _MOST_ROWS} that were silent for longer", "dim"))
    return table


def _drift(status: ServerStatus) -> list[RenderableType]:
    """A line for each camera in alarm, and one that counts the others."""
    found = [(camera.camera_id, one.now) for camera in status.cameras if (one := worst(camera.drift)) is not None]
    alarms = [(name, now) for name, now in found if now.state.is_alarm]
    calm = Counter(now.state.name for _, now in found if not now.state.is_alarm)
    lines: list[RenderableType] = [
        Text(f"\n{printable(name) or '(no name)'}: {now.state.name}, {now.signal} {now.shift:+.1f} spreads", "bold red")
        for name, now in alarms
    ]
    if calm:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(calm.items()))
        lines.append(Text(f"\ncameras for drift: {counts}", "dim"))
    return lines


def _stations(status: ServerStatus) -> list[RenderableType]:
    stopped = [station for station in status.stations if not station.serving]
    return [Text(f"\nstation {printable(one.station)} STOPPED: {one.reason}", "bold red") for one in stopped]


def _rate(status: ServerStatus, before: ServerStatus | None) -> float:
    """Answers of the model a second: between two looks, or of the last seconds for the first one."""
    if before is None:
        return 0.0 if status.recent is None else status.recent.frames_per_second
    seconds = status.uptime_s - before.uptime_s
    answered = status.total.verdicts + status.total.no_verdicts
    return (answered - before.total.verdicts - before.total.no_verdicts) / seconds


def _number(head: str) -> Column:
    return Column(head, justify="right")

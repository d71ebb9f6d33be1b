"""The command ``doctor``: what is wrong with a server, its cameras and stations, in words, and what to do about it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from serving.cameras import worst
from serving.words import duration, printable
from vision.console import EXIT_FAILURE, exits_cleanly, finish
from vision.drift.states import DriftState

if TYPE_CHECKING:
    from serving.live import CameraDrift, CameraStatus, DriftAlarm, ServerStatus
    from serving.messages import ModelInfo

_TIMEOUT_S = 10.0
# Of the frames since the start. Less is a hiccup; the frames met it and were told so.
_MANY = 0.01
_NEARLY_FULL = 0.9
_DAY_S = 86400.0
_FASTER = "send fewer frames, or find a faster engine (defectlens tune)"
# Errors that frames met, by what they say about the server.
_LATE, _TURNED_AWAY, _BUGS = ("DEADLINE_PASSED",), ("OVERLOADED",), ("INTERNAL", "PARITY_BROKEN")
_HEADS = {
    DriftState.CAMERA_CHANGED: "the camera has changed",
    DriftState.PARTS_WORSE: "the parts have got worse; the camera is as it was",
    DriftState.UNCLEAR: "something has changed, and it is not clear whether the camera or the parts",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is found. ``alarm``: somebody has to act. ``also``: what goes with it, and most probably follows
    from it. ``evidence`` says why one should believe it.
    """

    subject: str
    alarm: bool
    words: str
    advice: str = ""
    evidence: str = ""
    also: tuple[str, ...] = ()


@click.command()
@click.option("--server", required=True, metavar="ADDR", help="HOST:PORT or unix:/PATH of a running server.")
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON line on stdout.")
@exits_cleanly
def doctor(server: str, as_json: bool) -> None:
    """Say in words how a server, its cameras and its stations are; exit code 1 if somebody has to act.

    For each camera: what changed, since when, by how much in spreads of good calibration frames, and what to do.

    \b
    Example:
      defectlens doctor --server 127.0.0.1:50051
      defectlens doctor --server 127.0.0.1:50051 --json
    """
    from serving.client import InspectionClient  # loads gRPC, which `--help` need not

    with InspectionClient(server) as client:
        status = client.get_status(timeout_s=_TIMEOUT_S)
        models = [client.get_model(served.model.name, timeout_s=_TIMEOUT_S) for served in status.served]
        ready = client.is_ready()
    findings = examine(status, models, ready=ready, now=time.time())
    healthy = not any(finding.alarm for finding in findings)
    if as_json:
        cameras = {camera.camera_id: [asdict(one) for one in camera.drift] for camera in status.cameras}
        figures = {"healthy": healthy, "findings": [asdict(finding) for finding in findings], "cameras": cameras}
        finish(figures, as_json=True)
    else:
        click.echo("\n".join(describe(findings, healthy=healthy)))
    if not healthy:
        raise SystemExit(EXIT_FAILURE)


def examine(status: ServerStatus, models: Sequence[ModelInfo], *, ready: bool, now: float) -> list[Finding]:
    """Everything that can be said; what needs somebody comes first.

    Args:
        now: seconds since 1970.
    """
    found = [*_server(status, models, ready=ready), *_models(models), *_stations(status, now), *_audit(status)]
    for camera in status.cameras:
        found += _camera(camera, models)
    return sorted(found, key=lambda finding: not finding.alarm)


def describe(findings: Sequence[Finding], *, healthy: bool) -> list[str]:
    """The findings for a person to read."""
    alarms = sum(finding.alarm for finding in findings)
    lines = ["healthy" if healthy else f"{alarms} thing{'s' if alarms > 1 else ''} to act on"]
    for finding in findings:
        lines.append(f"{'!' if finding.alarm else ' '} {finding.subject}: {finding.words}")
        more = (*(("also", text) for text in finding.also), ("do", finding.advice), ("why", finding.evidence))
        lines += [f"    {name}: {text}" for name, text in more if text]
    return lines


def _server(status: ServerStatus, models: Sequence[ModelInfo], *, ready: bool) -> Iterator[Finding]:
    if not ready:
        yield Finding("server", True, "it does not report itself as serving", "look at its log; is it shutting down?")
    if problems := list(_unaccounted(status)):
        yield Finding("accounts", True, "; ".join(problems), "this is a bug of the server: keep its log and report it")
    received = max(1, status.total.received)
    for codes, words, advice in (
        (_LATE, "missed their deadline", f"allow more time, {_FASTER}"),
        (_TURNED_AWAY, "were turned away", _FASTER),
        (_BUGS, "met an error inside the server", "look at its log"),
    ):
        count = sum(status.errors.get(code, 0) for code in codes)
        if count:
            many = count / received >= _MANY or codes is _BUGS
            yield Finding("frames", many, f"{count} of {received} ({count / received:.1%}) {words}", advice)
    places = max((model.limits.max_queue for model in models), default=0)
    if places and status.total.in_flight >= _NEARLY_FULL * places:
        words = f"{status.total.in_flight} frames are in work, {places} fit"
        yield Finding("queue", True, words, "the cameras send more than the engine can do: see `defectlens top`")
    yield Finding(
        "server",
        False,
        f"up for {duration(status.uptime_s)}, {status.total.received} frames received, {status.queue_depth} waiting",
    )


def _unaccounted(status: ServerStatus) -> Iterator[str]:
    """Counts that do not add up; every one of them is a bug."""
    accounts = [("all cameras", status.total)]
    accounts += [(f"camera {printable(camera.camera_id)!r}", camera.counts) for camera in status.cameras]
    for name, counts in accounts:
        known = counts.verdicts + counts.no_verdicts + counts.errors + counts.in_flight
        if known != counts.received:
            yield f"{name}: {counts.received} frames received, {known} accounted for"
    if status.cameras:
        received = sum(camera.counts.received for camera in status.cameras)
        if received != status.total.received:
            yield f"{status.total.received} frames received in total, {received} over the cameras"


def _models(models: Sequence[ModelInfo]) -> Iterator[Finding]:
    for info in models:
        name = f"model {info.model.name} {info.model.version}"
        runs = f"runs on {info.provider} in {info.precision}"
        if info.provider_fallback:
            advice = "mend the installation, or start with the provider that is there; --strict-provider refuses this"
            yield Finding(name, True, f"{runs}, which is not what was asked for", advice)
        if info.drift is None:
            yield Finding(
                name,
                False,
                f"{runs}; its cameras are not watched",
                "start without --drift off, and give the bundle a reference: defectlens reference --help",
            )
            continue
        watch = info.drift
        whom = (
            "the calibration's frames and their own first ones" if watch.against_calibration else "their own first ones"
        )
        yield Finding(
            name,
            False,
            f"{runs}; {len(watch.signals)} signals of each camera are compared with {whom}",
            evidence=(
                f"{watch.reference_frames} good frames; at most one false alarm in {watch.frames_per_false_alarm} "
                "frames of a camera on average, while its frames are exchangeable"
            ),
        )


def _stations(status: ServerStatus, now: float) -> Iterator[Finding]:
    for station in status.stations:
        name = f"station {printable(station.station)}"
        if not station.serving:
            advice = (
                "mend what is named and check again (defectlens masters), or have it overridden (defectlens override)"
            )
            yield Finding(name, True, f"stopped: {station.reason}", advice)
        elif station.overridden_by:
            yield Finding(name, True, f"serves by override: {station.reason}", "check it again as soon as you can")
        elif station.checked_at is None:
            yield Finding(name, False, "was never checked with master parts", "defectlens masters --help")
        else:
            age = now - station.checked_at
            advice = "check it at the start of each shift" if age > _DAY_S else ""
            yield Finding(name, False, f"passed its check {duration(age)} ago: {station.reason}", advice)


def _audit(status: ServerStatus) -> Iterator[Finding]:
    audit = status.audit
    if audit is None:
        return
    known = audit.recorded + audit.failed + audit.dropped + audit.waiting
    if known != audit.offered:
        words = f"{audit.offered} records offered, {known} accounted for"
        yield Finding("audit", True, words, "this is a bug of the server: keep its log and report it")
    if audit.problem:
        what = "no verdict is given" if audit.mode == "strict" else "answers are given, and not recorded"
        yield Finding("audit", True, f"{what}: {audit.problem}", "make room on the disk, or mend the database")
    if audit.dropped:
        advice = "a faster disk, or fewer frames"
        yield Finding("audit", True, f"{audit.dropped} answers were lost to the record", advice)
    yield Finding("audit", False, f"{audit.recorded} records ({audit.mode}), {audit.waiting} waiting")


def _camera(camera: CameraStatus, models: Sequence[ModelInfo]) -> Iterator[Finding]:
    name = f"camera {printable(camera.camera_id)}" if camera.camera_id else "cameras without a name"
    if camera.counts.no_verdicts:
        yield Finding(
            name, False, f"{camera.counts.no_verdicts} frames could not be judged", "see the reasons in the replies"
        )
    found = worst(camera.drift)
    if found is None:
        return
    if not found.now.state.is_alarm:
        yield Finding(name, False, _quiet(found))
        return
    promise = next(
        (info.drift.frames_per_false_alarm for info in models if info.model == found.model and info.drift is not None),
        0,
    )
    # What is said is not always the alarm that came first: a camera that is suspected explains worse scores.
    leading = next((alarm for alarm in found.alarms if alarm.signal == found.now.signal), found.alarms[0])
    yield Finding(
        name,
        True,
        f"{_HEADS[found.now.state]}: {_alarm_words(leading)}",
        leading.advice,
        f"odds of 10^{leading.log10_odds:.1f} to 1 against chance; at most one false alarm in {promise} frames of a "
        "camera on average, while nothing changes",
        tuple(_alarm_words(alarm) for alarm in found.alarms if alarm is not leading),
    )


def _alarm_words(alarm: DriftAlarm) -> str:
    against = "the calibration" if alarm.against_calibration else "its own first frames"
    return (
        f"{alarm.words} ({alarm.signal} {alarm.shift:+.1f} spreads against {against}) since about its frame "
        f"{alarm.since_frame}, {duration(alarm.since_s_ago)} ago"
    )


def _quiet(found: CameraDrift) -> str:
    furthest = max(found.levels, key=lambda level: abs(level.shift))
    so_far = sum(found.alarms_so_far.values())
    past = f"; {so_far} alarms before, which are over" if so_far else ""
    kind = "learns what is usual" if found.now.state is DriftState.LEARNING else "as it should be"
    distance = f"{furthest.signal} {furthest.shift:+.1f} spreads"
    return f"{kind}, {found.frames} frames; furthest from calibration: {distance}{past}"

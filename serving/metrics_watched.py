"""Metrics of what is watched beside the verdicts: cameras, stations and the audit trail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.drift import DriftWatch
from serving.stations import Stations
from vision.drift.states import DriftState

if TYPE_CHECKING:  # loads the audit store, which a server without one need not
    from serving.audit.recorder import RecorderCounts

_STATES = [state for state in DriftState if state is not DriftState.NOT_WATCHED]


class Watched(Collector):
    """Made when somebody asks, from what the watches know then.

    Args:
        watches: those of the models that are served now.
    """

    def __init__(self, watches: Callable[[], Sequence[DriftWatch]], stations: Stations) -> None:
        self._watches = watches
        self._stations = stations

    def collect(self) -> Iterator[Metric]:
        yield from _cameras(self._watches())
        serving = GaugeMetricFamily(
            "defectlens_station_serving", "0 while a station's frames are refused.", labels=["station"]
        )
        for station in self._stations.all():
            serving.add_metric([station.station], int(station.serving))
        yield serving


class Audited(Collector):
    """Metrics of the recording of answers.

    Args:
        counts: what became of the records so far.
    """

    def __init__(self, counts: Callable[[], RecorderCounts]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        counts = self._counts()
        for name, value, text in (
            ("offered", counts.offered, "Answers and acts that were to be recorded."),
            ("recorded", counts.recorded, "Records that are durable."),
            ("failed", counts.failed, "Records that could not be written; whoever waited was told."),
            ("dropped", counts.dropped, "Records that are lost; anything but 0 is an alarm."),
            ("groups", counts.groups, "Groups of records that were written in one go."),
            ("write_seconds", counts.seconds, "Time spent writing."),
            ("checkpoints", counts.checkpoints, "Signed checkpoints."),
        ):
            yield CounterMetricFamily(f"defectlens_audit_{name}", text, value)
        yield GaugeMetricFamily("defectlens_audit_waiting", "Records that wait to be written.", counts.waiting)
        yield GaugeMetricFamily("defectlens_audit_waiting_bytes", "Of their frames.", counts.waiting_bytes)
        text = "1 while the store cannot be written to: strict servers then give no verdict."
        yield GaugeMetricFamily("defectlens_audit_failing", text, int(bool(counts.problem)))


def _cameras(watches: Sequence[DriftWatch]) -> Iterator[Metric]:
    names = ["camera", "model"]
    states = GaugeMetricFamily(
        "defectlens_drift_state", "1 for the state that a camera is in, 0 for the others.", labels=[*names, "state"]
    )
    shifts = GaugeMetricFamily(
        "defectlens_drift_shift",
        "How far a signal's recent values are from the calibration's, in its spreads.",
        labels=[*names, "signal"],
    )
    strengths = GaugeMetricFamily(
        "defectlens_drift_strength",
        "Evidence that a signal has changed, 0..1: as a share of what an alarm takes, on a log scale.",
        labels=[*names, "signal"],
    )
    alarms = CounterMetricFamily("defectlens_drift_alarms", "Alarms that a signal raised.", labels=[*names, "signal"])
    for watch in watches:
        model = watch.model.name
        for camera, report in watch.reports().items():
            for state in _STATES:
                states.add_metric([camera, model, state.name], int(report.now.state is state))
            for level in report.levels:
                shifts.add_metric([camera, model, level.signal], level.shift)
                strengths.add_metric([camera, model, level.signal], level.strength)
            for signal, count in report.alarms_so_far.items():
                alarms.add_metric([camera, model, signal], count)
    yield from (states, shifts, strengths, alarms)

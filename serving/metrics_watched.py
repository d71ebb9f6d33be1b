"""Metrics of what is watched beside the verdicts: cameras and stations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.drift import DriftWatch
from serving.stations import Stations
from vision.drift.states import DriftState

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

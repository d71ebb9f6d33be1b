"""Between the public contract and our own words: cameras under watch, and stations."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from protos.inspection.v1 import admin_pb2 as admin_pb
from protos.inspection.v1 import inspection_pb2 as pb
from serving import wire
from serving.live import CameraDrift, DriftAlarm, StationStatus
from serving.messages import ModelIdentity
from serving.stations import StationCheck
from serving.wire_drift import drift_from_proto, drift_to_proto
from vision.drift.states import Level

_NS_PER_S = 1_000_000_000


def camera_to_proto(one: CameraDrift) -> pb.CameraDrift:
    """All about one camera and one model."""
    return pb.CameraDrift(
        model=wire.identity_to_proto(one.model),
        now=drift_to_proto(one.now),
        frames=one.frames,
        alarms=[
            pb.DriftAlarm(
                signal=alarm.signal,
                against_calibration=alarm.against_calibration,
                frame=alarm.frame,
                since_frame=alarm.since_frame,
                raised_s_ago=alarm.raised_s_ago,
                since_s_ago=alarm.since_s_ago,
                shift=alarm.shift,
                log10_odds=alarm.log10_odds,
                words=alarm.words,
                advice=alarm.advice,
            )
            for alarm in one.alarms
        ],
        levels=[pb.DriftLevel(signal=level.signal, shift=level.shift, strength=level.strength) for level in one.levels],
        alarms_so_far=one.alarms_so_far,
    )


def camera_from_proto(message: pb.CameraDrift) -> CameraDrift:
    return CameraDrift(
        model=wire.identity_from_proto(message.model),
        now=drift_from_proto(message.now),
        frames=message.frames,
        alarms=tuple(
            DriftAlarm(
                signal=alarm.signal,
                against_calibration=alarm.against_calibration,
                frame=alarm.frame,
                since_frame=alarm.since_frame,
                raised_s_ago=alarm.raised_s_ago,
                since_s_ago=alarm.since_s_ago,
                shift=alarm.shift,
                log10_odds=alarm.log10_odds,
                words=alarm.words,
                advice=alarm.advice,
            )
            for alarm in message.alarms
        ),
        levels=tuple(Level(level.signal, level.shift, level.strength) for level in message.levels),
        alarms_so_far=dict(message.alarms_so_far),
    )


def check_to_proto(check: StationCheck, model: ModelIdentity) -> admin_pb.StationCheck:
    """The outcome of a check."""
    return admin_pb.StationCheck(
        station=check.station,
        passed=check.passed,
        problems=check.problems,
        parts=[
            admin_pb.MasterResult(
                name=part.name,
                good=part.good,
                verdict=pb.Verdict.Value(part.verdict),
                anomaly_score=part.anomaly_score,
                margin=part.margin,
                last_margin=part.last_margin,
                first_margin=part.first_margin,
                problem=part.problem,
            )
            for part in check.parts
        ],
        model=wire.identity_to_proto(model),
        compared=check.compared,
    )


def station_to_proto(station: StationStatus) -> pb.StationStatus:
    checked = None
    if station.checked_at is not None:
        checked = Timestamp()
        checked.FromNanoseconds(int(station.checked_at * _NS_PER_S))
    return pb.StationStatus(
        station=station.station,
        serving=station.serving,
        reason=station.reason,
        checked=checked,
        passed=station.passed,
        overridden_by=station.overridden_by,
        cameras=station.cameras,
    )


def station_from_proto(message: pb.StationStatus) -> StationStatus:
    checked = None
    if message.HasField("checked"):
        checked = message.checked.seconds + message.checked.nanos / _NS_PER_S
    return StationStatus(
        station=message.station,
        serving=message.serving,
        reason=message.reason,
        checked_at=checked,
        passed=message.passed,
        overridden_by=message.overridden_by,
        cameras=tuple(message.cameras),
    )

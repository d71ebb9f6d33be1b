"""Between the public contract and our own words: the state of a camera, and how it is watched."""

from __future__ import annotations

from protos.inspection.v1 import inspection_pb2 as pb
from serving.messages import WatchInfo
from vision.drift.states import Drift, DriftState


def drift_to_proto(drift: Drift) -> pb.Drift:
    """As it stands in every reply."""
    return pb.Drift(
        state=pb.DriftState.ValueType(drift.state), signal=drift.signal, strength=drift.strength, shift=drift.shift
    )


def drift_from_proto(message: pb.Drift) -> Drift:
    """As the client reads it."""
    try:
        state = DriftState(message.state)
    except ValueError:  # a state of a later contract
        state = DriftState.UNCLEAR
    return Drift(state, message.signal, message.strength, message.shift)


def watch_to_proto(watch: WatchInfo) -> pb.DriftWatch:
    return pb.DriftWatch(
        signals=watch.signals,
        reference_frames=watch.reference_frames,
        frames_per_false_alarm=watch.frames_per_false_alarm,
        against_calibration=watch.against_calibration,
    )


def watch_from_proto(message: pb.DriftWatch) -> WatchInfo:
    return WatchInfo(
        tuple(message.signals), message.reference_frames, message.frames_per_false_alarm, message.against_calibration
    )

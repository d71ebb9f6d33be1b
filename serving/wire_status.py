"""Between the public contract and our own words: the live picture."""

from __future__ import annotations

from dataclasses import asdict

from protos.inspection.v1 import inspection_pb2 as pb
from serving import wire, wire_cameras
from serving.live import AuditStatus, CameraStatus, FrameCounts, RecentFrames, ServedModel, ServerStatus, StageTimes


def status_to_proto(status: ServerStatus) -> pb.GetStatusResponse:
    """As the server sends it."""
    recent = status.recent
    return pb.GetStatusResponse(
        uptime_s=status.uptime_s,
        served=[
            pb.ServedModel(
                model=wire.identity_to_proto(served.model),
                provider=pb.Provider(name=served.provider, fallback=served.provider_fallback),
            )
            for served in status.served
        ],
        total=_counts_to_proto(status.total),
        cameras=[
            pb.CameraStatus(
                camera_id=camera.camera_id,
                counts=_counts_to_proto(camera.counts),
                last_frame_age_s=camera.last_frame_age_s,
                drift=[wire_cameras.camera_to_proto(one) for one in camera.drift],
            )
            for camera in status.cameras
        ],
        errors=status.errors,
        recent=None
        if recent is None
        else pb.RecentFrames(
            seconds=recent.seconds,
            frames=recent.frames,
            mean_batch_size=recent.mean_batch_size,
            stages=[
                pb.StageTimes(stage=times.stage, p50_ms=times.p50_ms, p99_ms=times.p99_ms, max_ms=times.max_ms)
                for times in recent.stages
            ],
        ),
        queue_depth=status.queue_depth,
        resident_memory_bytes=status.resident_memory_bytes,
        stations=[wire_cameras.station_to_proto(station) for station in status.stations],
        audit=None if status.audit is None else pb.AuditStatus(**asdict(status.audit)),
    )


def status_from_proto(message: pb.GetStatusResponse) -> ServerStatus:
    """As the client reads it."""
    return ServerStatus(
        uptime_s=message.uptime_s,
        served=tuple(
            ServedModel(wire.identity_from_proto(served.model), served.provider.name, served.provider.fallback)
            for served in message.served
        ),
        total=_counts_from_proto(message.total),
        cameras=tuple(
            CameraStatus(
                camera.camera_id,
                _counts_from_proto(camera.counts),
                camera.last_frame_age_s,
                tuple(wire_cameras.camera_from_proto(one) for one in camera.drift),
            )
            for camera in message.cameras
        ),
        errors=dict(message.errors),
        recent=_recent_from_proto(message.recent) if message.HasField("recent") else None,
        queue_depth=message.queue_depth,
        resident_memory_bytes=message.resident_memory_bytes,
        stations=tuple(wire_cameras.station_from_proto(station) for station in message.stations),
        audit=_audit_from_proto(message.audit) if message.HasField("audit") else None,
    )


def _audit_from_proto(message: pb.AuditStatus) -> AuditStatus:
    return AuditStatus(
        mode=message.mode,
        offered=message.offered,
        recorded=message.recorded,
        failed=message.failed,
        dropped=message.dropped,
        waiting=message.waiting,
        problem=message.problem,
    )


def _recent_from_proto(message: pb.RecentFrames) -> RecentFrames:
    return RecentFrames(
        seconds=message.seconds,
        frames=message.frames,
        mean_batch_size=message.mean_batch_size,
        stages=tuple(StageTimes(times.stage, times.p50_ms, times.p99_ms, times.max_ms) for times in message.stages),
    )


def _counts_to_proto(counts: FrameCounts) -> pb.FrameCounts:
    return pb.FrameCounts(
        received=counts.received,
        verdicts=counts.verdicts,
        no_verdicts=counts.no_verdicts,
        errors=counts.errors,
        in_flight=counts.in_flight,
        by_verdict=counts.by_verdict,
    )


def _counts_from_proto(message: pb.FrameCounts) -> FrameCounts:
    return FrameCounts(
        received=message.received,
        verdicts=message.verdicts,
        no_verdicts=message.no_verdicts,
        errors=message.errors,
        in_flight=message.in_flight,
        by_verdict=dict(message.by_verdict),
    )

"""What a camera's watches say, for those who show it; loads nothing of a server."""

from __future__ import annotations

from collections.abc import Iterable

from serving.live import CameraDrift
from vision.drift.states import DriftState


def worst(drift: Iterable[CameraDrift]) -> CameraDrift | None:
    """The one that says most about a camera that several models saw."""
    order = (DriftState.CAMERA_CHANGED, DriftState.PARTS_WORSE, DriftState.UNCLEAR, DriftState.LEARNING)
    ranks = {state: rank for rank, state in enumerate(order)}
    return min(drift, key=lambda one: ranks.get(one.now.state, len(ranks)), default=None)

"""The front door of serving: a typed client. The server is started by ``defectlens serve``.

Names are loaded when they are first used, and nothing here ever loads torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.aio_client import AsyncInspectionClient
    from serving.calls import RetryPolicy
    from serving.client import InspectionClient
    from serving.live import ServerStatus
    from serving.messages import (
        ALL,
        EncodedImage,
        FrameRequest,
        InspectionReply,
        MapFormat,
        MaskFormat,
        ModelIdentity,
        ModelInfo,
        Outputs,
        RawImage,
        StreamAnswer,
        Timings,
    )
    from serving.server import InspectionServer
    from serving.settings import ServerSettings
    from serving.shared_memory import AsyncSharedMemory, SharedMemory, SharedSlot

__all__ = [
    "ALL",
    "AsyncInspectionClient",
    "AsyncSharedMemory",
    "EncodedImage",
    "FrameRequest",
    "InspectionClient",
    "InspectionReply",
    "InspectionServer",
    "MapFormat",
    "MaskFormat",
    "ModelIdentity",
    "ModelInfo",
    "Outputs",
    "RawImage",
    "RetryPolicy",
    "ServerSettings",
    "ServerStatus",
    "SharedMemory",
    "SharedSlot",
    "StreamAnswer",
    "Timings",
]

_ELSEWHERE = {
    "AsyncInspectionClient": "serving.aio_client",
    "AsyncSharedMemory": "serving.shared_memory",
    "InspectionClient": "serving.client",
    "InspectionServer": "serving.server",
    "RetryPolicy": "serving.calls",
    "ServerSettings": "serving.settings",
    "ServerStatus": "serving.live",
    "SharedMemory": "serving.shared_memory",
    "SharedSlot": "serving.shared_memory",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ELSEWHERE.get(name, "serving.messages")), name)

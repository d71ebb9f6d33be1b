"""Real servers on real ports around the tiny model of ``tests.fakes``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from serving import AsyncInspectionClient, InspectionServer, RetryPolicy, ServerSettings
from tests.fakes import make_bundle

Serve = Callable[..., AbstractAsyncContextManager[tuple[InspectionServer, AsyncInspectionClient]]]
ONCE = RetryPolicy(attempts=1)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "fake")


@pytest.fixture(scope="session")
def slow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 30 ms and more an inference."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "slow", work=10)


@pytest.fixture
def serve(bundle: Path) -> Serve:
    """``async with serve(max_queue=3) as (server, client)``: both on this event loop; the counts must add up."""

    @asynccontextmanager
    async def started(
        folder: Path = bundle, **options: Any
    ) -> AsyncIterator[tuple[InspectionServer, AsyncInspectionClient]]:
        settings = ServerSettings(bundle=folder, **{"address": "127.0.0.1:0", "threads": 1, **options})
        server = InspectionServer(settings)
        async with server, AsyncInspectionClient(server.address, retry=ONCE) as client:
            yield server, client
        assert server.telemetry.problems == []
        assert server.telemetry.in_flight == 0

    return started


def png(frame: NDArray[Any]) -> bytes:
    """Encode RGB or grey pixels."""
    stored = frame if frame.ndim == 2 else np.ascontiguousarray(frame[:, :, ::-1])
    return cv2.imencode(".png", stored)[1].tobytes()

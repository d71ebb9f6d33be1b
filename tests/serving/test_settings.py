from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving import FrameRequest, RetryPolicy, ServerSettings
from vision.errors import SettingsError


@pytest.mark.parametrize(
    "options",
    [
        {"address": "nohost"},
        {"address": ":1"},
        {"address": "host:"},
        {"address": "host:70000"},
        {"max_batch": 0},
        {"max_queue": 0},
        {"max_batch": 9, "max_queue": 8},
        {"max_wait_ms": -1.0},
        {"max_wait_ms": float("nan")},
        {"threads": -1},
        {"max_pixels": 0},
        {"drain_seconds": -1},
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        ServerSettings(bundle=Path("x"), **options)


def test_messages_fit_20_megapixels_both_ways() -> None:
    settings = ServerSettings(bundle=Path("x"))
    assert settings.max_request_bytes > 20_000_000 * 3
    assert settings.max_map_bytes >= 20_000_000 * 4
    assert ServerSettings(bundle=Path("x"), max_pixels=10).max_request_bytes > 20_000_000 * 3


@pytest.mark.parametrize(
    ("address", "loopback"),
    [("127.0.0.1:1", True), ("localhost:1", True), ("[::1]:1", True), ("0.0.0.0:1", False), ("camera-7:1", False)],
)
def test_only_loopback_is_called_so(address: str, loopback: bool) -> None:
    assert ServerSettings(bundle=Path("x"), address=address).is_loopback is loopback


def test_pauses_grow_and_are_bounded() -> None:
    pauses = list(RetryPolicy(attempts=6, first_pause_s=0.1, longest_pause_s=0.5).pauses())
    assert len(pauses) == 5
    assert all(0.5 * full <= pause <= full for pause, full in zip(pauses, [0.1, 0.2, 0.4, 0.5, 0.5], strict=True))
    assert list(RetryPolicy(attempts=1).pauses()) == []
    with pytest.raises(SettingsError):
        RetryPolicy(attempts=0)


def test_a_timeout_must_fit_the_wire() -> None:
    with pytest.raises(SettingsError):
        FrameRequest(None, timeout_ms=2**32)

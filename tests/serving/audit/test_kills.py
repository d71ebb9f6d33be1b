"""An acknowledged verdict survives the server's sudden death; see also ``benchmarks/audit_kills.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.audit_kills import kill_again_and_again
from serving.audit import AuditPlace


@pytest.mark.slow
def test_no_acknowledged_verdict_is_lost_or_doubled(bundle: Path, tmp_path: Path) -> None:
    result = kill_again_and_again(bundle, AuditPlace.of(tmp_path / "audit"), 2)
    assert result.told > 2
    assert result.as_promised, result


@pytest.mark.slow
def test_nor_in_many_deaths(bundle: Path, place: AuditPlace) -> None:
    result = kill_again_and_again(bundle, place, 8, seed=1)
    assert result.told > 8
    assert result.as_promised, result

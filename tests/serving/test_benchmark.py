"""The benchmark runs and says what it measured; its figures are nobody's business here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.models import untrained_bundle
from benchmarks.serving import Row
from vision.bundle import load_bundle

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("value", "better", "verdict"),
    [(1.3, ">=", "aim"), (1.0, ">=", "must"), (0.5, ">=", "MISSED"), (0.5, "<=", "aim"), (None, ">=", "skipped")],
)
def test_a_row_is_judged_in_its_direction(value: float | None, better: str, verdict: str) -> None:
    assert Row("x", value, 0.8, 1.2 if better == ">=" else 0.6, better).verdict == verdict


@pytest.mark.slow
def test_the_table_ends_with_one_json_line(bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.serving", "--bundle", str(bundle), "--rounds", "1", "--seconds", "0.5"]
    command += ["--rows", "throughput,latency,overhead,rivals,overload,start,record,soak", "--frame", "320x240"]
    command += ["--minutes", "0.01"]
    done = subprocess.run([*command, "--rivals", str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    values = {row["measure"]: row["value"] for row in rows}
    assert len(rows) == 12
    skipped = [row for row in rows if row["verdict"] == "skipped" and "no environment" in row["note"]]
    assert len(skipped) == 3
    assert values["90 % load: frames without an answer"] == 0
    # A server and its bare engine differ by factors, not by orders of magnitude: else something was measured wrongly.
    assert 0.01 < values["throughput through gRPC / best in-process loop, JPEG"] < 10
    assert 0.01 < values["trivial model, 256x256 raw: requests/s / bare loop"] < 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["convolutions", "decoding", "engines", "load", "loop_gaps", "pixels", "serving", "swaps"]
)
def test_every_benchmark_starts_as_its_first_lines_say(name: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert f"python -m benchmarks.{name}" in (ROOT / "benchmarks" / f"{name}.py").read_text().replace("\n    ", " ")


@pytest.mark.slow
def test_without_a_bundle_an_untrained_one_is_measured(tmp_path: Path) -> None:
    bundle = load_bundle(untrained_bundle(tmp_path / "untrained"))
    bundle.replay_golden(bundle.engine(provider="cpu", threads=1))

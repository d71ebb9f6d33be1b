from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

import defectlens
from training.demo import compare
from vision.errors import ParityError


def line(path: str, verdict: str = "PASS", score: float | None = 0.5, good: float | None = 0.75) -> dict[str, Any]:
    scores = {"good": good, "dent": None if good is None else 1 - good}
    return {"path": path, "verdict": verdict, "anomaly_score": score, "class_scores": scores}


def lines(path: Path, *content: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in content))
    return path


@pytest.fixture
def expected(tmp_path: Path) -> Path:
    return lines(tmp_path / "predictions.jsonl", line("test/good/a.png"), line("test/dent/b.png", "REJECT", 0.9))


NAMES = {"00000_good.png": "test/good/a.png", "00001_dent.png": "test/dent/b.png"}


def test_equal_scores(tmp_path: Path, expected: Path) -> None:
    answers = lines(
        tmp_path / "answers.jsonl",
        line("demo/frames/00001_dent.png", "REJECT", 0.90005),
        line("demo/frames/00000_good.png", good=0.75002),
    )
    assert compare(expected, answers, NAMES) == pytest.approx(5e-5)


@pytest.mark.parametrize(
    "other",
    [
        line("demo/frames/00000_good.png", "REVIEW"),
        line("demo/frames/00000_good.png", score=0.5002),
        line("demo/frames/00000_good.png", good=0.7502),
        line("demo/frames/00000_good.png", score=None),
        line("demo/frames/00000_good.png", good=None),
    ],
)
def test_other_answers_than_the_evaluations(tmp_path: Path, expected: Path, other: dict[str, Any]) -> None:
    answers = lines(tmp_path / "answers.jsonl", other, line("demo/frames/00001_dent.png", "REJECT", 0.9))
    with pytest.raises(ParityError, match=r"test/good/a\.png is PASS in the evaluation"):
        compare(expected, answers, NAMES)


def test_a_frame_without_an_answer(tmp_path: Path, expected: Path) -> None:
    answers = lines(tmp_path / "answers.jsonl", line("demo/frames/00000_good.png"))
    with pytest.raises(ParityError, match=r"1 frames have no answer, test/dent/b\.png for one"):
        compare(expected, answers, NAMES)


def test_data_without_a_test_split(tmp_path: Path) -> None:
    (tmp_path / "parts" / "train" / "good").mkdir(parents=True)
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 256, (64, 64), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "parts" / "train" / "good" / f"{index}.png"), pixels)
    out = tmp_path / "out"
    result = CliRunner().invoke(defectlens.main, ["demo", "--data", str(tmp_path / "parts"), "--out", str(out)])
    assert result.exit_code == 2, result.output
    assert not out.exists()


def make_parts(folder: Path) -> Path:
    """Grey parts with a grain; the defective ones have a dark spot."""
    random = np.random.default_rng(1)
    for split, kind, count in (("train", "good", 24), ("test", "good", 6), ("test", "spot", 6)):
        (folder / split / kind).mkdir(parents=True)
        for index in range(count):
            pixels = random.normal(128, 8, (96, 96))
            if kind == "spot":
                y, x = random.integers(20, 60, 2)
                pixels[y : y + 16, x : x + 16] -= 90
            cv2.imwrite(str(folder / split / kind / f"{index:02d}.png"), pixels.clip(0, 255).astype(np.uint8))
    return folder


def processes_of(folder: Path) -> list[int]:
    """Processes whose command line names the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.fixture
def started(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "defectlens", "demo", "--data", str(make_parts(tmp_path / "parts")), "--json"]
    small = ["--out", str(tmp_path / "demo"), "--epochs", "1", "--size", "64", "--limit", "8"]
    process = subprocess.Popen([*command, *small], stdout=subprocess.PIPE, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_whole_river(started: subprocess.Popen[bytes], tmp_path: Path) -> None:
    output = started.communicate(timeout=600)[0].decode()
    assert started.returncode == 0
    figures = json.loads(output.strip().splitlines()[-1])
    assert figures["frames"] == figures["verdicts"] == 8
    assert figures["largest_score_difference"] <= 1e-4
    assert 0 <= figures["image_auroc"] <= 1
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    assert figures["frames_per_second"] > 0
    assert figures["provider"].endswith("ExecutionProvider")
    assert len(list(Path(figures["overlays"]).iterdir())) == 8
    assert Path(figures["report"]).is_file()
    assert Path(figures["bundle"], "bundle.json").is_file()
    assert set(figures["seconds"]) == {"train", "export", "evaluate", "serve", "inspect"}
    assert not processes_of(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    ("stage", "number"),
    [("run", signal.SIGINT), ("server.log", signal.SIGKILL)],
)
def test_stopped_at_any_stage_nothing_is_left(
    started: subprocess.Popen[bytes], tmp_path: Path, stage: str, number: signal.Signals
) -> None:
    end = time.monotonic() + 600
    while not (tmp_path / "demo" / stage).exists():
        assert started.poll() is None, "the demo ended before it was stopped"
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(started.pid, number)
    started.communicate(timeout=60)
    assert started.returncode != 0
    end = time.monotonic() + 20
    while processes_of(tmp_path):
        assert time.monotonic() < end, "a process is left"
        time.sleep(0.05)

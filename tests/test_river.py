"""The whole river on small real files: one score at every station, from torch to a client of a server elsewhere."""

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

import pytest
import torch
from safetensors.torch import save_file

from tests.images import make_folder
from vision.model.backbone import Backbone

pytestmark = pytest.mark.slow

BACKBONE = "test_efficientnet"


def _defectlens(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error::UserWarning:training", "-m", "defectlens", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if check:
        assert result.returncode == 0, result.stderr
    return result


def _figures(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return figures


@pytest.fixture(scope="module", params=["masks", "normal-only", "no-good-class"])
def river(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a finished run and its bundle."""
    root = tmp_path_factory.mktemp("river")
    torch.manual_seed(0)
    save_file(Backbone(BACKBONE).net.state_dict(), root / "tiny.safetensors")
    train, test = {
        "masks": ({"good": 40, "crack": 60}, {"good": 6, "crack": 6}),
        "normal-only": ({"good": 40}, {"good": 6, "crack": 6}),
        "no-good-class": ({"crack": 30, "fray": 30}, {"crack": 6, "fray": 6}),
    }[request.param]
    make_folder(root / "data", train=train, test=test)
    options = ["--backbone", BACKBONE, "--weights", root / "tiny.safetensors", "--size", "64", "--epochs", "2"]
    trained = _defectlens(
        "train", "--data", root / "data", "--out", root / "run", *options, "--device", "cpu", "--json"
    )
    assert _figures(trained)["run"] == str(root / "run")
    _defectlens("export", "--run", root / "run", "--out", root / "bundle", "--json")
    return root


@pytest.fixture(scope="module")
def server(river: Path) -> Iterator[str]:
    """The address of a server in another process."""
    ready = river / "ready"
    log = (river / "serve.log").open("w")
    command = ["serve", "--bundle", river / "bundle", "--address", "127.0.0.1:0", "--ready-file", ready]
    process = subprocess.Popen(
        [sys.executable, "-m", "defectlens", *map(str, command)], stdout=log, stderr=subprocess.STDOUT
    )
    until = time.monotonic() + 60
    while not (ready.is_file() and ready.read_text().strip()):
        assert process.poll() is None, (river / "serve.log").read_text()
        assert time.monotonic() < until
        time.sleep(0.05)
    yield ready.read_text().strip()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0, (river / "serve.log").read_text()
    log.close()


def _predictions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_torch_bundle_and_server_give_one_score(river: Path, server: str) -> None:
    common = ["--bundle", river / "bundle", "--data", river / "data"]
    _defectlens("evaluate", *common, "--out", river / "local")
    _defectlens("evaluate", *common, "--out", river / "remote", "--server", server)
    stations = [_predictions(river / name) for name in ("run/evaluation", "local", "remote")]
    assert [len(rows) for rows in stations] == [12, 12, 12]
    for torch_row, local, remote in zip(*stations, strict=True):
        for row in (local, remote):
            assert row["path"] == torch_row["path"]
            assert row["verdict"] == torch_row["verdict"]
            assert row["predicted"] == torch_row["predicted"]
            for name, score in torch_row["class_scores"].items():
                assert row["class_scores"][name] == pytest.approx(score, abs=1e-4)
            if torch_row["anomaly_score"] is None:
                assert row["anomaly_score"] is None
            else:
                assert row["anomaly_score"] == pytest.approx(torch_row["anomaly_score"], abs=1e-4)
    reports = [json.loads((river / name / "report.json").read_text()) for name in ("local", "remote")]
    for name in ("image_auroc", "pixel_ap", "aupro", "miou", "accuracy"):
        one, other = (report[name] for report in reports)
        assert one == other if one is None else one == pytest.approx(other, abs=1e-3), name


def test_inspecting_the_test_images_writes_the_same_scores_and_overlays(river: Path, server: str) -> None:
    out = river / "answers"
    arguments = ["--server", server, "--source", river / "data" / "test", "--out", out, "--overlays", "--json"]
    figures = _figures(_defectlens("inspect", *arguments))
    assert figures["frames"] == figures["verdicts"] == 12
    assert len(list(Path(figures["overlays"]).rglob("*.jpg"))) == 12


def test_a_server_with_another_bundle_is_refused(river: Path, server: str) -> None:
    _defectlens("export", "--run", river / "run", "--out", river / "other", "--version", "2")
    common = ["--bundle", river / "other", "--data", river / "data", "--out", river / "never"]
    result = _defectlens("evaluate", *common, "--server", server, check=False)
    assert result.returncode == 2
    assert "start it with that bundle" in result.stderr


def test_serving_leaves_nothing_running(river: Path) -> None:
    assert not any(
        str(river / "run") in (entry / "cmdline").read_text(errors="replace")
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and entry.name != str(os.getpid()) and (entry / "cmdline").exists()
    )

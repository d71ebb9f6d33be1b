"""Defectlens as ``anomalib_runner`` runs its peers: trained, exported and asked in a process of its own.

    python -m benchmarks.peers.ours JOB.json

Writes what the runner writes, ``outputs.npz`` and ``figures.json``, and a bundle instead of ``model.onnx``. The job may
name a finished run or bundle (``run``) instead of having one trained.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.frames import one_class
from training.data import read_data
from training.export import export_bundle
from training.options import TrainOptions
from training.predictor import BundlePredictor
from training.run import RUN_FILE, load_run, train_run
from vision.bundle import MODEL, load_bundle

BUNDLE = "bundle"
# What a run of defectlens says of its own training; runs of earlier versions say less.
_KEPT = {"fit_seconds": "seconds", "fit_cpu_seconds": "cpu_seconds", "peak_mib": "peak_mib"}


@dataclass(frozen=True)
class OurJob:
    """``data`` is where the images to train with are, ``test`` where those to be asked about are."""

    data: str
    test: str
    size: int
    seed: int
    threads: int
    backbone: str
    weights: str | None = None
    run: str | None = None


def run(job: OurJob, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(job.threads)
    bundle = folder / BUNDLE
    if job.run is None:
        options = TrainOptions(backbone=job.backbone, weights=job.weights, size=job.size, seed=job.seed, device="cpu")
        trained = train_run(read_data(job.data), options, folder / "run", resume=True)
    elif (Path(job.run) / RUN_FILE).is_file():
        trained = load_run(Path(job.run))
    else:
        trained, bundle = None, Path(job.run)
    had = {} if trained is None else trained.figures
    figures: dict[str, Any] = {name: had.get(key) for name, key in _KEPT.items()}
    if trained is not None:
        export_bundle(trained, bundle)
    scores, maps = predict(bundle, job.test)
    np.savez(folder / "outputs.npz", scores=scores, maps=maps)
    figures["bundle"] = str(bundle)
    figures["model_bytes"] = (bundle / MODEL).stat().st_size
    figures["versions"] = {name: version(name) for name in ("defectlens", "torch", "timm", "onnxruntime-gpu")}
    return figures


def predict(bundle: Path, data: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores ``[N]`` and maps ``[N, h, w]`` on the model's grid, through the same functions as the server."""
    predictor = BundlePredictor(load_bundle(bundle), provider="cpu")
    answers = list(predictor.predict(one_class(read_data(data)).test))
    scores = [np.nan if one.anomaly_score is None else one.anomaly_score for one in answers]
    return np.asarray(scores, np.float32), np.stack([one.anomaly_map for one in answers])


def main(path: str) -> None:
    file = Path(path)
    figures = run(OurJob(**json.loads(file.read_text(encoding="utf-8"))), file.parent)
    (file.parent / "figures.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

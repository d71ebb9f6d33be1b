"""One comparison: which jobs are run, in which process, what of them is kept, and what becomes of the results."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import frames, latency
from benchmarks.peers.catalogue import OURS, PEERS
from benchmarks.peers.measured import measure
from training.data import frame_shapes, read_data
from training.run import RUN_FILE, choose_input
from vision.bundle import MODEL, load_bundle
from vision.console import plain, say
from vision.errors import SettingsError
from vision.manifest import Manifest
from vision.preprocess import InputSpec

ROOT = Path(__file__).parents[2]
RUNNER = Path(__file__).parent / "anomalib_runner.py"
# A graph that answers otherwise than the model it was made of has the latency of something else.
_SAME = 0.01


@dataclass(frozen=True)
class Comparison:
    """What is compared, and where its results are kept."""

    options: argparse.Namespace

    @property
    def out(self) -> Path:
        return Path(self.options.out)

    @cached_property
    def images(self) -> frames.OneClass:
        return frames.one_class(read_data(self.options.data))

    @cached_property
    def spec(self) -> InputSpec:
        """Of the peers: the one of the given run, or what ``defectlens train --size`` would choose."""
        if self.options.run:
            return _input_of(self.options.run[0])
        white_level = self.images.data.white_level
        return choose_input(frame_shapes(self.images.train, white_level), self.options.size, white_level)

    @cached_property
    def job(self) -> dict[str, Any]:
        """What all peers' jobs have in common."""
        folder = self.out / f"input-{self.spec.width}x{self.spec.height}"
        digest = frames.write_frames(self.images, self.spec, folder)
        weights = folder / f"{self.options.backbone}.safetensors"
        mean, std, origin = frames.write_weights(self.options.backbone, self.options.weights, weights)
        say(f"{len(self.images.train)} good training images, {len(self.images.test)} test images; weights: {origin}")
        return {
            **{name: str((folder / f"{name}.npy").resolve()) for name in (frames.TRAIN, frames.TEST)},
            "digest": digest,
            "weights": str(weights.resolve()),
            "backbone": self.options.backbone,
            "mean": mean,
            "std": std,
            "threads": self.options.threads,
        }

    def peer_results(self) -> list[dict[str, Any]]:
        found = []
        for name in self.options.peers:
            peer = PEERS[name]
            for seed in self.options.seeds:
                folder = self.out / f"{name}-seed{seed}"
                epochs = self.options.epochs.get(name, peer.epochs)
                job = {**self.job, "peer": peer.model, "seed": seed, "options": peer.options}
                job |= {"epochs": epochs, "batch": self.options.batch}
                self._forget(name, folder)
                error = run_job(folder, job, [self.options.peers_python, RUNNER])
                title = peer.called(epochs)
                graph = folder / "model.onnx"
                found.append(self._result(name, title, folder, graph, self.spec, error))
        return found

    def our_results(self) -> list[dict[str, Any]]:
        runs: list[tuple[str, dict[str, Any]]] = [
            (f"{OURS}-{run.name}", {"run": str(run.resolve()), "seed": 0}) for run in self.options.run
        ]
        if not runs:
            folder = frames.training_folder(self.options.data, self.out / "one-class")
            runs = [(f"{OURS}-seed{seed}", {"seed": seed, "data": folder}) for seed in self.options.seeds]
        found = []
        for name, job in runs:
            common = {"data": self.options.data, "test": self.options.data, "size": self.options.size}
            common |= {"backbone": self.options.backbone, "threads": self.options.threads}
            weights = None if self.options.weights is None else str(self.options.weights.resolve())
            folder = self.out / name
            command = [sys.executable, "-m", "benchmarks.peers.ours"]
            self._forget(OURS, folder)
            error = run_job(folder, {**common, "weights": weights, **job}, command)
            spec, graph = self.spec, folder / MODEL
            if error is None:
                bundle = Path(json.loads((folder / "figures.json").read_text(encoding="utf-8"))["bundle"])
                spec, graph = _input_of(bundle), bundle / MODEL
            found.append(self._result(OURS, OURS, folder, graph, spec, error))
        return found

    def _result(
        self, method: str, title: str, folder: Path, graph: Path, spec: InputSpec, error: str | None
    ) -> dict[str, Any]:
        result = {"method": method, "title": title, "folder": str(folder), "input": f"{spec.width}x{spec.height}"}
        if error is not None:
            return {**result, "notes": [f"{title} failed: {error}"]}
        figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
        measured = folder / "measured.json"
        if not measured.is_file():
            outputs = np.load(folder / "outputs.npz")
            say(f"measuring {title} ({folder.name})")
            try:
                values = measure(outputs["scores"], outputs["maps"], self.images.test, self.images.data.white_level)
            except ValueError as failure:
                return {**result, "notes": [f"{title} failed: {failure}"]}
            measured.write_text(json.dumps(plain(values), indent=2), encoding="utf-8")
        result |= figures | json.loads(measured.read_text(encoding="utf-8"))
        result["notes"] = []
        size = figures["model_bytes"]
        if graph.is_file():
            result["graph"] = str(graph)
            size = sum(file.stat().st_size for file in (graph, graph.with_name(graph.name + ".data")) if file.is_file())
        elif figures.get("export_error"):
            result["notes"].append(f"{title} has no latency, its export failed: {figures['export_error']}")
        result["model_mb"] = size / 1e6
        return result

    def _forget(self, method: str, folder: Path) -> None:
        if method in self.options.again:
            shutil.rmtree(folder, ignore_errors=True)

    def add_latencies(self, results: list[dict[str, Any]]) -> None:
        """In turns, the models of one input size at a time; of several seeds the first stands for all."""
        for spec in sorted({result["input"] for result in results if "graph" in result}):
            first: dict[str, dict[str, Any]] = {}
            for result in results:
                if result["input"] == spec and "graph" in result:
                    first.setdefault(result["method"], result)
            folder = self.out / f"input-{spec}"
            if not (folder / "test.npy").is_file():
                width, height = map(int, spec.split("x"))
                frames.write_frames(self.images, InputSpec(height, width, self.images.data.white_level), folder)
            models = {name: (Path(one["graph"]), Path(one["folder"]) / "outputs.npz") for name, one in first.items()}
            say(f"latency in turns at {spec}: {', '.join(models)}")
            served = latency.in_turns(models, folder / "test.npy", self.options.threads, self.options.rounds)
            for name, one in served.items():
                if isinstance(one, str):
                    first[name]["notes"].append(f"{first[name]['title']} has no latency: {one}")
                    continue
                first[name] |= {"ms": one.ms, "serving_mib": one.peak_mib, "graph_difference": one.difference}
                if one.difference > _SAME:
                    note = f"{first[name]['title']}: its ONNX graph answers otherwise ({one.difference:.2g} deviations)"
                    first[name]["notes"].append(note)


def run_job(folder: Path, job: dict[str, Any], command: list[str | Path]) -> str | None:
    """Run a job in ``folder`` unless it has been; what went wrong, or None.

    Raises:
        SettingsError: the folder holds the results of another job.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, figures = folder / "job.json", folder / "figures.json"
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        differs = sorted(key for key in before.keys() | job.keys() if before.get(key) != job.get(key))
        if differs:
            raise SettingsError(f"{folder} holds results with another {', '.join(differs)}; give another --out")
        if figures.is_file():
            return None
    file.write_text(json.dumps(job, indent=2), encoding="utf-8")
    say(f"running {folder.name}; its log: {folder / 'log'}")
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    with (folder / "log").open("wb") as log:
        words = list(map(str, [*command, file.resolve()]))
        code = subprocess.run(words, stdout=log, stderr=log, env=environment, cwd=ROOT, check=False).returncode
    if code == 0:
        return None
    lines = (folder / "log").read_text(errors="replace").strip().splitlines()
    return f"exit code {code}, {lines[-1][:300] if lines else 'without a word'}"


def _input_of(path: Path) -> InputSpec:
    """The input of a run folder or bundle."""
    if (path / RUN_FILE).is_file():
        document = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
        if "manifest" not in document:
            raise SettingsError(f"the run in {path} has not finished")
        return Manifest.from_dict(document["manifest"]).input
    return load_bundle(path).manifest.input

"""Small defects in large frames: one stretched input, one large input with sparse attention, or tiles.

    python -m benchmarks.large_frames --out OUT [--data mosaic --parts magnetic_tile] [--ways stretched,sparse,tiles]

Frames of ``--side`` px, the defective ones with one defect of some 10 px, are made into OUT: ``computed`` draws brushed
metal with pits; ``mosaic`` puts crops of real good parts (``--parts``, a folder in the MVTec layout) side by side and
pastes a real defect at its own size; test frames are made of other parts than training frames. Every way is trained,
measured on the same test frames, exported, and timed as a graph in turns with the others; ``dense``, the large input
with attention between all places, says what the sparse one saves and loses. What is there already is not done again.
Prints one table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.pasted import PastedDefects
from benchmarks.pictures import Grey, read_grey, write_frame
from training.data import read_data
from training.evaluate import evaluate
from training.export import export_bundle
from training.options import TrainOptions
from training.predictor import EnginePredictor
from training.resources import peak_mib
from training.run import load_run, train_run
from training.synthesis import perlin
from training.torch_engine import TorchEngine
from vision.bundle import load_bundle
from vision.engine import EngineOptions
from vision.measuring import one_round

WAYS: dict[str, dict[str, Any]] = {
    "stretched": {"size": 256},
    "sparse": {"size": 1024, "mixer": "sparse", "batch": 4},
    "dense": {"size": 1024, "mixer": "dense", "batch": 4},
    "tiles": {"tile": "384"},
    "auto": {"tile": "auto"},
}
FIGURES = ("image_auroc", "aupro", "pixel_ap", "pixel_auroc")
# Of real defects those are taken that are about so large: the side in px of a square of the same area.
_SMALLEST, _LARGEST = 6.0, 14.0
_PATCH = 256


def computed_frame(side: int, rng: np.random.Generator) -> Grey:
    """Brushed metal under uneven light."""
    grain = cv2.GaussianBlur(rng.normal(0, 30, (side, side)).astype(np.float32), (0, 0), 6, sigmaY=0.7)
    light = perlin(side, side, (3, 3), rng) * 18
    specks = perlin(side, side, (side // 16, side // 16), rng) * 6
    return np.clip(np.rint(128 + 2 * grain + light + specks), 0, 255).astype(np.uint8)


def pit(frame: Grey, rng: np.random.Generator) -> tuple[Grey, Grey]:
    """A dark or bright pit of 8 to 12 px, as strong as the grain: the frame with it, and its mask."""
    side = frame.shape[0]
    mask = np.zeros((side, side), np.uint8)
    center = tuple(int(value) for value in rng.integers(16, side - 16, 2))
    axes = tuple(int(value) for value in rng.integers(4, 7, 2))
    cv2.ellipse(mask, center, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    alpha = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.0)
    change = float(rng.choice((-45.0, 45.0)))
    return np.clip(np.rint(frame + alpha * change), 0, 255).astype(np.uint8), mask


class Mosaic:
    """Frames of crops of real good parts, and real defects to paste."""

    def __init__(self, root: Path, *, train: bool) -> None:
        goods = sorted((root / ("train" if train else "test") / "good").glob("*"))
        self._goods = [picture for path in goods if min((picture := read_grey(path)).shape) >= _PATCH][:150]
        if not self._goods:
            raise SystemExit(f"{root} has no large enough good parts")
        self.defects = PastedDefects(root, smallest=_SMALLEST, largest=_LARGEST, first=0 if train else 1)

    def frame(self, side: int, rng: np.random.Generator) -> Grey:
        frame = np.empty((side, side), np.uint8)
        for top in range(0, side, _PATCH):
            for left in range(0, side, _PATCH):
                part = self._goods[int(rng.integers(len(self._goods)))]
                y, x = (int(rng.integers(edge - _PATCH + 1)) for edge in part.shape)
                crop = part[y : y + _PATCH, x : x + _PATCH]
                frame[top : top + _PATCH, left : left + _PATCH] = np.rot90(crop, int(rng.integers(4)))
        return frame


def make_data(root: Path, options: argparse.Namespace) -> None:
    """Write the frames, the same ones for the same options, whatever the seed of the training."""
    rng = np.random.default_rng(0)
    for part, counts in (("train", options.train), ("test", options.test)):
        mosaic = Mosaic(options.parts, train=part == "train") if options.data == "mosaic" else None
        for label, count in zip(("good", "pit"), counts, strict=True):
            for index in range(count):
                frame = computed_frame(options.side, rng) if mosaic is None else mosaic.frame(options.side, rng)
                mask = None
                if label == "pit":
                    frame, mask = pit(frame, rng) if mosaic is None else mosaic.defects.paste(frame, rng)
                write_frame(root, part, label, f"{part}{index:03d}", frame, mask)


def train_one(way: str, options: argparse.Namespace) -> None:
    """Train, measure and export one way; in a process of its own, whose memory is its own."""
    folder = options.out / way
    data = read_data(options.out / "data")
    epochs = options.epochs * (options.more if way == "stretched" else 1)
    chosen = replace(TrainOptions(epochs=epochs, patience=epochs, seed=options.seed, device="cpu"), **WAYS[way])
    start = time.perf_counter()
    run = train_run(data, chosen, folder / "run", resume=True)
    seconds = time.perf_counter() - start
    trained = peak_mib()
    report = evaluate(EnginePredictor(TorchEngine(run.detector), run.manifest), data, data.test, folder / "evaluation")
    figures = {name: report[name] for name in FIGURES} | {"training_s": seconds, "training_mib": trained}
    export_bundle(load_run(folder / "run"), folder / "bundle")
    (folder / "figures.json").write_text(json.dumps(figures, default=float))


def measure_times(folders: dict[str, Path], rounds: int) -> dict[str, float]:
    """Typical ms of the graph for one frame, one thread, the ways in turns."""
    bundles = {name: load_bundle(folder / "bundle") for name, folder in folders.items()}
    times: dict[str, list[float]] = {name: [] for name in folders}
    engines = {name: one.engine(provider="cpu", options=EngineOptions(threads=1)) for name, one in bundles.items()}
    for number in range(rounds + 1):
        for name, engine in engines.items():
            value = one_round({name: (engine, 1)}, bundles[name].golden()[0])[name]
            if number:
                times[name].append(value)
    return {name: float(np.median(values)) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", choices=("computed", "mosaic"), default="computed")
    parser.add_argument("--parts", type=Path, help="folder in the MVTec layout, for `mosaic`")
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--train", type=int, nargs=2, default=(40, 48), metavar=("GOOD", "DEFECTIVE"))
    parser.add_argument("--test", type=int, nargs=2, default=(20, 20), metavar=("GOOD", "DEFECTIVE"))
    parser.add_argument("--ways", default="stretched,sparse,tiles")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--more", type=int, default=6, help="so many times the epochs for the stretched input")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the training; each needs an --out of its own")
    parser.add_argument("--one", help="train this way alone (used by the program itself)")
    options = parser.parse_args()
    if options.one:
        train_one(options.one, options)
        return
    if not (options.out / "data").is_dir():
        make_data(options.out / "data", options)
    ways = options.ways.split(",")
    for way in ways:
        if not (options.out / way / "figures.json").is_file():
            subprocess.run([sys.executable, "-m", "benchmarks.large_frames", *sys.argv[1:], "--one", way], check=True)
    folders = {way: options.out / way for way in ways}
    times = measure_times(folders, options.rounds)
    rows = {
        way: json.loads((folder / "figures.json").read_text()) | {"ms": times[way]} for way, folder in folders.items()
    }
    for way, row in rows.items():
        print(f"{way:12}" + "".join(f"  {name} {value:.3f}" for name, value in row.items() if value is not None))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

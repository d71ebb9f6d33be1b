"""What a large frame costs in one piece and in tiles: the exported graph's time and memory, weights untrained.

    python -m benchmarks.large_costs [--sides 512 1024] [--rounds 5]

Every graph takes one frame of ``--sides`` px, one thread, fp32, in turns with the others; memory is what a fresh
process adds by opening the graph and running it. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from training.export import _write_onnx
from training.tile_choice import even_tile
from vision.engine import EngineOptions, open_engine
from vision.model.config import ModelConfig
from vision.model.detector import Detector

# Name, mixer, most px of a tile's side (0: one piece).
WAYS = (
    ("one piece, dense", "dense", 0),
    ("one piece, sparse", "sparse", 0),
    ("tiles of at most 256 px", "dense", 256),
    ("tiles of at most 384 px", "dense", 384),
    ("tiles of at most 512 px", "dense", 512),
)
# A dense graph in one piece holds all pairs of tokens: 0.5 GB a block at 1024 px, 8.6 GB at 2048 px.
_LARGEST_DENSE = 1024
_MEMORY = """\
import sys, numpy as np
from pathlib import Path
from vision.engine import EngineOptions, open_engine
from training.resources import peak_mib
import onnxruntime

side = int(sys.argv[2])
frame = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
before = peak_mib()
engine = open_engine(Path(sys.argv[1]), provider="cpu", strict=True, options=EngineOptions(threads=1))
engine.run(frame)
print(round(peak_mib() - before))
"""


def write_graph(side: int, mixer: str, most: int, path: Path) -> str:
    """Export an untrained model; how its frames are cut, in words."""
    torch.manual_seed(0)
    tile = even_tile(side, most) if most else 0
    tile = 0 if tile == side else tile
    config = ModelConfig(
        "tf_efficientnet_lite0",
        side,
        side,
        ("good", "defect"),
        "good",
        reconstruction=False,
        class_map=True,
        mixer=mixer,
        tile_height=tile,
        tile_width=tile,
    )
    _write_onnx(Detector(config), np.zeros((2, side, side, 3), np.uint8), path)
    return str(config.tiles or "one piece")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for side in (256, *options.sides):
        with tempfile.TemporaryDirectory() as folder:
            ways = WAYS[:1] if side == 256 else WAYS[side > _LARGEST_DENSE :]
            paths = [Path(folder) / f"{index}.onnx" for index in range(len(ways))]
            grids = [write_graph(side, mixer, most, path) for (_, mixer, most), path in zip(ways, paths, strict=True)]
            memory = [
                int(subprocess.check_output([sys.executable, "-c", _MEMORY, str(path), str(side)]).split()[-1])
                for path in paths
            ]
            engines = [open_engine(path, provider="cpu", options=EngineOptions(threads=1)) for path in paths]
            frame = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
            times: list[list[float]] = [[] for _ in engines]
            for number in range(options.rounds + 1):
                for engine, found in zip(engines, times, strict=True):
                    start = time.perf_counter()
                    engine.run(frame)
                    if number:  # the first round allocates
                        found.append((time.perf_counter() - start) * 1000.0)
        for (name, _, _), grid, mib, found in zip(ways, grids, memory, times, strict=True):
            rows.append({"side": side, "way": name, "cut": grid, "ms": float(np.median(found)), "mib": mib})
            print(f"{side:>5}  {name:26}{grid:36}{rows[-1]['ms']:10.0f} ms{mib:8} MiB", flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

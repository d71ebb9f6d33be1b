"""What token mixers cost as frames grow: the attention blocks alone, in torch and as an exported graph.

    python -m benchmarks.mixers

Every mixer is measured in turns with the others on the tokens of a square frame (stride 16), one thread, fp32. Prints a
table of ms and of the cost a pixel against that at 256 px, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from vision.model.mixers import Block

DIM, HEADS, DEPTH = 192, 8, 2
SIDES = (256, 512, 1024, 2048)
MIXERS = ("none", "lstm", "dense", "linear", "sparse")


class Blocks(nn.Module):
    def __init__(self, mixer: str, side: int) -> None:
        super().__init__()
        self.grid = (side // 16, side // 16)
        self.blocks = nn.ModuleList(Block(mixer, DIM, HEADS) for _ in range(DEPTH))

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens, self.grid)
        return tokens


def exported(blocks: Blocks, tokens: Tensor, folder: Path) -> onnxruntime.InferenceSession:
    path = folder / "blocks.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(blocks, (tokens,), str(path), opset_version=20, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measure(rounds: int, sides: list[int]) -> dict[str, dict[str, dict[int, float]]]:
    """Typical ms by runtime, mixer and side."""
    found: dict[str, dict[str, dict[int, float]]] = {"torch": defaultdict(dict), "onnx": defaultdict(dict)}
    for side in sides:
        tokens = torch.randn(1, (side // 16) ** 2, DIM)
        cases: dict[tuple[str, str], Any] = {}
        for mixer in MIXERS:
            torch.manual_seed(0)
            blocks = Blocks(mixer, side).eval()
            cases["torch", mixer] = lambda blocks=blocks, tokens=tokens: blocks(tokens)
            with tempfile.TemporaryDirectory() as folder:
                session = exported(blocks, tokens, Path(folder))
            feed = {session.get_inputs()[0].name: tokens.numpy()}
            cases["onnx", mixer] = lambda session=session, feed=feed: session.run(None, feed)
        times: dict[tuple[str, str], list[float]] = defaultdict(list)
        # What takes a millisecond is measured more often: the first frames after a larger case find cold caches.
        for number in range(rounds * max(1, (1024 // side) ** 2) + 1):
            for key, run in cases.items():
                start = time.perf_counter()
                with torch.no_grad():
                    run()
                if number:
                    times[key].append((time.perf_counter() - start) * 1000.0)
        for (runtime, mixer), values in times.items():
            found[runtime][mixer][side] = float(np.median(values))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(options.rounds, options.sides)
    first = options.sides[0]
    print(f"{'runtime':8} {'mixer':8}" + "".join(f"{side:>22}" for side in options.sides))
    for runtime, mixers in found.items():
        for mixer, by_side in mixers.items():
            cells = ""
            for side in options.sides:
                ratio = by_side[side] / side**2 / (by_side[first] / first**2)
                cells += f"{by_side[side]:>12.1f} ms {ratio:>5.2f}x"
            print(f"{runtime:8} {mixer:8}{cells}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()

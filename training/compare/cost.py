"""What a variant costs: operations, time and memory of one frame."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from vision.bundle import Bundle
from vision.console import track
from vision.engine import EngineOptions
from vision.measuring import one_round
from vision.model.detector import Detector

_ROUNDS = 40
# A fresh process, so that memory of others is not taken for the model's.
_MEMORY = """\
import sys
from pathlib import Path
from vision.bundle import load_bundle
from vision.engine import EngineOptions

def resident_kb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])

import onnxruntime
bundle = load_bundle(Path(sys.argv[1]))
frames, _ = bundle.golden()
before = resident_kb()
engine = bundle.engine(provider="cpu", strict=True, options=EngineOptions(threads=1))
for _ in range(3):
    engine.run(frames[:1])
print(resident_kb() - before)
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one frame on one CPU thread. ``gflops``: multiply and add count as two; ``mixing_gflops``: of them in the
    blocks that mix tokens. ``ms``: the exported graph in ONNX Runtime, typical. ``memory_mb``: what opening and
    running it adds to a process; None where Linux is not there to tell. ``parameters``: of the whole model.
    """

    gflops: float
    mixing_gflops: float
    ms: float
    memory_mb: float | None
    parameters: int


def count_flops(detector: Detector) -> tuple[float, float]:
    """GFLOPs of one frame at the model's input size: in all, and in the blocks. An LSTM is counted by its products,
    which the counter of torch does not see.
    """
    config = detector.config
    frames = torch.zeros(1, config.height, config.width, 3, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        detector.eval()(frames)
    counts = counter.get_flop_counts()
    blocks = sum(
        sum(ops.values())
        for name, ops in counts.items()
        if name.split(".")[-2:-1] == ["blocks"] and "backbone" not in name and "reconstruction" not in name
    )
    scans = _scan_flops(detector)
    return (counter.get_total_flops() + scans) / 1e9, (blocks + scans) / 1e9


def _scan_flops(detector: Detector) -> float:
    height, width = detector.config.piece
    grid = detector.config.tiles
    tokens = (height // 16) * (width // 16) * (1 if grid is None else len(grid))
    weights = sum(
        value.numel()
        for module in detector.modules()
        if isinstance(module, torch.nn.LSTM)
        for name, value in module.named_parameters()
        if name.startswith("weight")
    )
    return 2.0 * weights * tokens


def measure_costs(models: Mapping[str, tuple[Detector, Bundle]]) -> dict[str, Cost]:
    """Costs of each model, their times taken in turns: what else the machine does then hits all of them alike."""
    engines = {
        name: (bundle.engine(provider="cpu", strict=True, options=EngineOptions(threads=1)), 1)
        for name, (_, bundle) in models.items()
    }
    frames = next(iter(models.values()))[1].golden()[0]
    samples: dict[str, list[float]] = defaultdict(list)
    for number in track(range(_ROUNDS), "Measuring time", unit="rounds"):
        for name, value in one_round(engines, frames).items():
            if number:  # the first round allocates
                samples[name].append(value)
    costs = {}
    for name, (detector, bundle) in models.items():
        gflops, mixing = count_flops(detector)
        parameters = sum(value.numel() for value in detector.parameters())
        costs[name] = Cost(gflops, mixing, float(np.median(samples[name])), _memory_mb(bundle), parameters)
    return costs


def _memory_mb(bundle: Bundle) -> float | None:
    if not Path("/proc/self/status").is_file():  # nothing else tells what is resident now
        return None
    command = [sys.executable, "-c", _MEMORY, str(bundle.path)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - our own words
    return int(answer.stdout.split()[-1]) / 1024.0

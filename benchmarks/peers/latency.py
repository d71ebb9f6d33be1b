"""What a frame costs at batch 1, one model a process, so that each process's peak memory is that of one model.

    python -m benchmarks.peers.latency MODEL.onnx FRAMES.npy OUTPUTS.npz THREADS

Every graph, defectlens's and the peers', runs in ONNX Runtime on the CPU. Once the model is loaded, a line tells how
far its scores are from ``OUTPUTS.npz``; then every line N from standard input is answered by the ms of N frames.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.resources import peak_mib
from vision.errors import DefectLensError

ROOT = Path(__file__).parents[2]
_SCORES = {"anomaly_score", "pred_score"}
_CHECKED = 8
_FRAMES_A_TURN = 20


@dataclass(frozen=True)
class Served:
    """``ms`` is the median of a frame, ``peak_mib`` the most memory of the process that answers, ``difference`` the
    largest one between its scores and those that were measured, as a share of the scores' standard deviation.
    """

    ms: float
    peak_mib: float
    difference: float


def in_turns(
    models: Mapping[str, tuple[Path, Path]], frames: Path, threads: int, rounds: int
) -> dict[str, Served | str]:
    """Time the models one after the other, ``rounds`` times: the median over all frames, or why there is none.

    Args:
        models: graph and outputs of each.
        frames: uint8 ``[N, H, W, 3]`` of the input's size.
    """
    times: dict[str, list[float]] = defaultdict(list)
    differences: dict[str, float] = {}
    found: dict[str, Served | str] = {}
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(_Worker(name, [graph, frames, outputs, str(threads)]))
            for name, (graph, outputs) in models.items()
        }
        for name, worker in workers.items():
            try:
                differences[name] = worker.answer()["difference"]
            except DefectLensError as error:
                found[name] = str(error)
        able = {name: worker for name, worker in workers.items() if name in differences}
        for _ in range(rounds):
            for name, worker in able.items():
                times[name] += worker.ask(_FRAMES_A_TURN)["ms"]
        for name, worker in able.items():
            peak = worker.ask(0)["peak_mib"]
            found[name] = Served(statistics.median(times[name]), peak, differences[name])
    return found


class _Worker:
    """A process that runs one model, and waits without using a core."""

    def __init__(self, name: str, arguments: Sequence[str | Path]) -> None:
        self._name = name
        self._command = [sys.executable, "-m", "benchmarks.peers.latency", *map(str, arguments)]

    def __enter__(self) -> _Worker:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, frames: int) -> dict[str, Any]:
        print(frames, file=self._process.stdin, flush=True)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line.

        Raises:
            DefectLensError: the process has ended.
        """
        line = next(iter(self._process.stdout or ()), "")
        if not line:
            raise DefectLensError(f"the process that ran {self._name}'s graph ended with code {self._process.wait()}")
        return dict(json.loads(line))


class _Session:
    def __init__(self, graph: Path, threads: int) -> None:
        import onnxruntime  # the parent only waits

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # As in defectlens's engine; threads that spin would take the cores of the model that is timed next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0]
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, frame: NDArray[np.uint8]) -> float:
        """The score of one frame ``[1, H, W, 3]``; a peer's graph takes floats in 0..1, channels first."""
        if self._input.type != "tensor(uint8)":
            frame = np.ascontiguousarray(frame.transpose(0, 3, 1, 2), np.float32) / np.float32(255)
        answer = dict(zip(self._outputs, self._session.run(None, {self._input.name: frame}), strict=True))
        return next(float(answer[name].ravel()[0]) for name in _SCORES if name in answer)


def main(graph: str, frames_file: str, outputs: str, threads: str) -> None:
    frames, expected = np.load(frames_file, mmap_mode="r"), np.load(outputs)["scores"]
    session = _Session(Path(graph), int(threads))
    checked = range(0, len(frames), max(1, len(frames) // _CHECKED))
    got = [session.run(np.array(frames[index : index + 1])) for index in checked]
    difference = float(np.max(np.abs(expected[list(checked)] - got)) / max(float(np.std(expected)), 1e-12))
    print(json.dumps({"difference": difference}), flush=True)
    for line in sys.stdin:
        times = []
        for index in range(int(line)):
            frame = np.array(frames[index % len(frames)][None])
            start = time.perf_counter()
            session.run(frame)
            times.append(1000 * (time.perf_counter() - start))
        print(json.dumps({"ms": times, "peak_mib": peak_mib()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What several rows of ``benchmarks.serving`` need: the bundle, its engine's own speed, the server's."""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models
from benchmarks.processes import load, ours, ready_by_file
from vision.bundle import Bundle, load_bundle
from vision.preprocess import decode_image, to_model_input

IN_FLIGHT = 8


class Measurements:
    """What several rows need, measured once."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.serve_options = shlex.split(options.serve_options)

    @cached_property
    def bundle(self) -> Bundle:
        return load_bundle(self.options.bundle or models.untrained_bundle(self.folder / "untrained"))

    @cached_property
    def jpeg(self) -> bytes:
        width, height = map(int, self.options.frame.split("x"))
        return models.jpeg(height, width)

    @cached_property
    def engine_fps(self) -> tuple[float, str]:
        """Frames a second of the best loop in one process, JPEGs decoded in other threads meanwhile; and which."""
        best = (0.0, "")
        for threads in sorted({1, os.cpu_count() or 1}):
            engine = self.bundle.engine(provider="cpu", threads=threads)
            for batch in (1, 4, 8):
                for decoders in (1, 2):
                    fps = self._loop(engine.run, batch, decoders)
                    best = max(best, (fps, f"{threads} threads, batch {batch}, {decoders} decoding"))
        return best

    @cached_property
    def engine_ms(self) -> float:
        """The fastest engine time of a single frame over the numbers of threads, the median of many."""
        found = []
        for threads in sorted({1, os.cpu_count() or 1}):
            engine, times = self.bundle.engine(provider="cpu", threads=threads), []
            frame = self._prepare()[None]
            for _ in range(60):
                start = time.perf_counter()
                engine.run(frame)
                times.append((time.perf_counter() - start) * 1000.0)
            found.append(statistics.median(times[5:]))
        return min(found)

    @cached_property
    def served_fps(self) -> list[float]:
        """Frames a second through gRPC, by round."""
        request, seconds = self.file("jpeg", models.message(self.jpeg)), self.options.seconds
        with self.server(self.bundle.path) as address:
            rounds = [
                load(address, request, in_flight=2 * IN_FLIGHT, seconds=seconds) for _ in range(self.options.rounds)
            ]
        return [figures["per_second"] for figures in rounds]

    @contextmanager
    def server(self, bundle: Path) -> Iterator[str]:
        """`defectlens serve` with the options asked for: its address."""
        with ready_by_file(ours(bundle, self.serve_options), self.folder / f"serve-{bundle.name}") as (address, _):
            yield address

    def file(self, name: str, message: bytes) -> Path:
        """A message where the client finds it."""
        path = self.folder / f"{name}.bin"
        path.write_bytes(message)
        return path

    def _prepare(self) -> Any:
        return to_model_input(decode_image(self.jpeg), self.bundle.manifest.input)

    def _loop(self, run: Callable[[Any], Any], batch: int, decoders: int) -> float:
        with ThreadPoolExecutor(decoders) as pool:
            waiting = [pool.submit(self._prepare) for _ in range(2 * batch)]
            frames, start, end = 0, 0.0, float("inf")
            while time.perf_counter() < end:
                rows = [waiting.pop(0).result() for _ in range(batch)]
                waiting += [pool.submit(self._prepare) for _ in range(batch)]
                run(np.stack(rows))
                if not start:  # the first batch warms up
                    start = time.perf_counter()
                    end = start + self.options.seconds / 2
                else:
                    frames += batch
            return frames / (time.perf_counter() - start)

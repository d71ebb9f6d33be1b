"""What several rows of ``benchmarks.serving`` need: the bundle, its engine's own speed, the server's."""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
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
        self.serve_options = ["--provider", options.provider, *shlex.split(options.serve_options)]

    @cached_property
    def bundle(self) -> Bundle:
        return load_bundle(self.options.bundle or models.untrained_bundle(self.folder / "untrained"))

    @cached_property
    def jpegs(self) -> list[bytes]:
        """The bundle's golden frames, which the model knows, as a camera of ``--frame`` pixels would send them."""
        width, height = map(int, self.options.frame.split("x"))
        return [models.jpeg(frame, height, width) for frame in self.bundle.golden()[0]]

    @cached_property
    def best_loop(self) -> Callable[[], float]:
        """Frames a second of the loop in one process that was fastest of some, JPEGs decoded in threads meanwhile."""
        best, loop = 0.0, partial(self._loop, self.bundle.engine(provider=self.options.provider).run, 1, 1)
        for threads in sorted({1, os.cpu_count() or 1}):
            engine = self.bundle.engine(provider=self.options.provider, threads=threads)
            for batch in (1, 4, 8):
                for decoders in (1, 2):
                    fps = self._loop(engine.run, batch, decoders)
                    if fps > best:
                        best, loop = fps, partial(self._loop, engine.run, batch, decoders)
        return loop

    @cached_property
    def throughputs(self) -> list[tuple[float, float]]:
        """Frames a second of the best loop and through gRPC, in turns."""
        requests, loop = self.requests("jpeg"), self.best_loop
        with self.server(self.bundle.path) as address:

            def served() -> float:
                return load(address, requests, in_flight=2 * IN_FLIGHT, seconds=self.options.seconds)["per_second"]

            return [(loop(), served()) for _ in range(self.options.rounds)]

    @property
    def served_fps(self) -> float:
        return statistics.median(served for _, served in self.throughputs)

    @cached_property
    def engine_ms(self) -> float:
        """The fastest engine time of a single frame over the numbers of threads, the median of many."""
        found = []
        for threads in sorted({1, os.cpu_count() or 1}):
            engine, times = self.bundle.engine(provider=self.options.provider, threads=threads), []
            frame = self._prepare(self.jpegs[0])[None]
            for _ in range(60):
                start = time.perf_counter()
                engine.run(frame)
                times.append((time.perf_counter() - start) * 1000.0)
            found.append(statistics.median(times[5:]))
        return min(found)

    def requests(self, name: str, timeout_ms: int = 0) -> list[Path]:
        """The JPEG frames as messages, where the client finds them."""
        messages = (models.message(data, timeout_ms=timeout_ms) for data in self.jpegs)
        return [self.file(f"{name}{index}", message) for index, message in enumerate(messages)]

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

    def _prepare(self, data: bytes) -> Any:
        return to_model_input(decode_image(data), self.bundle.manifest.input)

    def _loop(self, run: Callable[[Any], Any], batch: int, decoders: int) -> float:
        frames_in = itertools.cycle(self.jpegs)
        with ThreadPoolExecutor(decoders) as pool:
            waiting = [pool.submit(self._prepare, next(frames_in)) for _ in range(2 * batch)]
            frames, start, end = 0, 0.0, float("inf")
            while time.perf_counter() < end:
                rows = [waiting.pop(0).result() for _ in range(batch)]
                waiting += [pool.submit(self._prepare, next(frames_in)) for _ in range(batch)]
                run(np.stack(rows))
                if not start:  # the first batch warms up
                    start = time.perf_counter()
                    end = start + self.options.seconds / 2
                else:
                    frames += batch
            return frames / (time.perf_counter() - start)

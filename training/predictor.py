"""Who answers: anything that turns samples into inspections can be evaluated, and all are measured alike."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from training.data import Sample, read_frame
from vision.bundle import Bundle, Manifest
from vision.engine import EngineOptions, Precision, Provider
from vision.postprocess import judge
from vision.preprocess import to_model_input
from vision.types import Inspection, ModelOutputs

T = TypeVar("T")
R = TypeVar("R")


class Predictor(Protocol):
    """Answers for images, whatever computes the answers."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def provider(self) -> str:
        """What really computes, e.g. ``CPUExecutionProvider`` or ``torch cpu``."""
        ...

    @property
    def digest(self) -> str | None:
        """Of the bundle; None for a model that is in none."""
        ...

    def predict(self, samples: Sequence[Sample]) -> Iterator[Inspection]:
        """One inspection for each sample, in their order, maps on the model's grid."""
        ...


class FrameEngine(Protocol):
    """What ``vision.engine.Engine`` is, for ONNX Runtime and torch alike."""

    @property
    def provider(self) -> str: ...

    def run(self, frames: NDArray[np.uint8]) -> ModelOutputs: ...


class EnginePredictor:
    """An engine in this process, through the same functions as the server.

    Args:
        engine: takes uint8 ``[N, H, W, 3]`` RGB of the manifest's input size.
        manifest: of the bundle, or the one that a bundle would get.
        digest: of the bundle, None where there is none.
        batch_size: frames a run of the engine.
    """

    def __init__(
        self, engine: FrameEngine, manifest: Manifest, *, digest: str | None = None, batch_size: int = 8
    ) -> None:
        self.manifest = manifest
        self.digest = digest
        self.provider = engine.provider
        self._engine = engine
        self._batch_size = manifest.input.most_frames(batch_size)

    def predict(self, samples: Sequence[Sample]) -> Iterator[Inspection]:
        workers = min(8, os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool:
            decoded = map_ahead(pool, self._decode, samples, 2 * self._batch_size + workers)
            for batch in _batches(decoded, self._batch_size):
                outputs = self._engine.run(np.stack([one.pixels for one in batch]))
                for index, one in enumerate(batch):
                    yield judge(outputs.row(index), self.manifest, one.height, one.width)

    def _decode(self, sample: Sample) -> _Decoded:
        frame = read_frame(sample.path, self.manifest.input.white_level)
        return _Decoded(to_model_input(frame, self.manifest.input), frame.shape[0], frame.shape[1])


class BundlePredictor(EnginePredictor):
    """A bundle in this process; ``provider`` and ``precision`` as in ``vision.engine``.

    The gate is not asked: measuring what a precision costs is what this is for.
    """

    def __init__(
        self, bundle: Bundle, provider: Provider = "auto", precision: Precision = "fp32", batch_size: int = 8
    ) -> None:
        engine = bundle.engine(provider=provider, precision=precision, options=EngineOptions(max_batch=batch_size))
        super().__init__(engine, bundle.manifest, digest=bundle.digest, batch_size=batch_size)
        if engine.precision != "fp32":
            self.provider = f"{engine.provider} in {engine.precision}"


class _Decoded(NamedTuple):
    pixels: NDArray[np.uint8]
    height: int
    width: int


def map_ahead(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """``pool.map`` in order, with at most ``ahead`` results waiting: a large data set must not pile up in memory."""
    source = iter(items)
    waiting: deque[Future[R]] = deque(pool.submit(work, item) for item in islice(source, ahead))
    while waiting:
        result = waiting.popleft().result()
        waiting.extend(pool.submit(work, item) for item in islice(source, 1))
        yield result


def _batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while batch := list(islice(items, size)):
        yield batch

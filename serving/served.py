"""One loaded and proven bundle: engine, pipeline and what is said about it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path

from serving.drift import DriftWatch
from serving.logs import Event
from serving.memory import give_back
from serving.messages import Limits, ModelIdentity, ModelInfo
from serving.pipeline import Pipeline
from serving.settings import ServerSettings
from vision.bundle import Bundle, load_bundle
from vision.console import plain
from vision.drift.reference import bundle_reference
from vision.engine import Engine
from vision.parity import MAP_TOLERANCE, SCORE_TOLERANCE

_log = logging.getLogger(__name__)


class Served:
    """A version of a model that is ready to answer."""

    def __init__(self, info: ModelInfo, engine: Engine, pipeline: Pipeline, watch: DriftWatch | None = None) -> None:
        self.info = info
        self.pipeline = pipeline
        self.watch = watch
        self._engine = engine

    @property
    def name(self) -> str:
        return self.info.model.name

    @property
    def label(self) -> str:
        """Name, version and the beginning of the bundle's digest: two bundles may have the same version."""
        model = self.info.model
        return f"{model.name} {model.version} ({model.bundle_digest[:8]})"

    async def retire(self) -> None:
        """Answer the frames inside, then end every thread and let go of the model."""
        await self.pipeline.close()
        await asyncio.to_thread(self._let_go)

    def _let_go(self) -> None:
        self._engine.close()
        give_back()


async def load(folder: Path, settings: ServerSettings, clock: Callable[[], float], opener: Executor) -> Served:
    """Verify a bundle, replay its golden frames and start its pipeline.

    All of it happens in threads: ONNX Runtime lets go of Python's lock while it builds a session, so that frames of
    other models are answered meanwhile (`benchmarks/swaps.py` measures it).

    Args:
        opener: of one thread, the same for every model: what an engine allocates stays with the thread that opens it.

    Raises:
        BundleError, ProviderError, ParityError: it must not serve; nothing of it is left behind.
    """
    bundle = await asyncio.to_thread(load_bundle, folder)
    settings = replace(settings, max_batch=bundle.manifest.input.most_frames(settings.max_batch))
    engine = await asyncio.get_running_loop().run_in_executor(opener, partial(_open, bundle, settings))
    used = {"used": engine.provider, "precision": engine.precision, "fallback": engine.fallback}
    _log.info(Event("provider", asked=settings.provider, **used))
    differences = await asyncio.to_thread(bundle.replay_golden, engine)
    worst = ", ".join(f"{name} {value:.2g}" for name, value in differences.items())
    watch = await asyncio.to_thread(_watch, bundle, engine, settings, clock)
    pipeline = Pipeline(bundle.manifest, engine, settings, clock=clock, watch=watch)
    info = describe(bundle, engine, settings, differences, watch)
    served = Served(info, engine, pipeline, watch)
    _log.info(Event("golden_frames_agree", model=served.label, differences=worst))
    try:
        await pipeline.start()
    except BaseException:
        await served.retire()
        raise
    return served


def _open(bundle: Bundle, settings: ServerSettings) -> Engine:
    return bundle.engine(
        provider=settings.provider,
        precision=settings.precision,
        strict=settings.strict_provider,
        options=settings.engine_options,
    )


def _watch(bundle: Bundle, engine: Engine, settings: ServerSettings, clock: Callable[[], float]) -> DriftWatch | None:
    """The watch over cameras, where it is wanted and the bundle has a reference for it."""
    reference = bundle_reference(bundle)
    if settings.drift == "off" or reference is None:
        _log.info(Event("cameras_not_watched", reason="--drift off" if settings.drift == "off" else "no reference"))
        return None
    return DriftWatch(
        reference,
        _identity(bundle),
        frames_per_alarm=settings.drift_frames_per_alarm,
        against_calibration=settings.drift == "calibration",
        compares_embeddings=engine.precision == "fp32",
        clock=clock,
    )


def _identity(bundle: Bundle) -> ModelIdentity:
    manifest = bundle.manifest
    return ModelIdentity(manifest.name, manifest.version, bundle.digest, manifest.model_digest)


def describe(
    bundle: Bundle, engine: Engine, settings: ServerSettings, gate: dict[str, float], watch: DriftWatch | None = None
) -> ModelInfo:
    """What GetModel says."""
    manifest = bundle.manifest
    return ModelInfo(
        model=_identity(bundle),
        created=manifest.created,
        classes=manifest.classes,
        good_class=manifest.good_class,
        input_height=manifest.input.height,
        input_width=manifest.input.width,
        white_level=manifest.input.white_level,
        operating_point=manifest.operating_point,
        metrics_json=json.dumps(plain(manifest.metrics)),
        parity_json=json.dumps(plain(manifest.parity)),
        provenance_json=json.dumps(plain(manifest.provenance)),
        provider=engine.provider,
        provider_fallback=engine.fallback,
        precision=engine.precision,
        gate_json=json.dumps(plain(gate)),
        score_tolerance=SCORE_TOLERANCE,
        map_tolerance=MAP_TOLERANCE,
        limits=Limits(
            max_pixels=settings.max_pixels,
            max_request_bytes=settings.max_request_bytes,
            max_reply_bytes=settings.max_reply_bytes,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            max_stream_frames=settings.max_stream_frames,
            max_shared_bytes=settings.offered_shared_bytes,
        ),
        fast_decode=settings.fast_decode,
        explanations=manifest.explanations,
        drift=None if watch is None else watch.info,
        class_calibration=manifest.class_calibration,
    )

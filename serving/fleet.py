"""All models that one server serves, and how one version follows another."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

from serving.drift import DriftWatch
from serving.logs import Event
from serving.messages import FrameRequest, ModelInfo
from serving.priority import workers
from serving.served import Served, load
from serving.settings import ServerSettings
from serving.shadow import Shadow
from vision.errors import DefectLensError, SettingsError, WrongModelError
from vision.types import Inspection

_REFUSED_KEPT = 20
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Model:
    """One name: the version that serves, the one before (kept ready for a rollback) and the candidate on trial."""

    serving: Served
    previous: Served | None = None
    shadow: Shadow | None = None

    @property
    def versions(self) -> list[Served]:
        """All that are loaded."""
        candidate = None if self.shadow is None else self.shadow.candidate
        return [served for served in (self.serving, self.previous, candidate) if served is not None]


class Fleet:
    """Models by name. Changes come one after another; a frame is answered by the version that served when it came, and
    a change neither waits for frames nor holds them up. At most three versions of a name are loaded.

    Args:
        clock: monotonic, in seconds; of every pipeline.
    """

    def __init__(self, settings: ServerSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.models: dict[str, Model] = {}
        self.loaded: Callable[[Path], Awaitable[None]] | None = None
        """Awaited with every bundle's folder before it may answer; an error refuses the bundle."""
        self.refused: deque[tuple[Path, str]] = deque(maxlen=_REFUSED_KEPT)
        self._settings = settings
        self._changing = asyncio.Lock()
        self._opener = workers(1, "engine")
        self._retiring: set[asyncio.Task[None]] = set()
        self._draining = False

    @property
    def default(self) -> Served:
        """The model that answers requests without a name: the first that was loaded."""
        return next(iter(self.models.values())).serving

    @property
    def served(self) -> tuple[ModelInfo, ...]:
        """The version that serves of each model, the default one first."""
        return tuple(model.serving.info for model in self.models.values())

    @property
    def watches(self) -> tuple[DriftWatch, ...]:
        """Over the cameras of the versions that serve."""
        watches = (model.serving.watch for model in self.models.values())
        return tuple(watch for watch in watches if watch is not None)

    @property
    def queue_depth(self) -> int:
        """Frames that wait for inference now, over all models."""
        return sum(served.pipeline.queue_depth for model in self.models.values() for served in model.versions)

    def model(self, name: str) -> Model:
        """All versions of a name; empty takes the default model.

        Raises:
            WrongModelError: no such name.
        """
        name = name or self.default.name
        if name not in self.models:
            raise WrongModelError(f"no model is called {name!r}; this server has {', '.join(map(repr, self.models))}")
        return self.models[name]

    def choose(self, name: str = "", version: str = "") -> Served:
        """The version that serves.

        Raises:
            WrongModelError: no such name, or another version serves.
        """
        served = self.model(name).serving
        if version and version != served.info.model.version:
            raise WrongModelError(
                f"version {version!r} of {served.name} was asked for, but version {served.info.model.version!r} "
                "serves; leave the version out, or have it promoted"
            )
        return served

    async def observe(self, served: Served, request: FrameRequest, request_id: str, inspection: Inspection) -> None:
        """Show an answered frame to the candidate, if there is one for the version that answered it."""
        model = self.models[served.name]
        if model.shadow is not None and model.serving is served and not self._draining:
            await model.shadow.show(request, request_id, inspection)

    async def install(self, folder: Path) -> Model:
        """Load a bundle and let it take over from the version of its name, or join.

        Raises:
            BundleError, ProviderError, ParityError: it was refused, and everything goes on as before.
        """
        async with self._changing:
            served = await self._load(folder)
            model = self.models.get(served.name)
            if model is None:
                model = self.models[served.name] = Model(served)
                _log.info(Event("model_joined", model=served.label))
            else:
                self._take_over(model, served)
            return model

    async def shadow(self, folder: Path, share: float) -> Model:
        """Load a bundle as the candidate for the model of its name; an earlier candidate leaves.

        Raises:
            BundleError, ProviderError, ParityError: it was refused.
            WrongModelError: no model of its name serves.
            SettingsError: ``share`` is not in 0..1.
        """
        async with self._changing:
            served = await self._load(folder)
            try:
                model, shadow = self.model(served.name), Shadow(served, share)
            except DefectLensError:
                await served.retire()
                raise
            self._dismiss(model.shadow)
            model.shadow = shadow
            _log.info(Event("shadow_started", model=served.label, share=share))
            return model

    async def promote(self, name: str) -> Model:
        """The candidate takes over.

        Raises:
            WrongModelError, SettingsError: no such model, or it has no candidate.
        """
        async with self._changing:
            model, shadow = self._with_candidate(name)
            model.shadow = None
            await shadow.settle()
            self._take_over(model, shadow.candidate)
            return model

    async def withdraw(self, name: str) -> Model:
        """The candidate leaves. Raises as ``promote`` does."""
        async with self._changing:
            model, shadow = self._with_candidate(name)
            model.shadow = None
            self._dismiss(shadow)
            return model

    async def rollback(self, name: str) -> Model:
        """The version before takes over again; the present one becomes the version before.

        Raises:
            WrongModelError, SettingsError: no such model, or it had no other version since the server started.
        """
        async with self._changing:
            model = self.model(name)
            if model.previous is None:
                raise SettingsError(f"{name} has had no other version since the server started; load one instead")
            model.serving, model.previous = model.previous, model.serving
            _log.warning(Event("rolled_back", before=model.previous.label, now=model.serving.label))
            return model

    def refuse_new(self) -> None:
        """From now on every new frame meets a ``ShuttingDownError``; those inside are still answered."""
        self._draining = True
        for model in self.models.values():
            for served in model.versions:
                served.pipeline.refuse_new()

    async def close(self) -> None:
        """Finish what is inside and end everything."""
        self.refuse_new()
        async with self._changing:
            for model in self.models.values():
                if model.shadow is not None:
                    await model.shadow.settle()
                for served in model.versions:
                    await served.retire()
            if self._retiring:
                await asyncio.wait(self._retiring)
        self._opener.shutdown()

    async def _load(self, folder: Path) -> Served:
        try:
            if self.loaded is not None:
                await self.loaded(folder)
            return await load(folder, self._settings, self.clock, self._opener)
        except DefectLensError as error:
            self.refused.append((folder, str(error)))
            _log.error(Event("bundle_refused", folder=str(folder), message=str(error)))
            raise

    def _take_over(self, model: Model, served: Served) -> None:
        """In one step of the event loop: no frame comes in between."""
        before, oldest = model.serving, model.previous
        model.serving, model.previous = served, before
        _log.info(Event("took_over", before=before.label, now=served.label))
        if oldest is not None:
            self._retire(oldest.retire())

    def _dismiss(self, shadow: Shadow | None) -> None:
        if shadow is None:
            return

        async def dismiss() -> None:
            await shadow.settle()
            await shadow.candidate.retire()

        self._retire(dismiss())

    def _retire(self, ending: Coroutine[None, None, None]) -> None:
        """In the background: an old version may still be answering."""
        task = asyncio.create_task(ending, name="retire")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _with_candidate(self, name: str) -> tuple[Model, Shadow]:
        model = self.model(name)
        if model.shadow is None:
            raise SettingsError(f"{name} has no candidate; bring one with `defectlens models shadow`")
        return model, model.shadow

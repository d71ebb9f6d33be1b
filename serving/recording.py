"""Where answers meet their record: what is kept of each, and who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from serving.audit import Action, AuditPlace, Store
from serving.audit.bundles import keep_bundle
from serving.audit.drafts import Draft
from serving.audit.recorder import Recorder, RecorderCounts
from serving.audit.signing import Signer
from serving.live import AuditStatus
from serving.messages import EncodedImage, FrameRequest, ModelInfo, RawImage
from serving.pipeline import FrameResult
from serving.recording_options import SERVER, AuditMode, AuditSettings
from serving.stages import EncodedMaps
from vision.errors import AuditError, DeadlineError, DefectLensError, ImageError

# A store that takes longer has died: a network file system that is gone, a database that hangs.
_PATIENCE_S = 10.0


class Recording:
    """The audit trail of one server. Everything is called on its event loop.

    Args:
        clock: monotonic, in seconds; deadlines are on it.
    """

    def __init__(self, recorder: Recorder, store: Store, mode: AuditMode, clock: Callable[[], float]) -> None:
        self.mode = mode
        self._recorder = recorder
        self._store = store
        self._clock = clock

    @classmethod
    def open(cls, settings: AuditSettings, clock: Callable[[], float]) -> Recording:
        """Open the store, or make it; takes some ms, so not for the event loop.

        Raises:
            SettingsError, AuditError: it cannot be had.
        """
        place = AuditPlace.of(settings.where, files=settings.files, key=settings.key)
        store = Store.open(place, create=True)
        try:
            signer = Signer.at(place.key)
        except BaseException:
            store.close()
            raise
        every = settings.checkpoint_every
        recorder = Recorder(store, signer, sample_rate=settings.sample, checkpoint_every=every)
        return cls(recorder, store, settings.mode, clock)

    @property
    def place(self) -> str:
        """The store, without passwords."""
        return self._store.place.shown

    def counts(self) -> RecorderCounts:
        """What became of the records; for any thread."""
        return self._recorder.counts()

    def status(self) -> AuditStatus:
        """The same in short, for the live picture."""
        counts = self._recorder.counts()
        return AuditStatus(
            self.mode,
            counts.offered,
            counts.recorded,
            counts.failed,
            counts.dropped,
            counts.waiting,
            counts.problem,
        )

    async def answered(
        self,
        request: FrameRequest,
        request_id: str,
        received_ns: int,
        info: ModelInfo,
        result: FrameResult,
        deadline: float | None,
    ) -> None:
        """Record a verdict that is about to leave. In strict mode this returns when the record is durable.

        Raises:
            AuditError: strict, and it could not be written.
            DeadlineError: strict, and it was not durable before the deadline.
            OverloadedError: strict, and too many answers wait already.
        """
        image = await _own(request.image)
        # The answer's pictures were made for its caller; the record has its own.
        draft = Draft(
            request_id=request_id,
            received_ns=received_ns,
            request=replace(request, image=None),
            image=image,
            info=info,
            result=replace(result, overlay_jpeg=b"", maps=EncodedMaps()),
        )
        done = self._recorder.submit(draft, wait=self.mode == "strict")
        if done is None:
            return
        patience = _PATIENCE_S if deadline is None else min(_PATIENCE_S, deadline - self._clock())
        try:
            async with asyncio.timeout(max(0.0, patience)):
                await asyncio.wrap_future(done)
        except TimeoutError as error:
            self._recorder.give_up(done)
            if patience < _PATIENCE_S:
                raise DeadlineError(
                    "the verdict was there in time, but its record was not durable before the deadline; allow more time"
                ) from error
            raise AuditError(
                f"the record of the answer was not durable after {_PATIENCE_S:.0f} s, so the answer is not given; see "
                "to the audit store's disk or database"
            ) from error

    async def failed(
        self,
        request: FrameRequest | None,
        request_id: str,
        received_ns: int,
        info: ModelInfo | None,
        error: DefectLensError,
        code: str,
    ) -> None:
        """Record an answer that is an error. Nobody waits for it, in either mode: it lets no part pass.

        The frame is kept only where it was at fault.
        """
        image = None
        if isinstance(error, ImageError) and request is not None:
            image = await _own(request.image)
        draft = Draft(
            request_id=request_id,
            received_ns=received_ns,
            request=None if request is None else replace(request, image=None),
            image=image,
            info=info,
            error_code=code,
            reason=str(error),
        )
        self._recorder.submit(draft, wait=False)

    async def keep_bundle(self, folder: Path) -> None:
        """Keep a bundle that is about to serve, so that its answers can be computed again.

        Raises:
            BundleError: it is not whole.
            AuditError: it cannot be written.
        """
        await asyncio.to_thread(keep_bundle, self._store, folder, SERVER)

    async def act(
        self, action: str, person: str, subject: str = "", reason: str = "", details: Mapping[str, Any] | None = None
    ) -> None:
        """Record what somebody did, and wait until that is durable.

        Raises:
            AuditError, OverloadedError: it could not be written.
        """
        done = self._recorder.submit(
            Action(action=action, person=person or "unnamed", subject=subject, reason=reason, details=details or {}),
            wait=True,
        )
        if done is not None:
            await asyncio.wrap_future(done)

    def close(self) -> None:
        """Write what waits and sign it; not for the event loop."""
        self._recorder.close()
        self._store.close()


async def _own(image: EncodedImage | RawImage | None) -> EncodedImage | RawImage | None:
    """With bytes that stay: a camera takes its shared memory back with the answer."""
    if image is None or not isinstance(image.data, memoryview):
        return image
    # By numpy, which lets other threads run meanwhile.
    data = await asyncio.to_thread(lambda shared: np.frombuffer(shared, np.uint8).copy().data, image.data)
    return replace(image, data=data, place=None)

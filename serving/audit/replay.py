"""The stored frame through the stored model once more: does it say the same?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.audit.bundles import restore_bundle
from serving.audit.frames import stored_image
from serving.audit.records import Answer
from serving.audit.store import Store
from serving.messages import FrameRequest
from serving.stages import prepare
from vision.bundle import Bundle, load_bundle
from vision.engine import NAMES, Engine, Precision, Provider
from vision.errors import AuditError, DefectLensError
from vision.parity import MAP_TOLERANCE, SCORE_TOLERANCE
from vision.postprocess import judge
from vision.preprocess import MAX_PIXELS
from vision.types import Inspection, Verdict

_PROVIDERS: dict[str, Provider] = {name: provider for provider, name in NAMES.items()}  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class Replay:
    """One answer beside what the model says now. ``problem`` says why there is nothing to compare; empty if there is.

    ``score_difference``, ``logit_difference``: the largest, absolute; None without a score. ``bitwise``: every score
    and logit is the very same number. ``reproduced``: the verdict is the same, and either all is bitwise or within the
    published tolerance (``SCORE_TOLERANCE``, ``MAP_TOLERANCE``; of fp32), as on another provider.
    """

    seq: int
    request_id: str
    provider: str
    provider_then: str
    verdict: Verdict
    verdict_then: Verdict
    score: float | None = None
    score_then: float | None = None
    score_difference: float | None = None
    logit_difference: float | None = None
    bitwise: bool = False
    reproduced: bool = False
    problem: str = ""


class Replayer:
    """Runs stored frames. Models are opened once, and let go of by ``close``.

    Args:
        bundles: folders of bundles, for those that the store does not hold.
        provider: to compute on; None takes the one of each answer where this machine has it, else the CPU.
    """

    def __init__(self, store: Store, *, bundles: Iterable[Path] = (), provider: Provider | None = None) -> None:
        self._store = store
        self._provider = provider
        self._given = {bundle.digest: bundle for bundle in map(load_bundle, bundles)}
        self._engines: dict[tuple[str, str, str], tuple[Bundle, Engine]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Replayer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for _, engine in self._engines.values():
            engine.close()
        self._stack.close()

    def replay(self, seq: int) -> Replay:
        """One answer again. What cannot be replayed is told in ``Replay.problem``.

        Raises:
            SettingsError: there is no such answer.
        """
        answer = self._store.answer(seq)
        try:
            return self._replay(seq, answer)
        except DefectLensError as error:
            then = "" if answer.model is None else answer.model.provider
            return Replay(seq, answer.request_id, "", then, Verdict.UNSPECIFIED, answer.verdict, problem=str(error))

    def _replay(self, seq: int, answer: Answer) -> Replay:
        if answer.model is None or answer.error:
            raise AuditError(f"the answer was an error ({answer.error}); no model gave it")
        bundle, engine = self._open(answer)
        manifest = bundle.manifest
        request = FrameRequest(stored_image(self._store, answer))
        ready = prepare(request, manifest, MAX_PIXELS, fast_decode=answer.model.fast_decode)
        first: Replay | None = None
        # The kernels of a runtime may round otherwise in batches of another size, and in another place of one.
        for size in sorted({1, answer.batch_size}):
            outputs = engine.run(_repeated(ready.pixels, size))
            for row in range(size):
                now = judge(outputs.row(row), manifest, ready.frame_height, ready.frame_width)
                found = _compare(seq, answer, now, engine)
                if found.bitwise:
                    return found
                first = first or found
        if first is None:
            raise AuditError("the model gave no output")
        return first

    def _open(self, answer: Answer) -> tuple[Bundle, Engine]:
        model = answer.model
        if model is None:
            raise AuditError("no model gave the answer")
        wanted = self._provider or _PROVIDERS.get(model.provider, "cpu")
        key = (model.bundle_digest, wanted, model.precision)
        if key not in self._engines:
            bundle = self._given.get(model.bundle_digest)
            if bundle is None:
                folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="defectlens-replay-")))
                bundle = load_bundle(restore_bundle(self._store, model.bundle_digest, folder))
            precision: Precision = model.precision  # type: ignore[assignment]  # as it was recorded
            self._engines[key] = bundle, bundle.engine(provider=wanted, precision=precision)
        return self._engines[key]


def _repeated(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.broadcast_to(pixels, (size, *pixels.shape)))


def _compare(seq: int, answer: Answer, now: Inspection, engine: Engine) -> Replay:
    then_logits = np.array([np.nan if one.logit is None else one.logit for one in answer.classes], np.float32)
    logits = now.class_logits.astype(np.float32)
    same_shape = then_logits.shape == logits.shape
    logit_difference = float(np.max(np.abs(logits - then_logits), initial=0.0)) if same_shape else float("inf")
    scores = now.anomaly_score, answer.anomaly_score
    score_difference = None if None in scores else abs(float(scores[0] or 0.0) - float(scores[1] or 0.0))
    same_score = scores[0] == scores[1]
    bitwise = same_score and same_shape and bool(np.array_equal(logits, then_logits, equal_nan=True))
    model = answer.model
    fp32 = model is not None and model.precision == "fp32" == engine.precision
    close = (
        fp32
        and (scores == (None, None) or (score_difference is not None and score_difference <= SCORE_TOLERANCE))
        and logit_difference <= MAP_TOLERANCE
    )
    return Replay(
        seq=seq,
        request_id=answer.request_id,
        provider=engine.provider,
        provider_then="" if model is None else model.provider,
        verdict=now.verdict,
        verdict_then=answer.verdict,
        score=now.anomaly_score,
        score_then=answer.anomaly_score,
        score_difference=score_difference,
        logit_difference=logit_difference,
        bitwise=bitwise,
        reproduced=now.verdict is answer.verdict and (bitwise or close),
    )

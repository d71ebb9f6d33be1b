"""Check frames: labelled frames in the bundle, on which an engine below fp32 has to show that it is as good."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.batching import run_batches
from vision.engine import Engine
from vision.errors import BundleError
from vision.judgement import judge_scores
from vision.manifest import Manifest
from vision.parity import Accuracy, image_auroc
from vision.preprocess import InputSpec
from vision.types import FloatArray, ModelOutputs, Verdict

CHECK_FRAMES = "check/frames.png"
CHECK_EXPECTED = "check/expected.npz"


@dataclass(frozen=True)
class Scores:
    """What the verdicts of M frames follow from: ``class_logits`` ``[M, C]``, ``anomaly_score`` ``[M]`` or None."""

    class_logits: FloatArray
    anomaly_score: FloatArray | None


@dataclass(frozen=True)
class CheckFrames:
    """``frames`` uint8 ``[M, H, W, 3]`` RGB at input size, ``is_defect`` bool ``[M]``, ``expected`` from torch."""

    frames: NDArray[np.uint8]
    is_defect: NDArray[np.bool_]
    expected: Scores

    def measure(self, engine: Engine, manifest: Manifest) -> Accuracy:
        """Run the frames; how the answers at the manifest's operating point stand beside the expected ones."""
        got = run_scores(engine.run, self.frames)
        before, after = (_verdicts(scores, manifest) for scores in (self.expected, got))
        changed = sum(one != other for one, other in zip(before, after, strict=True))
        both = self.expected.anomaly_score is not None and got.anomaly_score is not None
        return Accuracy(
            frames=len(self.frames),
            pairs=int(self.is_defect.sum() * (~self.is_defect).sum()),
            flips=changed / len(self.frames),
            auroc=image_auroc(got.anomaly_score, self.is_defect) if both else None,  # type: ignore[arg-type]
            expected_auroc=image_auroc(self.expected.anomaly_score, self.is_defect) if both else None,  # type: ignore[arg-type]
        )


def run_scores(run: Callable[[NDArray[np.uint8]], ModelOutputs], frames: NDArray[np.uint8]) -> Scores:
    """Run frames in batches and keep what verdicts follow from."""
    parts = list(run_batches(run, frames))
    scores = [part.anomaly_score for part in parts if part.anomaly_score is not None]
    return Scores(np.concatenate([part.class_logits for part in parts]), np.concatenate(scores) if scores else None)


def _verdicts(scores: Scores, manifest: Manifest) -> list[tuple[Verdict, str]]:
    """Verdict of each frame; with the predicted class where that is all the model can say."""
    if scores.anomaly_score is None:
        found = [judge_scores(logits, None, manifest) for logits in scores.class_logits]
        return [(one.verdict, one.predicted) for one in found]
    pairs = zip(scores.class_logits, scores.anomaly_score, strict=True)
    return [(judge_scores(logits, float(score), manifest).verdict, "") for logits, score in pairs]


def write_check(folder: Path, check: CheckFrames) -> None:
    """Into the folder of a bundle that is being made."""
    write_stack(folder / CHECK_FRAMES, check.frames)
    arrays = {"is_defect": check.is_defect, "class_logits": check.expected.class_logits}
    if check.expected.anomaly_score is not None:
        arrays["anomaly_score"] = check.expected.anomaly_score
    np.savez_compressed(folder / CHECK_EXPECTED, **arrays)  # type: ignore[arg-type]


def read_check(folder: Path, spec: InputSpec) -> CheckFrames:
    """The inverse of ``write_check``.

    Raises:
        BundleError: the files are not what ``write_check`` writes.
    """
    frames = read_stack(folder / CHECK_FRAMES, spec)
    arrays = read_arrays(folder / CHECK_EXPECTED)
    if not {"is_defect", "class_logits"} <= arrays.keys() or len(frames) != len(arrays["class_logits"]):
        raise BundleError(f"the check frames of {folder} do not fit their expected scores; export the bundle again")
    scores = Scores(arrays["class_logits"], arrays.get("anomaly_score"))
    return CheckFrames(frames, arrays["is_defect"].astype(np.bool_), scores)


def write_stack(path: Path, frames: NDArray[np.uint8]) -> None:
    """Frames uint8 ``[N, H, W, 3]`` RGB as one lossless PNG, stacked downwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stacked = cv2.cvtColor(np.concatenate(list(frames), axis=0), cv2.COLOR_RGB2BGR)
    path.write_bytes(cv2.imencode(".png", stacked)[1].tobytes())


def read_stack(path: Path, spec: InputSpec) -> NDArray[np.uint8]:
    """The inverse of ``write_stack``.

    Raises:
        BundleError: no such file, or it holds something else.
    """
    try:
        stacked = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB)
        return np.asarray(stacked, np.uint8).reshape(-1, spec.height, spec.width, 3)
    except (OSError, ValueError, TypeError, cv2.error) as error:
        raise BundleError(
            f"the golden or check frames {path} cannot be read: {error}; export the bundle again"
        ) from error


def read_arrays(path: Path) -> dict[str, NDArray[np.float32]]:
    """All arrays of an ``.npz`` without pickles.

    Raises:
        BundleError: no such file, or it holds something else.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, TypeError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise BundleError(
            f"the golden or check outputs {path} cannot be read: {error}; export the bundle again"
        ) from error

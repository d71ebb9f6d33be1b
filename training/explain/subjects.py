"""What is explained: defective frames with masks, and what each of them might look like without its defect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data import DataSet, Sample
from training.explain.perturb import best_reference
from training.probes import in_turns
from training.stores import FrameStore
from vision.bundle import Bundle
from vision.errors import DataError
from vision.postprocess import ANOMALY
from vision.types import Frame

# Good frames that a defective one is compared with.
_GOOD_FRAMES, _FEWEST_GOOD, _MOST_BYTES = 200, 8, 2**28
# Without a good part there is only the frame itself without its detail, in px.
_BLUR = 16.0


@dataclass(frozen=True)
class Subject:
    """One frame to explain: ``frame`` and ``reference`` uint8 ``[H, W, 3]`` at input size, ``mask`` bool ``[H, W]``;
    ``target`` is the index of its true class, whose logit is explained.
    """

    sample: Sample
    frame: Frame
    mask: NDArray[np.bool_]
    target: int
    reference: Frame


@dataclass(frozen=True)
class Subjects:
    """The subjects and how they came about; ``good`` uint8 ``[M, H, W, 3]`` are the frames behind the references."""

    chosen: tuple[Subject, ...]
    available: int
    good: Frame
    notes: tuple[str, ...]


def choose_subjects(bundle: Bundle, data: DataSet, samples: Sequence[Sample], images: int) -> Subjects:
    """Defective frames with a mask, classes in turn, evenly spaced within a class.

    Args:
        images: how many at most; 0 takes all.

    Raises:
        DataError: there is none.
    """
    manifest, notes = bundle.manifest, []
    known = [_known(sample, manifest.defect_classes) for sample in samples]
    pairs = [
        (sample, name)
        for sample, name in zip(samples, known, strict=True)
        if sample.is_defect and sample.mask is not None and name is not None
    ]
    unknown = sum(sample.is_defect for sample in samples) - len(pairs)
    if unknown:
        notes.append(f"{unknown} defect image(s) have no mask, or a class that the model does not know: left out.")
    if not pairs:
        raise DataError(
            f"{data.root} has no defect image with a mask in this part; explanations are measured against masks: "
            "put them into ground_truth/<defect>/<stem>_mask.png"
        )
    # Evenly over each class first: neighbours often show the same part.
    spread = _spread([name for _, name in pairs], images or len(pairs))
    picked = [pairs[place] for place in spread]
    store = FrameStore([sample for sample, _ in picked], manifest.input)
    good, note = _good_frames(bundle, data)
    notes.append(note)
    subjects = []
    for index, (sample, name) in enumerate(picked):
        frame, mask = store[index]
        reference = best_reference(frame, good) if len(good) else _blurred(frame)
        target = manifest.classes.index(name)
        subjects.append(Subject(sample, frame, mask.astype(bool), target, reference))
    return Subjects(tuple(subjects), len(pairs), good, tuple(notes))


def _known(sample: Sample, defects: tuple[str, ...]) -> str | None:
    """The model's word for a defect's label: its own, or ``anomaly`` of a model that knows no other."""
    if sample.label in defects:
        return sample.label
    return ANOMALY if defects == (ANOMALY,) else None


def _spread(labels: list[str], count: int) -> list[int]:
    """``count`` places of ``labels``: as many of each label as there can be, evenly spaced within a label."""
    turns = in_turns(labels)[:count]
    chosen: list[int] = []
    for label in dict.fromkeys(labels):
        places = [place for place, one in enumerate(labels) if one == label]
        wanted = sum(labels[place] == label for place in turns)
        chosen += [places[int((index + 0.5) * len(places) / wanted)] for index in range(wanted)]
    # In turns again, so that whoever stops early has seen every class.
    return [chosen[place] for place in in_turns([labels[place] for place in chosen])]


def _good_frames(bundle: Bundle, data: DataSet) -> tuple[Frame, str]:
    """Frames of good parts at input size, and where they are from.

    The more there are, the closer is the nearest, and the fewer seams are taken for defects (`python -m
    benchmarks.replacing` compares); so training images come before the bundle's few check frames.
    """
    spec = bundle.manifest.input
    most = min(_GOOD_FRAMES, _MOST_BYTES // (3 * spec.height * spec.width))
    for where, samples in (("training", data.train), ("test", data.test)):
        certain = [one for one in samples if not one.is_defect and not one.is_ambiguous]
        picked = certain[:: max(1, len(certain) // most)][:most]
        if len(picked) >= _FEWEST_GOOD:
            store = FrameStore(picked, spec)
            frames = np.stack([store[index][0] for index in range(len(store))])
            return frames, f"What is taken away is replaced from the nearest of {len(frames)} good {where} images."
    if bundle.manifest.good_class is not None and bundle.has_check_frames:
        check = bundle.check_frames()
        good = check.frames[~check.is_defect]
        if len(good):
            return (
                good,
                f"What is taken away is replaced from the nearest of {len(good)} good check frames of the bundle.",
            )
    empty = np.zeros((0, spec.height, spec.width, 3), np.uint8)
    return empty, "There is no good part: what is taken away is replaced by the frame without its detail (blurred)."


def _blurred(frame: Frame) -> Frame:
    return np.asarray(cv2.GaussianBlur(frame, (0, 0), _BLUR), np.uint8)

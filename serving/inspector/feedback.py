"""What people said about parts, as a folder that ``defectlens train`` reads.

``train/good`` holds parts that a person called good, ``train/<class>`` the others, ``ground_truth/<class>`` what was
drawn on them. All goes to training: a held-out part is to be kept apart by whoever trains, with parts that were not
chosen because a model was wrong about them.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from serving.audit import Answer, PersonVerdict, Review, Store, standing_answers
from serving.inspector.part_view import GOOD
from serving.inspector.pictures import decode_stored
from vision.errors import AuditError, SettingsError
from vision.preprocess import PixelFormat, raw_pixels
from vision.types import Verdict

LABEL = "feedback.jsonl"
"""Where each image comes from: one line for each, with the numbers of its records."""
_UNNAMED = "defect"
_SUFFIXES = {
    "image/png": ".png", "image/jpeg": ".jpg", "image/bmp": ".bmp", "image/tiff": ".tif", "image/webp": ".webp",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Piece:
    """One image of the folder. ``mask``: PNG as it was drawn, None where nothing was."""

    name: str
    label: str
    image: bytes
    mask: bytes | None
    source: dict[str, object]


@dataclass(slots=True)
class Exported:
    """How many images by label, how many with a mask, and what could not be had."""

    by_label: Counter[str] = field(default_factory=Counter)
    masks: int = 0
    missing: int = 0


def export(store: Store, out: Path, *, overruled_alone: bool = False, limit: int = 10_000) -> Exported:
    """Write the folder.

    Args:
        out: must not exist, or be empty: pictures of an earlier export would be trained on too.
        overruled_alone: only parts about which a person disagreed with the model.

    Raises:
        SettingsError: there is something in ``out`` already, or nothing to export.
    """
    if out.exists() and any(out.iterdir()):
        raise SettingsError(f"{out} is not empty; name a new folder, pictures in it would be trained on too")
    done = Exported()
    lines = []
    for piece in pieces(store, done, overruled_alone=overruled_alone, limit=limit):
        image = out / "train" / piece.label / piece.name
        _write(image, piece.image)
        if piece.mask is not None:
            _write(out / "ground_truth" / piece.label / f"{image.stem}_mask.png", piece.mask)
        lines.append(json.dumps(piece.source | {"path": image.relative_to(out).as_posix()}))
    if not lines:
        raise SettingsError(
            "nobody has called a part good or defective whose frame is still there; there is nothing to export"
        )
    (out / LABEL).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return done


def pieces(store: Store, done: Exported, *, overruled_alone: bool, limit: int) -> Iterator[Piece]:
    """Every frame once, with what was said last about it."""
    seen: set[str] = set()
    for row in standing_answers(store, limit=limit):
        if row.review is None or row.frame in seen:
            continue
        if overruled_alone and not _overrules(row.verdict, row.review.verdict, bool(row.review.disagreement)):
            continue
        seen.add(row.frame)
        answer, review = store.answer(row.seq), store.get(row.review.seq).record
        if not isinstance(review, Review) or answer.frame is None or not store.files.has(answer.frame.sha256):
            done.missing += 1
            continue
        label = GOOD if review.verdict is PersonVerdict.GOOD else folder_name(review.label or _UNNAMED)
        data, suffix = _image(store, answer)
        mask = None
        if review.mask is not None and store.files.has(review.mask.sha256):
            mask = store.files.read(review.mask.sha256)
        done.by_label[label] += 1
        done.masks += mask is not None
        source = {"answer": row.seq, "review": row.review.seq, "part": row.part, "person": row.review.person}
        yield Piece(f"{row.seq:09d}-{row.frame[:8]}{suffix}", label, data, mask, source)


def folder_name(label: str) -> str:
    """A class as the name of a folder: what a file system may refuse becomes a dash."""
    flat = unicodedata.normalize("NFC", label).strip()
    name = re.sub(r"[^\w .+-]", "-", flat).strip(". ")[:60]
    return _UNNAMED if not name or name == GOOD else name


def _overrules(verdict: Verdict, said: PersonVerdict, disagrees: bool) -> bool:
    """A model that asked for a person learns from the answer, too."""
    return disagrees or (verdict in (Verdict.REVIEW, Verdict.NO_VERDICT) and said is not PersonVerdict.UNSURE)


def _image(store: Store, answer: Answer) -> tuple[bytes, str]:
    """The frame as a file: as it came in where it was one, else as PNG without loss."""
    if answer.frame is None:
        raise AuditError("no frame was kept")
    data = store.files.read(answer.frame.sha256)
    layout = answer.layout
    if layout is None:
        suffix = _SUFFIXES.get(answer.frame.media)
        if suffix is not None:
            return data, suffix
    elif (named := PixelFormat[layout.pixel_format]) in (PixelFormat.MONO12, PixelFormat.MONO16):
        pixels = np.array(raw_pixels(data, layout.width, layout.height, layout.stride, named))
        return cv2.imencode(".png", pixels)[1].tobytes(), ".png"
    frame = decode_stored(data, layout)
    stored = frame if frame.ndim == 2 else np.ascontiguousarray(frame[:, :, ::-1])
    return cv2.imencode(".png", stored)[1].tobytes(), ".png"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)

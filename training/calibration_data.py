"""Images for `defectlens calibrate`: found, checked, and shown to be none that the model has seen."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data import Sample, compile_pattern, read_data, read_frame
from training.layout import GOOD
from training.scan import CONTENT_DIGITS, Source, relative, scan
from vision.bundle import Bundle
from vision.console import say, track
from vision.errors import DataError, SettingsError
from vision.postprocess import ANOMALY
from vision.preprocess import SUFFIXES, to_model_input

_SHOWN = 10
_LAYOUTS = (
    "a folder of good images; GOOD,DEFECTS with a subfolder of DEFECTS for each class; a folder with good/ and a "
    "folder for each defect class; or the MVTec layout"
)


@dataclass(frozen=True)
class CalibrationData:
    """Checked images, each picture once. ``lots``: the lot of each, or None. ``source`` names folder and part for
    people; ``notes`` is what whoever signs should know.
    """

    samples: tuple[Sample, ...]
    lots: tuple[str, ...] | None
    source: str
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 over labels and contents, whatever the files are called."""
        lines = sorted(f"{sample.label}\t{sample.content}\n" for sample in self.samples)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def keep(self, chosen: Sequence[bool]) -> CalibrationData:
        """The images where ``chosen`` is true."""
        lots = self.lots
        return replace(
            self,
            samples=tuple(one for one, keep in zip(self.samples, chosen, strict=True) if keep),
            lots=None if lots is None else tuple(lot for lot, keep in zip(lots, chosen, strict=True) if keep),
        )


def read_calibration_data(
    text: str, *, split: str, folds: Path | None = None, fold: int | None = None, lot_pattern: str | None = None
) -> CalibrationData:
    """Find and check calibration images.

    Args:
        text: see ``_LAYOUTS``.
        split: ``train`` or ``test``, of the MVTec layout.
        folds, fold: as in ``read_data``.
        lot_pattern: a regular expression, searched in each path below its folder; its first group names the lot.

    Raises:
        DataError: something is wrong with the images; every problem is listed.
        SettingsError: an option, or a combination of options, is not possible.
    """
    folders = [Path(text)] if Path(text).exists() else [Path(part) for part in text.split(",")]
    if len(folders) > 2:
        raise SettingsError(f"--data takes GOOD or GOOD,DEFECTS; got {len(folders)} folders in {text!r}")
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder; give {_LAYOUTS}")
    root = folders[0]
    notes: tuple[str, ...] = ()
    if len(folders) == 1 and (folds is not None or any((root / side).is_dir() for side in ("train", "test"))):
        data = read_data(root, folds=folds, fold=fold)
        samples = data.test if split == "test" else data.train
        source = f"{root.resolve().name}, {split} part" + ("" if fold is None else f" of fold {fold}")
        if split == "test":
            notes = (
                f"Chosen on the test part of {root.resolve().name}: figures on it are no independent measure now.",
            )
    else:
        if folds is not None or split == "test":
            raise SettingsError("--folds and --split test are for data in the MVTec layout (train/, test/)")
        samples = _read_folders(folders)
        source = ", ".join(folder.resolve().name for folder in folders)
    if not samples:
        raise DataError(f"{text} has no {split} image; give {_LAYOUTS}")
    kept, doubled = _without_doubles([one for one in samples if not one.is_ambiguous], root)
    if doubled:
        notes += (f"{doubled} images are there twice and count once.",)
    lots = None if lot_pattern is None else _lots(kept, folders, lot_pattern)
    return CalibrationData(tuple(kept), lots, source, notes)


def check_unseen(data: CalibrationData, bundle: Bundle, *, leave_out: bool) -> CalibrationData:
    """Refuse images on which the bundle's model was trained or its epoch chosen, or leave them out.

    Bundles of earlier versions do not say what they have seen; their golden and check frames are looked for instead.

    Raises:
        DataError: there are such images, and they are not to be left out.
    """
    seen = bundle.seen()
    if seen is None:
        used, test = _seen_frames(data, bundle), frozenset[str]()
        note = (
            "This bundle does not say which images it was trained on; only its golden and check frames were compared."
        )
    else:
        used, test = seen.get("train", frozenset()) | seen.get("validation", frozenset()), seen.get("test", frozenset())
        note = ""
    again = [sample for sample in data.samples if sample.content in used]
    notes = [note] if note else []
    if again and not leave_out:
        shown = [f"{sample.path.parent.name}/{sample.path.name}" for sample in again[:_SHOWN]]
        raise DataError(
            f"{len(again)} of {len(data.samples)} images were used in training this model, and scores of images that a "
            "model was trained on promise nothing. Take images that it has not seen, or leave these out with "
            "--leave-out-seen. For example:",
            shown,
        )
    if again:
        data = data.keep([sample.content not in used for sample in data.samples])
        notes.append(f"{len(again)} images were left out because they were used in training.")
        if not data.samples:
            raise DataError(f"every image of {data.source} was used in training this model; take other images")
    tested = sum(sample.content in test for sample in data.samples)
    if tested:
        notes.append(
            f"{tested} images were test images when the model was trained: figures on them are no independent measure "
            "now."
        )
    if data.lots is not None:
        sizes = Counter(data.lots).values()
        say(f"{len(sizes)} lots of {min(sizes)} to {max(sizes)} images")
    for line in (*data.notes, *notes):
        say(f"note: {line}")
    return replace(data, notes=(*data.notes, *notes))


def _read_folders(folders: Sequence[Path]) -> tuple[Sample, ...]:
    good = folders[0]
    sources: list[Source] = []
    if len(folders) == 1 and (good / GOOD).is_dir():
        for folder in sorted(path for path in good.iterdir() if path.is_dir()):
            sources += [Source(path, folder.name, "calibration") for path in _images(folder)]
    else:
        sources += [Source(path, GOOD, "calibration") for path in _images(good)]
        for root in folders[1:]:
            for path in _images(root):
                inside = path.relative_to(root).parts
                sources.append(Source(path, inside[0] if len(inside) > 1 else ANOMALY, "calibration"))
    scanned = scan(sources, good)
    problems = [problem for one in scanned for problem in one.problems]
    if problems:
        raise DataError(f"{len(problems)} images cannot be used:", problems)
    return tuple(
        Sample(
            path=source.path,
            label=source.label,
            defect_probability=float(source.label != GOOD),
            content=one.pixel_digest[:CONTENT_DIGITS],
        )
        for source, one in zip(sources, scanned, strict=True)
    )


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in SUFFIXES)


def _without_doubles(samples: Sequence[Sample], root: Path) -> tuple[list[Sample], int]:
    """Each picture once: copies would count as further evidence, and are none."""
    labels = defaultdict(set)
    for sample in samples:
        labels[sample.content].add(sample.label == GOOD)
    if both := [one for one in samples if len(labels[one.content]) > 1]:
        raise DataError(
            "the same picture is among the good and among the defective images; remove one of each:",
            [relative(one.path, root) for one in both[:_SHOWN]],
        )
    first: dict[str, Sample] = {}
    for sample in samples:
        first.setdefault(sample.content, sample)
    return list(first.values()), len(samples) - len(first)


def _lots(samples: Sequence[Sample], folders: Sequence[Path], lot_pattern: str) -> tuple[str, ...]:
    pattern = compile_pattern(lot_pattern, "lot")
    lots, without = [], []
    for sample in samples:
        folder = next((one for one in folders if sample.path.is_relative_to(one)), folders[0])
        found = pattern.search(relative(sample.path, folder))
        if found is None or not found.group(1):
            without.append(relative(sample.path, folder))
        else:
            lots.append(found.group(1))
    if without:
        raise DataError(f"the lot pattern {lot_pattern!r} finds no lot in {len(without)} paths:", without[:_SHOWN])
    return tuple(lots)


def _seen_frames(data: CalibrationData, bundle: Bundle) -> frozenset[str]:
    """Contents of the images that are golden or check frames of the bundle, as the model takes them."""
    spec = bundle.manifest.input
    known = {_digest(frame) for frame in bundle.golden()[0]}
    if bundle.has_check_frames:
        known |= {_digest(frame) for frame in bundle.check_frames().frames}
    return frozenset(
        sample.content
        for sample in track(data.samples, "Looking for images of the training")
        if _digest(to_model_input(read_frame(sample.path, spec.white_level), spec)) in known
    )


def _digest(frame: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(frame).data).digest()

"""Data sets: labelled images in a folder, or packaged solar cells. All problems are found at once, before training.

The layout of a folder is in ``training.layout``, the check of one file in ``training.scan``.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.elpv import find_elpv, read_elpv
from training.layout import GOOD, Found, deal_out, read_folds, read_layout
from training.scan import CONTENT_DIGITS, Scanned, Source, read_mask_pixels, relative, scan
from vision.console import say
from vision.errors import DataError, SettingsError
from vision.postprocess import ANOMALY
from vision.preprocess import decode_image
from vision.types import Frame

ELPV = "elpv"
"""Stands for the packaged solar cells where a folder is asked for; ``./elpv`` is a folder of that name."""

NO_DEFECT = ""
"""The label of a piece of a frame where there is no defect, in data without a good class."""

_WHITE_LEVELS = (1023, 4095, 16383, 65535)
"""What 10-, 12-, 14- and 16-bit cameras write as white."""

_SHAPES_LOOKED_AT = 100
"""Frames that tell how large frames usually are."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image.

    ``label`` is the good class, a defect class or ``NO_DEFECT``. ``mask`` is an 8-bit image of the same size, non-zero
    where the defect is; None where there is none. ``defect_probability`` in 0..1 is the soft label. Samples of one
    ``part`` are never on both sides of a split; images with identical pixels are always one part. ``content`` is a
    digest of the decoded pixels: the same picture in another file has the same.
    """

    path: Path
    label: str
    mask: Path | None = None
    defect_probability: float = 0.0
    part: str = ""
    content: str = ""

    @property
    def is_defect(self) -> bool:
        return self.label not in (GOOD, NO_DEFECT)

    @property
    def is_ambiguous(self) -> bool:
        """Experts were not sure, and tended to good: neither a clean good part nor a defect."""
        return 0.0 < self.defect_probability < 0.5


@dataclass(frozen=True)
class DataSet:
    """A checked data set.

    ``classes`` has the good class first, then the defect classes of the training part, sorted; it is
    ``("good", "anomaly")`` where no defect is labelled there. ``good_class`` is None where no good image is.
    ``white_level``: see ``vision.preprocess.InputSpec``. ``digest`` is the SHA-256 over paths, labels and contents.
    ``remarks``: what a reader of the figures should know about the data, one sentence each.
    """

    root: Path
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    classes: tuple[str, ...]
    good_class: str | None
    white_level: int
    digest: str
    remarks: tuple[str, ...] = ()


def read_data(
    source: Path | str, *, folds: Path | None = None, fold: int | None = None, part_pattern: str | None = None
) -> DataSet:
    """Find and check all images of a data set.

    Args:
        source: a folder in the MVTec layout, or the word ``elpv``.
        folds: JSON, ``{"folds": {"0": {"good": [file names], "<defect>": […]}, …}}``.
        fold: the fold that becomes the test set (of ``elpv`` in place of its own held-out quarter).
        part_pattern: a regular expression, searched in the path below ``source``; its first group is the part id.

    Raises:
        DataError: something is wrong with the data; every problem is listed.
        SettingsError: an option, or a combination of options, is not possible.
    """
    pattern = None if part_pattern is None else compile_pattern(part_pattern, "part")
    if (folds is None) != (fold is None):
        raise SettingsError("a folds file and the number of a fold go together; give --folds FILE and --fold K")
    if str(source) == ELPV and isinstance(source, str):
        root = find_elpv()
        cells = read_elpv(root)
        found = Found(cells) if folds is None or fold is None else deal_out(cells, folds, fold)
    else:
        root = Path(source)
        found = read_layout(root) if folds is None or fold is None else read_folds(root, folds, fold)
    scanned = scan(found.sources, root)
    problems = found.problems + [problem for one in scanned for problem in one.problems]
    parts = _parts(found.sources, scanned, pattern, root, problems)
    problems += _leaks(found.sources, scanned, parts, root, named=pattern is not None)
    if not found.sources and not problems:
        problems.append("there is not a single image")
    if problems:
        raise DataError(f"the data of {root} cannot be used, {len(problems)} problem(s):", problems)
    remarks = _remarks(found, scanned, root)
    for remark in remarks:
        say(remark)
    return _data_set(root, found.sources, scanned, parts, remarks)


def read_frame(path: Path, white_level: int) -> Frame:
    """The frame of an image file, decoded as the server does it.

    Raises:
        ImageError: the file is no complete image.
    """
    return decode_image(path.read_bytes(), white_level=white_level)


def frame_shapes(samples: Sequence[Sample], white_level: int) -> list[tuple[int, int]]:
    """Height and width in px of an even selection of the frames, as cameras took them."""
    chosen = samples[:: max(1, len(samples) // _SHAPES_LOOKED_AT)]
    return [read_frame(sample.path, white_level).shape[:2] for sample in chosen]


def read_mask(path: Path) -> NDArray[np.bool_]:
    """A mask file as bool ``[H, W]``: true where it is not zero."""
    return np.asarray(read_mask_pixels(path.read_bytes()) != 0)


def _remarks(found: Found, scanned: Sequence[Scanned], root: Path) -> tuple[str, ...]:
    remarks = []
    if found.left_out:
        remarks.append(f"{found.left_out} images of {root} are in no fold and are left out.")
    pairs = zip(found.sources, scanned, strict=True)
    empty = [source.path.name for source, one in pairs if one.mask_is_empty and source.label != GOOD]
    if empty:
        remarks.append(
            f"{len(empty)} defect image(s) have a mask that marks nothing, such as that of {empty[0]}; they are "
            "used as defect images without a mask."
        )
    return tuple(remarks)


def _data_set(
    root: Path, sources: Sequence[Source], scanned: Sequence[Scanned], parts: Sequence[str], remarks: tuple[str, ...]
) -> DataSet:
    sides: dict[str, list[Sample]] = {"train": [], "test": []}
    for source, one, part in zip(sources, scanned, parts, strict=True):
        # An empty mask on a defect would teach that its pixels are good, and would hide it from the pixel metrics.
        mask = None if one.mask_is_empty and source.label != GOOD else source.mask
        content = one.pixel_digest[:CONTENT_DIGITS]
        sample = Sample(source.path, source.label, mask, source.defect_probability, part, content)
        sides[source.side].append(sample)
    # What the model can learn is what the training part shows; a folder with a test part only is for evaluation.
    labels = {sample.label for sample in sides["train"] or sides["test"]}
    defects = sorted(labels - {GOOD}) or [ANOMALY]
    digest = hashlib.sha256()
    lines = [
        f"{relative(source.path, root)}\t{source.label}\t{source.defect_probability:.6f}\t{one.file_digest}\n"
        for source, one in zip(sources, scanned, strict=True)
    ]
    digest.update("".join(sorted(lines)).encode())
    peak = max(one.peak for one in scanned)
    return DataSet(
        root=root,
        train=tuple(sides["train"]),
        test=tuple(sides["test"]),
        classes=(GOOD, *defects) if GOOD in labels else tuple(defects),
        good_class=GOOD if GOOD in labels else None,
        white_level=next(level for level in _WHITE_LEVELS if peak <= level) if peak else _WHITE_LEVELS[-1],
        digest=digest.hexdigest(),
        remarks=remarks,
    )


def compile_pattern(text: str, what: str) -> re.Pattern[str]:
    """A regular expression whose first group names the ``what`` (part, lot) of a file.

    Raises:
        SettingsError: it is none, or has no group.
    """
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise SettingsError(f"the {what} pattern {text!r} is no regular expression: {error}") from error
    if not pattern.groups:
        raise SettingsError(f"the {what} pattern {text!r} has no group; put the {what} id in brackets, as (\\d+)")
    return pattern


def _parts(
    sources: Sequence[Source],
    scanned: Sequence[Scanned],
    pattern: re.Pattern[str] | None,
    root: Path,
    problems: list[str],
) -> list[str]:
    """The part of every image: its id by the pattern, else its pixels; ids that share an image become one part."""
    names: list[str] = []
    without: list[str] = []
    for source, one in zip(sources, scanned, strict=True):
        name = source.part or one.pixel_digest[:CONTENT_DIGITS] or relative(source.path, root)
        if pattern is not None:
            match = pattern.search(relative(source.path, root))
            if match is None or not match.group(1):
                without.append(relative(source.path, root))
            else:
                name = match.group(1)
        names.append(name)
    if pattern is not None and without:
        problems.append(
            f"the part pattern {pattern.pattern!r} finds no part in {len(without)} paths, such as {without[0]}"
        )
    leader = {name: name for name in names}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    first: dict[str, str] = {}
    for name, one in zip(names, scanned, strict=True):
        if one.pixel_digest:
            one_part, other = sorted((find(name), find(first.setdefault(one.pixel_digest, name))))
            leader[other] = one_part
    return [find(name) for name in names]


def _leaks(
    sources: Sequence[Source], scanned: Sequence[Scanned], parts: Sequence[str], root: Path, *, named: bool
) -> list[str]:
    """Images, and with a part pattern also parts, that are in the training and in the test part."""
    problems = []
    by_pixels: dict[str, dict[str, Path]] = defaultdict(dict)
    by_part: dict[str, dict[str, Path]] = defaultdict(dict)
    for source, one, part in zip(sources, scanned, parts, strict=True):
        if one.pixel_digest:
            by_pixels[one.pixel_digest].setdefault(source.side, source.path)
        by_part[part].setdefault(source.side, source.path)
    for sides in by_pixels.values():
        if len(sides) == 2:
            train, test = relative(sides["train"], root), relative(sides["test"], root)
            problems.append(f"{train} and {test}: the same picture is in train and in test; remove one of them")
    if named:
        problems += [
            f"part {part} is in train ({relative(sides['train'], root)}) and in test "
            f"({relative(sides['test'], root)}); keep all its images on one side"
            for part, sides in by_part.items()
            if len(sides) == 2
        ]
    return problems

"""Training, validation and calibration images, cut from the training part alone; the test part is never looked at."""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.data import DataSet, Sample
from training.layout import GOOD
from vision.errors import DataError

_FEW_GOOD = 40
_GOOD_SHARES = (0.75, 0.10, 0.15)
_FEW_GOOD_SHARES = (0.6, 0.2, 0.2)
_DEFECT_SHARES = (0.85, 0.15, 0.0)
_FEW_DEFECTS = 4
_BLOCKS = 20
_LARGEST_BLOCK = 50
"""Images. Longer blocks would leave calibration with one stretch of production and not with a sample of it."""

_DIGITS = re.compile(r"(\d+)")
_DATE = re.compile(r"\D*(19|20)\d\d\D?\d\d\D?\d\d")


@dataclass(frozen=True)
class Split:
    """Every training image once. ``calibration`` holds good images only, unless a part with good images has others."""

    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    calibration: tuple[Sample, ...]

    def good_stand_for(self, good: str | None) -> int:
        """How many good images each good one of validation stands for, so that classes are mixed as in all of these
        images: of the good ones fewer are left for validation than of the defective ones.
        """

        def odds(samples: Sequence[Sample]) -> float:
            sure = [sample.label == good for sample in samples if not sample.is_ambiguous]
            return sum(sure) / max(1, len(sure) - sum(sure))

        among = odds(self.validation)
        return max(1, round(odds((*self.train, *self.validation, *self.calibration)) / among)) if among else 1

    def surely_good(self, good: str | None) -> tuple[Sample, ...]:
        """Calibration images that a bound on good parts may rest on: none that is perhaps defective, and no defective
        one that came along with its part.
        """
        return tuple(one for one in self.calibration if one.label == good and not one.is_ambiguous)


def split(data: DataSet, seed: int) -> Split:
    """Cut ``data.train``; the same seed gives the same split, and another class does not change it for this one.

    Good images: about 0.75 training, 0.10 validation and 0.15 calibration; fewer than 40: 0.6, 0.2 and 0.2, with at
    least two in each, so that a handful still calibrates (4 or 5 give training and calibration alone, fewer training
    alone). Each defect class: 0.85 and 0.15 and nothing for calibration; a class of fewer than four stays in training.

    Images are put in the order of their running number and cut into about 20 contiguous blocks, which are dealt out at
    random: neighbouring shots of one part stay together. A part is never cut, so that few large parts move the shares.

    Raises:
        DataError: there is no training image.
    """
    if not data.train:
        raise DataError(f"{data.root} has no training images; add train/good/ or name another folder")
    parts: dict[str, list[Sample]] = defaultdict(list)
    for sample in data.train:
        parts[_part(sample)].append(sample)
    sizes = Counter(sample.label for sample in data.train)
    # A part with images of several classes is dealt out with its rarest one, so that a rare class gets its share.
    strata: dict[str, list[list[Sample]]] = defaultdict(list)
    for part in parts.values():
        strata[min({sample.label for sample in part}, key=lambda label: (sizes[label], label))].append(part)
    sides: tuple[list[Sample], list[Sample], list[Sample]] = ([], [], [])
    for label, members in sorted(strata.items()):
        rng = np.random.default_rng((seed, zlib.crc32(label.encode())))
        ordered = _in_order(members, data)
        for side, blocks in zip(sides, _deal(ordered, label == GOOD, rng), strict=True):
            side.extend(sample for block in blocks for sample in block)
    _keep_every_class_in_training(sides)
    position = {sample.path: index for index, sample in enumerate(data.train)}
    train, validation, calibration = (tuple(sorted(side, key=lambda sample: position[sample.path])) for side in sides)
    return Split(train, validation, calibration)


def running_order(names: Sequence[str]) -> list[int]:
    """Indices of ``names`` in the order in which the pictures were probably taken.

    Names of one pattern, such as ``exp1_num_824.jpg``, are ordered by the number that takes the most different values
    (the running number), then as people order names. Names that begin with a date, or are of several patterns, are
    ordered as people order names: numbers by value.
    """
    fields = [_DIGITS.split(name) for name in names]
    patterns = {tuple(field[::2]) for field in fields}
    lead = 0
    if len(patterns) == 1 and len(fields[0]) > 1 and not all(_DATE.match(name) for name in names):
        lead = max(range(1, len(fields[0]), 2), key=lambda place: (len({field[place] for field in fields}), -place))

    def key(index: int) -> tuple[int, list[tuple[int, str]], str]:
        natural = [(int(text), "") if place % 2 else (0, text) for place, text in enumerate(fields[index])]
        return int(fields[index][lead]) if lead else 0, natural, names[index]

    return sorted(range(len(names)), key=key)


def _in_order(parts: Sequence[list[Sample]], data: DataSet) -> list[list[Sample]]:
    """Parts in the order of their first image."""
    flat = [(number, sample) for number, part in enumerate(parts) for sample in part]
    numbers = [flat[index][0] for index in running_order([_name_in_class(sample, data) for _, sample in flat])]
    return [parts[number] for number in dict.fromkeys(numbers)]


def _name_in_class(sample: Sample, data: DataSet) -> str:
    """The path below the class folder: images of one class may come out of ``train`` and ``test`` (folds)."""
    path = sample.path.relative_to(data.root) if sample.path.is_relative_to(data.root) else sample.path
    names = list(path.parts)
    for outer in (("train", "test"), (sample.label,)):
        if len(names) > 1 and names[0] in outer:
            names.pop(0)
    return "/".join(names)


def _deal(
    parts: Sequence[list[Sample]], good: bool, rng: np.random.Generator
) -> tuple[list[list[Sample]], list[list[Sample]], list[list[Sample]]]:
    """Blocks for training, validation and calibration, each block a list of samples."""
    total = sum(len(part) for part in parts)
    if not good:
        shares, number = _DEFECT_SHARES, 1 if total < _FEW_DEFECTS else min(max(4, total // 2), 13)
    elif total < _FEW_GOOD:
        shares, number = _FEW_GOOD_SHARES, max(1, min(5, total // 2))
    else:
        shares, number = _GOOD_SHARES, max(_BLOCKS, -(-total // _LARGEST_BLOCK))
    blocks = _blocks(parts, number)
    rng.shuffle(blocks)
    blocks.sort(key=lambda block: -len(block))  # the largest first, so that the small ones even out the shares
    missing = [share * total for share in shares]
    dealt: tuple[list[list[Sample]], list[list[Sample]], list[list[Sample]]] = ([], [], [])
    for block in blocks:
        # Calibration before validation where both miss as much: without it there is no threshold.
        side = max(range(3), key=lambda index: (missing[index], index))
        dealt[side].append(block)
        missing[side] -= len(block)
    for side in (2, 1):
        if shares[side] and not dealt[side] and len(dealt[0]) > 1:
            dealt[side].append(dealt[0].pop())
    return dealt


def _blocks(parts: Sequence[list[Sample]], number: int) -> list[list[Sample]]:
    """Contiguous runs of whole parts, ``number`` or fewer, of about the same number of images."""
    total = sum(len(part) for part in parts)
    blocks: dict[int, list[Sample]] = defaultdict(list)
    before = 0
    for part in parts:
        # A part belongs to the block that its middle falls into (in integers, so that no rounding differs anywhere).
        blocks[(2 * before + len(part)) * number // (2 * total)].extend(part)
        before += len(part)
    return list(blocks.values())


def _keep_every_class_in_training(sides: tuple[list[Sample], list[Sample], list[Sample]]) -> None:
    """A class whose images all came along with the parts of another one gets one part back."""
    train = sides[0]
    for label in sorted({sample.label for side in sides for sample in side}):
        if any(sample.label == label for sample in train):
            continue
        side = next(side for side in sides[1:] if any(sample.label == label for sample in side))
        part = next(_part(sample) for sample in side if sample.label == label)
        train.extend(sample for sample in side if _part(sample) == part)
        side[:] = [sample for sample in side if _part(sample) != part]


def _part(sample: Sample) -> str:
    return sample.part or str(sample.path)

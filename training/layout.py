"""Where the images of a folder lie and what they are called: the MVTec layout, and folds files over it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.scan import Source, relative
from vision.errors import DataError
from vision.preprocess import SUFFIXES

GOOD = "good"
"""The folder name, and with it the label, of parts without a defect."""

_SIDES = ("train", "test")
_MASKS = "ground_truth"
_EXPECTED = (
    "expected train/good/, optional train/<defect>/, test/good/, test/<defect>/ and "
    f"{_MASKS}/<defect>/<image name>_mask.png"
)


@dataclass
class Found:
    """Images and problems of a folder; ``left_out`` counts images that a folds file does not name."""

    sources: list[Source] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    left_out: int = 0


def read_layout(root: Path) -> Found:
    """Find ``train`` and ``test`` images of the MVTec layout and the masks that belong to them.

    Folders inside a class folder are allowed; a mask lies at the same place below ``ground_truth/<defect>/``.

    Raises:
        DataError: neither ``train`` nor ``test`` is there.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder; give a folder with images, or the word elpv")
    if not any((root / side).is_dir() for side in _SIDES):
        names = sorted(path.name + ("/" if path.is_dir() else "") for path in root.iterdir())
        shown = ", ".join(names[:8]) or "nothing"
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise DataError(f"{root} is in no known layout: {_EXPECTED}; found {shown}{more}")
    found = Found()
    masks = _Masks(root, found.problems)
    for side in _SIDES:
        for label, path, inside in _labelled_images(root, side, found.problems):
            found.sources.append(_source(path, label, side, masks.take(label, inside)))
    masks.report_unused()
    return found


def read_folds(root: Path, folds: Path, fold: int) -> Found:
    """Fold ``fold`` becomes the test set and all other folds the training set, wherever the files lie in ``root``.

    Raises:
        DataError: the folds file cannot be read, or has no such fold.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder; folds need a folder with images")
    listed = _with_fold(folds, fold)
    found = Found()
    masks = _Masks(root, found.problems)
    index: dict[tuple[str, str], list[tuple[Path, Path]]] = defaultdict(list)
    for place in (*_SIDES, "."):
        for label, path, inside in _labelled_images(root, place, []):
            index[label, path.name].append((path, inside))
    count = _count(listed)
    found.problems += _slips(listed, count, folds)
    for number, by_label in listed.items():
        for label, names in by_label.items():
            for name in names:
                places = index.get((label, name), [])
                if len(places) != 1:
                    where = ", ".join(relative(path, root) for path, _ in places) or f"no folder called {label}"
                    wrong = "is doubled" if places else "is missing"
                    found.problems.append(f"{folds.name}: {name} ({label}) {wrong}: found in {where}")
                    continue
                path, inside = places[0]
                side = "test" if number == str(fold) else "train"
                found.sources.append(_source(path, label, side, masks.take(label, inside)))
    for (label, name), places in index.items():
        if (label, name) not in count:
            found.left_out += len(places)
            masks.excuse(label, places[0][1])
    masks.report_unused()
    return found


def deal_out(sources: Sequence[Source], folds: Path, fold: int) -> Found:
    """``sources`` that a folds file names (by label and file name), on the sides that it gives them.

    Raises:
        DataError: the folds file cannot be read, or has no such fold.
    """
    listed = _with_fold(folds, fold)
    count = _count(listed)
    tested = {(label, name) for label, names in listed[str(fold)].items() for name in names}
    found = Found(problems=_slips(listed, count, folds))
    for one in sources:
        key = one.label, one.path.name
        if key in count:
            found.sources.append(one._replace(side="test" if key in tested else "train"))
        else:
            found.left_out += 1
    known = {(one.label, one.path.name) for one in sources}
    found.problems += [
        f"{folds.name}: {name} ({label}) is missing" for label, name in count if (label, name) not in known
    ]
    return found


def _with_fold(folds: Path, fold: int) -> dict[str, dict[str, list[str]]]:
    listed = parse_folds(folds)
    if str(fold) not in listed:
        raise DataError(f"{folds} has no fold {fold}; choose one of {', '.join(listed) or 'none'}")
    return listed


def _count(listed: Mapping[str, Mapping[str, Sequence[str]]]) -> Counter[tuple[str, str]]:
    """How often each image is named, by label and file name."""
    return Counter((label, name) for one in listed.values() for label, names in one.items() for name in names)


def _slips(
    listed: Mapping[str, Mapping[str, Sequence[str]]], count: Counter[tuple[str, str]], folds: Path
) -> list[str]:
    """What is wrong with a folds file whatever images there are."""
    empty = [
        f"{folds.name}: fold {number} names no image of {label!r}"
        for number, by_label in listed.items()
        for label, names in by_label.items()
        if not names
    ]
    return empty + [f"{folds.name}: {name} ({label}) is named {n} times" for (label, name), n in count.items() if n > 1]


def _source(path: Path, label: str, side: str, mask: Path | None) -> Source:
    return Source(path, label, side, mask, 0.0 if label == GOOD else 1.0)


def _labelled_images(root: Path, place: str, problems: list[str]) -> list[tuple[str, Path, Path]]:
    """Label, file and the file's path inside its class folder, for all class folders of ``root/place``."""
    images: list[tuple[str, Path, Path]] = []
    base = root / place
    if not base.is_dir():
        return images
    folders = sorted(path for path in base.iterdir() if path.is_dir() and not path.name.startswith("."))
    if place == ".":
        folders = [path for path in folders if path.name not in (*_SIDES, _MASKS)]
    loose = [path for path in base.iterdir() if path.is_file() and _is_image(path)]
    if loose:
        problems.append(f"{place}: {len(loose)} images such as {min(loose).name} lie in no class folder; {_EXPECTED}")
    elif not folders:
        problems.append(f"{place}: the folder is empty; {_EXPECTED}, or remove it")
    for folder in folders:
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        inside = [path for path in files if _is_image(path)]
        if not inside:
            other = f"{len(files)} other files such as {files[0].name}" if files else "nothing"
            problems.append(
                f"{relative(folder, root)}: no image in it; expected files ending in {', '.join(SUFFIXES)}, found "
                f"{other}; add images or remove the folder"
            )
        images += [(folder.name, path, path.relative_to(folder)) for path in inside]
    return images


class _Masks:
    """The masks of ``ground_truth``, each given to one image."""

    def __init__(self, root: Path, problems: list[str]) -> None:
        self._root = root
        self._problems = problems
        self._by_key: dict[tuple[str, Path], Path] = {}
        self._taken: set[Path] = set()
        base = root / _MASKS
        for path in sorted(base.rglob("*")) if base.is_dir() else []:
            if not path.is_file() or not _is_image(path):
                continue
            parts = path.relative_to(base).parts
            if len(parts) < 2:
                problems.append(f"{relative(path, root)}: the mask lies in no class folder; {_EXPECTED}")
                continue
            key = (parts[0], Path(*parts[1:]).with_suffix(""))
            if key in self._by_key:
                problems.append(f"{relative(path, root)}: a second mask beside {self._by_key[key].name}; remove one")
            self._by_key[key] = path

    def take(self, label: str, inside: Path) -> Path | None:
        """The mask of an image, by ``<stem>_mask`` or its own stem; None where there is none."""
        mask = self._find(label, inside)
        if mask is None:
            return None
        if mask in self._taken:
            self._problems.append(
                f"{relative(mask, self._root)}: the mask fits two images of {label!r} called {inside.stem}; "
                "give the images of train and test different names"
            )
        self._taken.add(mask)
        return mask

    def excuse(self, label: str, inside: Path) -> None:
        """The mask of an image that is there and not used is not one without an image."""
        mask = self._find(label, inside)
        if mask is not None:
            self._taken.add(mask)

    def report_unused(self) -> None:
        self._problems.extend(
            f"{relative(path, self._root)}: a mask without an image; "
            f"no {key[1].as_posix().removesuffix('_mask')}.* in train/{key[0]} or test/{key[0]}"
            for key, path in self._by_key.items()
            if path not in self._taken
        )

    def _find(self, label: str, inside: Path) -> Path | None:
        stem = inside.with_suffix("")
        names = (stem.with_name(f"{stem.name}_mask"), stem)
        return next((self._by_key[label, name] for name in names if (label, name) in self._by_key), None)


def parse_folds(path: Path) -> dict[str, dict[str, list[str]]]:
    """File names by fold and label, in the order of the file.

    Raises:
        DataError: the file cannot be read, or is no folds file.
    """
    wanted = '{"folds": {"0": {"good": ["file.png", …], "<defect>": […]}, "1": …}}'
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        folds: dict[str, dict[str, list[str]]] = document["folds"]
        for by_label in folds.values():
            for names in by_label.values():
                if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                    raise TypeError("the names of a class must be a list of strings")
    except OSError as error:
        raise DataError(f"the folds file {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"the folds file {path} is not what was expected, {wanted}: {error}") from error
    return folds


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES

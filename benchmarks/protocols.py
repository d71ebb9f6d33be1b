"""Draw the data sets of the protocols in docs/experiments.md.

    python -m benchmarks.protocols few --data magnetic_tile --out FEW
    python -m benchmarks.protocols few --data magnetic_tile --folds FILE --fold 0 --out FEW0
    python -m benchmarks.protocols defects --data magnetic_tile --folds FILE --fold 0 --per-class 20 --out DEFECTS
    python -m benchmarks.protocols random --data elpv --cut 4 --out FILE

``few`` labels five masked defects of each class (``--per-class N``), with ``--folds`` of parts that are not measured,
``no-masks`` takes the masks of training images away, ``defects`` leaves the good images out and, with ``--per-class
N``, all but N masked ones of each class to learn from, ``strips`` and ``boards`` put five and forty parts together to
frames without a good class, and ``random`` writes a folds file that deals all images out at random. The same input
gives the same data set.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.assembled import boards, strips
from benchmarks.pictures import is_marked, seeded_random
from training.data import ELPV
from training.elpv import find_elpv, read_elpv
from training.layout import GOOD, Found, parse_folds, read_folds, read_layout
from training.scan import Source
from vision.errors import DataError

FEW = 5


def few(sources: Sequence[Source], out: Path, per_class: int, *, by_folds: bool) -> None:
    """The good images as they lie; of each defect class ``per_class`` masked images to learn from.

    With ``by_folds`` they are of other folds than the one that is measured. Otherwise all other defective images are
    measured, among them some that show the same parts as those.
    """
    chosen = set(_chosen(sources, per_class, [one for one in sources if one.side == "train" or not by_folds]))
    for one in sources:
        if one in chosen:
            _copy(one, out, "train", mask=True)
        elif one.side == "test" or one.label == GOOD:
            _copy(one, out, one.side, mask=True)


def no_masks(sources: Sequence[Source], out: Path) -> None:
    """All images; masks for those of the fold to measure alone."""
    for one in sources:
        _copy(one, out, one.side, mask=one.side == "test")


def defects(sources: Sequence[Source], out: Path, per_class: int | None = None) -> None:
    """Defective images alone, with their masks; of those to learn from, ``per_class`` of each class."""
    there = [one for one in sources if one.label != GOOD]
    if per_class is not None:
        learned = _chosen(there, per_class, [one for one in there if one.side == "train"])
        there = [*learned, *(one for one in there if one.side == "test")]
    for one in there:
        _copy(one, out, one.side, mask=True)


def random_folds(sources: Sequence[Source], out: Path, count: int) -> None:
    """A folds file of ``count`` folds: the images of each class shuffled and dealt out, whatever part they show."""
    rng = seeded_random()
    folds: dict[str, dict[str, list[str]]] = {str(fold): {} for fold in range(count)}
    for label in sorted({one.label for one in sources}):
        names = sorted(one.path.name for one in sources if one.label == label)
        rng.shuffle(names)
        for fold, by_label in folds.items():
            by_label[label] = sorted(names[int(fold) :: count])
    out.write_text(json.dumps({"folds": folds}, indent=1) + "\n", encoding="utf-8")


_RANDOM = "random"
PROTOCOLS = ("few", "no-masks", "defects", "strips", "boards", _RANDOM)
_PER_CLASS = ("few", "defects")
_WITHOUT_FOLDS = ("few", _RANDOM)


def _chosen(sources: Sequence[Source], count: int, among: Sequence[Source]) -> Iterator[Source]:
    """``count`` masked images of ``among`` for each defect class of ``sources``."""
    for label in sorted({one.label for one in sources} - {GOOD}):
        marked = (one for one in among if one.label == label and is_marked(one))
        of_class = sorted(marked, key=lambda one: one.path)
        if len(of_class) < count:
            raise SystemExit(f"{label} has {len(of_class)} images whose mask marks something; {count} are needed")
        yield from seeded_random().sample(of_class, count)


def _copy(source: Source, out: Path, side: str, *, mask: bool) -> None:
    places = [(source.path, out / side / source.label / source.path.name)]
    if mask and source.mask is not None and source.label != GOOD:
        places.append((source.mask, out / "ground_truth" / source.label / source.mask.name))
    for path, place in places:
        if place.exists():
            raise SystemExit(f"{path} has the name of another image of {source.label}; give each its own")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def _by_fold(sources: Sequence[Source], folds: Path) -> list[list[Source]]:
    named = {(one.label, one.path.name): one for one in sources}
    listed = parse_folds(folds).values()
    return [[named[label, name] for label, names in by_label.items() for name in names] for by_label in listed]


def main() -> None:
    options = _options()
    try:
        found = _found(options)
    except DataError as error:
        raise SystemExit(str(error)) from error
    if found.problems:
        raise SystemExit("\n".join(found.problems))
    partial = options.out.with_name(f"{options.out.name}.partial")  # so that a draw that failed is not taken for one
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    _draw(options, found.sources, partial)
    partial.rename(options.out)


def _draw(options: argparse.Namespace, sources: Sequence[Source], out: Path) -> None:
    match options.protocol:
        case "few":
            few(sources, out, options.per_class or FEW, by_folds=options.folds is not None)
        case "no-masks":
            no_masks(sources, out)
        case "defects":
            defects(sources, out, options.per_class)
        case "strips":
            strips(_by_fold(sources, options.folds), out)
        case "boards":
            boards(sources, out)
        case "random":
            random_folds(sources, out, options.cut)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocol", choices=PROTOCOLS)
    parser.add_argument("--data", required=True, help="folder in the MVTec layout; for random, also the word elpv")
    parser.add_argument("--folds", type=Path, help="folds file, of which one fold is measured; few can go without")
    parser.add_argument("--fold", type=int, help="the fold to measure (default 0)")
    parser.add_argument("--cut", type=int, default=5, metavar="N", help="of random: into so many folds (default 5)")
    parser.add_argument(
        "--per-class",
        type=int,
        metavar="N",
        help=f"of few and defects: learn from so many masked images of each class (default {FEW}; of defects all)",
    )
    parser.add_argument("--out", type=Path, required=True, help="a new folder; of random, a new file")
    options = parser.parse_args()
    if options.out.exists():
        raise SystemExit(f"{options.out} is there already; give another --out")
    if options.protocol not in _WITHOUT_FOLDS and options.folds is None:
        raise SystemExit(f"{options.protocol} measures on one fold; give --folds FILE")
    if options.fold is not None and options.folds is None:
        raise SystemExit("--fold says which fold of a file is measured; give --folds FILE, too")
    if options.per_class is not None and options.protocol not in _PER_CLASS:
        raise SystemExit(f"--per-class goes with {' and '.join(_PER_CLASS)}, not with {options.protocol}")
    if options.per_class is not None and options.per_class < 1:
        raise SystemExit(f"--per-class must be at least 1; got {options.per_class}")
    if options.cut < 2:
        raise SystemExit(f"one fold is measured and the others train: --cut must be at least 2; got {options.cut}")
    return options


def _found(options: argparse.Namespace) -> Found:
    if options.data == ELPV:
        if options.protocol != _RANDOM:
            raise SystemExit(f"{ELPV} goes with {_RANDOM} alone; give a folder in the MVTec layout")
        return Found(read_elpv(find_elpv()))
    if options.folds is None or options.protocol == _RANDOM:
        return read_layout(Path(options.data))
    return read_folds(Path(options.data), options.folds, options.fold or 0)


if __name__ == "__main__":
    main()

"""Surfaces without a pose, for `benchmarks.accuracy`: crops of packaged photographs, with real defects pasted on.

    pip install scikit-image
    python -m benchmarks.textures --parts magnetic_tile --out OUT
    python -m benchmarks.accuracy --data OUT/grass --size 160 ...

scikit-image ships photographs of brick, grass and gravel. Crops of the left part of each are good training frames,
crops of the right part are test frames, half of them with a defect of ``--parts`` (a folder in the MVTec layout) at its
own size. No two crops lie alike, so that nothing is tied to a place.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from skimage import data

from benchmarks.pasted import PastedDefects
from benchmarks.pictures import Grey, write_frame

SURFACES = ("brick", "grass", "gravel")
_SIDE = 160
# Columns of the photograph's 512 that training frames are taken from; test frames have the others.
_TRAIN_COLUMNS = 304
_SMALLEST, _LARGEST = 6.0, 40.0


def crop(picture: Grey, rng: np.random.Generator) -> Grey:
    """A square of ``_SIDE`` px from somewhere, mirrored or not."""
    y, x = (int(rng.integers(edge - _SIDE + 1)) for edge in picture.shape)
    part = picture[y : y + _SIDE, x : x + _SIDE]
    part = part[:, ::-1] if rng.random() < 0.5 else part
    return np.ascontiguousarray(part)


def make_surface(name: str, defects: PastedDefects, root: Path, train: int, test: int) -> None:
    """Write one surface's folder: ``train`` good frames, ``test`` good and as many defective ones."""
    rng = np.random.default_rng(SURFACES.index(name))
    picture = np.asarray(getattr(data, name)(), np.uint8)
    left, right = picture[:, :_TRAIN_COLUMNS], picture[:, _TRAIN_COLUMNS:]
    for index in range(train):
        write_frame(root, "train", "good", f"{index:03d}", crop(left, rng), None)
    for index in range(test):
        write_frame(root, "test", "good", f"{index:03d}", crop(right, rng), None)
        frame, mask = defects.paste(crop(right, rng), rng)
        write_frame(root, "test", "defect", f"{index:03d}", frame, mask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", type=Path, required=True, help="where defects are cut out")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=200)
    parser.add_argument("--test", type=int, default=80, help="good ones, and as many defective ones")
    options = parser.parse_args()
    defects = PastedDefects(options.parts, smallest=_SMALLEST, largest=_LARGEST, first=0)
    for name in SURFACES:
        make_surface(name, defects, options.out / name, options.train, options.test)
        print(options.out / name)


if __name__ == "__main__":
    main()

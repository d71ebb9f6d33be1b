"""The solar cells of the PyPI package ``elpv-dataset``, read as files and never through its loader.

Source: Buerhop-Lutz et al., *A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence
Imagery*, EU PVSEC 2018; Deitsch et al., *Automatic classification of defective photovoltaic module cells*, 2019.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from training.layout import GOOD
from training.scan import Source
from vision.errors import DataError

DEFECT = "defect"
_BLOCK = 48
"""Cells a block. A module has 60 or 72 cells in a row of the list; most of its neighbours fall on one side."""
_BLOCKS_PER_TEST_BLOCK = 4  # a quarter is held out
_SEED = 2018
"""Of the held-out quarter: fixed, so that every run is measured on the same cells."""


def find_elpv() -> Path:
    """The package's data folder.

    Raises:
        DataError: the package is not installed.
    """
    spec = find_spec("elpv_dataset")
    root = Path(spec.origin).parent / "data" if spec is not None and spec.origin is not None else None
    if root is None or not (root / "labels.csv").is_file():
        raise DataError("the data set elpv is not installed; install it with `pip install 'defectlens[demo]'`")
    return root


def read_elpv(root: Path) -> list[Source]:
    """All cells, in the order of the list; a quarter of the blocks of neighbouring cells is the test side.

    Blocks are sorted by cell type and share of defects, and of each four in that order one is held out, so that both
    sides have nearly the same mixture.

    Raises:
        DataError: ``labels.csv`` is not what the package ships.
    """
    try:
        rows = [line.split() for line in (root / "labels.csv").read_text(encoding="utf-8").splitlines() if line.strip()]
        cells = [(root / path, float(probability), kind) for path, probability, kind in rows]
    except ValueError as error:
        raise DataError(f"{root / 'labels.csv'} is not the list of elpv-dataset: {error}; install it again") from error
    starts = range(0, len(cells), _BLOCK)
    mixture = {
        start: (
            float(np.mean([kind == "mono" for _, _, kind in cells[start : start + _BLOCK]])),
            float(np.mean([probability for _, probability, _ in cells[start : start + _BLOCK]])),
        )
        for start in starts
    }
    ordered = sorted(starts, key=lambda start: (mixture[start], start))
    rng = np.random.default_rng(_SEED)
    fours = [ordered[i : i + _BLOCKS_PER_TEST_BLOCK] for i in range(0, len(ordered), _BLOCKS_PER_TEST_BLOCK)]
    test_blocks = {four[int(rng.integers(len(four)))] for four in fours if len(four) == _BLOCKS_PER_TEST_BLOCK}
    return [
        Source(
            path,
            DEFECT if probability >= 0.5 else GOOD,
            "test" if index - index % _BLOCK in test_blocks else "train",
            defect_probability=round(probability * 3) / 3,  # the list rounds thirds to many digits
        )
        for index, (path, probability, _) in enumerate(cells)
    ]

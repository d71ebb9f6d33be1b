"""What reading a folder complains about, for the tests of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.data import read_data
from vision.errors import DataError


def problems(source: Path, **options: object) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        read_data(source, **options)  # type: ignore[arg-type]
    return caught.value.problems

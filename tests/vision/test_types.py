from __future__ import annotations

import numpy as np
import pytest

from vision.errors import SettingsError
from vision.preprocess import InputSpec
from vision.types import OUTPUT_NAMES, Box, ModelOutputs, Verdict


def test_an_unset_verdict_is_no_pass() -> None:
    assert Verdict(0) is Verdict.UNSPECIFIED
    assert {verdict.name: int(verdict) for verdict in Verdict} == {
        "UNSPECIFIED": 0,
        "PASS": 1,
        "REJECT": 2,
        "REVIEW": 3,
        "NO_VERDICT": 4,
    }


@pytest.mark.parametrize("values", [(-1, 0, 1, 1), (0, -1, 1, 1), (0, 0, 0, 1), (0, 0, 1, 0)])
def test_impossible_boxes(values: tuple[int, int, int, int]) -> None:
    with pytest.raises(SettingsError, match="a box needs"):
        Box(*values)


@pytest.mark.parametrize(("height", "width"), [(0, 32), (32, 16), (33, 64), (64, 100)])
def test_impossible_input_sizes(height: int, width: int) -> None:
    with pytest.raises(SettingsError, match=f"multiples of 32; got {height}x{width}"):
        InputSpec(height, width)


@pytest.mark.parametrize("white_level", [0, 254, 65536])
def test_impossible_white_levels(white_level: int) -> None:
    with pytest.raises(SettingsError, match="white_level"):
        InputSpec(32, 32, white_level)


def test_rows_keep_their_leading_dimension() -> None:
    outputs = ModelOutputs(
        class_logits=np.arange(6, dtype=np.float32).reshape(3, 2),
        saliency_map=np.zeros((3, 2, 4, 5), np.float32),
        attention_map=np.zeros((3, 2, 4, 5), np.float32),
        anomaly_score=np.arange(3, dtype=np.float32),
    )
    assert len(outputs) == 3
    row = outputs.row(1)
    assert len(row) == 1
    np.testing.assert_array_equal(row.class_logits, [[2, 3]])
    assert row.anomaly_score is not None
    np.testing.assert_array_equal(row.anomaly_score, [1])
    assert row.anomaly_map is None


def test_output_names_are_the_fields() -> None:
    assert tuple(ModelOutputs.__dataclass_fields__) == OUTPUT_NAMES

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

import pytest

from protos import generate
from protos.inspection.v1 import inspection_pb2 as pb
from serving.messages import MapFormat, MaskFormat
from vision.preprocess import PixelFormat
from vision.types import Verdict


def test_generated_code_is_what_the_contract_generates(tmp_path: Path) -> None:
    generate.generate(tmp_path)
    for name in generate.GENERATED:
        assert (tmp_path / name).read_text() == (generate.ROOT / name).read_text(), (
            f"run python -m protos.generate: {name}"
        )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(Verdict, pb.Verdict), (PixelFormat, pb.PixelFormat), (MapFormat, pb.MapFormat), (MaskFormat, pb.MaskFormat)],
)
def test_numbers_equal_those_of_the_contract(ours: type[enum.IntEnum], theirs: Any) -> None:
    numbers = dict(theirs.items())
    numbers.pop("PIXEL_FORMAT_UNSPECIFIED", None)
    assert {member.name: member.value for member in ours} == numbers


def test_an_unset_verdict_is_not_a_pass() -> None:
    assert pb.InspectResponse().verdict == pb.UNSPECIFIED == 0

"""What a bundle says about its explanations: written, read, refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vision.bundle import Manifest, load_bundle, write_manifest
from vision.errors import BundleError
from vision.explanations import ClassCheck, Estimate, Explanations, evidence, round_up

Forge = Callable[[Callable[[dict[str, Any]], None]], Path]

CHECKED = Explanations(
    biases=(0.5, -1.25),
    top_share=0.02,
    evidence_scale=(0.2, 5.0),
    checks={
        "scratch": ClassCheck(
            "passed", "62 % lies on the defect", 12, Estimate(0.62, 0.5, 0.7), Estimate(0.1, 0.08, 0.12)
        ),
        "good": ClassCheck("unchecked", "no frames"),
    },
    measured="12 defect frames",
)


def test_explanations_travel_with_the_bundle(bundle_folder: Path, manifest: Manifest) -> None:
    write_manifest(bundle_folder, replace(manifest, explanations=CHECKED))
    assert load_bundle(bundle_folder).manifest.explanations == CHECKED


def test_a_bundle_written_before_has_none(forge: Forge) -> None:
    folder = forge(lambda document: document.pop("explanations"))
    assert load_bundle(folder).manifest.explanations is None


def test_optional_parts_may_be_missing() -> None:
    assert Explanations.from_dict({"biases": [1.0]}) == Explanations((1.0,))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"biases": [0.0]}, "1 biases for the 2 classes"),
        ({"biases": [0.0, float("nan")]}, "finite"),
        ({"evidence_scale": [1.0]}, "1 scales of evidence for 2 classes"),
        ({"evidence_scale": [1.0, 0.0]}, "above 0"),
        ({"top_share": 0.0}, "0..1"),
        ({"checks": {"dent": {"status": "passed", "why": ""}}}, "does not have: dent"),
        ({"checks": {"good": {"status": "fine", "why": ""}}}, "got 'fine'"),
        ({"checks": {"good": {"status": "passed", "why": "", "mass_in_mask": {"value": 1}}}}, "cannot be read"),
        ({"surprise": 1}, "cannot be read"),
    ],
)
def test_nonsense_is_refused(forge: Forge, edit: dict[str, Any], message: str) -> None:
    def change(document: dict[str, Any]) -> None:
        document["explanations"] = {**asdict(Explanations((0.0, 0.0))), **edit}

    with pytest.raises(BundleError, match=message):
        load_bundle(forge(change))


def test_evidence_is_what_speaks_for_a_class() -> None:
    np.testing.assert_array_equal(evidence(np.array([[-1.0, 2.0], [np.nan, 0.0]], np.float32)), [[0, 2], [0, 0]])


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.034, 0.05), (0.05, 0.05), (1.2, 1.5), (0.51, 0.7), (9.0, 10.0), (0.0, 1.0), (-3.0, 1.0), (float("nan"), 1.0)],
)
def test_scales_are_round(value: float, expected: float) -> None:
    assert round_up(value) == pytest.approx(expected)

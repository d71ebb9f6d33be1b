from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.vision.conftest import tiny_frames
from vision.bundle import (
    GOLDEN_FRAMES,
    GOLDEN_OUTPUTS,
    MANIFEST,
    MODEL,
    Manifest,
    load_bundle,
    read_golden,
    write_golden,
    write_manifest,
)
from vision.decision import OperatingPoint
from vision.engine import open_engine
from vision.engine_onnxruntime import CpuEngine
from vision.errors import BundleError, ParityError
from vision.parity import check_tolerance, compare_outputs

Forge = Callable[[Callable[[dict[str, Any]], None]], Path]


def test_what_was_written_is_read(bundle_folder: Path, manifest: Manifest) -> None:
    bundle = load_bundle(bundle_folder)
    assert replace(bundle.manifest, files={}, metrics={}) == replace(manifest, metrics={})
    assert bundle.manifest.metrics["per_fold"] == {"1": 0.8, "10": 0.9, "2": 0.7}
    assert set(bundle.manifest.files) == {MODEL, GOLDEN_FRAMES, GOLDEN_OUTPUTS, "LICENSE.txt"}
    assert bundle.manifest.defect_classes == ("scratch",)
    assert bundle.manifest.calibration_array.dtype == np.float32


def test_golden_frames_are_replayed(bundle_folder: Path) -> None:
    bundle = load_bundle(bundle_folder)
    frames, _ = bundle.golden()
    np.testing.assert_array_equal(frames, tiny_frames())
    differences = bundle.replay_golden(bundle.engine(provider="cpu"))
    assert set(differences.values()) == {0.0}


@pytest.mark.parametrize("frames", [1, 2])
def test_frames_that_go_alone_run_without_an_arena(
    bundle_folder: Path, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(bundle_folder)
    spec = bundle.manifest.input
    monkeypatch.setattr("vision.preprocess._BATCH_PIXELS", frames * spec.height * spec.width)
    engine = bundle.engine(provider="cpu")
    assert isinstance(engine, CpuEngine)
    assert engine._session.get_session_options().enable_cpu_mem_arena == (frames > 1)
    assert set(bundle.replay_golden(engine).values()) == {0.0}


def test_another_engine_fails_the_replay(bundle_folder: Path) -> None:
    bundle = load_bundle(bundle_folder)
    _, outputs = bundle.golden()
    assert outputs.anomaly_score is not None
    write_golden(bundle_folder, tiny_frames(), replace(outputs, anomaly_score=outputs.anomaly_score + np.float32(2e-4)))
    with pytest.raises(ParityError, match=r"anomaly_score differs by 0\.0002 \(tolerance 0\.0001\)"):
        bundle.replay_golden(bundle.engine(provider="cpu"))


def test_a_new_operating_point_keeps_the_model_digest(bundle_folder: Path) -> None:
    first = load_bundle(bundle_folder)
    write_manifest(bundle_folder, replace(first.manifest, operating_point=OperatingPoint(0.9, 0.8, 0.7)))
    second = load_bundle(bundle_folder)
    assert second.manifest.model_digest == first.manifest.model_digest
    assert second.digest != first.digest


def test_an_empty_folder_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no bundle\.json; make one with `defectlens export`"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 100, -2])
def test_truncated_manifest(bundle_folder: Path, keep: int) -> None:
    path = bundle_folder / MANIFEST
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BundleError, match="cut off or damaged"):
        load_bundle(bundle_folder)


@pytest.mark.parametrize("content", [b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 100_000])
def test_json_that_is_no_manifest(bundle_folder: Path, content: bytes) -> None:
    (bundle_folder / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError):
        load_bundle(bundle_folder)


def test_edited_threshold(bundle_folder: Path) -> None:
    path = bundle_folder / MANIFEST
    document = json.loads(path.read_text())
    document["operating_point"]["image_threshold"] = 99.0
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match="was changed after it was written"):
        load_bundle(bundle_folder)


def test_changed_byte_of_the_model(bundle_folder: Path) -> None:
    data = bytearray((bundle_folder / MODEL).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle_folder / MODEL).write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.onnx was changed"):
        load_bundle(bundle_folder)


def test_every_damaged_file_is_named(bundle_folder: Path) -> None:
    (bundle_folder / MODEL).write_bytes(b"short")
    (bundle_folder / GOLDEN_FRAMES).unlink()
    with pytest.raises(BundleError, match=r"model\.onnx has 5 bytes instead of") as caught:
        load_bundle(bundle_folder)
    assert "golden/frames.png is missing" in str(caught.value)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "golden/../../outside"])
def test_a_file_outside_the_bundle(forge: Forge, name: str) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["files"][name] = {"bytes": 1, "sha256": "0" * 64}

    with pytest.raises(BundleError, match="points outside the bundle"):
        load_bundle(forge(edit))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("format", "another", "not a defectlens bundle"),
        ("format_version", 2, "format version 2, this program reads 1"),
        ("format_version", "1", "format version '1'"),
        ("colour_of_the_sky", "blue", "unknown entries in bundle.json: colour_of_the_sky"),
        ("classes", [], "at least one"),
        ("classes", ["a", "a"], "must be distinct"),
        ("good_class", "missing", "must be in"),
        ("name", "", "needs a name and a version"),
        ("calibration_scores", [2.0, 1.0], "ascending order"),
        ("calibration_scores", 3, "cut off or damaged"),
        ("input", {"height": 33, "width": 64, "white_level": 255}, "multiples of 32"),
        ("input", {"height": 32}, "cut off or damaged"),
        ("operating_point", {"image_threshold": 1.0}, "cut off or damaged"),
        ("files", {}, r"model\.onnx is not listed"),
        ("files", {"model.onnx": {"bytes": 1}}, "cut off or damaged"),
    ],
)
def test_a_foreign_manifest_with_a_fitting_digest(forge: Forge, key: str, value: object, reason: str) -> None:
    with pytest.raises(BundleError, match=reason):
        load_bundle(forge(lambda document: document.update({key: value})))


def test_a_missing_entry(forge: Forge) -> None:
    with pytest.raises(BundleError, match="classes"):
        load_bundle(forge(lambda document: document.pop("classes")))


@pytest.mark.parametrize("name", [GOLDEN_FRAMES, GOLDEN_OUTPUTS])
def test_unreadable_golden_files(bundle_folder: Path, manifest: Manifest, name: str) -> None:
    whole = (bundle_folder / name).read_bytes()
    for damaged in (b"", b"PK\x03\x04", whole[: len(whole) // 2]):
        (bundle_folder / name).write_bytes(damaged)
        with pytest.raises(BundleError, match="golden"):
            read_golden(bundle_folder, manifest.input)


def test_golden_files_with_pickles_are_refused(bundle_folder: Path, manifest: Manifest) -> None:
    np.savez(bundle_folder / GOLDEN_OUTPUTS, class_logits=np.array([{"code": 1}], dtype=object))
    with pytest.raises(BundleError, match="golden"):
        read_golden(bundle_folder, manifest.input)


def test_differences(tiny_model: Path) -> None:
    outputs = open_engine(tiny_model, provider="cpu").run(tiny_frames())
    assert set(compare_outputs(outputs, outputs).values()) == {0.0}
    fewer = outputs.row(0)
    assert compare_outputs(outputs, fewer)["class_logits"] == float("inf")
    silent = replace(outputs, anomaly_score=None)
    assert compare_outputs(outputs, silent)["anomaly_score"] == float("inf")
    broken = replace(outputs, class_logits=np.full_like(outputs.class_logits, np.nan))
    with pytest.raises(ParityError, match=r"class_logits differs by inf \(tolerance 0\.001\)"):
        check_tolerance(compare_outputs(outputs, broken), "a test")


def test_a_manifest_without_a_good_class(manifest: Manifest) -> None:
    bare = replace(manifest, good_class=None, operating_point=OperatingPoint(None, None, None), calibration_scores=())
    assert not bare.has_anomaly_score
    assert bare.defect_classes == bare.classes

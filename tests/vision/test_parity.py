"""The gate below fp32: what may serve, and what is refused with which figures."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from tests.vision.conftest import write_tiny_model
from vision.bundle import MODEL, Bundle, Manifest, load_bundle, write_golden, write_manifest
from vision.checks import CHECK_EXPECTED, CheckFrames, Scores, run_scores, write_check
from vision.engine import open_engine
from vision.errors import BundleError, ParityError
from vision.parity import Accuracy, image_auroc
from vision.types import ModelOutputs


def check_frames() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """20 dark parts and 20 with one bright cell, whose scores lie on either side of the threshold of 0.8."""
    rng = np.random.default_rng(3)
    frames = rng.integers(60, 100, (40, 32, 64, 3), dtype=np.uint8)
    for index in range(20, 40):
        frames[index, 8:16, 16:24] = 215 + index - 20
    return frames, np.arange(40) >= 20


@pytest.fixture
def checked(tmp_path: Path, manifest: Manifest) -> Bundle:
    """A bundle with check frames, and an "8-bit" model that is the fp32 one."""
    folder = tmp_path / "checked"
    folder.mkdir()
    write_tiny_model(folder / MODEL)
    shutil.copy(folder / MODEL, folder / "model.int8.onnx")
    run = open_engine(folder / MODEL, provider="cpu").run
    frames, is_defect = check_frames()
    write_golden(folder, frames[::13], run(frames[::13]))
    write_check(folder, CheckFrames(frames, is_defect, run_scores(run, frames)))
    write_manifest(folder, manifest)
    return load_bundle(folder)


def tamper(bundle: Bundle, *, scale: float = 1.0, golden: bool = False) -> Bundle:
    """Make the 8-bit model see frames ``scale`` times as bright, with digests that fit."""
    path = bundle.path / "model.int8.onnx"
    model = onnx.load(str(path))
    white = next(value for value in model.graph.initializer if value.name == "white")
    white.CopyFrom(numpy_helper.from_array(np.float32(255.0 / scale), "white"))
    onnx.save(model, str(path))
    if golden:  # such that the golden frames find nothing: the check frames have to
        frames, _ = bundle.golden()
        write_golden(bundle.path, frames, open_engine(path, provider="cpu").run(frames))
    write_manifest(bundle.path, bundle.manifest)
    return load_bundle(bundle.path)


def test_an_equal_model_of_fewer_bits_may_serve(checked: Bundle) -> None:
    engine = checked.engine(provider="cpu", precision="int8")
    assert engine.precision == "int8"
    assert checked.precisions == ("fp32", "int8")
    figures = checked.replay_golden(engine)
    assert figures["image_auroc_loss"] == 0.0
    assert figures["verdict_flips"] == 0.0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_openvino_proves_16_bits(checked: Bundle, precision: str) -> None:
    """Or this CPU has none, and says so."""
    engine = checked.engine(provider="openvino", precision=precision)  # type: ignore[arg-type]
    figures = checked.replay_golden(engine)
    assert engine.fallback == (engine.precision == "fp32")
    if not engine.fallback:
        assert figures["verdict_flips"] <= 0.05


def test_a_model_that_changes_verdicts_is_refused_with_the_figures(checked: Bundle) -> None:
    """90 % of the brightness: order and golden frames stay as they are, but defects slip below the threshold."""
    bundle = tamper(checked, scale=0.9, golden=True)
    engine = bundle.engine(provider="cpu", precision="int8")
    with pytest.raises(ParityError, match=r"in int8: \d+ of 40 verdicts change, [\d.]+% \(allowed: 5%\)"):
        bundle.replay_golden(engine)


def test_a_broken_kernel_is_found_by_the_golden_frames(checked: Bundle) -> None:
    bundle = tamper(checked, scale=3.0)
    with pytest.raises(ParityError, match=r"class_logits differs, as a share of its spread, by .*tolerance 0\.5"):
        bundle.replay_golden(bundle.engine(provider="cpu", precision="int8"))


class Noisy:
    """The fp32 model with noise on its scores."""

    provider, precision, fallback = "noisy", "bf16", False

    def __init__(self, bundle: Bundle, noise: float) -> None:
        self._engine = bundle.engine(provider="cpu")
        self._noise = noise
        self._rng = np.random.default_rng(0)

    def run(self, frames: NDArray[np.uint8]) -> ModelOutputs:
        outputs = self._engine.run(frames)
        assert outputs.anomaly_score is not None
        noise = self._rng.normal(0, self._noise, len(frames)).astype(np.float32)
        return replace(outputs, anomaly_score=outputs.anomaly_score + noise)


def test_a_lower_auroc_is_refused_with_both_figures(checked: Bundle) -> None:
    accuracy = checked.measure(Noisy(checked, 0.4), checked.check_frames())  # type: ignore[arg-type]
    assert accuracy.expected_auroc == 1.0
    with pytest.raises(
        ParityError,
        match=r"AUROC on \d+ check frames falls from 1\.0000 to 0\.\d{4}, by \d+\.\d\d points \(allowed: 0\.2; "
        r"one pair of a good and a defective frame in the wrong order is 0\.25 points\)",
    ):
        accuracy.check("bf16", "a test")


@pytest.mark.parametrize(("loss", "refused"), [(0.002, False), (0.0021, True), (-0.3, False)])
def test_the_bound_on_auroc(loss: float, refused: bool) -> None:
    accuracy = Accuracy(frames=64, pairs=1024, flips=0.0, auroc=0.95 - loss, expected_auroc=0.95)
    if refused:
        with pytest.raises(ParityError, match="AUROC"):
            accuracy.check("int8", "a test")
    else:
        accuracy.check("int8", "a test")


@pytest.mark.parametrize(("precision", "flips", "refused"), [("int8", 3, False), ("int8", 4, True), ("fp16", 2, True)])
def test_the_bound_on_verdicts(precision: str, flips: int, refused: bool) -> None:
    accuracy = Accuracy(frames=64, pairs=1024, flips=flips / 64, auroc=None, expected_auroc=None)
    if refused:
        with pytest.raises(ParityError, match=rf"{flips} of 64 verdicts change"):
            accuracy.check(precision, "a test")  # type: ignore[arg-type]
    else:
        accuracy.check(precision, "a test")  # type: ignore[arg-type]


def test_scores_that_are_not_finite_are_refused(checked: Bundle) -> None:
    accuracy = checked.measure(Noisy(checked, float("nan")), checked.check_frames())  # type: ignore[arg-type]
    with pytest.raises(ParityError, match="40 of 40 verdicts change"):
        accuracy.check("bf16", "a test")


def test_a_bundle_of_an_earlier_version_serves_in_fp32_alone(bundle_folder: Path) -> None:
    bundle = load_bundle(bundle_folder)
    assert not bundle.has_check_frames
    bundle.replay_golden(bundle.engine(provider="openvino"))
    with pytest.raises(ParityError, match="has no check frames"):
        bundle.replay_golden(Noisy(bundle, 0.0))  # type: ignore[arg-type]


def test_damaged_check_frames(checked: Bundle) -> None:
    frames, is_defect = check_frames()
    write_check(checked.path, CheckFrames(frames, is_defect, Scores(np.zeros((3, 2), np.float32), None)))
    with pytest.raises(BundleError, match="do not fit"):
        checked.check_frames()
    (checked.path / CHECK_EXPECTED).write_bytes(b"PK\x03\x04")
    with pytest.raises(BundleError, match="cannot be read"):
        checked.check_frames()


def test_auroc_of_ties_and_of_one_kind() -> None:
    scores = np.array([0.0, 1.0, 1.0, 2.0], np.float32)
    assert image_auroc(scores, np.array([False, False, True, True])) == 0.875
    assert image_auroc(scores, np.array([True, True, True, True])) is None

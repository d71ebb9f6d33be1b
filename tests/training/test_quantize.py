"""Frames for the accuracy check, and models of fewer bits that are written only if they are as accurate."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

import defectlens
from tests.images import make_folder
from training import quantize
from training.data import read_data
from training.export import export_bundle
from training.options import TrainOptions
from training.probes import Probes, choose_probes, in_turns
from training.run import PROBES_FILE, load_run, train_run
from training.stores import FrameStore
from vision.bundle import load_bundle
from vision.engine import EngineOptions
from vision.engine_onnxruntime import CpuEngine
from vision.errors import ParityError, SettingsError
from vision.preprocess import InputSpec
from vision.types import Frame


def store(tmp_path: Path, labels: dict[str, int]) -> FrameStore:
    return FrameStore(read_data(make_folder(tmp_path / "data", train=labels)).train, InputSpec(64, 96))


class TestProbes:
    def test_half_good_half_defective(self, tmp_path: Path) -> None:
        frames = store(tmp_path, {"good": 50, "crack": 40, "fray": 5})
        probes = choose_probes(frames, frames, "good", seed=0)
        assert probes.check.shape == (64, 64, 96, 3)
        assert probes.is_defect.sum() == 32
        assert len(probes.ranges) == 32
        # Rare labels come first: all 5 frays are there.
        frays = {frames[index][0].tobytes() for index, one in enumerate(frames.samples) if one.label == "fray"}
        assert frays <= {frame.tobytes() for frame in probes.check}

    def test_good_frames_alone_get_synthetic_defects(self, tmp_path: Path) -> None:
        frames = store(tmp_path, {"good": 12})
        probes = choose_probes(frames, frames, "good", seed=0)
        clean = {frames[index][0].tobytes() for index in range(len(frames))}
        assert [frame.tobytes() in clean for frame in probes.check] == [not defect for defect in probes.is_defect]
        assert (probes.is_defect.sum(), len(probes)) == (12, 24)

    def test_the_same_seed_gives_the_same_frames(self, tmp_path: Path) -> None:
        frames = store(tmp_path, {"good": 12})
        one, other = (choose_probes(frames, frames, "good", seed=4) for _ in range(2))
        np.testing.assert_array_equal(one.check, other.check)

    def test_without_a_good_class_all_are_defects(self, tmp_path: Path) -> None:
        frames = store(tmp_path, {"crack": 6, "fray": 2})
        probes = choose_probes(frames, frames, None, seed=0)
        assert probes.is_defect.all()
        assert len(probes) == 8

    def test_turns(self) -> None:
        assert in_turns(["a", "a", "a", "b", "c", "c"]) == [0, 3, 4, 1, 5, 2]
        assert in_turns([]) == []


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> Path:
    folder = tmp_path_factory.mktemp("quantize")
    data = read_data(make_folder(folder / "data", train={"good": 40, "crack": 40}))
    options = TrainOptions(
        backbone="test_efficientnet", weights=str(tiny_weights), size=64, epochs=4, batch=8, device="cpu"
    )
    train_run(data, options, folder / "run", resume=False)
    return folder / "run"


def export(run: Path, out: Path, *options: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(defectlens.main, ["export", "--run", str(run), "--out", str(out), *options])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


@pytest.mark.slow
class TestExport:
    def test_both_figures_stand_side_by_side(self, run_folder: Path, tmp_path: Path) -> None:
        """fp16, which every trained model survives; whether 8 bits are enough depends on the model."""
        code, stdout, stderr = export(run_folder, tmp_path / "b", "--quantize", "fp16", "--json")
        assert code == 0, stderr
        figures = json.loads(stdout)["reduced"]["fp16"]
        assert set(figures["ms_a_frame"]) == {"batch 1", "batch 8"}
        assert figures["image_auroc"]["fp16"] >= figures["image_auroc"]["fp32"] - 0.002
        assert "image AUROC" in stderr
        bundle = load_bundle(tmp_path / "b")
        assert bundle.precisions == ("fp32", "fp16")
        assert bundle.has_check_frames
        half = CpuEngine(bundle.path / "model.fp16.onnx", "fp16", EngineOptions(threads=1), fallback=False)
        assert bundle.replay_golden(half)["verdict_flips"] <= 0.02

    def test_8_bit_layers_are_those_of_the_backbone(self, run_folder: Path, tmp_path: Path) -> None:
        run = load_run(run_folder)
        bundle = export_bundle(run, tmp_path / "b")
        assert run.probes is not None
        quantize.write_reduced(bundle.path, "int8", run.probes)
        nodes = onnx.load(str(bundle.path / "model.int8.onnx")).graph.node
        feeds_convolution = {name for node in nodes if node.op_type == "Conv" for name in node.input}
        quantized = [node for node in nodes if node.op_type == "DequantizeLinear"]
        assert quantized
        assert all(node.output[0] in feeds_convolution for node in quantized if "weight" in node.output[0])
        engine = CpuEngine(bundle.path / "model.int8.onnx", "int8", EngineOptions(threads=1), fallback=False)
        assert len(engine.run(run.golden)) == len(run.golden)

    def test_a_worse_model_is_not_written(
        self, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = quantize._write_int8

        def bad(source: Path, target: Path, frames: Frame) -> None:
            """As if the calibration had gone wrong: every 8-bit weight has another scale."""
            real(source, target, frames)
            model = onnx.load(str(target))
            for value in model.graph.initializer:
                if value.name.endswith("_scale") and "weight" in value.name:
                    scales = numpy_helper.to_array(value)
                    value.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(scales[::-1] * -1), value.name))
            onnx.save(model, str(target))

        monkeypatch.setattr(quantize, "_write_int8", bad)
        code, _, stderr = export(run_folder, tmp_path / "out" / "b", "--quantize", "int8")
        assert code == 1
        # After one epoch it is chance which of the two the wrong scales ruin first.
        assert re.search(
            r"image AUROC on \d+ check frames falls from .* \(allowed: 0\.2;|verdicts change, .* \(allowed: 5%\)",
            stderr,
        )
        assert list((tmp_path / "out").iterdir()) == []

    def test_a_run_of_an_earlier_version(self, run_folder: Path, tmp_path: Path) -> None:
        old = tmp_path / "old"
        shutil.copytree(run_folder, old)
        (old / PROBES_FILE).unlink()
        code, _, stderr = export(old, tmp_path / "b", "--quantize", "int8")
        assert code == 2
        assert "train it again" in stderr
        with pytest.raises(ParityError, match="has no check frames"):
            export_bundle(load_run(old), tmp_path / "b").check_frames()


@pytest.mark.slow
def test_quantizing_needs_frames(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="keeps no frames"):
        export_bundle(replace(load_run(run_folder), probes=None), tmp_path / "b", quantize=("int8",))


@pytest.mark.slow
def test_a_run_keeps_its_probes(run_folder: Path) -> None:
    probes = load_run(run_folder).probes
    assert isinstance(probes, Probes)
    assert probes.is_defect.dtype == np.bool_
    assert len(probes.check) == len(probes.is_defect)

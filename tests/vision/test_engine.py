from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.vision.conftest import CELL, tiny_frames, write_tiny_model
from vision.engine import EngineOptions, open_engine
from vision.errors import BundleError, ProviderError, SettingsError

NO_GPU = not Path("/dev/nvidiactl").exists() and not Path("/dev/nvidia0").exists() and not Path("/dev/dxg").exists()
without_gpu = pytest.mark.skipif(not NO_GPU, reason="this machine has a GPU")
with_gpu = pytest.mark.skipif(NO_GPU, reason="this machine has no GPU")


def test_the_arithmetic_of_the_tiny_model(tiny_model: Path) -> None:
    frames = tiny_frames()
    outputs = open_engine(tiny_model, provider="cpu").run(frames)
    cells = (frames / 255).mean(axis=-1).reshape(3, 32 // CELL, CELL, 64 // CELL, CELL).mean(axis=(2, 4))
    assert outputs.anomaly_map is not None
    assert outputs.anomaly_score is not None
    np.testing.assert_allclose(outputs.anomaly_map, cells, atol=1e-6)
    np.testing.assert_allclose(outputs.anomaly_score, cells.max(axis=(1, 2)), atol=1e-6)
    np.testing.assert_allclose(outputs.saliency_map.sum(axis=(2, 3)), outputs.class_logits, atol=1e-4)
    assert outputs.class_map is None


@pytest.mark.parametrize("count", [1, 2, 7])
def test_batches_agree_with_single_frames(tiny_model: Path, count: int) -> None:
    engine = open_engine(tiny_model, provider="cpu")
    frames = np.resize(tiny_frames(), (count, 32, 64, 3))
    batch = engine.run(frames)
    for index in range(count):
        np.testing.assert_allclose(
            engine.run(frames[index : index + 1]).class_logits, batch.row(index).class_logits, atol=1e-5
        )


def test_several_threads_at_once(tiny_model: Path) -> None:
    engine = open_engine(tiny_model, provider="cpu", options=EngineOptions(threads=1))
    expected = engine.run(tiny_frames()).class_logits
    with ThreadPoolExecutor(4) as pool:
        for outputs in pool.map(lambda _: engine.run(tiny_frames()), range(40)):
            np.testing.assert_array_equal(outputs.class_logits, expected)


def test_outputs_that_training_could_not_give_are_none(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "classes.onnx", anomaly=False)
    outputs = open_engine(tmp_path / "classes.onnx", provider="cpu").run(tiny_frames())
    assert outputs.anomaly_score is None
    assert outputs.anomaly_map is None
    assert outputs.class_logits.shape == (3, 2)


@without_gpu
@pytest.mark.parametrize("provider", ["cpu", "auto"])
def test_quiet_on_a_machine_without_a_gpu(
    tiny_model: Path, provider: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    engine = open_engine(tiny_model, provider=provider, strict=True)  # type: ignore[arg-type]
    assert engine.provider == "CPUExecutionProvider"
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@without_gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_fallback_is_loud(tiny_model: Path, provider: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = open_engine(tiny_model, provider=provider)  # type: ignore[arg-type]
    assert engine.provider == "CPUExecutionProvider"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("FALLBACK: execution provider")


@without_gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_strict_refuses_to_fall_back(tiny_model: Path, provider: str) -> None:
    with pytest.raises(ProviderError, match="--strict-provider"):
        open_engine(tiny_model, provider=provider, strict=True)  # type: ignore[arg-type]


@with_gpu
def test_cuda_gives_what_the_cpu_gives(tiny_model: Path) -> None:
    engine = open_engine(tiny_model, provider="cuda", strict=True)
    assert engine.provider == "CUDAExecutionProvider"
    expected = open_engine(tiny_model, provider="cpu").run(tiny_frames())
    np.testing.assert_allclose(engine.run(tiny_frames()).class_logits, expected.class_logits, atol=1e-4)


def test_an_unknown_provider(tiny_model: Path) -> None:
    with pytest.raises(SettingsError, match="unknown provider 'gpu'; choose one of cpu, cuda"):
        open_engine(tiny_model, provider="gpu")  # type: ignore[arg-type]


def test_files_that_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    for path in (tmp_path / "model.onnx", tmp_path / "missing.onnx"):
        with pytest.raises(BundleError, match="cannot be loaded by ONNX Runtime"):
            open_engine(path, provider="cpu")


def test_models_of_others(tmp_path: Path, tiny_model: Path) -> None:
    write_tiny_model(tmp_path / "other.onnx", input_name="images")
    model = onnx.load(str(tiny_model))
    del model.graph.output[0]
    onnx.save(model, str(tmp_path / "less.onnx"))
    for name in ("other.onnx", "less.onnx"):
        with pytest.raises(BundleError, match="is no defectlens model"):
            open_engine(tmp_path / name, provider="cpu")

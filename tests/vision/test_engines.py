"""Every engine behind the one interface: OpenVINO for real, and the GPU's fixed buffers with host memory as device."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.vision.conftest import tiny_frames, write_tiny_model
from vision import engine_cuda
from vision.engine import EngineOptions, Precision, open_engine
from vision.engine_bound import BoundEngine
from vision.engine_onnxruntime import open_session
from vision.engine_openvino import OpenVinoEngine
from vision.errors import BundleError, ProviderError, SettingsError
from vision.types import OUTPUT_NAMES, ModelOutputs


def assert_same(one: ModelOutputs, other: ModelOutputs, *, tolerance: float = 1e-4) -> None:
    for name in OUTPUT_NAMES:
        expected, got = getattr(one, name), getattr(other, name)
        assert (expected is None) == (got is None), name
        if expected is not None:
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, expected, atol=tolerance, err_msg=name)


def frames_of(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def fixed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model for frames of 32x64 px, as exported models are, and with their sum and bias at the end."""
    path = tmp_path_factory.mktemp("fixed") / "model.onnx"
    write_tiny_model(path)
    model = onnx.load(str(path))
    for value, size in zip(model.graph.input[0].type.tensor_type.shape.dim[1:3], (32, 64), strict=True):
        value.dim_value = size
    model.graph.node.remove(next(node for node in model.graph.node if node.output[0] == "class_logits"))
    model.graph.initializer.extend(
        [
            helper.make_tensor("bias", TensorProto.FLOAT, [2], [3.0, -40.0]),
            helper.make_tensor("rows", TensorProto.INT64, [3], [0, 2, -1]),
            helper.make_tensor("end", TensorProto.INT64, [1], [-1]),
        ]
    )
    model.graph.node.extend(
        [
            helper.make_node("Reshape", ["saliency_map", "rows"], ["terms"]),
            helper.make_node("ReduceSum", ["terms", "end"], ["total"], keepdims=0),
            helper.make_node("Add", ["total", "bias"], ["class_logits"]),
        ]
    )
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


class HostDevice:
    """Host memory in the part of a GPU: what is copied, and when, is real."""

    name = "cpu"

    def __init__(self) -> None:
        self.rows_sent: list[int] = []

    def host(self, shape: tuple[int, ...], kind: Any) -> NDArray[Any]:
        return np.full(shape, 99).astype(kind)

    def stream(self) -> list[tuple[int, int, int]]:
        return []

    def to_device(self, address: int, host: NDArray[Any], stream: list[tuple[int, int, int]]) -> None:
        self.rows_sent.append(len(host))
        stream.append((address, host.ctypes.data, host.nbytes))

    def to_host(self, host: NDArray[Any], address: int, stream: list[tuple[int, int, int]]) -> None:
        stream.append((host.ctypes.data, address, host.nbytes))

    def wait(self, stream: list[tuple[int, int, int]]) -> None:
        """Copies happen no earlier than here: who forgets to wait gets old bytes."""
        for target, source, size in stream:
            ctypes.memmove(target, source, size)
        stream.clear()


def bound(model: Path, device: HostDevice, buckets: tuple[int, ...] = (1, 2, 4)) -> BoundEngine:
    session = open_session(model, ["CPUExecutionProvider"], threads=1)
    return BoundEngine(
        session, device, provider="test", precision="fp32", fallback=False, buckets=buckets, graphs=False
    )


class TestOpenVino:
    @pytest.mark.parametrize("count", [1, 2, 3, 8, 11])
    def test_it_gives_what_onnxruntime_gives(self, fixed_model: Path, count: int) -> None:
        """At sizes with a program of their own and without; OpenVINO by itself adds another class's bias."""
        expected = open_engine(fixed_model, provider="cpu").run(frames_of(count))
        engine = open_engine(fixed_model, provider="openvino", strict=True, options=EngineOptions(threads=1))
        assert (engine.provider, engine.precision, engine.fallback) == ("OpenVINO", "fp32", False)
        assert_same(expected, engine.run(frames_of(count)))

    def test_a_model_of_any_frame_size(self, tiny_model: Path) -> None:
        expected = open_engine(tiny_model, provider="cpu").run(tiny_frames())
        assert_same(expected, open_engine(tiny_model, provider="openvino", strict=True).run(tiny_frames()))

    def test_outputs_survive_the_next_frames(self, fixed_model: Path) -> None:
        engine = open_engine(fixed_model, provider="openvino")
        first = engine.run(frames_of(4))
        kept = first.class_logits.copy()
        engine.run(255 - frames_of(4))
        np.testing.assert_array_equal(first.class_logits, kept)

    def test_several_threads_at_once(self, fixed_model: Path) -> None:
        engine = open_engine(fixed_model, provider="openvino", options=EngineOptions(threads=1))
        batches = [frames_of(count) for count in (1, 2, 3, 4)] * 8
        expected = [engine.run(batch) for batch in batches]
        with ThreadPoolExecutor(4) as pool:
            for one, other in zip(expected, pool.map(engine.run, batches), strict=True):
                assert_same(one, other)

    def test_files_that_are_no_model(self, tmp_path: Path) -> None:
        (tmp_path / "model.onnx").write_bytes(b"no model")
        with pytest.raises(BundleError, match="cannot be loaded by OpenVINO"):
            open_engine(tmp_path / "model.onnx", provider="openvino")
        write_tiny_model(tmp_path / "other.onnx", input_name="images")
        with pytest.raises(BundleError, match="is no defectlens model"):
            open_engine(tmp_path / "other.onnx", provider="openvino")

    def test_a_precision_that_this_cpu_lacks_falls_back_loudly(
        self, fixed_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise ProviderError("OpenVINO does not compute in bf16 on this CPU, only in FP32")

        monkeypatch.setattr(OpenVinoEngine, "__init__", refuse)
        engine = open_engine(fixed_model, provider="openvino", precision="bf16")
        assert (engine.provider, engine.precision, engine.fallback) == ("CPUExecutionProvider", "fp32", True)
        (record,) = caplog.records
        assert record.getMessage().startswith("FALLBACK: execution provider OpenVINO was asked for")
        with pytest.raises(ProviderError, match="--strict-provider"):
            open_engine(fixed_model, provider="openvino", precision="bf16", strict=True)

    def test_without_the_package(self, fixed_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
        with pytest.raises(ProviderError, match=r"pip install 'defectlens\[openvino\]'"):
            open_engine(fixed_model, provider="openvino", strict=True)


class TestBoundBuffers:
    @pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
    def test_any_number_of_frames(self, fixed_model: Path, count: int) -> None:
        expected = open_engine(fixed_model, provider="cpu").run(frames_of(count))
        assert_same(expected, bound(fixed_model, HostDevice()).run(frames_of(count)))

    def test_batches_are_padded_up_to_a_bucket_and_no_further(self, fixed_model: Path) -> None:
        device = HostDevice()
        engine = bound(fixed_model, device)
        device.rows_sent.clear()
        for count in (1, 2, 3, 5):
            engine.run(frames_of(count))
        assert device.rows_sent == [1, 2, 4, 4, 1]

    def test_outputs_survive_the_next_frames(self, fixed_model: Path) -> None:
        engine = bound(fixed_model, HostDevice())
        first = engine.run(frames_of(3))
        kept = first.class_logits.copy()
        for _ in range(4):  # every lane has been used again
            engine.run(255 - frames_of(3))
        np.testing.assert_array_equal(first.class_logits, kept)

    def test_several_threads_at_once(self, fixed_model: Path) -> None:
        engine, plain = bound(fixed_model, HostDevice()), open_engine(fixed_model, provider="cpu")
        batches = [frames_of(count) for count in (1, 2, 3, 4, 6)] * 8
        with ThreadPoolExecutor(5) as pool:
            for batch, outputs in zip(batches, pool.map(engine.run, batches), strict=True):
                assert_same(plain.run(batch), outputs)

    def test_a_failed_copy_does_not_lose_a_lane(self, fixed_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        device = HostDevice()
        engine = bound(fixed_model, device)
        with monkeypatch.context() as patch:
            patch.setattr(device, "wait", lambda stream: (_ for _ in ()).throw(ProviderError("CUDA error 700")))
            for _ in range(4):  # more often than there are lanes
                with pytest.raises(ProviderError, match="700"):
                    engine.run(frames_of(1))
        assert len(engine.run(frames_of(2))) == 2

    def test_a_model_of_any_frame_size_is_refused(self, tiny_model: Path) -> None:
        with pytest.raises(BundleError, match="fixed height and width"):
            bound(tiny_model, HostDevice())


class TestCudaOptions:
    def test_fp32_is_not_tf32_and_memory_is_limited(self, fixed_model: Path) -> None:
        chain = engine_cuda._providers(fixed_model, "cuda", "fp32", EngineOptions(gpu_memory_mib=512), graphs=True)
        assert [name for name, _ in chain] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
        assert chain[0][1]["use_tf32"] == "0"
        assert chain[0][1]["enable_cuda_graph"] == "1"
        assert chain[0][1]["gpu_mem_limit"] == str(512 * 2**20)

    def test_tensorrt_has_one_profile_for_every_bucket(self, fixed_model: Path, tmp_path: Path) -> None:
        options = EngineOptions(max_batch=6, cache=tmp_path / "cache")
        (name, given), *rest = engine_cuda._providers(fixed_model, "tensorrt", "fp16", options, graphs=False)
        assert name == "TensorrtExecutionProvider"
        assert [other for other, _ in rest] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
        assert given["trt_profile_min_shapes"] == "frames:1x32x64x3"
        assert given["trt_profile_max_shapes"] == "frames:6x32x64x3"
        assert given["trt_fp16_enable"] == "1"
        assert Path(given["trt_engine_cache_path"]).is_dir()


@pytest.mark.parametrize(("most", "buckets"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_buckets(most: int, buckets: tuple[int, ...]) -> None:
    assert EngineOptions(max_batch=most).buckets == buckets


@pytest.mark.parametrize(
    ("provider", "precision", "words"),
    [
        ("cpu", "bf16", "computes in fp32 or int8, not in 'bf16'; choose openvino"),
        ("auto", "fp16", "choose cuda or tensorrt or openvino"),
        ("openvino", "fp8", "there is no such precision"),
    ],
)
def test_a_precision_that_a_provider_never_has(
    fixed_model: Path, provider: Any, precision: Precision, words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        open_engine(fixed_model, provider=provider, precision=precision)


def test_a_bundle_without_the_8_bit_model(fixed_model: Path) -> None:
    with pytest.raises(SettingsError, match=r"no model\.int8\.onnx.*--quantize int8"):
        open_engine(fixed_model, provider="cpu", precision="int8")

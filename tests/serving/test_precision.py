"""A server below fp32 says so in every reply and does not start when its model is worse; tuned settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

import defectlens
from serving import InspectionServer, ServerSettings
from serving.tune import Candidate, _typical, candidates, choose
from serving.tune import Result as Measured
from serving.tuned import Tuned, fingerprint, read_tuned, usable_cores, write_tuned
from tests.fakes import make_bundle, part
from tests.serving.conftest import Serve
from vision.bundle import MODEL, load_bundle, write_manifest
from vision.checks import CheckFrames, run_scores, write_check
from vision.errors import ParityError, SettingsError


def with_int8(folder: Path, *, grey: int = 128) -> Path:
    """Give a bundle check frames and an 8-bit model, which takes ``grey`` for what a good part looks like."""
    bundle = load_bundle(folder)
    shutil.copy(folder / MODEL, folder / "model.int8.onnx")
    model = onnx.load(str(folder / MODEL))
    middle = next(value for value in model.graph.initializer if value.name == "middle")
    middle.CopyFrom(numpy_helper.from_array(np.float32(grey / 255.0), "middle"))
    onnx.save(model, str(folder / "model.int8.onnx"))
    spots = [*range(110, 146, 2), *range(228, 256, 2)]
    frames = np.stack([part(spot=spot) for spot in spots])
    scores = run_scores(bundle.engine(provider="cpu").run, frames)
    write_check(folder, CheckFrames(frames, np.array(spots) > 200, scores))
    write_manifest(folder, bundle.manifest)
    return folder


@pytest.fixture
def int8_bundle(tmp_path: Path) -> Path:
    return with_int8(make_bundle(tmp_path / "int8"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(defectlens.main, list(arguments))


async def test_every_answer_names_the_precision(serve: Serve, int8_bundle: Path) -> None:
    async with serve(int8_bundle, provider="cpu", precision="int8") as (_, client):
        reply = await client.inspect(part(spot=255))
        info = await client.get_model()
    assert (reply.provider, reply.precision, reply.provider_fallback) == ("CPUExecutionProvider", "int8", False)
    assert info.precision == "int8"
    assert json.loads(info.gate_json)["verdict_flips"] == 0.0


async def test_openvino_serves(serve: Serve, bundle: Path) -> None:
    async with serve(provider="openvino", strict_provider=True) as (_, client):
        reply = await client.inspect(part(spot=255))
    assert (reply.provider, reply.precision) == ("OpenVINO", "fp32")
    assert reply.inspection.verdict.name == "REJECT"


async def test_a_worse_model_does_not_start(tmp_path: Path) -> None:
    folder = with_int8(make_bundle(tmp_path / "worse"), grey=138)
    settings = ServerSettings(bundle=folder, address="127.0.0.1:0", provider="cpu", precision="int8")
    with pytest.raises(ParityError, match=r"share of its spread|verdicts change"):
        await InspectionServer(settings).start()


def test_a_precision_without_a_provider_for_it() -> None:
    with pytest.raises(SettingsError, match="not in 'bf16'; choose openvino"):
        ServerSettings(bundle=Path("b"), provider="cpu", precision="bf16")


class TestTune:
    def test_it_measures_what_is_there_and_serve_takes_it(
        self, int8_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "tuned.json"
        result = run("tune", "--bundle", str(int8_bundle), "--out", str(out), "--seconds", "0", "--json")
        assert result.exit_code == 0, result.output
        figures = json.loads(result.stdout)
        tried = {(row["provider"], row["precision"]) for row in figures["measured"]}
        assert {("cpu", "fp32"), ("cpu", "int8"), ("openvino", "fp32"), ("openvino", "int8")} <= tried
        assert figures["why"] in " ".join(result.stderr.split())
        tuned = read_tuned(out)
        assert tuned.machine == fingerprint()
        assert tuned.settings() == {key: figures[key] for key in ("provider", "precision", "threads", "max_batch")}

        served: list[ServerSettings] = []

        async def serve(settings: ServerSettings, _: Any) -> dict[str, Any]:
            served.append(settings)
            return {}

        monkeypatch.setattr("serving.cli._serve", serve)
        given = ("serve", "--bundle", str(int8_bundle), "--tuned", str(out))
        assert run(*given).exit_code == 0
        assert {name: getattr(served[0], name) for name in tuned.settings()} == tuned.settings()
        assert run(*given, "--threads", "3", "--provider", "cpu").exit_code == 0
        assert (served[1].threads, served[1].provider, served[1].precision) == (3, "cpu", "fp32")
        assert served[1].max_batch == tuned.max_batch

    def test_a_model_that_fails_the_gate_is_not_chosen(self, tmp_path: Path) -> None:
        folder = with_int8(make_bundle(tmp_path / "worse"), grey=138)
        result = run("tune", "--bundle", str(folder), "--seconds", "0", "--json")
        assert result.exit_code == 0, result.output
        rows = json.loads(result.stdout)["measured"]
        refused = [row for row in rows if row["precision"] == "int8"]
        assert refused
        for row in refused:
            assert row["ms_a_frame"] == {}
            assert row["parity"] != "passed"
        assert "int8" in result.stderr
        assert (tmp_path / "worse.tuned.json").is_file()

    def test_an_old_bundle_is_tuned_in_fp32(self, bundle: Path) -> None:
        assert {one.precision for one in candidates(load_bundle(bundle), usable_cores())} == {"fp32"}

    def test_tensorrt_is_tried_for_those_who_ask_and_refused_where_there_is_none(self, tmp_path: Path) -> None:
        folder = make_bundle(tmp_path / "parts")
        assert "tensorrt" not in {one.provider for one in candidates(load_bundle(folder), 2)}
        result = run("tune", "--bundle", str(folder), "--seconds", "0", "--tensorrt", "--json")
        assert result.exit_code == 0, result.output
        rows = [row for row in json.loads(result.stdout)["measured"] if row["provider"] == "tensorrt"]
        assert rows
        for row in rows:
            assert row["parity"] == "passed" or ("tensorrt" in row["parity"].lower() and not row["ms_a_frame"])

    @staticmethod
    def measured(provider: Any, ms: dict[int, float], gate: str = "") -> Measured:
        return Measured(Candidate(provider, "fp32", 1), gate, ms)

    def test_the_plainest_of_equals_wins(self) -> None:
        plain, other = self.measured("cpu", {1: 10.0, 8: 10.0}), self.measured("openvino", {1: 9.8, 8: 9.7})
        chosen, why = choose([plain, other])
        assert chosen is plain
        assert chosen.batch == 1
        assert "no more than 5% faster" in why

    def test_a_faster_one_wins_unless_it_was_refused(self) -> None:
        plain, faster = self.measured("cpu", {1: 10.0, 8: 8.0}), self.measured("openvino", {1: 5.0, 8: 4.0})
        chosen, why = choose([plain, faster])
        assert (chosen, chosen.batch) == (faster, 8)
        assert "2.00 times cpu fp32" in why
        assert choose([plain, self.measured("openvino", {}, "it differs")])[0] is plain
        with pytest.raises(ParityError, match="it differs"):
            choose([self.measured("cpu", {}, "it differs")])


def test_a_slow_round_changes_nothing() -> None:
    """In the second round something else held the machine, for both alike."""
    assert _typical([5.0, 50.0, 5.2], [10.0, 100.0, 10.4]) == pytest.approx(0.5 * 10.4)


class TestTunedFile:
    @pytest.fixture
    def file(self, tmp_path: Path, bundle: Path) -> Path:
        path = tmp_path / "tuned.json"
        digest = load_bundle(bundle).manifest.model_digest
        write_tuned(path, Tuned(fingerprint(), digest, "cpu", "fp32", 1, 4), [])
        return path

    def edit(self, file: Path, **values: Any) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    def serve(self, bundle: Path, file: Path) -> Result:
        return run("serve", "--bundle", str(bundle), "--address", "127.0.0.1:0", "--tuned", str(file))

    def test_of_another_machine(self, file: Path, bundle: Path) -> None:
        self.edit(file, machine={**fingerprint(), "cores": 192, "openvino": "2020.1"})
        result = self.serve(bundle, file)
        assert result.exit_code == 2
        words = " ".join(result.stderr.split())
        assert f"made on another machine: cores was 192 and is {usable_cores()}; openvino was '2020.1'" in words
        assert "measure again with `defectlens tune`" in words

    def test_of_another_model(self, file: Path, bundle: Path) -> None:
        self.edit(file, model_digest="0" * 64)
        result = self.serve(bundle, file)
        assert result.exit_code == 2
        assert "made for another model (digest 000000000000)" in " ".join(result.stderr.split())

    @pytest.mark.parametrize(
        "change",
        [
            {"format": "recipe"},
            {"format_version": 2},
            {"colour": "blue"},
            {"precision": "bf16"},
            {"provider": "abacus"},
        ],
    )
    def test_that_is_none(self, file: Path, bundle: Path, change: dict[str, Any]) -> None:
        self.edit(file, **change)
        result = self.serve(bundle, file)
        assert result.exit_code == 2
        assert "is no file that `defectlens tune` wrote" in result.stderr

    @pytest.mark.parametrize("content", ["", "[]", "null", "{"])
    def test_that_is_not_even_that(self, file: Path, content: str) -> None:
        file.write_text(content)
        with pytest.raises(SettingsError, match="is no file that"):
            read_tuned(file)

"""``defectlens explain`` on a small trained model: what it writes, carries along, resumes and refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

import defectlens
from tests.fakes import EXPLAINED, make_bundle
from tests.images import make_folder
from tests.training.conftest import TINY
from training.data import read_data
from training.explain import measure as measure_module
from training.explain.carried import describe_graph, describe_outputs, write_version
from training.explain.subjects import choose_subjects
from vision.bundle import load_bundle
from vision.errors import DataError, ParityError, SettingsError
from vision.explanations import EXACT
from vision.types import ModelOutputs


def run(*arguments: object) -> Result:
    return CliRunner().invoke(defectlens.main, [str(argument) for argument in arguments])


def figures(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """The model of bright and dark spots, and frames with masks of both."""
    make_folder(
        tmp_path / "data",
        train={"good": 12},
        test={"good": 4, "bright": 8, "dark": 8},
        values={"bright": 255, "dark": 0},
    )
    return make_bundle(tmp_path / "bundle", explanations=replace(EXPLAINED, checks={}, measured=""))


@pytest.mark.slow
def test_a_bundle_is_measured_and_carries_the_figures(fake: Path, tmp_path: Path) -> None:
    """The tiny model's evidence is the spot itself: nothing else can come out than that it is good."""
    words = ["--bundle", fake, "--data", tmp_path / "data", "--out", tmp_path / "why"]
    found = figures(run("explain", *words, "--write", tmp_path / "next", "--json"))
    assert found["frames"] == 16
    assert found["mass_in_mask"] > 0.5
    assert found["times_random"] > 10
    assert {found[f"{name}_verdict"] for name in ("mass_in_mask", "insertion", "deletion")} <= {"best", "tied"}
    assert found["checks"] == {"good": "unchecked", "bright": "passed", "dark": "passed"}
    before, after = load_bundle(fake).manifest, load_bundle(tmp_path / "next").manifest
    assert after.model_digest == before.model_digest
    assert (before.version, after.version) == ("1", "2")
    assert after.explanations is not None
    assert after.explanations.biases == EXPLAINED.biases
    mass = after.explanations.checks["bright"].mass_in_mask
    assert mass is not None
    assert mass.low <= mass.value <= mass.high
    report = json.loads((tmp_path / "why" / "explain.json").read_text())
    assert report["frames_by_class"] == {"bright": 8, "dark": 8}
    assert report["comparison"]["mass_in_mask"]["random"]["verdict"] == "worse"
    assert any("Without --run" in note for note in report["notes"])
    page = (tmp_path / "why" / "report.html").read_text()
    assert "Read-out saliency (ours)" in page
    assert 'src="http' not in page
    assert not (tmp_path / "why" / "progress").exists()
    again = run("explain", *words, "--write", tmp_path / "next")
    assert again.exit_code == 2
    assert "never overwritten" in again.stderr


@pytest.mark.slow
def test_an_interrupted_measurement_goes_on(fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["explain", "--bundle", fake, "--data", tmp_path / "data", "--out", tmp_path / "why", "--json"]
    real, seen = measure_module.measure_one, []

    def stops(subject: Any, *rest: Any) -> Any:
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(subject.sample.path)
        return real(subject, *rest)

    monkeypatch.setattr(measure_module, "measure_one", stops)
    assert run(*words, "--images", 8).exit_code != 0
    other = run(*words, "--images", 6)
    assert other.exit_code == 2
    assert "unfinished measurement" in other.stderr
    monkeypatch.setattr(measure_module, "measure_one", lambda subject, *rest: (seen.append(1), real(subject, *rest))[1])
    resumed = figures(run(*words, "--images", 8))
    assert len(seen) == 8
    monkeypatch.setattr(measure_module, "measure_one", real)
    words[6] = tmp_path / "anew"
    anew = figures(run(*words, "--images", 8))
    assert {**resumed, "report": ""} == {**anew, "report": ""}


def test_the_sample_has_every_class_and_is_spread_out(fake: Path, tmp_path: Path) -> None:
    data = read_data(tmp_path / "data")
    chosen = choose_subjects(load_bundle(fake), data, data.test, 4).chosen
    assert [one.sample.label for one in chosen] == ["bright", "dark", "bright", "dark"]
    names = [one.sample.path.stem for one in chosen if one.sample.label == "bright"]
    assert names == ["e002", "e006"]
    assert all(one.mask.any() and not one.mask.all() for one in chosen)
    assert not any((one.reference == one.frame).all() for one in chosen)


def test_without_masks_there_is_nothing_to_measure(fake: Path, tmp_path: Path) -> None:
    make_folder(tmp_path / "bare", train={"good": 4}, test={"good": 2, "bright": 3}, masks=False)
    data = read_data(tmp_path / "bare")
    with pytest.raises(DataError, match="no defect image with a mask"):
        choose_subjects(load_bundle(fake), data, data.test, 0)


def test_biases_and_scales_come_from_the_graph(fake: Path, tmp_path: Path) -> None:
    bundle = load_bundle(fake)
    found = describe_graph(bundle, bundle.engine(provider="cpu"))
    np.testing.assert_allclose(found.biases, 0.0, atol=EXACT)
    assert all(scale > 0 for scale in found.evidence_scale)
    outputs = bundle.golden()[1]
    shifted = ModelOutputs(outputs.class_logits + np.float32(1.5), outputs.saliency_map, outputs.attention_map)
    np.testing.assert_allclose(describe_outputs([shifted]).biases, 1.5, atol=EXACT)
    rng = np.random.default_rng(0)
    wrong = outputs.class_logits + rng.normal(0, 0.01, outputs.class_logits.shape).astype(np.float32)
    with pytest.raises(ParityError, match="bias \\+ sum must be the logit"):
        describe_outputs([ModelOutputs(wrong, outputs.saliency_map, outputs.attention_map)])
    with pytest.raises(SettingsError, match="never overwritten"):
        write_version(bundle, found, fake, None)


@pytest.mark.slow
def test_the_whole_command_with_a_run(tmp_path: Path, tiny_weights: Path) -> None:
    """A trained model with every method, random weights and single heads; and the run of another model is refused."""
    make_folder(
        tmp_path / "data", train={"good": 40, "crack": 50, "fray": 50}, test={"good": 4, "crack": 6, "fray": 6},
        values={"crack": 255, "fray": 0},
    )  # fmt: skip
    options = ["--backbone", TINY, "--weights", tiny_weights, "--size", 64, "--epochs", 3, "--device", "cpu"]
    for name, seed in (("run", 0), ("other", 1)):
        figures(run("train", "--data", tmp_path / "data", "--out", tmp_path / name, *options, "--seed", seed, "--json"))
    figures(run("export", "--run", tmp_path / "run", "--out", tmp_path / "bundle", "--json"))
    exported = load_bundle(tmp_path / "bundle").manifest.explanations
    assert exported is not None
    assert exported.checks == {}
    words = ["explain", "--bundle", tmp_path / "bundle", "--data", tmp_path / "data", "--out", tmp_path / "why"]
    refused = run(*words, "--run", tmp_path / "other")
    assert refused.exit_code == 2
    assert "of another model than the bundle" in refused.stderr
    found = figures(run(*words, "--run", tmp_path / "run", "--write", tmp_path / "next", "--json"))
    assert found["frames"] == 12
    report = json.loads((tmp_path / "why" / "explain.json").read_text())
    assert len(report["methods"]) == 8
    assert list(report["randomisation"]["saliency"])[-1] == "CNN"
    assert len(report["heads"]) == 16
    assert {"good_score_whole", "good_score_patched", "class_score_all_replaced"} <= report["replacement"].keys()
    for index in (1, 2):
        sheet = cv2.imread(str(tmp_path / "why" / f"heads-block-{index}.png"))
        assert sheet is not None
        assert sheet.shape[1] > 8 * 60
    told = load_bundle(tmp_path / "next").manifest.explanations
    assert told is not None
    assert told.biases == exported.biases
    assert told.checks["crack"].randomised is not None

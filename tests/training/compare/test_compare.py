"""Variants are trained alike, compared on the same images, and the verdict says no more than was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from defectlens import main
from tests.fakes import make_bundle
from tests.images import make_folder
from training.compare.cost import Cost, count_flops
from training.compare.figures import Errors, choose_measure, spreads
from training.compare.ranking import mask_share_in_top
from training.compare.study import verdict
from training.compare.variants import VARIANTS, Trial, choose_variants, run_trials
from training.data import read_data, read_mask
from training.options import TrainOptions
from training.run import train_run
from vision.bundle import load_bundle
from vision.errors import DataError, SettingsError
from vision.model.config import ModelConfig
from vision.model.detector import Detector
from vision.preprocess import InputSpec
from vision.types import FloatArray, ModelOutputs


def trial(name: str, seed: int, wrong: set[int], scores: list[float] | None = None, images: int = 200) -> Trial:
    """Of images that are crack, fray and good in turn; good ones score 0 where no scores are given, defects 1."""
    labels = ["good", "crack", "fray"]
    lines: list[dict[str, Any]] = [
        {
            "truth": labels[index % 3],
            "predicted": labels[(index + (index in wrong)) % 3],
            "is_defect": index % 3 > 0,
            "is_ambiguous": False,
            "anomaly_score": float(index % 3 > 0) if scores is None else scores[index],
        }
        for index in range(images)
    ]
    accuracy = 1 - len(wrong) / images
    return Trial(VARIANTS[name], seed, Path(), {"accuracy": accuracy, "image_auroc": None}, lines, 1.0)


def test_a_better_variant_is_found_and_how_much_better_it_is() -> None:
    trials = [
        trial(name, seed, set(range(seed, seed + wrong)))
        for seed in range(3)
        for name, wrong in (("cnn", 60), ("attention-8", 30))
    ]
    assert choose_measure(trials) == "labels"
    errors = Errors(trials, "labels")
    assert errors.best == "attention-8"
    contest = errors.contest("attention-8", "cnn")
    assert contest.errors == pytest.approx((0.15, 0.30))
    assert contest.fewer == pytest.approx(0.5)
    assert contest.is_significant
    assert contest.interval[0] < -0.15 < contest.interval[1]


def test_the_same_wrong_images_are_a_sure_difference_and_others_are_not() -> None:
    """Paired: one variant's errors are among the other's. Unpaired by the same counts the interval is wider."""
    nested = Errors([trial("cnn", 0, set(range(40))), trial("lstm", 0, set(range(30)))], "labels")
    apart = Errors([trial("cnn", 0, set(range(40))), trial("lstm", 0, set(range(100, 130)))], "labels")
    assert nested.contest("lstm", "cnn").is_significant
    assert not apart.contest("lstm", "cnn").is_significant


def test_a_difference_that_one_seed_alone_makes_is_not_significant() -> None:
    trials = [trial("cnn", seed, set(range(90 if seed == 0 else 10))) for seed in range(3)]
    trials += [trial("lstm", seed, set(range(10))) for seed in range(3)]
    errors = Errors(trials, "labels")
    assert errors.best == "lstm"
    assert not errors.contest("lstm", "cnn").is_significant


def test_with_good_and_defective_images_alone_an_error_is_a_pair_in_the_wrong_order() -> None:
    one = trial("cnn", 0, set())
    for line in one.predictions:
        line["truth"] = "anomaly" if line["is_defect"] else "good"
    assert choose_measure([one]) == "order"
    rng = np.random.default_rng(0)
    worse = [float(line["is_defect"]) + rng.normal(0, 1.0) for line in one.predictions]
    other = replace(one, variant=VARIANTS["lstm"])
    other = replace(
        other, predictions=[{**line, "anomaly_score": s} for line, s in zip(one.predictions, worse, strict=True)]
    )
    errors = Errors([one, other], "order")
    assert errors.whole["cnn"] == 0.0
    assert 0.1 < errors.whole["lstm"] < 0.4
    assert errors.contest("cnn", "lstm").is_significant


def test_spread_is_over_seeds_and_leaves_out_what_was_not_measured() -> None:
    found = spreads([trial("cnn", seed, set(range(20 * seed))) for seed in range(3)])
    assert found["cnn"]["accuracy"].mean == pytest.approx(0.9)
    assert found["cnn"]["accuracy"].deviation == pytest.approx(0.1)
    assert "image_auroc" not in found["cnn"]


def test_the_verdict_says_what_is_significant_and_what_is_cheapest() -> None:
    trials = [
        trial(name, seed, set(range(start, start + wrong)))
        for seed in range(3)
        for name, wrong, start in (("cnn", 81, 0), ("attention-1", 31, 100), ("attention-8", 30, 0))
    ]
    errors = Errors(trials, "labels")
    costs = {
        name: Cost(1.0, 0.1, ms, 10.0, 1) for name, ms in (("cnn", 10.0), ("attention-1", 11.0), ("attention-8", 12.0))
    }
    contests = [errors.contest("attention-8", name) for name in ("cnn", "attention-1")]
    lines = verdict(contests, costs, "labels", 3)
    assert "attention-8 makes 63% fewer errors than cnn at 1.20× the time" in lines[0]
    assert lines[1].startswith("attention-8 against attention-1: not significant")
    assert lines[2].startswith("attention-1 is the cheapest")
    assert len(lines) == 3
    assert "1 seed only" in verdict(contests, costs, "labels", 1)[-1]


def test_variants_are_asked_for_by_name() -> None:
    assert [one.name for one in choose_variants("cnn, attention-8")] == ["cnn", "attention-8"]
    with pytest.raises(SettingsError, match="unknown variant 'gru'; choose from cnn, lstm"):
        choose_variants("cnn,gru")
    with pytest.raises(SettingsError, match="at least two variants"):
        choose_variants("cnn,cnn")


@pytest.mark.parametrize("name", VARIANTS)
def test_operations_are_counted_as_they_can_be_worked_out(name: str) -> None:
    mixer, heads = VARIANTS[name].mixer, VARIANTS[name].heads
    config = ModelConfig(
        "test_efficientnet", 128, 128, ("good", "crack"), "good", False, False, mixer=mixer, heads=heads, dim=64
    )  # fmt: skip
    whole, mixing = count_flops(Detector(config))
    tokens, dim = 64, 64
    mlp = 2 * 8 * tokens * dim * dim
    projections = 2 * 4 * tokens * dim * dim
    scans = 2 * tokens * 2 * 2 * 4 * (dim // 4) * (dim + dim // 4)  # two directions of two scans
    mixed = {
        "cnn": 0,
        "lstm": scans + 2 * tokens * dim * dim,
        "attention-1": projections + 4 * tokens * tokens * dim,
        "attention-8": projections + 4 * tokens * tokens * dim,
    }
    if name in mixed:
        assert mixing == pytest.approx(2 * (mlp + mixed[name]) / 1e9, rel=0.02)
    assert whole > mixing > 0


class _Looks:
    """An engine whose attention is a given map a frame."""

    def __init__(self, maps: list[FloatArray]) -> None:
        self._maps = [np.stack([np.zeros_like(one), one]) for one in maps]

    def run(self, frames: NDArray[np.uint8]) -> ModelOutputs:
        maps = np.stack([self._maps.pop(0) for _ in frames])
        return ModelOutputs(np.zeros((len(frames), 2), np.float32), maps, maps)


def test_a_read_out_that_looks_at_the_defect_has_it_in_its_top_tokens(tmp_path: Path) -> None:
    data = read_data(make_folder(tmp_path / "parts", test={"good": 2, "crack": 5}))
    manifest = replace(load_bundle(make_bundle(tmp_path / "bundle")).manifest, input=InputSpec(160, 256, 255))
    masks = [read_mask(one.mask).astype(np.float32) for one in data.test if one.mask is not None]
    assert len(masks) == 5
    close = mask_share_in_top(_Looks(masks), manifest, data.test, data.white_level)  # type: ignore[arg-type]
    assert close.min() > 0.95
    away = mask_share_in_top(_Looks([-one for one in masks]), manifest, data.test, data.white_level)  # type: ignore[arg-type]
    assert away.max() == 0.0


def run(*words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--json"], catch_exceptions=False)


@pytest.mark.slow
def test_the_command_trains_compares_and_goes_on_where_it_was(
    tmp_path: Path, options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(
        tmp_path / "parts", train={"good": 40, "crack": 44, "fray": 8}, test={"good": 9, "crack": 6, "fray": 6}
    )
    words = [
        "compare", "--data", str(root), "--out", str(tmp_path / "out"), "--variants", "cnn,lstm", "--size", "64",
        "--backbone", options.backbone, "--weights", str(options.weights), "--epochs", "1", "--batch", "8",
        "--device", "cpu",
    ]  # fmt: skip
    result = run(*words, "--seeds", "1")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out/compare.json").read_text())
    assert set(report["variants"]) == {"cnn", "lstm"}
    for one in report["variants"].values():
        assert 0.0 <= one["errors"] <= 1.0
        assert one["cost"]["ms"] > 0.0
        assert one["cost"]["memory_mb"] > 0.0
        assert one["mask_share_in_top_tokens"] is not None
    assert report["variants"]["lstm"]["cost"]["gflops"] > report["variants"]["cnn"]["cost"]["gflops"]
    page = (tmp_path / "out/report.html").read_text()
    assert "not significant" in page or "fewer errors" in page
    assert 'src="http' not in page
    assert "<link" not in page

    trained: list[str] = []

    def count(*given: Any, **named: Any) -> Any:
        trained.append(given[1].mixer)
        return train_run(*given, **named)

    monkeypatch.setattr("training.compare.variants.train_run", count)
    assert run(*words, "--seeds", "2").exit_code == 0
    assert trained == ["none", "lstm"]  # the second seed alone
    report = json.loads((tmp_path / "out/compare.json").read_text())
    assert report["variants"]["cnn"]["figures"]["accuracy"]["deviation"] is not None

    monkeypatch.setattr("training.compare.variants.version", lambda _: "99")
    assert run(*words, "--seeds", "2").exit_code == 0, "what is finished can be reported by any version"
    result = run(*words, "--seeds", "3")
    assert result.exit_code == 2
    assert "what is left to train of 99; go on with 0." in " ".join(result.stderr.split())
    begun = tmp_path / "out/lstm/seed-1"
    begun.rename(tmp_path / "interrupted")
    begun.mkdir()
    document = json.loads((tmp_path / "interrupted/run.json").read_text())
    (begun / "run.json").write_text(json.dumps({**document, "version": "98"}))
    result = run(*words, "--seeds", "2")
    assert result.exit_code == 2
    assert "seed-1 of 98; go on with 0." in " ".join(result.stderr.split())

    words[words.index("--batch") + 1] = "4"
    result = run(*words, "--seeds", "1")
    assert result.exit_code == 2
    assert "another batch" in result.stderr


def test_without_a_test_part_there_is_nothing_to_compare_on(tmp_path: Path, options: TrainOptions) -> None:
    data = read_data(make_folder(tmp_path / "parts", train={"good": 24}))
    with pytest.raises(DataError, match="no test images to compare on"):
        run_trials(data, options, choose_variants("cnn,lstm"), [0], tmp_path / "out")

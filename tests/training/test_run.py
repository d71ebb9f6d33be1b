"""Training end to end on small real files: what it writes, that it resumes exactly, and that it never sees the test."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from tests.images import make_folder
from training import data as data_module
from training.batches import TrainingFrames
from training.data import read_data
from training.loop import LAST, Progress, Trainer
from training.options import TrainOptions, choose_recipe
from training.rounds import SECOND
from training.run import Run, load_run, train_run
from training.splits import split
from training.stores import FrameStore, Store
from vision.errors import InputError, SettingsError, TrainingError
from vision.model.detector import NO_FLOOR, Detector, DetectorOutputs
from vision.model.readout import AdditiveReadout


def _train(root: Path, options: TrainOptions, out: Path, *, resume: bool = False) -> Run:
    return train_run(read_data(root), options, out, resume=resume)


def _stop(monkeypatch: pytest.MonkeyPatch, when: Callable[[Progress], bool]) -> None:
    """Interrupt a training before an epoch."""
    real = Trainer._epoch

    def interrupted(self: Trainer, progress: Progress, writer: Any) -> Progress:
        if when(progress):
            raise KeyboardInterrupt
        return real(self, progress, writer)

    monkeypatch.setattr(Trainer, "_epoch", interrupted)


def test_recipe_follows_from_the_labels(tmp_path: Path, options: TrainOptions) -> None:
    cases = {
        "normal": ({"good": 20}, False, True),
        "few": ({"good": 20, "crack": 6}, False, True),
        "many": ({"good": 20, "crack": 60}, True, False),
        "no good": ({"crack": 10, "fray": 10}, True, False),
    }
    for name, (labels, tuned, synthetic) in cases.items():
        data = read_data(make_folder(tmp_path / name, train=labels))
        recipe = choose_recipe(data, split(data, 0), options)
        assert (recipe.tune_backbone, recipe.synthetic) == (tuned, synthetic), name
        assert recipe.class_map == (name != "normal"), name


@pytest.mark.parametrize(("cracks", "frays", "localised"), [(9, 10, True), (9, 2, False), (20, 0, False)])
def test_without_good_images_half_of_the_defects_need_masks_and_each_class_some(
    tmp_path: Path, options: TrainOptions, cracks: int, frays: int, localised: bool
) -> None:
    root = make_folder(tmp_path, train={"crack": 20, "fray": 10})
    for label, count in (("crack", cracks), ("fray", frays)):
        for path in sorted((root / "ground_truth" / label).iterdir())[count:]:
            path.unlink()
    data = read_data(root)
    recipe = choose_recipe(data, split(data, 0), options)
    assert recipe.class_map == localised
    assert ("places from the masks" in recipe.why) == localised


@pytest.fixture
def another_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, bool]], None]]:
    """Trains as on a CPU with other capabilities; accelerate keeps the precision of a process's first training."""

    def pretend(capabilities: dict[str, bool]) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        AcceleratorState._reset_state()

    yield pretend
    AcceleratorState._reset_state()


@pytest.mark.parametrize(
    "labels",
    [{"good": 24}, {"good": 24, "crack": 6}, {"good": 40, "crack": 44, "fray": 8}, {"crack": 16, "fray": 16}],
    ids=["normal-only", "few-labels", "many-labels", "no-good-class"],
)
@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_every_kind_of_data_trains_on_every_cpu_and_loads_again(
    tmp_path: Path,
    options: TrainOptions,
    labels: dict[str, int],
    has_bfloat16: bool,
    another_cpu: Callable[[dict[str, bool]], None],
) -> None:
    another_cpu({"avx512_bf16": has_bfloat16})
    root = make_folder(tmp_path / "data", train=labels)
    trained = _train(root, options, tmp_path / "run")
    loaded = load_run(tmp_path / "run")
    assert loaded.manifest == trained.manifest
    np.testing.assert_array_equal(loaded.golden, trained.golden)
    frames = torch.from_numpy(trained.golden)
    with torch.no_grad():
        one, other = trained.detector.eval()(frames), loaded.detector.eval()(frames)
    torch.testing.assert_close(one.class_logits, other.class_logits)
    used = trained.figures
    assert 0.0 < used["cpu_seconds"] < 600.0
    assert 100.0 < used["peak_mib"] < 16_000.0  # torch alone has more than the one, the machine less than the other
    point = trained.manifest.operating_point
    if "good" in labels:
        assert point.image_threshold is not None
        assert len(trained.manifest.calibration_scores) >= 3
        # 1 / (n + 1) is the smallest overkill that n images can promise, and the evidence says so.
        assert f"rests on {len(trained.manifest.calibration_scores)} good calibration images" in point.evidence
        assert "more good images" in point.evidence
        torch.testing.assert_close(one.anomaly_map, other.anomaly_map)
    else:
        assert point.image_threshold is None
        assert "never pass a part" in point.evidence


def test_large_frames_are_judged_one_at_a_time(
    tmp_path: Path, options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, batches = Detector.forward, set()

    def counted(self: Detector, frames: torch.Tensor) -> DetectorOutputs:
        if not torch.is_grad_enabled():
            batches.add(len(frames))
        return real(self, frames)

    monkeypatch.setattr(Detector, "forward", counted)
    monkeypatch.setattr("vision.preprocess._BATCH_PIXELS", 64 * 64)
    run = _train(make_folder(tmp_path / "data", train={"good": 60, "crack": 6}), options, tmp_path / "run")
    assert (run.detector.config.height, run.detector.config.width) == (64, 64)
    assert run.reference is not None
    assert batches == {1}


@pytest.mark.slow
@pytest.mark.parametrize("cracks", [80, 5], ids=["many labels", "few labels"])
def test_class_logits_know_how_rare_a_class_is_where_it_has_many_images(
    tmp_path: Path, options: TrainOptions, monkeypatch: pytest.MonkeyPatch, cracks: int
) -> None:
    lowered: list[list[float]] = []
    monkeypatch.setattr(AdditiveReadout, "lower", lambda _, logits: lowered.append(logits))
    _train(make_folder(tmp_path / "data", train={"good": 160, "crack": cracks}), options, tmp_path / "run")
    good, crack = np.sum(lowered, axis=0)  # of both rounds, and what the second began with
    if cracks == 5:
        assert (good, crack) == (0, 0)
        return
    assert crack > 0 > good
    # Drawn by the root of their number, and three in ten good ones have a copy of a crack.
    assert crack - good == pytest.approx(np.log((2**0.5 + 0.3 * 2) / 0.7), abs=0.2)


@pytest.mark.slow
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(tmp_path / "data", train={"good": 24})
    longer = replace(options, epochs=3)
    _train(root, longer, tmp_path / "whole")

    with monkeypatch.context() as until:
        _stop(until, lambda progress: progress.epoch == 2)
        with pytest.raises(KeyboardInterrupt):
            _train(root, longer, tmp_path / "parts")
    with pytest.raises(InputError, match="has not finished; go on with"):
        load_run(tmp_path / "parts")
    _train(root, longer, tmp_path / "parts", resume=True)
    whole, parts = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("defects", [60, 5])
def test_the_second_round_learns_from_validation_images_and_never_from_calibration(
    tmp_path: Path, options: TrainOptions, monkeypatch: pytest.MonkeyPatch, defects: int
) -> None:
    taught: list[set[str]] = []
    real = TrainingFrames.__init__

    def watched(self: TrainingFrames, store: Store, *others: Any) -> None:
        taught.append({sample.content for sample in store.samples})
        real(self, store, *others)

    monkeypatch.setattr(TrainingFrames, "__init__", watched)
    root = make_folder(tmp_path / "data", train={"good": 60, "crack": defects})
    seen = _train(root, replace(options, epochs=1), tmp_path / "run").seen
    assert seen is not None
    assert taught == [seen["train"], seen["train"] | seen["validation"]]
    assert seen["validation"]
    assert not taught[1] & seen["calibration"]


@pytest.mark.slow
@pytest.mark.parametrize(("labels", "floor"), [({"good": 40}, -2.0), ({"good": 40, "crack": 3}, NO_FLOOR)])
def test_a_mask_head_that_has_seen_a_real_defect_may_speak_against_others(
    tmp_path: Path, options: TrainOptions, monkeypatch: pytest.MonkeyPatch, labels: dict[str, int], floor: float
) -> None:
    """Three defects of a class all teach, and none is in validation."""
    monkeypatch.setattr("training.rounds.fit_subspace", lambda *_: 0.9)
    run = _train(make_folder(tmp_path / "data", train=labels), options, tmp_path / "run")
    assert float(run.detector.mask_floor) == floor
    assert run.figures.get("good_foreseen") == (0.9 if floor == -2.0 else None)


@pytest.mark.slow
def test_without_labelled_defects_there_is_one_round(tmp_path: Path, options: TrainOptions) -> None:
    _train(make_folder(tmp_path / "data", train={"good": 24}), replace(options, epochs=1), tmp_path / "run")
    assert not (tmp_path / "run" / SECOND).exists()


@pytest.mark.slow
@pytest.mark.parametrize(("defects", "masks"), [(48, True), (48, False), (5, True)])
def test_a_run_stopped_in_its_second_round_ends_as_one_that_was_not(
    tmp_path: Path,
    options: TrainOptions,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    defects: int,
    masks: bool,
) -> None:
    root = make_folder(tmp_path / "data", train={"good": 40, "crack": defects}, masks=masks)
    longer = replace(options, epochs=4)
    whole = _train(root, longer, tmp_path / "whole")
    assert capsys.readouterr().err.count("min of training left") == 5  # after all of both rounds' epochs but the last
    with monkeypatch.context() as until:
        _stop(until, lambda _: (tmp_path / "parts" / SECOND / LAST).is_file())
        with pytest.raises(KeyboardInterrupt):
            _train(root, longer, tmp_path / "parts")
    parts = _train(root, longer, tmp_path / "parts", resume=True)
    assert whole.figures["epochs"] == parts.figures["epochs"] == 6
    assert whole.manifest.operating_point == parts.manifest.operating_point
    for (name, value), other in zip(
        whole.detector.state_dict().items(), parts.detector.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name


@pytest.mark.slow
def test_the_same_seed_gives_the_same_model_and_another_seed_another(tmp_path: Path, options: TrainOptions) -> None:
    root = make_folder(tmp_path / "data", train={"good": 24})
    short = replace(options, epochs=1)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(ord(name))  # what ran before must not matter
        _train(root, replace(short, seed=seed), tmp_path / name)
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    assert any(not torch.equal(value, c[name]) for name, value in a.items())


def test_training_and_calibration_never_read_a_test_image(
    tmp_path: Path, options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(tmp_path / "data", train={"good": 24}, test={"good": 6, "crack": 6})
    data = read_data(root)
    read: set[Path] = set()
    real = FrameStore._read

    def watched(self: FrameStore, index: int):  # type: ignore[no-untyped-def]
        read.add(self.samples[index].path)
        return real(self, index)

    monkeypatch.setattr(FrameStore, "_read", watched)
    real_frame = data_module.read_frame

    def watched_frame(path: Path, white_level: int):  # type: ignore[no-untyped-def]
        read.add(path)
        return real_frame(path, white_level)

    monkeypatch.setattr(data_module, "read_frame", watched_frame)
    for sample in data.test:
        sample.path.unlink()  # whatever reads one now fails
    train_run(data, replace(options, epochs=1), tmp_path / "run", resume=False)
    assert read == {sample.path for sample in data.train}


def test_a_folder_with_another_run_is_never_overwritten(
    tmp_path: Path, options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(tmp_path / "data", train={"good": 24})
    _train(root, replace(options, epochs=1), tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(SettingsError, match="already holds a run"):
        _train(root, options, tmp_path / "run")
    with pytest.raises(SettingsError, match=r"holds another run: .*recipe.* differ"):
        _train(root, options, tmp_path / "run", resume=True)
    monkeypatch.setattr("training.run.version", lambda _: "99")
    with pytest.raises(SettingsError, match="holds another run: version differ"):
        _train(root, replace(options, epochs=1), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named(tmp_path: Path, options: TrainOptions) -> None:
    root = make_folder(tmp_path / "data", train={"good": 24})
    _train(root, replace(options, epochs=1), tmp_path / "run")
    (tmp_path / "run" / "last.safetensors").write_bytes(b"cut off")
    with pytest.raises(TrainingError, match="cannot be read"):
        _train(root, replace(options, epochs=1), tmp_path / "run", resume=True)
    document = json.loads((tmp_path / "run" / "run.json").read_text())
    assert document["manifest"]["provenance"]["counts"]["calibration"] > 0

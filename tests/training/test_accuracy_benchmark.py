"""The comparison with anomalib's models: everything but anomalib itself, which lives in an environment of its own."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from sklearn import metrics as reference

from benchmarks import accuracy
from benchmarks.peers import comparison
from benchmarks.peers.anomalib_runner import Frames, Job, batches, layers, values_of_layer, with_weights
from benchmarks.peers.catalogue import OURS, PEERS
from benchmarks.peers.comparison import Comparison, run_job
from benchmarks.peers.frames import one_class, training_folder, write_frames, write_weights
from benchmarks.peers.latency import Served, in_turns
from benchmarks.peers.measured import markdown, measure, rows, verdict
from tests.fakes import make_bundle
from tests.images import make_folder, write
from tests.training.conftest import TINY
from training.data import read_data, read_mask
from training.evaluate import evaluate
from training.predictor import BundlePredictor
from training.resources import peak_mib
from vision.bundle import load_bundle
from vision.errors import DataError, SettingsError
from vision.model.backbone import STRIDES, Backbone, load_pretrained
from vision.postprocess import resize_map
from vision.preprocess import InputSpec

STAND_IN = """
import json, sys
from pathlib import Path
import numpy as np
file = Path(sys.argv[1])
job = json.loads(file.read_text())
if job["options"] == {"layer": "layer3"}:
    sys.exit("it fell over")
frames = np.load(job["test"]).astype(np.float32)
maps = np.abs(frames.mean(axis=-1) - 128)
np.savez(file.parent / "outputs.npz", scores=maps.max(axis=(1, 2)), maps=maps)
figures = {"fit_seconds": 1.0, "fit_cpu_seconds": 2.0, "peak_mib": 3.0, "model_bytes": 4_000_000}
(file.parent / "figures.json").write_text(json.dumps({**figures, "export_error": "no such operator"}))
with (file.parent / "count").open("a") as count:
    count.write("x")
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data", train={"good": 4, "dent": 2}, test={"good": 5, "dent": 4})


def options(data: Path, out: Path, weights: Path, **changes: Any) -> argparse.Namespace:
    given: dict[str, Any] = {"data": str(data), "out": out, "peers_python": Path(sys.executable), "weights": weights}
    given |= {"peers": ["padim"], "run": [], "size": 64, "backbone": TINY, "seeds": [0], "epochs": {}, "again": []}
    return argparse.Namespace(**{**given, "batch": 4, "threads": 1, "rounds": 1, **changes})


def test_layers_are_found_by_their_stride() -> None:
    infos = [{"module": f"blocks.{index}", "reduction": stride} for index, stride in enumerate((2, 4, 8, 16, 32))]
    assert layers(["layer2", "layer3"], infos) == ["blocks.2", "blocks.3"]
    with pytest.raises(ValueError, match=r"no features at strides \[32\]"):
        layers(["layer1", "layer4"], infos[:-1])


def test_fre_is_given_as_many_inputs_as_its_layer_has_values() -> None:
    # 112 channels at stride 16: 4 x 7 places of 72 x 120 px, of which 2 x 3 cells of 2 x 2 are whole.
    assert values_of_layer("tf_efficientnet_lite0", "blocks.4", (72, 120), 2) == 112 * 2 * 4


def test_peers_see_the_features_that_defectlens_sees(tmp_path: Path, tiny_weights: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (2, 64, 96, 3), dtype=np.uint8)
    np.save(tmp_path / "frames.npy", frames)
    mean, std, _ = write_weights(TINY, tiny_weights, tmp_path / "weights.safetensors")
    create = with_weights(timm.create_model, tmp_path / "weights.safetensors")
    infos = timm.create_model(TINY, features_only=True).feature_info.info
    places = [[info["reduction"] for info in infos].index(stride) for stride in STRIDES]
    theirs = create(TINY, pretrained=True, features_only=True, exportable=True, out_indices=places).eval()
    ours = Backbone(TINY)
    load_pretrained(ours, tiny_weights)
    (images,) = batches(Frames(str(tmp_path / "frames.npy")), 4)
    scaled = (images - torch.tensor(mean).view(1, 3, 1, 1) / 255) / (torch.tensor(std).view(1, 3, 1, 1) / 255)
    with torch.no_grad():
        for one, other in zip(theirs(scaled), ours.eval()(torch.from_numpy(frames)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        untrained = create(TINY, pretrained=False, features_only=True, out_indices=places).eval()
        assert not torch.allclose(untrained(scaled)[0], theirs(scaled)[0], rtol=1e-2)


def test_batches_hold_every_frame_once(tmp_path: Path) -> None:
    np.save(
        tmp_path / "frames.npy", np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    )
    sizes = [
        (len(batch), float(batch[-1, 0, 0, 0] * 255)) for batch in batches(Frames(str(tmp_path / "frames.npy")), 2)
    ]
    assert sizes == [(2, 1.0), (2, 3.0), (1, 4.0)]


def test_only_surely_good_images_train(data: Path, tmp_path: Path) -> None:
    images = one_class(read_data(data))
    assert {sample.label for sample in images.train} == {"good"}
    assert len(images.train) == 4
    folder = training_folder(str(data), tmp_path / "links")
    linked = read_data(folder)
    assert [sample.content for sample in linked.train] == [sample.content for sample in images.train]
    assert not linked.test
    good = make_folder(tmp_path / "good", train={"good": 4}, test={"good": 1, "dent": 1})
    assert training_folder(str(good), tmp_path / "unused") == str(good)


def test_data_that_cannot_be_compared_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no good training image"):
        one_class(read_data(make_folder(tmp_path / "one", train={"dent": 3}, test={"good": 1, "dent": 1})))
    with pytest.raises(DataError, match="good and defective test images"):
        one_class(read_data(make_folder(tmp_path / "two", train={"good": 3}, test={"good": 3})))


def test_frames_and_their_digest_follow_the_pixels(data: Path, tmp_path: Path) -> None:
    first = write_frames(one_class(read_data(data)), InputSpec(64, 96), tmp_path / "frames")
    assert np.load(tmp_path / "frames" / "test.npy").shape == (9, 64, 96, 3)
    assert write_frames(one_class(read_data(data)), InputSpec(64, 96), tmp_path / "again") == first
    write(data / "train" / "good" / "t000.png", np.full((64, 96), 7, np.uint8))
    assert write_frames(one_class(read_data(data)), InputSpec(64, 96), tmp_path / "other") != first


def test_figures_are_those_of_evaluate_and_of_scikit_learn(tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path / "bundle"))
    dataset = read_data(make_folder(tmp_path / "data", test={"good": 6, "bright": 5}, values={"bright": 136}))
    report = evaluate(BundlePredictor(bundle, provider="cpu"), dataset, dataset.test, tmp_path / "evaluation")
    answers = list(BundlePredictor(bundle, provider="cpu").predict(dataset.test))
    scores = np.asarray([one.anomaly_score for one in answers], np.float32)
    maps = np.stack([one.anomaly_map for one in answers])
    figures = measure(scores, maps, dataset.test, dataset.white_level)
    for name in ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro"):
        assert figures[name] == pytest.approx(report[name])
        assert figures["intervals"][name] == pytest.approx(report["intervals"][name])
    truth = [sample.is_defect for sample in dataset.test]
    assert figures["image_auroc"] == pytest.approx(reference.roc_auc_score(truth, scores))
    masks = [np.zeros((64, 96), bool) if sample.mask is None else read_mask(sample.mask) for sample in dataset.test]
    pixels = np.stack([resize_map(one, 64, 96) for one in maps])
    assert figures["pixel_ap"] == pytest.approx(reference.average_precision_score(np.ravel(masks), pixels.ravel()))


def test_ambiguous_images_are_not_measured(data: Path) -> None:
    test = list(read_data(data).test)
    place = next(index for index, sample in enumerate(test) if not sample.is_defect)
    test[place] = replace(test[place], defect_probability=1 / 3)
    scores = np.asarray([float(sample.is_defect) for sample in test], np.float32)
    scores[place] = 9.0  # a good image far above all others, were it one
    figures = measure(scores, np.zeros((9, 8, 12), np.float32), test, 65535)
    assert figures["image_auroc"] == 1.0
    assert (figures["images"], figures["defects"]) == (8, 4)


def test_outputs_that_do_not_fit_are_refused(data: Path) -> None:
    test, maps = read_data(data).test, np.zeros((9, 8, 12), np.float32)
    with pytest.raises(ValueError, match="9 images, but 8 scores"):
        measure(np.zeros(8, np.float32), maps, test, 65535)
    with pytest.raises(ValueError, match="no finite numbers"):
        measure(np.full(9, np.nan, np.float32), maps, test, 65535)


def result(method: str, auroc: float, **more: Any) -> dict[str, Any]:
    return {"method": method, "title": method.upper(), "input": "96x64", "image_auroc": auroc, **more}


def test_the_table_has_means_deviations_and_the_best_in_bold() -> None:
    table = rows(
        [
            result("stfpm", 0.8, ms=10.0, intervals={"image_auroc": (0.7, 0.9)}),
            result(OURS, 0.9, ms=20.0),
            result(OURS, 0.8, ms=None),
        ]
    )
    assert table[1]["image_auroc"] == pytest.approx(0.85)
    lines = markdown(table).splitlines()
    assert lines[0] == "| method | input | image AUROC | ms a frame |"
    assert lines[2] == "| STFPM | 96x64 | 0.800 (0.700 to 0.900) | **10.0** |"
    assert lines[3] == "| DEFECTLENS | 96x64 | **0.850** ± 0.071 | 20.0 |"
    ahead, behind = verdict(table)
    assert ahead.endswith("on: image AUROC (0.850 against 0.800 of STFPM)")
    assert behind.endswith("on: ms a frame (20.0 against 10.0 of STFPM)")


def test_a_method_that_failed_keeps_its_row_and_says_why() -> None:
    failed = {"method": "dfm", "title": "DFM", "input": "96x64", "notes": ["DFM failed: exit code 1"]}
    table = rows([failed, result(OURS, 0.9)])
    assert "| DFM | 96x64 | – |" in markdown(table)
    assert table[0]["notes"] == ["DFM failed: exit code 1"]


def test_a_job_is_run_once_and_never_mixed_with_another(tmp_path: Path) -> None:
    script = tmp_path / "runner.py"
    script.write_text("import sys, pathlib; f = pathlib.Path(sys.argv[1]).parent / 'figures.json'; f.open('x')")
    command: list[str | Path] = [sys.executable, script]
    assert run_job(tmp_path / "out", {"seed": 0}, command) is None
    assert run_job(tmp_path / "out", {"seed": 0}, command) is None  # a second time, open('x') would fail
    with pytest.raises(SettingsError, match="another seed; give another --out"):
        run_job(tmp_path / "out", {"seed": 1}, command)
    script.write_text("raise SystemExit('not today')")
    assert run_job(tmp_path / "other", {}, command) == "exit code 1, not today"


def test_the_runners_job_has_what_the_comparison_sends(
    data: Path, tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "run_job", lambda _, job, __: Job(**job) and "not run")
    given = options(data, tmp_path / "out", tiny_weights, peers=list(PEERS), epochs={"stfpm": 3})
    notes = [one["notes"][0] for one in Comparison(given).peer_results()]
    assert "STFPM, 3 of 100 epochs failed: not run" in notes
    assert len(notes) == len(PEERS)


@pytest.mark.slow
def test_everything_but_anomalib(
    data: Path, tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(STAND_IN)
    monkeypatch.setattr(comparison, "RUNNER", stand_in)
    bundle = make_bundle(tmp_path / "fake")
    given = options(data, tmp_path / "out", tiny_weights, peers=["padim", "dfm"], run=[bundle])
    compared = Comparison(given)
    results = compared.peer_results() + compared.our_results()
    compared.add_latencies(results)
    padim, dfm, ours = results
    assert (padim["image_auroc"], padim["pixel_auroc"], padim["model_mb"]) == (1.0, pytest.approx(1.0, abs=0.01), 4.0)
    assert padim["notes"] == ["PaDiM has no latency, its export failed: no such operator"]
    assert dfm["notes"] == ["DFM failed: exit code 1, it fell over"]
    assert ours["image_auroc"] == 1.0
    assert ours["ms"] > 0
    assert ours["graph_difference"] < 1e-5
    assert 10 < ours["serving_mib"] < 0.8 * peak_mib()  # of the process that serves, not of this one with torch in it
    Comparison(given).peer_results()
    counter = tmp_path / "out" / "padim-seed0" / "count"
    assert counter.read_text() == "x"
    Comparison(options(data, tmp_path / "out", tiny_weights, run=[bundle], again=["padim"])).peer_results()
    assert counter.read_text() == "x"  # the folder began anew
    assert json.loads((tmp_path / "out" / "padim-seed0" / "job.json").read_text())["peer"] == "Padim"


def test_a_graph_that_cannot_run_costs_the_others_nothing(data: Path, tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path / "fake"))
    images = one_class(read_data(data))
    write_frames(images, InputSpec(64, 96), tmp_path)
    answers = BundlePredictor(bundle, provider="cpu").predict(images.test)
    np.savez(tmp_path / "outputs.npz", scores=np.asarray([one.anomaly_score for one in answers], np.float32))
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    graphs = {"broken": tmp_path / "broken.onnx", "fake": bundle.path / "model.onnx"}
    models = {name: (graph, tmp_path / "outputs.npz") for name, graph in graphs.items()}
    served = in_turns(models, tmp_path / "test.npy", threads=1, rounds=1)
    assert served["broken"] == "the process that ran broken's graph ended with code 1"
    assert isinstance(served["fake"], Served)
    assert served["fake"].ms > 0


@pytest.mark.slow
def test_defectlens_is_trained_on_the_good_images(tmp_path: Path, tiny_weights: Path) -> None:
    data = make_folder(tmp_path / "data", train={"good": 16, "dent": 2}, test={"good": 4, "dent": 4})
    compared = Comparison(options(data, tmp_path / "out", tiny_weights, peers=[]))
    (ours,) = results = compared.our_results()
    assert ours["notes"] == []
    compared.add_latencies(results)
    assert ours["image_auroc"] == 1.0
    assert ours["input"] == f"{compared.spec.width}x{compared.spec.height}"
    assert min(ours[name] for name in ("fit_seconds", "fit_cpu_seconds", "peak_mib", "ms", "model_mb")) > 0
    assert ours["graph_difference"] < 1e-3
    run = json.loads((tmp_path / "out" / "defectlens-seed0" / "run" / "run.json").read_text())
    assert run["model"]["classes"] == ["good", "anomaly"]
    assert run["manifest"]["provenance"]["options"]["size"] == 64


@pytest.mark.parametrize("arguments", [[], ["--peers-python", "/no/such/python"], ["--peers-python", sys.executable]])
def test_without_the_peers_environment_it_says_how_to_make_one(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["accuracy", "--data", "elpv", "--out", str(tmp_path / "out"), *arguments])
    with pytest.raises(SystemExit) as exit_code:
        accuracy.main()
    assert exit_code.value.code == 2
    assert "ENV/bin/pip install 'defectlens[peers]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unknown_peers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["accuracy", "--data", "x", "--out", str(tmp_path), "--peers", "padim,magic"])
    with pytest.raises(SystemExit):
        accuracy.main()
    assert "unknown peers magic; known are padim" in capsys.readouterr().err

"""Evaluation of a real bundle on real files, checked against figures that can be worked out by hand."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from sklearn import metrics as reference

from tests.fakes import make_bundle
from tests.images import make_folder, spot_mask, texture, write
from training.data import DataSet, Sample, read_data, read_frame, read_mask
from training.evaluate import BundlePredictor, EnginePredictor, evaluate
from training.predictor import map_ahead
from vision.bundle import Manifest, load_bundle
from vision.decision import OperatingPoint
from vision.errors import DataError
from vision.postprocess import judge, resize_map
from vision.preprocess import InputSpec, to_model_input
from vision.types import Inspection, ModelOutputs, Verdict

KEYS = {
    "image_auroc",
    "image_ap",
    "image_f1_max",
    "image_f1_max_threshold",
    "accuracy",
    "per_class",
    "confusion_matrix",
    "pixel_auroc",
    "pixel_ap",
    "aupro",
    "aupro_max_fpr",
    "miou",
    "overkill_rate",
    "escape_rate",
    "review_rate",
    "verdicts",
    "counts",
    "images",
    "timings",
    "data",
    "data_digest",
    "bundle",
    "provider",
    "operating_point",
    "promise",
    "class_probabilities",
    "intervals",
    "notes",
}


class Scripted:
    """Answers with given scores; the anomaly map is flat at the score, the class scores favour one class."""

    provider = "torch cpu"
    digest = None

    def __init__(self, manifest: Manifest, scores: Sequence[float | None], labels: Sequence[str]) -> None:
        self.manifest = manifest
        self._answers = list(zip(scores, labels, strict=True))

    def predict(self, samples: Sequence[Sample]) -> Iterator[Inspection]:
        for (score, label), sample in zip(self._answers, samples, strict=True):
            frame = read_frame(sample.path, 65535)
            logits = np.array([[3.0 if name == label else 0.0 for name in self.manifest.classes]], np.float32)
            maps = np.zeros((1, len(self.manifest.classes), 4, 6), np.float32)
            outputs = ModelOutputs(
                logits,
                maps,
                maps,
                None if score is None else np.array([score], np.float32),
                None if score is None else np.full((1, 4, 6), score, np.float32),
            )
            yield judge(outputs, self.manifest, *frame.shape[:2])


class Measured(NamedTuple):
    report: dict[str, Any]
    out: Path


def manifest(*defects: str, good: bool = True, by_score: bool = False) -> Manifest:
    point = OperatingPoint(0.5, 0.4, 0.6) if good else OperatingPoint(None, None, None, class_threshold=0.6)
    return Manifest(
        name="scripted",
        version="3",
        created="2025-01-01T00:00:00+00:00",
        input=InputSpec(64, 96),
        classes=("good", *defects) if good else defects,
        good_class="good" if good else None,
        predicts_by_anomaly_score=by_score,
        operating_point=point,
        calibration_scores=(0.1, 0.2, 0.3) if good else (),
    )


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def strict_json(path: Path) -> Any:
    """JSON as the standard has it: NaN and Infinity are errors."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture(scope="module")
def spots(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Bright and dark spots on grey parts; the fake bundle tells them apart."""
    root = make_folder(
        tmp_path_factory.mktemp("spots"),
        train={"good": 2, "bright": 1, "dark": 1},
        test={"good": 9, "bright": 5, "dark": 6},
        values={"bright": 250, "dark": 5},
    )
    return read_data(root)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> BundlePredictor:
    return BundlePredictor(load_bundle(make_bundle(tmp_path_factory.mktemp("bundle") / "fake")), "cpu", batch_size=4)


@pytest.fixture(scope="module")
def measured(spots: DataSet, predictor: BundlePredictor, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    out = tmp_path_factory.mktemp("measured") / "deep" / "out"
    return Measured(evaluate(predictor, spots, spots.test, out), out)


class TestBundle:
    def test_the_whole_report(self, spots: DataSet, predictor: BundlePredictor, measured: Measured) -> None:
        report, out = measured
        assert set(report) == KEYS
        assert strict_json(out / "report.json") == json.loads(json.dumps(report))
        assert (out / "report.html").stat().st_size > 10_000
        assert report["image_auroc"] == report["image_ap"] == report["image_f1_max"] == report["accuracy"] == 1.0
        assert report["confusion_matrix"] == {
            "labels": ["good", "bright", "dark"],
            "counts": [[9, 0, 0], [0, 5, 0], [0, 0, 6]],
        }
        assert report["per_class"]["dark"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 6}
        assert report["counts"] == {"good": 9, "bright": 5, "dark": 6}
        assert report["verdicts"] == {"PASS": 9, "REJECT": 11, "REVIEW": 0, "NO_VERDICT": 0}
        assert (report["overkill_rate"], report["escape_rate"], report["review_rate"]) == (0.0, 0.0, 0.0)
        assert report["intervals"]["overkill_rate"][1] > 0.2, "9 good parts prove little"
        assert report["aupro_max_fpr"] == 0.3
        assert report["aupro"] > 0.9
        assert report["miou"] > 0.4
        assert report["images"] == 20
        assert report["provider"] == "CPUExecutionProvider"
        assert report["data_digest"] == spots.digest
        assert report["bundle"]["digest"] == predictor.digest
        assert report["bundle"]["model_digest"] == predictor.manifest.model_digest
        assert report["timings"]["frames_per_second"] == pytest.approx(1000 / report["timings"]["ms_per_frame"])

    def test_one_line_an_image_in_order(self, spots: DataSet, measured: Measured) -> None:
        written = lines(measured.out)
        assert [line["path"] for line in written] == [
            sample.path.relative_to(spots.root).as_posix() for sample in spots.test
        ]
        for line, sample in zip(written, spots.test, strict=True):
            assert line["label"] == line["predicted"] == sample.label
            assert list(line["class_scores"]) == ["good", "bright", "dark"]
            assert sum(line["class_scores"].values()) == pytest.approx(1.0)
            assert max(line["class_scores"], key=line["class_scores"].get) == sample.label
            assert line["verdict"] == ("REJECT" if sample.is_defect else "PASS")
            assert "image threshold" in line["reason"] or "review threshold" in line["reason"]
            assert 0 <= line["calibrated_anomaly_score"] <= 1

    def test_the_batch_size_changes_nothing(self, spots: DataSet, predictor: BundlePredictor, tmp_path: Path) -> None:
        bundle = load_bundle(make_bundle(tmp_path / "fake"))
        for size in (1, 3, 32):
            other = BundlePredictor(bundle, "cpu", batch_size=size)
            for one, two in zip(predictor.predict(spots.test), other.predict(spots.test), strict=True):
                assert one.anomaly_score == pytest.approx(two.anomaly_score, abs=1e-6)
                assert one.predicted == two.predicted

    def test_any_engine_will_do(self, spots: DataSet, tmp_path: Path) -> None:
        bundle = load_bundle(make_bundle(tmp_path / "fake"))
        engine = EnginePredictor(bundle.engine(provider="cpu"), bundle.manifest)
        assert engine.digest is None
        assert engine.provider == "CPUExecutionProvider"
        assert [one.predicted for one in engine.predict(spots.test)] == [sample.label for sample in spots.test]

    def test_it_goes_the_way_of_the_server(self, spots: DataSet, predictor: BundlePredictor, tmp_path: Path) -> None:
        """Sizes, depths and colours that need every step of preprocessing."""
        bundle = load_bundle(make_bundle(tmp_path / "fake", white_level=4095))
        deep = write(tmp_path / "deep.png", texture("deep", height=200, width=150).astype(np.uint16) * 16)
        colour = write(
            tmp_path / "colour.jpg", np.repeat(texture("colour", height=50, width=333)[..., None], 3, axis=2)
        )
        samples = [Sample(deep, "good"), Sample(colour, "good")]
        engine = bundle.engine(provider="cpu")
        for sample, inspection in zip(samples, BundlePredictor(bundle, "cpu").predict(samples), strict=True):
            frame = read_frame(sample.path, 4095)
            expected = engine.run(to_model_input(frame, bundle.manifest.input)[None])
            assert inspection.anomaly_score == pytest.approx(float(expected.anomaly_score[0]), abs=1e-6)
            assert (inspection.frame_height, inspection.frame_width) == frame.shape[:2]

    def test_pixel_metrics_are_over_frame_pixels(
        self, spots: DataSet, predictor: BundlePredictor, measured: Measured
    ) -> None:
        report = measured.report
        scores, truth, hits = [], [], []
        for sample, inspection in zip(spots.test, predictor.predict(spots.test), strict=True):
            scores.append(resize_map(inspection.anomaly_map, 64, 96).ravel())
            mask = read_mask(sample.mask) if sample.mask else np.zeros((64, 96), bool)
            name = ["good", "bright", "dark"].index(sample.label)
            truth.append(mask.ravel() * name)
            planes = np.stack([resize_map(plane, 64, 96) for plane in inspection.class_map])
            hits.append((scores[-1] >= 0.25) * (planes.argmax(axis=0).ravel() + 1))
        flat, is_defect = np.concatenate(scores), np.concatenate(truth) > 0
        assert report["pixel_auroc"] == pytest.approx(reference.roc_auc_score(is_defect, flat), abs=1e-9)
        assert report["pixel_ap"] == pytest.approx(reference.average_precision_score(is_defect, flat), abs=1e-9)
        expected = reference.jaccard_score(np.concatenate(truth), np.concatenate(hits), average="macro")
        assert report["miou"] == pytest.approx(expected, abs=1e-9)

    def test_a_model_that_never_saw_a_good_part(self, spots: DataSet, tmp_path: Path) -> None:
        bundle = load_bundle(make_bundle(tmp_path / "fake", anomaly=False))
        report = evaluate(BundlePredictor(bundle, "cpu"), spots, spots.test, tmp_path / "out")
        for name in ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro", "miou"):
            assert report[name] is None
            assert name not in report["intervals"]
        assert any("never saw a good part" in note for note in report["notes"])
        assert any("the model has no anomaly map" in note for note in report["notes"])
        assert any("does not know the class good" in note for note in report["notes"])
        assert report["confusion_matrix"]["labels"] == ["bright", "dark", "good"]
        assert report["accuracy"] <= 11 / 20
        assert report["verdicts"]["PASS"] == 0
        assert all(line["anomaly_score"] is None for line in lines(tmp_path / "out"))
        assert "image_auroc" in strict_json(tmp_path / "out" / "report.json")


class TestRates:
    def test_by_hand(self, tmp_path: Path) -> None:
        data = read_data(make_folder(tmp_path / "data", test={"good": 4, "dent": 4}, masks=False))
        # In the order of the samples: dent first. Thresholds: review from 0.4, reject from 0.5.
        scores = [0.39, 0.41, 0.6, 0.9, 0.1, 0.2, 0.45, 0.5]
        labels = ["good", "dent", "dent", "dent", "good", "good", "good", "dent"]
        report = evaluate(Scripted(manifest("dent"), scores, labels), data, data.test, tmp_path / "out")
        assert [sample.label for sample in data.test] == ["dent"] * 4 + ["good"] * 4
        assert report["escape_rate"] == 0.25
        assert report["overkill_rate"] == 0.5, "a good part in review was not passed"
        assert report["review_rate"] == 0.25
        assert report["accuracy"] == 0.75
        assert report["image_auroc"] == pytest.approx(reference.roc_auc_score([1] * 4 + [0] * 4, scores))
        assert report["pixel_auroc"] is None
        assert any("no image of a defect has a mask" in note for note in report["notes"])

    def test_unsure_labels_count_in_accuracy_alone(self, tmp_path: Path) -> None:
        data = read_data(make_folder(tmp_path / "data", test={"good": 4, "dent": 2}, masks=False))
        samples = [
            replace(sample, defect_probability=1 / 3) if index == 5 else sample
            for index, sample in enumerate(data.test)
        ]
        scores = [0.7, 0.8, 0.1, 0.2, 0.3, 0.9]  # the unsure one scores highest and is rejected
        labels = ["dent", "dent", "good", "good", "good", "dent"]
        report = evaluate(Scripted(manifest("dent"), scores, labels), data, samples, tmp_path / "out")
        assert report["image_auroc"] == 1.0
        assert report["overkill_rate"] == 0.0
        assert report["accuracy"] == pytest.approx(5 / 6)
        assert report["verdicts"]["REJECT"] == 3
        assert any(note.startswith("1 images are ambiguous") for note in report["notes"])

    def test_one_class_training_maps_every_defect_to_anomaly(self, tmp_path: Path) -> None:
        data = read_data(make_folder(tmp_path / "data", train={"good": 2}, test={"crack": 1, "dent": 1, "good": 2}))
        scorer = Scripted(manifest("anomaly", by_score=True), [0.9, 0.1, 0.2, 0.3], ["good"] * 4)
        report = evaluate(scorer, data, data.test, tmp_path / "out")
        assert report["confusion_matrix"] == {"labels": ["good", "anomaly"], "counts": [[2, 0], [1, 1]]}
        assert report["counts"] == {"crack": 1, "dent": 1, "good": 2}
        assert [line["label"] for line in lines(tmp_path / "out")] == ["crack", "dent", "good", "good"]

    def test_a_class_that_the_model_does_not_know_counts_as_wrong(self, tmp_path: Path) -> None:
        data = read_data(make_folder(tmp_path / "data", test={"crack": 2, "dent": 2, "good": 2}))
        scorer = Scripted(manifest("dent"), [0.9] * 4 + [0.1] * 2, ["dent"] * 4 + ["good"] * 2)
        report = evaluate(scorer, data, data.test, tmp_path / "out")
        assert report["confusion_matrix"]["labels"] == ["good", "dent", "crack"]
        assert report["accuracy"] == pytest.approx(4 / 6)
        assert report["per_class"]["crack"] == {"precision": None, "recall": 0.0, "f1": 0.0, "support": 2}

    @pytest.mark.parametrize("label", ["good", "dent"])
    def test_one_kind_of_images(self, tmp_path: Path, label: str) -> None:
        data = read_data(make_folder(tmp_path / "data", test={label: 3}))
        report = evaluate(Scripted(manifest("dent"), [0.1, 0.2, 0.9], [label] * 3), data, data.test, tmp_path / "out")
        assert report["image_auroc"] is None
        assert report["overkill_rate" if label == "dent" else "escape_rate"] is None
        assert any("one kind only" in note for note in report["notes"])
        strict_json(tmp_path / "out" / "report.json")

    def test_a_score_that_is_no_number_spoils_nothing_else(self, tmp_path: Path) -> None:
        data = read_data(make_folder(tmp_path / "data", test={"dent": 2, "good": 3}))
        scorer = Scripted(
            manifest("dent"), [0.8, 0.9, 0.1, float("nan"), 0.2], ["dent", "dent", "good", "good", "good"]
        )
        report = evaluate(scorer, data, data.test, tmp_path / "out")
        assert report["image_auroc"] == 1.0
        assert report["verdicts"]["NO_VERDICT"] == 1
        assert report["overkill_rate"] == pytest.approx(1 / 3), "a good part without a verdict was not passed"
        assert lines(tmp_path / "out")[3]["anomaly_score"] is None
        assert lines(tmp_path / "out")[3]["verdict"] == Verdict.NO_VERDICT.name
        assert report["pixel_auroc"] is not None

    def test_no_image(self, tmp_path: Path) -> None:
        data = read_data(make_folder(tmp_path / "data", train={"good": 2}))
        with pytest.raises(DataError, match="no image to evaluate"):
            evaluate(Scripted(manifest("dent"), [], []), data, data.test, tmp_path / "out")


def test_large_frames_are_measured_smaller_and_keep_their_smallest_defect(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write(root / "test" / "good" / "a.png", texture("a", height=600, width=2100))
    write(root / "test" / "dent" / "b.png", texture("b", height=600, width=2100))
    mask = np.zeros((600, 2100), np.uint8)
    mask[301, 1001] = 255
    write(root / "ground_truth" / "dent" / "b_mask.png", mask)
    data = read_data(root)
    report = evaluate(Scripted(manifest("dent"), [0.9, 0.1], ["dent", "good"]), data, data.test, tmp_path / "out")
    assert report["aupro"] is not None
    assert report["pixel_auroc"] > 0.5
    assert any("1024" in note and note.startswith("2 frames") for note in report["notes"])


def test_good_images_and_masked_defects_alone_make_the_pixel_metrics(tmp_path: Path) -> None:
    """A defect without a mask must not count as all good: its hot map would be one large false alarm."""
    root = make_folder(tmp_path / "data", test={"dent": 2, "good": 1})
    (root / "ground_truth" / "dent" / "e001_mask.png").unlink()
    data = read_data(root)
    report = evaluate(
        Scripted(manifest("dent"), [0.5, 0.9, 0.1], ["dent", "dent", "good"]), data, data.test, tmp_path / "out"
    )
    mask = spot_mask(at=(0, 0)) > 0
    truth = np.concatenate([mask.ravel(), np.zeros(mask.size, bool)])
    scores = np.concatenate([np.full(mask.size, 0.5), np.full(mask.size, 0.1)])
    assert report["pixel_auroc"] == pytest.approx(reference.roc_auc_score(truth, scores))


def test_map_ahead_keeps_order_and_a_bounded_queue() -> None:
    started = 0
    lock = threading.Lock()

    def work(item: int) -> int:
        nonlocal started
        with lock:
            started += 1
        return item * item

    with ThreadPoolExecutor(4) as pool:
        for index, value in enumerate(map_ahead(pool, work, range(200), ahead=5)):
            assert value == index * index
            assert started <= index + 7

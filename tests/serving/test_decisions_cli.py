"""`defectlens whatif` and `escapes`, from files that the product itself wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

import defectlens
from tests.fakes import make_bundle
from tests.vision.test_layers import TRAINING_STACK, loaded_after


def run(*words: str | Path) -> tuple[int, dict[str, Any], str]:
    done = CliRunner().invoke(defectlens.main, [str(word) for word in words])
    lines = done.stdout.strip().splitlines()
    return done.exit_code, json.loads(lines[-1]) if lines else {}, done.stderr


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """100 good parts from 0 to 0.99, 50 defects from 0.5 to 1.48; rejected from 0.9 on, as `evaluate` writes them."""
    lines = []
    for index in range(150):
        good, score = index < 100, (index if index < 100 else 50 + 2 * (index - 100)) / 100
        share = 0.1 if good else 0.7
        lines.append(
            {
                "path": f"{'good' if good else 'bright'}/{index}.png",
                "label": "good" if good else "bright",
                "anomaly_score": score,
                "verdict": "REJECT" if score >= 0.9 else "PASS",
                "class_probabilities": {"good": 1 - share, "bright": share, "dark": 0.0},
            }
        )
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_other_thresholds(predictions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ["--image-threshold", "0.95", "--review-threshold", "0.8"]
    code, figures, said = run("whatif", "--scores", predictions, *given, "--out", out, "--json")
    assert code == 0, said
    rates = figures["rates"]
    assert rates["as it was"]["overkill_rate"]["hits"] == 10
    assert (rates["what if"]["overkill_rate"]["hits"], rates["what if"]["good_rejected"]["hits"]) == (20, 5)
    assert rates["what if"]["escape_rate"]["hits"] == 15
    assert rates["as it was"]["escape_rate"]["hits"] == 20
    # Good: 80 to 89 to review, 90 to 94 from reject to review; defects likewise 5 and 3 (90, 92 and 94).
    assert figures["changes"] == 10 + 5 + 5 + 3
    document = json.loads((out / "whatif.json").read_text())
    assert len(document["changes"]) == 23
    assert document["changes"][0]["anomaly_score"] >= document["changes"][-1]["anomaly_score"]
    assert document["curve"][0]["rates"]["overkill_rate"]["value"] == 1.0
    assert "as it was" in said
    page = (out / "whatif.html").read_text()
    assert page.count("<svg") == 2
    for part in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + part.partition("</svg>")[0] + "</svg>")  # noqa: S314
    assert "good/94.png" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", ""), "self-contained"


def test_a_rule_chooses_and_says_that_it_flatters(predictions: Path, tmp_path: Path) -> None:
    asked = ["--max-overkill", "0.05", "--max-review", "0.03"]
    code, figures, said = run("whatif", "--scores", predictions, *asked, "--out", tmp_path / "out", "--json")
    assert code == 0, said
    assert figures["rates"]["what if"]["overkill_rate"]["hits"] == 4
    assert figures["rates"]["what if"]["good_rejected"]["hits"] == 1
    assert "look better" in said
    assert "class thresholds are not replayed" in said
    for rule in (["--min-recall", "0.9"], ["--cost", "overkill=1,escape=50,review=0.2", "--defect-rate", "0.02"]):
        code, figures, said = run("whatif", "--scores", predictions, *rule, "--out", tmp_path / "out", "--json")
        assert code == 0, said
        assert figures["rates"]["what if"]["escape_rate"]["value"] <= 0.1


def test_the_bundle_brings_its_classes(predictions: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", probabilities=True)
    given = ["--bundle", bundle, "--image-threshold", "9", "--out", tmp_path / "out", "--json"]
    code, figures, said = run("whatif", "--scores", predictions, *given)
    assert code == 0, said
    assert figures["rates"]["what if"]["escape_rate"]["hits"] == 50, "0.7 is below the class threshold of 0.9"
    text = predictions.read_text().replace('"bright": 0.7', '"bright": 0.95')
    predictions.write_text(text)
    _, figures, _ = run("whatif", "--scores", predictions, *given)
    assert figures["rates"]["what if"]["escape_rate"]["hits"] == 0
    document = json.loads((tmp_path / "out" / "whatif.json").read_text())
    assert document["thresholds"]["as it was"]["image"] == 0.3
    predictions.write_text(text.replace("class_probabilities", "something_else"))
    code, _, said = run("whatif", "--scores", predictions, *given)
    assert code == 2
    assert "no class probabilities" in said


def test_answers_without_labels_have_rates_of_their_own(predictions: Path, tmp_path: Path) -> None:
    predictions.write_text(predictions.read_text().replace('"label"', '"nothing"'))
    out = tmp_path / "out"
    code, figures, said = run("whatif", "--scores", predictions, "--image-threshold", "0.5", "--out", out, "--json")
    assert code == 0, said
    assert set(figures["rates"]["what if"]) == {"pass_rate", "review_rate", "reject_rate"}
    assert "nobody said what they truly are" in said
    assert (out / "whatif.html").read_text().count("<svg") == 1
    code, _, said = run("whatif", "--scores", predictions, "--max-overkill", "0.05", "--out", out)
    assert code == 2
    assert "no labels" in said


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "exactly one"),
        (["--image-threshold", "1", "--max-overkill", "0.05"], "not both"),
        (["--image-threshold", "1", "--max-review", "0.05"], "not both"),
        (["--image-threshold", "1", "--review-threshold", "2"], "must not be above"),
        (["--max-overkill", "0.001"], "899 more are missing"),
    ],
)
def test_what_cannot_be_asked(predictions: Path, tmp_path: Path, options: list[str], reason: str) -> None:
    code, _, said = run("whatif", "--scores", predictions, *options, "--out", tmp_path / "out")
    assert code == 2
    assert reason in said
    assert not (tmp_path / "out").exists()


def test_names_from_files_are_text_and_not_markup(predictions: Path, tmp_path: Path) -> None:
    predictions.write_text(predictions.read_text().replace("good/80", "<script>alert(1)</script>"))
    run("whatif", "--scores", predictions, "--image-threshold", "0.5", "--out", tmp_path / "out")
    page = (tmp_path / "out" / "whatif.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_escapes_from_numbers_and_from_a_file(tmp_path: Path) -> None:
    code, figures, said = run(
        "escapes", "--checked", "500", "--found", "2", "--passed", "20000", "--caught", "340", "--json"
    )
    assert code == 0, said
    assert figures["share"]["value"] == 0.004
    assert figures["escape_rate"][1] == pytest.approx(80 / 420)
    assert "more checks would halve the interval" in said
    assert "drawn at random" in said
    path = tmp_path / "reviews.jsonl"
    lines = [{"verdict": "PASS", "defective": index < 2} for index in range(500)]
    lines += [{"verdict": "PASS"}] * 19_500 + [{"verdict": "REJECT", "defective": True}] * 340
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run("escapes", "--reviews", path, "--json")[1] == figures


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "--checked N and --found K"),
        (["--checked", "5"], "--checked N and --found K"),
        (["--checked", "5", "--found", "9"], "got 9 of 5"),
        (["--checked", "5", "--found", "1", "--reviews", "FILE"], "leave --checked"),
        (["--reviews", "FILE"], "no passed part that somebody checked"),
    ],
)
def test_numbers_that_cannot_be(tmp_path: Path, options: list[str], reason: str) -> None:
    path = tmp_path / "reviews.jsonl"
    path.write_text('{"verdict": "PASS"}\n')
    code, _, said = run("escapes", *[str(path) if word == "FILE" else word for word in options])
    assert code == 2
    assert reason in said


def test_it_needs_neither_torch_nor_a_drawing_library() -> None:
    modules = loaded_after("import serving.decisions_cli")
    assert modules.isdisjoint({*TRAINING_STACK, "onnxruntime", "jinja2", "scipy", "grpc"})

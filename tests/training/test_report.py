"""The report is one file that needs nothing else, says what is missing, and trusts no name."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.images import make_folder, texture, write
from tests.training.test_evaluate import Scripted, manifest
from training.data import Sample, read_data
from training.evaluate import evaluate
from training.gallery import Gallery
from training.plots import score_figure
from vision.types import FloatArray, Inspection, Verdict


class Page(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br", "img", "link", "path", "use", "rect"}:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in {"path", "use", "rect"}:
            return
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def report_of(folder: Path, scores: list[float | None], labels: list[str], **kind: Any) -> Page:
    """The page of an evaluation of three dents and three good parts, in this order."""
    data = read_data(make_folder(folder / "data", test={"dent": 3, "good": 3}))
    evaluate(Scripted(manifest("dent", **kind), scores, labels), data, data.test, folder / "out")
    return Page((folder / "out" / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("page")
    return report_of(folder, [0.45, 0.7, 0.9, 0.1, 0.2, 0.55], ["good", "dent", "dent", "good", "good", "dent"])


def test_it_is_self_contained(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object"}
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/jpeg;base64,", "#")), (tag, value)
    styles = page.text + " ".join(str(value) for _, attributes in page.tags for value in attributes.values())
    assert "@import" not in styles
    assert not re.search(r"url\((?!#)", styles)


def test_pictures_are_real_and_every_mistake_is_there(page: Page) -> None:
    pictures = page.of("img")
    assert len(pictures) == 6
    for picture in pictures:
        data = base64.b64decode(str(picture["src"]).removeprefix("data:image/jpeg;base64,"))
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None
        assert max(pixels.shape[:2]) <= 900
    shown = [str(picture["alt"]) for picture in pictures]
    assert shown[0].startswith("Overlay of good/e002.png"), "the good part with the highest score comes first"
    assert shown[3].startswith("Overlay of dent/e000.png"), "then the defect with the lowest"


def test_headlines_figures_and_tables(page: Page) -> None:
    for words in (
        "Image AUROC",
        "Overkill rate",
        "33.3 %",
        "Escape rate",
        "0.667",
        "reject from 0.5",
        "review from 0.4",
        "true \\ predicted",
        "data digest",
        "95 % bootstrap intervals",
    ):
        assert words in page.text, words
    titles = [attributes["aria-label"] for attributes in page.of("svg")]
    assert titles == ["Scores of good parts and defects", "ROC curve", "Precision-recall curve"]


def test_identifiers_of_the_figures_do_not_meet(page: Page) -> None:
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    text = "".join(str(value) for _, attributes in page.tags for value in attributes.values())
    for reference in re.findall(r"url\(#([^)]+)\)", text):
        assert reference in names


def test_figures_follow_the_colour_scheme() -> None:
    svg = score_figure({"good": np.array([0.1, 0.2]), "dent": np.array([0.3])}, "good", {"reject from": 0.25})
    assert "var(--good)" in svg
    assert "var(--defect)" in svg
    assert not re.search(r"#0[1-5]0[1-5]0[1-5]", svg)


def test_missing_figures_are_dashes_and_reasons(tmp_path: Path) -> None:
    data = read_data(make_folder(tmp_path / "data", test={"crack": 2, "dent": 2}))
    scorer = Scripted(manifest("crack", "dent", good=False), [None] * 4, ["crack", "dent", "dent", "dent"])
    evaluate(scorer, data, data.test, tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "never saw a good part" in page.text
    assert "not defined for these images" in page.text
    assert "None" not in page.text
    assert "nan" not in page.text.lower().split()
    assert not page.of("svg")
    assert len(page.of("img")) == 1, "the one wrong label"


def test_names_are_escaped(tmp_path: Path) -> None:
    name = "<b>&amp;'bold"
    root = tmp_path / "data"
    write(root / "test" / name / "<i>.png", texture("i"))
    write(root / "test" / "good" / "g.png", texture("g"))
    data = read_data(root)
    evaluate(Scripted(manifest(name), [0.3, 0.1], ["good", "good"]), data, data.test, tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert not page.of("i")
    assert all(attributes == {} for attributes in page.of("b"))
    assert f"{name}/<i>.png" in page.text


@pytest.mark.parametrize(
    "values",
    [[0.3], [0.3, 0.3, 0.3], [0.0, 0.0], [-3.0, -1.0], [1e-6, 0.01, 0.02, 0.03, 90.0], [1e30, 2e30]],
    ids=["one", "equal", "zero", "negative", "skewed", "huge"],
)
def test_any_range_of_scores_can_be_drawn(values: list[float]) -> None:
    svg = score_figure({"good": np.array(values), "dent": np.zeros(0)}, "good", {})
    assert svg.startswith("<svg")
    assert ("logarithmic" in svg) == (max(values) == 90.0)


class TestGallery:
    def inspection(self, score: float | None, predicted: str, surety: float = 0.9) -> Inspection:
        scores: FloatArray = np.array([surety, 1 - surety], np.float32)
        nothing: FloatArray = np.zeros((2, 2, 2), np.float32)
        return Inspection(
            Verdict.PASS, "", predicted, scores, scores, score, None, (), None, nothing, nothing, None, 8, 8
        )

    def add(self, gallery: Gallery, index: int, label: str, predicted: str, score: float | None, surety: float) -> None:
        sample = Sample(Path(f"{index}.png"), label, defect_probability=float(label != "good"))
        gallery.add(sample, label, self.inspection(score, predicted, surety))

    def names(self, gallery: Gallery) -> dict[str, list[int]]:
        return {
            heading.split()[0]: [int(one.sample.path.stem) for one in shown]
            for heading, shown in gallery.groups().items()
        }

    def test_the_worst_of_each_kind_in_order(self) -> None:
        gallery = Gallery()
        order = np.random.default_rng(0).permutation(100)
        for index in order:
            label = "good" if index % 2 else "dent"
            self.add(gallery, int(index), label, label, float(index), 0.9)
        assert self.names(gallery) == {"Good": [99, 97, 95, 93, 91, 89], "Defects": [0, 2, 4, 6, 8, 10]}

    def test_wrong_labels_are_the_surest_and_not_shown_twice(self) -> None:
        gallery = Gallery()
        for index in range(40):
            self.add(gallery, index, "dent", "scratch", float(index), 0.5 + index / 100)
        names = self.names(gallery)
        assert names["Defects"] == [0, 1, 2, 3, 4, 5]
        assert names["Other"] == [39, 38, 37, 36, 35, 34]

    def test_nothing_to_show(self) -> None:
        assert Gallery().groups() == {}

    def test_equal_and_missing_scores_can_be_ordered(self) -> None:
        gallery = Gallery()
        for index in range(50):
            self.add(gallery, index, "good", "dent", None if index % 2 else float("nan"), 0.9)
            self.add(gallery, index, "good", "good", 0.5, 0.9)
        assert self.names(gallery)["Good"] == [0, 1, 2, 3, 4, 5], "of equal ones, the first"

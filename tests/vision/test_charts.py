from __future__ import annotations

from xml.etree import ElementTree

import pytest

from vision.charts import Mark, Series, line_chart, ticks


def test_values_stand_where_they_belong() -> None:
    svg = line_chart(
        [Series("<overkill>", [0, 1, 2], [1.0, 0.5, 0.0], "--good", [0.9, 0.4, 0.0], [1.0, 0.6, 0.1])],
        title='"a" & b',
        x_label="x < y",
        y_label="share",
        marks=[Mark("now", 1.0), Mark("then & there", 1.0, 0.5, (0.5, 1.5), (0.4, 0.6), dash="2 2")],
    )
    root = ElementTree.fromstring(svg)  # noqa: S314, our own drawing
    space = "{http://www.w3.org/2000/svg}"
    line = root.find(f"{space}polyline")
    assert line is not None
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    (left, top), (middle, half), (right, bottom) = points
    assert left < middle < right
    assert middle == pytest.approx((left + right) / 2, abs=0.1)
    assert top < half < bottom
    circle = root.find(f"{space}circle")
    assert circle is not None
    assert (float(circle.attrib["cx"]), float(circle.attrib["cy"])) == (middle, half)
    assert "then & there" in {text.text for text in root.iter(f"{space}text")}


def test_flat_and_single_values_can_be_drawn() -> None:
    svg = line_chart([Series("one", [3.0], [0.0], "--good")], title="t", x_label="x", y_label="y")
    ElementTree.fromstring(svg)  # noqa: S314


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-3.2, 2.9, [-2, 0, 2]), (0.0, 0.05, [0, 0.01, 0.02, 0.03, 0.04, 0.05])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)

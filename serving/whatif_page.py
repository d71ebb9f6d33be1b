"""The page of `defectlens whatif`: one self-contained HTML file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from serving.rate_chart import rate_chart
from vision.calibration.evidence import percent
from vision.calibration.intervals import Rate
from vision.calibration.replay import Change, CurvePoint, Outcome, Thresholds
from vision.charts import Mark, Series, line_chart

ROWS = (
    ("overkill_rate", "Overkill", "good parts not passed ÷ good parts"),
    ("good_rejected", "of it rejected", "good parts rejected ÷ good parts"),
    ("escape_rate", "Escapes", "defective parts passed ÷ defective parts"),
    ("review_rate", "Review", "parts that a person has to look at ÷ all parts"),
    ("reject_rate", "Rejects", "rejected parts ÷ all parts"),
    ("pass_rate", "Passes", "passed parts ÷ all parts"),
)
"""Key, name and meaning of what the tables show."""

_SHOWN_CHANGES = 200
_COLOURS = {"overkill_rate": "--good", "escape_rate": "--defect", "review_rate": "--review"}


def write_page(
    out: Path,
    *,
    title: str,
    frames: int,
    outcomes: dict[str, Outcome],
    thresholds: dict[str, Thresholds | None],
    curve: Sequence[CurvePoint],
    changes: Sequence[Change],
    notes: Sequence[str],
) -> None:
    """Write the page; ``outcomes`` and ``thresholds`` by the name of the case, the one in force first."""
    page = Template(Path(__file__).with_name("whatif.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        frames=frames,
        table=_table(outcomes, thresholds),
        notes="".join(f"<li>{escape(note)}</li>" for note in notes),
        charts="".join(f'<section class="card">{chart}</section>' for chart in _charts(outcomes, thresholds, curve)),
        changes=_changes(changes),
    )
    out.write_text(page, encoding="utf-8")


def _table(outcomes: dict[str, Outcome], thresholds: dict[str, Thresholds | None]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in outcomes)
    rows = [f'<thead><tr><th scope="col"></th>{head}</tr></thead><tbody>']
    known = list(thresholds.values())
    for label, values in (
        ("reject from", [None if one is None else one.image for one in known]),
        ("review from", [None if one is None else one.review for one in known]),
    ):
        cells = "".join(f"<td>{'–' if value is None else f'{value:.4g}'}</td>" for value in values)
        rows.append(f'<tr><th scope="row">{label} (raw anomaly score)</th>{cells}</tr>')
    for key, name, meaning in ROWS:
        rates = [outcome.rates.get(key) for outcome in outcomes.values()]
        if any(rate is not None for rate in rates):
            cells = "".join(f"<td>{_cell(rate)}</td>" for rate in rates)
            rows.append(f'<tr><th scope="row">{name}<span class="soft"> {meaning}</span></th>{cells}</tr>')
    return f"<table>{''.join(rows)}</tbody></table>"


def _cell(rate: Rate | None) -> str:
    if rate is None:
        return "–"
    return (
        f'{percent(rate.value)}<span class="soft">{rate.hits} of {rate.of}; {percent(rate.low)} – {percent(rate.high)}'
        "</span>"
    )


def _charts(
    outcomes: dict[str, Outcome], thresholds: dict[str, Thresholds | None], curve: Sequence[CurvePoint]
) -> list[str]:
    names = list(thresholds)
    marks = [
        Mark(name, one.review, dash="" if name == names[0] else "5 4")
        for name, one in thresholds.items()
        if one is not None
    ]
    charts = [rate_chart(curve, marks, _COLOURS)]
    if {"overkill_rate", "escape_rate"} <= curve[0].rates.keys():
        charts.append(_trade(outcomes, names, curve))
    return charts


def _trade(outcomes: dict[str, Outcome], names: Sequence[str], curve: Sequence[CurvePoint]) -> str:
    """Escapes against overkill: what is bought with what."""
    overkill = [point.rates["overkill_rate"].value for point in curve]
    escapes = [point.rates["escape_rate"].value for point in curve]
    marks = []
    for name, outcome in outcomes.items():
        one, other = outcome.rates["overkill_rate"], outcome.rates["escape_rate"]
        reach = {"x_reach": (one.low, one.high), "y_reach": (other.low, other.high)}
        marks.append(Mark(name, one.value, other.value, **reach, dash="" if name == names[0] else "5 4"))
    return line_chart(
        [Series("every review threshold", overkill, escapes, "--defect")],
        title="Escapes against overkill",
        x_label="overkill: good parts not passed",
        y_label="escapes: defective parts passed",
        marks=marks,
        x_percent=True,
        x_range=(0.0, max(0.1, *(mark.x_reach[1] for mark in marks if mark.x_reach is not None))),
    )


def _changes(changes: Sequence[Change]) -> str:
    if not changes:
        return "<p>No verdict would change.</p>"
    counts = Counter((change.before.name, change.after.name) for change in changes)
    text = ", ".join(f"{count} from {before} to {after}" for (before, after), count in sorted(counts.items()))
    more = f" The first {_SHOWN_CHANGES} are listed; all are in whatif.json." if len(changes) > _SHOWN_CHANGES else ""
    rows = "".join(
        f"<tr><td>{escape(change.name)}</td><td>{escape(change.label)}</td><td>{change.anomaly_score:.4g}</td>"
        f"<td>{change.before.name}</td><td>{change.after.name}</td></tr>"
        for change in changes[:_SHOWN_CHANGES]
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("part", "is", "anomaly score", "was", "would be"))
    return f"<p>{text}.{more}</p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"

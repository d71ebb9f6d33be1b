"""``report.html`` of ``defectlens compare``: one self-contained file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from training.pages import page_template
from training.plots import error_time_figure

_NAMES = {
    "image_auroc": "Image AUROC",
    "accuracy": "Class accuracy",
    "aupro": "AUPRO",
    "pixel_ap": "Pixel AP",
    "miou": "mIoU",
}


def write_report(report: dict[str, Any], out: Path) -> None:
    """Render what is in ``compare.json``."""
    variants = report["variants"]
    points = {name: (one["cost"]["ms"], one["errors"], *one["errors_interval"]) for name, one in variants.items()}
    shown = [key for key in _NAMES if any(key in one["figures"] for one in variants.values())]
    page = page_template(Path(__file__).with_name("compare.html")).render(
        report=report,
        figures=[(key, _NAMES[key]) for key in shown],
        picture=Markup(error_time_figure(points, _what(report["measure"]))),  # noqa: S704 - drawn here, nothing of users
        what=_what(report["measure"]),
        spread=_spread,
    )
    out.write_text(page, encoding="utf-8")


def _what(measure: str) -> str:
    return "wrong labels" if measure == "labels" else "misordered pairs (1 − image AUROC)"


def _spread(value: dict[str, float | None] | None) -> str:
    if value is None:
        return "–"
    deviation = value["deviation"]
    return f"{value['mean']:.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")

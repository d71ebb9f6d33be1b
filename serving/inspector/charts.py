"""Bar charts and maps of positions as inline SVG; colours are CSS variables of the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from markupsafe import Markup

from serving.inspector.quality import Positions
from vision.drawing import colour_table

_BAR, _LABELS, _WIDTH = 26, 150, 620


def pareto(counts: Sequence[tuple[str, int]]) -> Markup:
    """Classes by how many parts they cost, with the share that is reached so far."""
    total = sum(count for _, count in counts)
    if not total:
        return Markup("")
    most = counts[0][1]
    room = _WIDTH - _LABELS - 130
    parts, reached = [], 0
    for index, (name, count) in enumerate(counts):
        reached += count
        y = index * (_BAR + 8)
        width = max(2.0, room * count / most)
        parts.append(
            f'<text x="{_LABELS - 10}" y="{y + 18}" text-anchor="end" fill="var(--ink)">{escape(name[:22])}</text>'
            f'<rect x="{_LABELS}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="3" fill="var(--reject)"/>'
            f'<text x="{_LABELS + width + 8:.1f}" y="{y + 18}" fill="var(--ink)">{count}'
            f'<tspan dx="8" fill="var(--soft)">{100 * reached / total:.0f} % so far</tspan></text>'
        )
    height = len(counts) * (_BAR + 8)
    title = "Rejected parts by defect class: " + ", ".join(f"{escape(name)} {count}" for name, count in counts)
    return Markup(  # noqa: S704, every name is escaped above
        f'<svg role="img" aria-label="{title}" viewBox="0 0 {_WIDTH} {height}" font-size="15" class="chart">'
        f"{''.join(parts)}</svg>"
    )


def position_map(positions: Positions) -> Markup:
    """Where on the part the regions lie, over the picture of one part."""
    rows, columns = positions.share.shape
    colours = colour_table()
    top = max(float(positions.share.max()), 1e-9)
    cells = []
    for row, column in zip(*np.nonzero(positions.share), strict=True):
        share = float(positions.share[row, column])
        red, green, blue = colours[round(255 * share / top)].tolist()
        cells.append(
            f'<rect x="{column}" y="{row}" width="1.02" height="1.02" fill="rgb({red},{green},{blue})" '
            f'fill-opacity="{0.25 + 0.6 * share / top:.2f}"><title>{100 * share:.0f} % of these parts</title></rect>'
        )
    title = f"Where the regions of {positions.parts} rejected parts lie"
    return Markup(  # noqa: S704, numbers alone
        f'<svg role="img" aria-label="{title}" viewBox="0 0 {columns} {rows}" class="map">'
        f'<image href="/pictures/{positions.example}/whole.png" width="{columns}" height="{rows}" '
        f'preserveAspectRatio="none"/>{"".join(cells)}</svg>'
    )

"""Line charts as inline SVG, for pages that must be made where no drawing library is installed.

Colours are CSS variables of the page (``--ink``, ``--soft``, ``--grid`` and those of the series), so that one file
serves light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 580, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 44, 52
_TICKS = 6


@dataclass(frozen=True, slots=True)
class Series:
    """A line through ``x`` and ``y``, with a band from ``low`` to ``high`` where they are given; all of one length.

    ``colour`` names a CSS variable; ``dash`` is an SVG dash pattern, so that lines are told apart without colours.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dash: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line at ``x``; with ``y``, a point there, whose reach to both sides is drawn as a cross."""

    name: str
    x: float
    y: float | None = None
    x_reach: tuple[float, float] | None = None
    y_reach: tuple[float, float] | None = None
    dash: str = ""


class _Frame:
    """From values to places in the picture."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x_range, self.y_range = x, y

    def x(self, value: float) -> float:
        low, high = self.x_range
        share = (min(max(value, low), high) - low) / (high - low)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        share = (min(max(value, low), high) - low) / (high - low)
        return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    marks: Sequence[Mark] = (),
    x_percent: bool = False,
    x_range: tuple[float, float] | None = None,
) -> str:
    """Draw shares (0..1, shown in per cent) against a value, or against another share."""
    everything = [value for one in series for value in one.x] + [mark.x for mark in marks]
    low, high = x_range or (min(everything), max(everything))
    if high <= low:
        low, high = low - 0.5, high + 0.5
    top = max([0.05, *(value for one in series for value in (*one.y, *one.high))])
    frame = _Frame((low, high), (0.0, min(1.0, top)))
    parts = [
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif" font-size="12">',
        *_axes(frame, x_label, y_label, x_percent=x_percent),
        *(_band(one, frame) for one in series if len(one.low)),
        *(_line(one, frame) for one in series),
        *(piece for mark in marks for piece in _mark(mark, frame)),
        *_legend(series),
        "</svg>",
    ]
    return "\n".join(parts)


def _axes(frame: _Frame, x_label: str, y_label: str, *, x_percent: bool) -> list[str]:
    bottom, left = _HEIGHT - _BOTTOM, _LEFT
    parts = []
    for value in ticks(*frame.y_range):
        at = frame.y(value)
        parts.append(f'<line x1="{left}" y1="{at}" x2="{_WIDTH - _RIGHT}" y2="{at}" stroke="var(--grid)"/>')
        parts.append(
            f'<text x="{left - 8}" y="{at + 4}" text-anchor="end" fill="var(--soft)">{100 * value:.3g} %</text>'
        )
    for value in ticks(*frame.x_range):
        at = frame.x(value)
        text = f"{100 * value:.3g} %" if x_percent else f"{value:.4g}"
        parts.append(f'<line x1="{at}" y1="{bottom}" x2="{at}" y2="{bottom + 5}" stroke="var(--soft)"/>')
        parts.append(f'<text x="{at}" y="{bottom + 19}" text-anchor="middle" fill="var(--soft)">{text}</text>')
    parts.append(f'<line x1="{left}" y1="{bottom}" x2="{_WIDTH - _RIGHT}" y2="{bottom}" stroke="var(--soft)"/>')
    middle = (left + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 10}" text-anchor="middle" fill="var(--ink)">{escape(x_label)}</text>'
    )
    height = (_TOP + bottom) / 2
    parts.append(
        f'<text x="14" y="{height}" text-anchor="middle" fill="var(--ink)" transform="rotate(-90 14 {height})">'
        f"{escape(y_label)}</text>"
    )
    return parts


def _band(one: Series, frame: _Frame) -> str:
    upper = [f"{frame.x(x)},{frame.y(y)}" for x, y in zip(one.x, one.high, strict=True)]
    lower = [f"{frame.x(x)},{frame.y(y)}" for x, y in zip(one.x, one.low, strict=True)]
    return f'<polygon points="{" ".join([*upper, *reversed(lower)])}" fill="var({one.colour})" opacity="0.16"/>'


def _line(one: Series, frame: _Frame) -> str:
    points = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in zip(one.x, one.y, strict=True))
    dash = f' stroke-dasharray="{one.dash}"' if one.dash else ""
    return f'<polyline points="{points}" fill="none" stroke="var({one.colour})" stroke-width="2"{dash}/>'


def _mark(mark: Mark, frame: _Frame) -> list[str]:
    at, dash = frame.x(mark.x), f' stroke-dasharray="{mark.dash}"' if mark.dash else ""
    stroke = f'stroke="var(--ink)" stroke-width="1.4"{dash}'
    if mark.y is None:
        side = "end" if at > _WIDTH / 2 else "start"
        text = f'<text x="{at + (-5 if side == "end" else 5)}" y="{_TOP + 12 + (16 if mark.dash else 0)}"'
        return [
            f'<line x1="{at}" y1="{_TOP}" x2="{at}" y2="{_HEIGHT - _BOTTOM}" {stroke}/>',
            f'{text} text-anchor="{side}" fill="var(--ink)">{escape(mark.name)}</text>',
        ]
    down = frame.y(mark.y)
    parts = []
    if mark.x_reach is not None:
        ends = [frame.x(value) for value in mark.x_reach]
        parts.append(f'<line x1="{ends[0]}" y1="{down}" x2="{ends[1]}" y2="{down}" {stroke}/>')
    if mark.y_reach is not None:
        ends = [frame.y(value) for value in mark.y_reach]
        parts.append(f'<line x1="{at}" y1="{ends[0]}" x2="{at}" y2="{ends[1]}" {stroke}/>')
    fill = "var(--card)" if mark.dash else "var(--ink)"
    parts.append(f'<circle cx="{at}" cy="{down}" r="5" fill="{fill}" stroke="var(--ink)" stroke-width="1.6"/>')
    parts.append(f'<text x="{at + 9}" y="{down - 9}" fill="var(--ink)">{escape(mark.name)}</text>')
    return parts


def _legend(series: Sequence[Series]) -> list[str]:
    if len(series) < 2:
        return []
    parts, x = [], float(_LEFT)
    for one in series:
        dash = f' stroke-dasharray="{one.dash}"' if one.dash else ""
        parts.append(
            f'<line x1="{x}" y1="18" x2="{x + 26}" y2="18" stroke="var({one.colour})" stroke-width="2.4"{dash}/>'
        )
        parts.append(f'<text x="{x + 32}" y="22" fill="var(--ink)">{escape(one.name)}</text>')
        x += 50 + 6.4 * len(one.name)
    return parts


def ticks(low: float, high: float) -> list[float]:
    """Round values inside low..high, about six of them."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step + 0.0 for index in range(first, math.floor(high / step + 1e-9) + 1)]

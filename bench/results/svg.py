"""Line charts as SVG inside a page: scales, ticks, lines, marks.  Pure.

Caller: ``bench.results.page``.  No script, no font, no address; every text is escaped here.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

WIDTH: Final = 760
HEIGHT: Final = 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 46
TICKS: Final = 6
MOST_POINTS: Final = 1000
Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """From the values ``low`` to ``high`` onto the pixels ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of a value; values outside lie on the nearer end."""
        if self.high <= self.low:
            return self.start
        share = min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, most: int = TICKS) -> list[float]:
    """Round values within ``low`` and ``high``, at distances of 1, 2 or 5 times a power of ten; or ``low``."""
    raw = (high - low) / most
    if not sys.float_info.min <= raw < math.inf:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Of too many points an even choice that keeps the highest of each group: a peak must not vanish."""
    size = math.ceil(len(points) / most) if points else 1
    return [max(points[at : at + size], key=lambda point: point[1]) for at in range(0, len(points), size)]


@dataclass(frozen=True)
class Line:
    """A named line; ``kind`` is one of a..d, its colour."""

    name: str
    kind: str
    points: Sequence[Point]


@dataclass
class Chart:
    """``x_ticks``: where the ticks stand and what they say; None: round numbers."""

    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    bars: list[Point] = field(default_factory=list)
    """Counts, drawn from below against a scale of their own."""
    bars_label: str = ""
    marks: list[tuple[float, str]] = field(default_factory=list)
    """Upright lines with a word."""
    x_ticks: list[tuple[float, str]] | None = None


def drawn(chart: Chart) -> str:
    """The chart as an element; one sentence when there is nothing to draw."""
    lines = [Line(line.name, line.kind, thinned(line.points)) for line in chart.lines if line.points]
    points = [point for line in lines for point in line.points]
    if not points:
        return f"<p>{escape(chart.title)}: nothing was measured.</p>"
    xs = [x for x, _ in points] + [x for x, _ in chart.bars] + [x for x, _ in chart.marks]
    across = Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    up = Scale(0.0, max(y for _, y in points) * 1.05 or 1.0, HEIGHT - BOTTOM, TOP)
    parts = [*_axes(chart, across, up), *_bars(chart, across), *_marks(chart, across)]
    parts += [_path(line, across, up) for line in lines]
    parts += _legend([(line.kind, line.name) for line in lines] + ([("bar", chart.bars_label)] if chart.bars else []))
    label = escape(chart.title, quote=True)
    inside = "\n".join(parts)
    return (
        f'<figure><figcaption>{escape(chart.title)}</figcaption>\n'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">\n{inside}\n</svg></figure>'
    )  # fmt: skip


def _axes(chart: Chart, across: Scale, up: Scale) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = [f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>']
    for value in ticks(up.low, up.high):
        y = up.at(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{value:g}", "end"))
    x_ticks = chart.x_ticks or [(value, f"{value:g}") for value in ticks(across.low, across.high)]
    parts += [_text(across.at(value), bottom + 16, word, "middle") for value, word in x_ticks]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, chart.x_label, "middle"))
    parts.append(_text(LEFT, TOP - 4, chart.y_label, "start"))
    return parts


def _bars(chart: Chart, across: Scale) -> list[str]:
    highest = max((y for _, y in chart.bars), default=0.0)
    if not highest:
        return []
    up = Scale(0.0, highest, HEIGHT - BOTTOM, HEIGHT - BOTTOM - 80)
    return [f'<path class="bar" d="M{across.at(x):.1f} {HEIGHT - BOTTOM}V{up.at(y):.1f}"/>' for x, y in chart.bars if y]


def _marks(chart: Chart, across: Scale) -> list[str]:
    return [
        f'<path class="mark" d="M{across.at(x):.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
        + _text(across.at(x) - 4, TOP + 12, word, "end" if across.at(x) > WIDTH / 2 else "start")
        for x, word in chart.marks
    ]


def _path(line: Line, across: Scale, up: Scale) -> str:
    steps = "L".join(f"{across.at(x):.1f} {up.at(y):.1f}" for x, y in line.points)
    dots = "".join(f'<circle class="{line.kind}" cx="{across.at(x):.1f}" cy="{up.at(y):.1f}" r="3"/>'
                   for x, y in line.points) if len(line.points) <= 40 else ""  # fmt: skip
    return f'<path class="line {line.kind}" d="M{steps}"/>{dots}'


def _legend(entries: Sequence[tuple[str, str]]) -> list[str]:
    parts, at = [], LEFT + 90.0
    for kind, name in entries:
        parts.append(f'<path class="line {kind}" d="M{at:.0f} {TOP - 8}h18"/>')
        parts.append(_text(at + 22, TOP - 4, name, "start"))
        at += 40 + 7 * len(name)
    return parts


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def curve_of(percentile: Callable[[float], float], names: Sequence[float]) -> list[Point]:
    """A percentile curve on an axis on which each further nine is as far away as the one before."""
    return [(-math.log10(1 - q / 100), percentile(q)) for q in names]
